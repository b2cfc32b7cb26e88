"""The systems: each maps a batch to a loss and to predictions, and names its tasks.

Adding one is a module here with a subclass of ``System``, and a line in SYSTEMS.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from erc_jax.data.dialogue import Dialogue
from erc_jax.data.labels import LabelSpace
from erc_jax.errors import UserError

if TYPE_CHECKING:
    from erc_jax.data.batching import Split

SYSTEMS = {
    "fmerl": "erc_jax.systems.fmerl:Fmerl",
    "fine_tuning": "erc_jax.systems.fine_tuning:FineTuning",
    "mtl_erc_es": "erc_jax.systems.mtl_erc_es:MtlErcEs",
    "response": "erc_jax.systems.response:Response",
    "sent_emo_context": "erc_jax.systems.sent_emo_context:SentEmoContext",
}

Params = Any  # a pytree of arrays
HEAD = "head_"  # the parameters of a task's head lie under HEAD + its name
REFERENCE = "reference"  # parameters that are read off the data after training lie under this name


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


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss that is minimised; each batch gives one update per objective, in turn.

    Attributes:
      loss: (params, batch, key) to the loss to minimise, float32 [], and its parts to be shown.
      changes: fields of ``config.train`` that are others for this objective's optimizer.
      modules: names at the top of the parameters that it trains; None is all.
      epochs: the first epoch in which it is used and the first in which it no longer is; None is
        the end of training.
    """

    loss: Callable[[Params, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    modules: tuple[str, ...] | None = None
    epochs: tuple[int, int | None] = (0, None)


class Run(Protocol):
    """Runs a system's function over a whole split: see ``erc_jax.predictor.Predictor.run``."""

    def __call__(
        self,
        function: Callable[[Params, Any], Mapping[str, jax.Array]],
        params: Params,
        examples: Split,
    ) -> dict[str, np.ndarray]: ...


class System(abc.ABC):
    """What the training loop asks of a system."""

    notes: Sequence[str] = ()  # what the user should be told once, such as a task that was left out

    # Whether it predicts with what ``Recognition.fit_reference`` gives.
    has_reference = False

    # Whether it learns a space in which distances tell emotions: it is then a ``Recognition`` that
    # has ``embed`` and ``with_support``.
    learns_space = False

    dtype = "float32"  # of the computation; see ``config.model.dtype``

    @abc.abstractmethod
    def init(self, key: jax.Array, batch: Any) -> Params:
        """Parameters for batches like this one."""

    @abc.abstractmethod
    def loss(
        self, params: Params, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss to minimise, float32 [], and its parts to be shown."""

    # What most systems leave as it is.

    def training_examples(self, examples: Split) -> Split:
        """The training split, as batches are drawn from it."""
        return examples

    def objectives(self) -> Sequence[Objective]:
        """What a training step minimises."""
        return (Objective(self.loss),)

    def to_published(self, params: Params) -> Params:
        """Parameters as other runs take them over: a trained encoder is in the published layout."""
        return params

    def from_published(self, params: Params) -> Params:
        """The inverse of ``to_published``."""
        return params

    def trained_encoder(self, params: Params) -> Params | None:
        """The parameters of the encoder that is trained here, in the published layout, if any."""
        del params
        return None


class Recognition(System):
    """A system that names what the utterances of dialogues express: emotions first of all."""

    tasks: Sequence[Task]

    # What its batches hold of an utterance: "features" of a frozen encoder, those of its
    # "modalities", or its "tokens".
    inputs = "features"

    # Utterances of the longest dialogue that it reads; None is as many as there are.
    longest: int | None = None

    # If given, a batch has rows of so many utterances in place of whole dialogues' (``Examples``).
    window: int | None = None

    @abc.abstractmethod
    def __init__(
        self,
        config: ConfigDict,
        labels: LabelSpace,
        encoder: Any = None,
    ): ...

    @abc.abstractmethod
    def targets(self, dialogues: Sequence[Dialogue]) -> dict[str, np.ndarray]:
        """Task to classes int32 [N] of all utterances in order, -1 where there is no label."""

    @abc.abstractmethod
    def predict(self, params: Params, batch: Any) -> dict[str, jax.Array]:
        """Task to class probabilities float32 [G, N, C]."""

    @abc.abstractmethod
    def describe(
        self, dialogue: Dialogue, probabilities: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """Per utterance, what ``predict`` writes beside speaker and text.

        Args:
          dialogue: T utterances.
          probabilities: task to float32 [T, C].
        """

    # What most systems leave as it is.

    def fit_reference(self, params: Params, run: Run, train: Split, selection: Split) -> Params:
        """Parameters with what is not learned but read off the data, under REFERENCE.

        Args:
          params: after training, or after one of its epochs.
          run: runs a function of this system over a split.
          train: the training split.
          selection: the split on which choices are made.
        """
        del run, train, selection
        return params

    def further_scores(self, params: Params, run: Run, examples: Split) -> dict[str, Any]:
        """What a split's block in metrics.json says besides the tasks' scores.

        Numbers are averaged over seeds.
        """
        del params, run, examples
        return {}

    def about(self) -> dict[str, Any]:
        """What is true of all predictions for a dialogue, such as the scale of its ratings."""
        return {}

    # What systems that match descriptions of emotions have, and others refuse.

    def with_emotions(self, labels: LabelSpace) -> Recognition:
        """The same system that names other emotions, with the same parameters.

        Args:
          labels: the emotions, with descriptions.

        Raises:
          UserError: this system names those that it was trained on.
        """
        del labels
        raise UserError(
            "this run names the emotions that it was trained on; runs of fmerl can name others "
            "from their descriptions"
        )

    # What systems that learn a space have, and others refuse.

    def embed(self, params: Params, batch: Any) -> dict[str, jax.Array]:
        """``vectors`` float32 [G, N, D] of utterances in the learned space.

        Raises:
          UserError: this system learns none.
        """
        del params, batch
        raise self._no_space()

    def with_support(
        self, params: Params, run: Run, examples: Split, labels: LabelSpace
    ) -> tuple[Recognition, Params]:
        """A system that names other emotions, known from a few labelled examples only.

        Args:
          params: of this system.
          run: runs a function of this system over a split.
          examples: with labels of the task "emotion", classes of ``labels``.
          labels: the new emotions.

        Raises:
          UserError: this system learns no space.
        """
        del params, run, examples, labels
        raise self._no_space()

    def require_space(self) -> None:
        """Raises UserError where this system learns no space, before any work is done for it."""
        if not self.learns_space:
            raise self._no_space()

    def _no_space(self) -> UserError:
        return UserError(
            "this run learned no space in which distances tell emotions, so examples cannot tell "
            "it new ones; runs of sent_emo_context can"
        )


def make_system(config: ConfigDict, labels: Any, encoder: Any = None) -> Any:
    """The system that ``config.system`` names.

    Args:
      config: of the experiment.
      labels: what is classified, a LabelSpace; of "response" the classes of each head.
      encoder: that the system itself works with: which fine_tuning and response train, or with
        which fmerl embeds descriptions; None for other systems, which see their encoder's features.

    Raises:
      UserError: there is no system of this name.
    """
    if config.system not in SYSTEMS:
        nearest = difflib.get_close_matches(config.system, SYSTEMS, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise UserError(f"system is {config.system!r}; expected {', '.join(SYSTEMS)}.{hint}")
    module, _, name = SYSTEMS[config.system].partition(":")
    system = getattr(importlib.import_module(module), name)(config, labels, encoder)
    system.dtype = config.model.dtype
    return system
