"""A trained model, from its workdir alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from erc_jax import progress
from erc_jax.data.batching import Examples
from erc_jax.data.descriptions import known_descriptions, load_descriptions
from erc_jax.data.dialogue import Dialogue, iter_dialogues
from erc_jax.data.labels import LabelSpace
from erc_jax.encoders.multimodal import Tables
from erc_jax.errors import UserError
from erc_jax.experiment import Encoder, described, to_arrays
from erc_jax.predictor import Predictor, label_dialogues
from erc_jax.progress import say
from erc_jax.sharding import make_mesh
from erc_jax.systems import Params, Recognition
from erc_jax.workdir import load_labelling_run


def _read_support(path: Path) -> tuple[list[Dialogue], LabelSpace]:
    """Labelled conversations, and the emotions that they name."""
    dialogues, counts = [], Counter[str]()
    for places, dialogue in iter_dialogues(path):
        for place, utterance in zip(places, dialogue.utterances, strict=True):
            # A label under a name that is not read would be an example that silently counts not.
            if unknown := [*dialogue.extra, *utterance.extra]:
                raise UserError(
                    f"{place}: unknown key {unknown[0]!r} in a support file; expected id and "
                    "utterances with speaker, text and emotion"
                )
            if utterance.emotion:
                counts[utterance.emotion] += 1
        dialogues.append(dialogue)
    if len(counts) < 2:
        found = ", ".join(counts) or "none"
        raise UserError(
            f"{path}: examples of at least two emotions are needed, found {found}; an utterance's "
            'label is its "emotion"'
        )
    say(
        f"Support: {', '.join(f'{emotion} ({count})' for emotion, count in counts.items())}. "
        "An utterance gets the emotion whose examples' mean is nearest."
    )
    return dialogues, LabelSpace(tuple(counts))


def _labels_of(
    trained: LabelSpace, emotions: Sequence[str], descriptions: str | Path | None
) -> LabelSpace:
    """The emotions that are asked for, or the trained ones, with descriptions."""
    known = known_descriptions() | dict(trained.descriptions or {})
    if descriptions is not None:
        known |= load_descriptions(Path(descriptions))
    names = tuple(emotions) or trained.emotions
    if wrong := [name for name in names if name.strip().splitlines() != [name]]:
        raise UserError(
            f"--emotions names {wrong[0]!r}; expected names with commas, such as joy,envy"
        )
    if len(set(names)) < len(names) or len(names) < 2:
        raise UserError(
            f"--emotions: expected two or more different ones, found {', '.join(names)}"
        )
    return described(names, known, trained)


class Recognizer:
    """Names the emotions of conversations.

    >>> recognizer = Recognizer.from_pretrained("runs/meld")
    >>> recognizer.predict({"utterances": [{"speaker": "Ann", "text": "We won!"}]})
    {'id': 'dialogue', 'utterances': [{'speaker': 'Ann', 'text': 'We won!', 'emotion': 'joy', ...

    The model reads a conversation to its end: the label of a turn can change when the conversation
    goes on.
    """

    def __init__(self, system: Recognition, params: Params, encoder: Encoder):
        self.system = system
        self.encoder = encoder
        self._params = params
        self._predictor = Predictor(system, make_mesh())

    @classmethod
    def from_pretrained(
        cls,
        workdir: str | Path,
        *,
        encoder: str | None = None,
        support: str | Path | None = None,
        emotions: Sequence[str] = (),
        descriptions: str | Path | None = None,
    ) -> Recognizer:
        """Loads the best checkpoint of a run, and the encoder that it names.

        Args:
          workdir: of the run.
          encoder: where the run's encoder is now, if it is not where it was.
          support: conversations with labels of one's own, JSON lines or CSV; a handful of examples
            of each. These are then the emotions that are named, without training (runs of
            sent_emo_context).
          emotions: that are named in place of the trained ones, known from their descriptions (runs
            of fmerl). One without a description is compared by its bare name.
          descriptions: a file of descriptions, see ``erc_jax.data.descriptions``, besides those of
            the package.

        Raises:
          UserError: the folder is not a workdir, nothing in it can be read, the encoder is not the
            one that the model was trained with, fewer than two emotions are named, or they are
            given both by support and otherwise.
        """
        if support is not None and (emotions or descriptions):
            raise UserError(
                "--support gives the emotions by examples, --emotions and --descriptions by "
                "phrases; leave one of them out"
            )
        run = load_labelling_run(Path(workdir), encoder)
        if emotions or descriptions:
            system = run.system.with_emotions(_labels_of(run.labels, emotions, descriptions))
            return cls(system, run.params, run.encoder)
        if support is None:
            return cls(run.system, run.params, run.encoder)
        run.system.require_space()
        dialogues, labels = _read_support(Path(support))
        targets = {"emotion": np.concatenate([labels.emotion_ids(d) for d in dialogues])}
        examples = to_arrays(dialogues, run.encoder, run.system, targets, cached=False)
        predictor = Predictor(run.system, make_mesh())
        system, params = run.system.with_support(run.params, predictor.run, examples, labels)
        return cls(system, params, run.encoder)

    @overload
    def predict(
        self, dialogues: Dialogue | Mapping[str, Any], features: Tables | None = None
    ) -> dict[str, Any]: ...

    @overload
    def predict(
        self, dialogues: Sequence[Dialogue | Mapping[str, Any]], features: Tables | None = None
    ) -> list[dict[str, Any]]: ...

    def predict(self, dialogues, features=None):
        """Labels a conversation, or several at once.

        Args:
          dialogues: a Dialogue, or a mapping as in a JSON line; or a sequence of these.
          features: modality to the utterances' features, of models that read such
            (``erc_jax.data.feature_files``); what is missing is done without.

        Returns:
          The conversation as a JSON line has it, each utterance with ``emotion``,
          ``probabilities`` (label name to probability) and, where the model learned them,
          ``sentiment`` and ``shift`` (``global``, ``speaker``; None on firsts), or ``vad`` (on the
          scale that it was learned on) and ``similarity`` (emotion to cosine). A label that was
          given is kept under ``gold``. A list of these for a sequence.

        Raises:
          UserError: it is not a conversation.
        """
        if isinstance(dialogues, Dialogue | Mapping):
            return self.predict([dialogues], features)[0]
        parsed = [d if isinstance(d, Dialogue) else Dialogue.from_json(d) for d in dialogues]
        if not parsed:
            return []
        # Not through the feature cache: what people ask about is nobody else's business.
        examples = to_arrays(
            parsed,
            self.encoder,
            self.system,
            {},
            tables=features,
            cached=False,
            progress=progress.Counter("features"),
        )
        if isinstance(examples, Examples):  # those of tokens have few shapes as they are
            examples = dataclasses.replace(examples, few_shapes=True)
        return label_dialogues(self.system, parsed, self._predictor(self._params, examples))
