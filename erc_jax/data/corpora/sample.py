"""The sample: a few made-up conversations that come with the package, to try things out."""

from __future__ import annotations

import importlib.resources
from importlib.resources.abc import Traversable
from pathlib import Path

from erc_jax.data.corpora.base import DialogueBuilder
from erc_jax.data.corpora.meld import Meld
from erc_jax.errors import UserError

FOLDER = importlib.resources.files("erc_jax.data") / "sample"


class Sample(DialogueBuilder):
    """Written for this package; MELD's emotions. Scores on it say nothing about real talk."""

    name = "sample"
    DESCRIPTION = "Made-up conversations with MELD's emotions"
    LICENSE = "Apache-2.0"
    EMOTIONS = Meld.EMOTIONS
    NEUTRAL = Meld.NEUTRAL
    POLARITY = Meld.POLARITY
    SYNTHETIC = True

    @classmethod
    def fetch(cls, folder: Path) -> Traversable:
        del folder  # nothing to download
        return FOLDER

    @classmethod
    def locate(cls, folder: Traversable) -> dict[str, Traversable]:
        if folder != FOLDER:
            raise UserError(
                f"data.source is {folder}, but the corpus is the sample, which has files of its "
                "own; use data.name=own for yours"
            )
        return super().locate(folder)
