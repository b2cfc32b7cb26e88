"""Label names, polarity and emotion shift (Mtl-ERC-ES, section 3.1).

Labels are names outside and integers inside; UNLABELLED marks an utterance that carries none.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from erc_jax.data.dialogue import VAD, Dialogue
from erc_jax.errors import UserError

UNLABELLED = -1
SENTIMENTS = ("negative", "neutral", "positive")
SHIFTS = ("strong_negative", "negative", "none", "positive", "strong_positive")

FirstShift = Literal["ignore", "strong_negative"]


@dataclasses.dataclass(frozen=True)
class LabelSpace:
    """A corpus' emotions, in the order of the classes, and what is known of them.

    Attributes:
      emotions: names; a class' number is its place here.
      neutral: the emotion that the ``..._no_neutral`` metrics leave out, if the corpus has one.
      polarity: emotion to sentiment name; None leaves sentiment and shift out.
      counts: utterances of each emotion in the training split, where it is known.
      descriptions: emotion to a phrase about it, where a system compares utterances with these; an
        emotion that is not in it is known by its name alone.
      vad_scale: lowest and highest rating of valence, arousal and dominance, where there are any.
    """

    emotions: tuple[str, ...]
    neutral: str | None = None
    polarity: Mapping[str, str] | None = None
    counts: tuple[int, ...] | None = None
    descriptions: Mapping[str, str] | None = None
    vad_scale: tuple[float, float] | None = None

    def __post_init__(self):
        if self.neutral is not None and self.neutral not in self.emotions:
            raise UserError(
                f"data.neutral is {self.neutral!r}, which is not one of the corpus' emotions: "
                f"{', '.join(self.emotions)}"
            )
        if self.polarity is None:
            return
        for emotion, sentiment in self.polarity.items():
            if emotion not in self.emotions or sentiment not in SENTIMENTS:
                raise UserError(
                    f"data.polarity says {emotion!r} is {sentiment!r}; emotions are "
                    f"{', '.join(self.emotions)}, polarities {', '.join(SENTIMENTS)}"
                )
        if missing := [emotion for emotion in self.emotions if emotion not in self.polarity]:
            raise UserError(f"data.polarity does not say what {', '.join(missing)} is")

    def emotion_ids(self, dialogue: Dialogue) -> np.ndarray:
        """Emotion classes int32 [T], UNLABELLED where there is no label."""
        return class_ids([u.emotion for u in dialogue.utterances], self.emotions, dialogue.id)

    def vad_ratings(self, dialogue: Dialogue) -> np.ndarray:
        """Valence, arousal and dominance float32 [T, 3], the scale brought to [0, 1].

        -1 where there is no rating, or one that is not on the scale (IEMOCAP has a few).
        """
        if self.vad_scale is None:
            raise ValueError("no utterance is rated")
        low, high = self.vad_scale
        ratings = np.full((len(dialogue.utterances), len(VAD)), -1.0, np.float32)
        for position, utterance in enumerate(dialogue.utterances):
            if utterance.vad is None:
                continue
            for dimension, value in utterance.vad.items():
                number = VAD.index(dimension)
                if low <= value <= high:
                    ratings[position, number] = (value - low) / (high - low)
        return ratings

    def counted(self, dialogues: Sequence[Dialogue]) -> LabelSpace:
        """The same labels with their ``counts`` in these dialogues."""
        found = Counter(u.emotion for dialogue in dialogues for u in dialogue.utterances)
        return dataclasses.replace(self, counts=tuple(found[emotion] for emotion in self.emotions))

    def class_weights(self, kind: str) -> np.ndarray | None:
        """Weights float32 [C] of the emotions in a loss, or None where all count alike.

        Args:
          kind: "none", or "balanced": by the inverse of their ``counts``, as scikit-learn has it.
        """
        if kind == "none" or self.counts is None:
            return None
        counts = np.maximum(self.counts, 1)
        return (counts.sum() / (len(counts) * counts)).astype(np.float32)

    def describe(self, probabilities: np.ndarray) -> list[dict[str, Any]]:
        """Per utterance its ``emotion`` and ``probabilities``, by name.

        Args:
          probabilities: float [T, C].
        """
        return [
            {
                "emotion": self.emotions[int(np.argmax(of_utterance))],
                "probabilities": dict(zip(self.emotions, of_utterance.tolist(), strict=True)),
            }
            for of_utterance in probabilities
        ]

    def polarity_ids(self, dialogue: Dialogue) -> np.ndarray:
        """Polarity int32 [T] of each emotion (0 negative, 1 neutral, 2 positive), or UNLABELLED."""
        if self.polarity is None:
            raise ValueError("the labels have no polarity")
        of_emotion = np.array([SENTIMENTS.index(self.polarity[e]) for e in self.emotions], np.int32)
        emotions = self.emotion_ids(dialogue)
        return np.where(emotions == UNLABELLED, UNLABELLED, of_emotion[emotions]).astype(np.int32)


def class_ids(labels: Sequence[str | None], names: Sequence[str], where: str) -> np.ndarray:
    """Class numbers int32 [T] of label names; UNLABELLED for None.

    Raises:
      UserError: a label is not one of the names.
    """
    number = {name: i for i, name in enumerate(names)}
    for position, label in enumerate(labels):
        if label is not None and label not in number:
            raise UserError(
                f"dialogue {where}, utterance {position + 1}: unknown label {label!r}; "
                f"expected one of {', '.join(names)}"
            )
    return np.array([UNLABELLED if x is None else number[x] for x in labels], np.int32)


def previous_utterances(speakers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Each utterance's predecessor in the dialogue and among its own speaker's utterances.

    Args:
      speakers: speaker names, [T].

    Returns:
      Two int32 [T] arrays of positions in the dialogue, -1 where there is no predecessor.
    """
    last: dict[str, int] = {}
    of_speaker = []
    for position, speaker in enumerate(speakers):
        of_speaker.append(last.get(speaker, -1))
        last[speaker] = position
    return np.arange(-1, len(speakers) - 1, dtype=np.int32), np.array(of_speaker, np.int32)


def shift_ids(polarity: np.ndarray, previous: np.ndarray, first_shift: FirstShift) -> np.ndarray:
    """Emotion-shift classes (equations 1 and 2): polarity of the utterance less its predecessor's.

    Args:
      polarity: int [T], 0 to 2, UNLABELLED where unknown.
      previous: int [T], positions of the predecessors, -1 on firsts.
      first_shift: what a first utterance is: "ignore" gives it no label; "strong_negative" is what
        the paper's Table 2 counts.

    Returns:
      int32 [T], 0 (strong_negative, a difference of -2) to 4 (strong_positive, +2), UNLABELLED
      where either polarity is unknown.
    """
    known = (polarity != UNLABELLED) & (previous >= 0) & (polarity[previous] != UNLABELLED)
    shifts = np.where(known, polarity - polarity[previous] + 2, UNLABELLED)
    if first_shift == "strong_negative":
        firsts = (previous < 0) & (polarity != UNLABELLED)
        shifts = np.where(firsts, SHIFTS.index("strong_negative"), shifts)
    elif first_shift != "ignore":
        raise UserError(
            f"data.first_shift is {first_shift!r}; expected 'ignore' or 'strong_negative'"
        )
    return shifts.astype(np.int32)
