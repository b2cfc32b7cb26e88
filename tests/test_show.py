import io

import pytest
from rich.console import Console

from erc_jax.show import show_conversation, show_scores


def shown(show, content, width=100):
    out = io.StringIO()
    show(content, Console(file=out, width=width))
    return out.getvalue()


def utterance(text, emotion="joy", speaker="Ann", **fields):
    return {
        "speaker": speaker,
        "text": text,
        "emotion": emotion,
        "probabilities": {emotion: 0.754, "other": 0.246},
        **fields,
    }


def test_a_conversation():
    record = {
        "id": "d1",
        "utterances": [
            utterance("We won!", sentiment="positive", shift={"global": None, "speaker": None}),
            utterance(
                "Oh no.",
                "anger",
                "Bob",
                sentiment="negative",
                shift={"global": "strong_negative", "speaker": None},
            ),
            utterance(
                "Calm down", sentiment="positive", shift={"global": "positive", "speaker": "none"}
            ),
        ],
    }
    text = shown(show_conversation, record)
    lines = [line for line in text.splitlines() if "Ann" in line or "Bob" in line]
    assert "Conversation d1" in text
    assert ["We won!" in line for line in lines] == [True, False, False]
    assert ["75%" in line for line in lines] == [True] * 3
    assert [[arrow in line for arrow in "⇊↓·↑⇈"] for line in lines] == [
        [False] * 5,
        [True, False, False, False, False],
        [False, False, True, True, False],
    ]
    assert "⇊ strong negative" in text


def test_a_conversation_without_shift():
    text = shown(show_conversation, {"id": "d1", "utterances": [utterance("We won!")]})
    assert "joy" in text
    assert "Shift" not in text


@pytest.mark.parametrize("odd", ["[bold]x", "[/x] y", "a [link=z]b[/link]"])
def test_brackets_are_shown_as_they_are(odd):
    """What looks like the terminal library's markup is text here."""
    text = shown(show_conversation, {"id": odd, "utterances": [utterance(odd, odd, odd)]})
    assert text.count(odd) == 4
    text = shown(show_scores, {odd: scores([odd, "joy"])})
    assert text.count(odd) == 3


def scores(names=("anger", "joy"), **fields):
    block = {
        "accuracy": 0.75,
        "weighted_f1": 0.7,
        "macro_f1": 0.6,
        "micro_f1": 0.75,
        "mcc": 0.5,
        "per_class": {
            name: {"precision": 0.1, "recall": 0.2, "f1": 0.3, "support": 1234} for name in names
        },
    }
    return {**block, **fields}


def test_scores():
    content = {
        "validation": scores(),
        "test": scores(sentiment=scores(accuracy=0.8125), micro_f1_no_neutral=0.4321),
        "run": {"corpus": {"synthetic": True}},
    }
    text = shown(show_scores, content)
    rows = [line.split() for line in text.splitlines()]
    assert ["validation", "emotion", "0.7500", "0.7000", "0.6000", "0.5000"] in rows
    assert ["test", "emotion", "0.7500", "0.7000", "0.6000", "0.4321", "0.5000"] in rows
    assert ["test", "sentiment", "0.8125", "0.7000", "0.6000", "0.5000"] in rows
    assert ["joy", "0.100", "0.200", "0.300", "1234"] in rows
    assert "nothing about real conversations" in text.replace("\n", " ")


def test_scores_of_several_seeds():
    mirror = {"accuracy": 0.0123, "weighted_f1": 0.01, "macro_f1": 0.01, "mcc": 0.02}
    several = scores(std=mirror, interval={name: [0.1, 0.9] for name in mirror})
    text = shown(show_scores, {"test": several, "seeds": [{"seed": 0}, {"seed": 1}]}, width=120)
    assert "0.7500 ± 0.0123" in text
    assert "interval" not in text
    assert "synthetic" not in text
