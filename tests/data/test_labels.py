"""Label names, polarity and emotion shift."""

import numpy as np
import pytest

from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.labels import (
    SHIFTS,
    UNLABELLED,
    LabelSpace,
    class_ids,
    previous_utterances,
    shift_ids,
)
from erc_jax.errors import UserError

LABELS = LabelSpace(
    emotions=("neutral", "joy", "anger"),
    neutral="neutral",
    polarity={"neutral": "neutral", "joy": "positive", "anger": "negative"},
)


def talk(*emotions):
    return Dialogue("d", tuple(Utterance("A", "x", emotion=emotion) for emotion in emotions))


def test_ids_of_emotions_and_polarity():
    dialogue = talk("anger", None, "joy", "neutral")
    emotions, polarity = LABELS.emotion_ids(dialogue), LABELS.polarity_ids(dialogue)
    assert emotions.tolist() == [2, UNLABELLED, 1, 0]
    assert polarity.tolist() == [0, UNLABELLED, 2, 1]
    assert emotions.dtype == polarity.dtype == np.int32


def test_unknown_label_names_the_utterance():
    with pytest.raises(UserError, match=r"dialogue d, utterance 2: unknown label 'rage'; .* anger"):
        LABELS.emotion_ids(talk("joy", "rage"))


def test_polarity_needs_to_be_known():
    with pytest.raises(ValueError, match="no polarity"):
        LabelSpace(("a", "b")).polarity_ids(talk("a"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"neutral": "calm"}, "data.neutral is 'calm', .* neutral, joy"),
        ({"polarity": {"rage": "negative"}}, "'rage' is 'negative'; emotions are neutral, joy"),
        ({"polarity": {"joy": "good"}}, "'joy' is 'good'; .* negative, neutral, positive"),
        ({"polarity": {"joy": "positive"}}, "does not say what neutral is"),
    ],
)
def test_bad_label_space(arguments, message):
    with pytest.raises(UserError, match=message):
        LabelSpace(("neutral", "joy"), **arguments)


def test_no_labels_at_all():
    assert class_ids([None, None], ("a",), "d").tolist() == [UNLABELLED] * 2


def test_previous_utterances():
    dialogue, speaker = previous_utterances(["A", "B", "A", "A", "C", "B"])
    assert dialogue.tolist() == [-1, 0, 1, 2, 3, 4]
    assert speaker.tolist() == [-1, -1, 0, 2, -1, 1]
    assert dialogue.dtype == speaker.dtype == np.int32


def test_shift_classes_are_named_by_the_difference():
    # From each polarity to each: the class is the difference plus two.
    polarity = np.array([0, 2, 0, 1, 2, 1, 1])
    previous, _ = previous_utterances(["A"] * 7)
    shifts = shift_ids(polarity, previous, "ignore")
    assert [SHIFTS[s] for s in shifts[1:]] == [
        "strong_positive",
        "strong_negative",
        "positive",
        "positive",
        "negative",
        "none",
    ]
    assert shifts[0] == UNLABELLED
    assert shifts.dtype == np.int32


@pytest.mark.parametrize(("first_shift", "first"), [("ignore", UNLABELLED), ("strong_negative", 0)])
def test_unlabelled_gaps_have_no_shift(first_shift, first):
    # Speakers A B A B A; the third utterance carries no label.
    polarity = np.array([2, 1, UNLABELLED, 0, 2])
    dialogue, speaker = previous_utterances(["A", "B", "A", "B", "A"])
    assert shift_ids(polarity, dialogue, first_shift).tolist() == [
        first,
        1,
        UNLABELLED,
        UNLABELLED,
        4,
    ]
    assert shift_ids(polarity, speaker, first_shift).tolist() == [
        first,
        first,
        UNLABELLED,
        1,
        UNLABELLED,
    ]


def test_an_unlabelled_first_has_no_shift_in_either_mode():
    for mode in ("ignore", "strong_negative"):
        shifts = shift_ids(np.array([UNLABELLED, 1]), np.array([-1, 0]), mode)
        assert shifts.tolist() == [UNLABELLED, UNLABELLED]


def test_unknown_mode():
    with pytest.raises(UserError, match=r"data.first_shift is 'zero'; expected 'ignore' or"):
        shift_ids(np.array([0]), np.array([-1]), "zero")
