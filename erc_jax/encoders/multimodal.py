"""What makes the modalities of utterances: a text encoder, and files that others made."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erc_jax.data.dialogue import Dialogue
from erc_jax.data.feature_files import FeatureTable, align
from erc_jax.data.features import utterance_features
from erc_jax.data.modalities import Modalities
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.errors import UserError
from erc_jax.progress import say

LARGEST = 10.0  # standard deviations: a channel that hardly varies in training may leap elsewhere

Tables = Mapping[str, FeatureTable]  # by modality


@dataclasses.dataclass(frozen=True)
class FileModality:
    """A modality that is read from feature files, each channel brought to mean 0, variance 1.

    Attributes:
      extractor, version: what makes the features; those of other files must be the same.
      mean: float32 [D], over the training split.
      deviation: float32 [D], standard deviation there; 1 of a channel that does not vary.
    """

    extractor: str
    version: str
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, table: FeatureTable) -> FileModality:
        """As a training split's features have it.

        Raises:
          UserError: there are none.
        """
        if not len(table.features):
            raise UserError(
                f"the training split's features of {table.extractor} are of no utterance; at least "
                "one is needed"
            )
        exact = table.features.astype(np.float64)
        mean, deviation = exact.mean(axis=0), exact.std(axis=0)
        varies = deviation > 1e-6 * np.abs(mean)  # what is less is rounding
        return cls(
            table.extractor,
            table.version,
            mean.astype(np.float32),
            np.where(varies, deviation, 1.0).astype(np.float32),
        )

    @property
    def width(self) -> int:
        return len(self.mean)

    def to_json(self) -> dict[str, Any]:
        return {
            "extractor": self.extractor,
            "version": self.version,
            "mean": self.mean.tolist(),
            "deviation": self.deviation.tolist(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> FileModality:
        mean, deviation = (np.array(record[k], np.float32) for k in ("mean", "deviation"))
        return cls(record["extractor"], record["version"], mean, deviation)

    def scaled(self, features: np.ndarray, table: FeatureTable, where: str) -> np.ndarray:
        """Features float32 [N, D], as the model reads them: scaled, and at most LARGEST.

        Raises:
          UserError: another program made them than those that the model was trained on.
        """
        made = (table.extractor, table.version, table.width)
        if made != (self.extractor, self.version, self.width):
            raise UserError(
                f"{where}: the features are {table.extractor} {table.version} of width "
                f"{table.width}; the model was trained on {self.extractor} {self.version} of "
                f"width {self.width}"
            )
        return np.clip((features - self.mean) / self.deviation, -LARGEST, LARGEST)


class MultimodalEncoder:
    """Makes ``Modalities`` of dialogues.

    Attributes:
      text: reads the texts; None where text is not used, or comes from files.
      files: the modalities that come from files.
      name, folder, sha256: of the text encoder, and of what the files are; see ``SentenceEncoder``.
      width: of all features together.
    """

    def __init__(
        self,
        text: SentenceEncoder | None,
        files: Mapping[str, FileModality],
        tables: Tables | None = None,
        sha256: str | None = None,
    ):
        """An encoder.

        Args:
          text: see above.
          files: see above.
          tables: the training split's, which decide ``sha256``.
          sha256: as it was in training, if there are no tables.
        """
        self.text = text
        self.files = files
        self.name = text.name if text else "feature files"
        self.folder = text.folder if text else Path()
        self.width = (text.width if text else 0) + sum(file.width for file in files.values())
        parts = [text.sha256] if text else []
        parts += [f"{name} {table.sha256}" for name, table in (tables or {}).items()]
        if sha256 is None:
            # Of a text alone, its encoder's.
            alone = text is not None and not files
            sha256 = parts[0] if alone else hashlib.sha256("\n".join(parts).encode()).hexdigest()
        self.sha256 = sha256

    @property
    def widths(self) -> dict[str, int]:
        """Width of each modality."""
        widths = {"text": self.text.width} if self.text else {}
        return widths | {name: file.width for name, file in self.files.items()}

    def encode(
        self,
        dialogues: Sequence[Dialogue],
        tables: Tables,
        *,
        cached: bool = True,
        progress: Callable[[int, int], None] | None = None,
        where: str = "",
    ) -> Modalities:
        """The modalities of N utterances.

        Args:
          dialogues: with N utterances in all.
          tables: features of those modalities that come from files, as far as there are any.
          cached: whether text features are looked up in the cache, and kept there.
          progress: called with (done, total) while the text encoder works.
          where: what these dialogues are, for what is said about them.

        Raises:
          UserError: features belong to other dialogues, or were made by another program.
        """
        n_utterances = sum(len(dialogue.utterances) for dialogue in dialogues)
        features: dict[str, np.ndarray] = {}
        present: dict[str, np.ndarray] = {}
        if self.text is not None:
            if cached:
                features["text"] = utterance_features(dialogues, self.text, progress=progress)
            else:
                features["text"] = self.text.encode_dialogues(dialogues, progress=progress)
            present["text"] = np.ones(n_utterances, bool)
        if unread := tables.keys() - self.files.keys():
            raise UserError(
                f"features of {min(unread)} are given, but this model reads no such files; it "
                f"reads {', '.join(self.files) or 'text alone'}"
            )
        for name, file in self.files.items():
            if name not in tables:
                features[name] = np.zeros((n_utterances, file.width), np.float32)
                present[name] = np.zeros(n_utterances, bool)
            else:
                place = f"{where} {name} features".strip()
                found, present[name] = align(tables[name], dialogues, place)
                scaled = file.scaled(found, tables[name], place)
                features[name] = np.where(present[name][:, None], scaled, 0).astype(np.float32)
            if missing := int((~present[name]).sum()):
                total = f"{n_utterances:,} {where}".strip()
                say(f"Note: {missing:,} of {total} utterances have no {name}")
        if self.files and not any(there.any() for there in present.values()):
            raise UserError(
                f"none of the {f'{where} utterances'.strip()} has any of the features that the "
                f"model reads, {', '.join(self.files)}; --features {min(self.files)}=FILE gives "
                "some"
            )
        return Modalities(features, present)

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, besides name, folder, sha256 and width."""
        return {
            "text": {"sha256": self.text.sha256} if self.text else None,
            "files": {name: file.to_json() for name, file in self.files.items()},
        }

    def blank(self) -> Modalities:
        """One utterance of zeros."""
        return Modalities(
            {name: np.zeros((1, width), np.float32) for name, width in self.widths.items()},
            {name: np.ones(1, bool) for name in self.widths},
        )
