"""The systems: each maps a batch to a loss and to predictions, and names its tasks.

Adding one is a module here with a class that has the methods of ``System``, and a line in SYSTEMS.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from erc_jax.data.dialogue import Dialogue
from erc_jax.data.labels import LabelSpace
from erc_jax.errors import UserError

if TYPE_CHECKING:
    from erc_jax.encoders.sentence import SentenceEncoder

SYSTEMS = {
    "fine_tuning": "erc_jax.systems.fine_tuning:FineTuning",
    "mtl_erc_es": "erc_jax.systems.mtl_erc_es:MtlErcEs",
}

Params = Any  # a pytree of arrays
HEAD = "head_"  # the parameters of a task's head lie under HEAD + its name


@dataclasses.dataclass(frozen=True)
class Task:
    """Something that is classified per utterance.

    Attributes:
      name: "emotion" is the main task; the others' scores stand under their name.
      classes: label names.
      neutral: the class that ``..._no_neutral`` scores leave out, if there is one.
    """

    name: str
    classes: tuple[str, ...]
    neutral: str | None = None


class System(Protocol):
    """What the training loop, scoring and prediction ask of a system."""

    tasks: Sequence[Task]
    notes: Sequence[str]  # what the user should be told once, such as a task that was left out

    # What its batches hold of an utterance: "features" of a frozen encoder, or its "tokens".
    inputs: str

    def __init__(
        self, config: ConfigDict, labels: LabelSpace, encoder: SentenceEncoder | None = None
    ): ...

    def targets(self, dialogues: Sequence[Dialogue]) -> dict[str, np.ndarray]:
        """Task to classes int32 [N] of all utterances in order, -1 where there is no label."""

    def init(self, key: jax.Array, batch: Any) -> Params:
        """Parameters for batches like this one."""

    def loss(
        self, params: Params, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss to minimise, float32 [], and its parts to be shown."""

    def predict(self, params: Params, batch: Any) -> dict[str, jax.Array]:
        """Task to class probabilities float32 [G, N, C]."""

    def describe(
        self, dialogue: Dialogue, probabilities: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """Per utterance, what ``predict`` writes beside speaker and text.

        Args:
          dialogue: T utterances.
          probabilities: task to float32 [T, C].
        """


def make_system(
    config: ConfigDict, labels: LabelSpace, encoder: SentenceEncoder | None = None
) -> System:
    """The system that ``config.system`` names.

    Args:
      config: of the experiment.
      labels: what is classified.
      encoder: of the utterances; systems of features see its width when they see features.

    Raises:
      UserError: there is no system of this name.
    """
    if config.system not in SYSTEMS:
        nearest = difflib.get_close_matches(config.system, SYSTEMS, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise UserError(f"system is {config.system!r}; expected {', '.join(SYSTEMS)}.{hint}")
    module, _, name = SYSTEMS[config.system].partition(":")
    return getattr(importlib.import_module(module), name)(config, labels, encoder)
