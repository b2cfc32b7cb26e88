import io
import re

import pytest
from rich.console import Console

from erc_jax import metrics
from erc_jax.compare import compare
from erc_jax.drawing import COLOURS
from erc_jax.show import show_comparison, show_conversation, show_scores, show_sweep
from tests.fabricated import dialogues, make_run


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
    assert ["joy", "0.100", "0.200", "0.300", "1,234"] in rows
    assert "nothing about real conversations" in text.replace("\n", " ")


def test_scores_of_several_seeds():
    mirror = {"accuracy": 0.0123, "weighted_f1": 0.01, "macro_f1": 0.01, "mcc": 0.02}
    several = scores(std=mirror, interval={name: [0.1, 0.9] for name in mirror})
    text = shown(show_scores, {"test": several, "run": {"seeds": [0, 1]}}, width=120)
    assert "0.7500 ± 0.0123" in text
    assert "617" in text  # utterances of the split; 1234 are those of both seeds
    assert "interval" not in text
    assert "synthetic" not in text
    # In a narrow terminal, and in a file: no figure is cut off.
    narrow = shown(show_scores, {"test": several, "run": {"seeds": [0, 1]}}, width=70)
    assert "0.0123" in narrow
    assert "…" not in narrow


def test_ratings_and_heads_of_several_seeds():
    """Every name beside the scores is a dimension, or a head."""
    of_seeds = [
        {
            "vad": {"valence": {"ccc": c, "pearson": c, "mse": c}},
            "heads": {"E6": scores(accuracy=c)},
        }
        for c in (0.25, 0.75)
    ]
    aggregated = metrics.over_seeds(of_seeds)
    text = shown(show_scores, {"test": scores(vad=aggregated["vad"])})
    assert "valence: ccc 0.500, pearson 0.500, mse 0.500" in text
    replied = {"test": {"heads": aggregated["heads"]}, "run": {"system": "response"}}
    text += shown(show_scores, replied, width=120)
    assert "0.5000 ± 0.3536" in text
    assert "std" not in text


def coloured(show, content):
    """What a terminal that knows colours is sent."""
    out = io.StringIO()
    terminal = Console(file=out, width=100, force_terminal=True, color_system="truecolor")
    show(content, terminal)
    return out.getvalue()


def sgr(colour, style=""):
    """The escape sequence that turns a colour on."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"\x1b[{style}38;2;{red};{green};{blue}m"


def test_an_emotion_has_a_colour_and_its_name():
    names = ("neutral", "joy", "anger")
    probabilities = {"probabilities": dict.fromkeys(names, 1 / 3)}
    shifts = ("strong_negative", "positive", "none")
    record = {
        "id": "d1",
        "utterances": [
            utterance("Hm.", name, **probabilities, shift={"global": shift, "speaker": None})
            for name, shift in zip(names, shifts, strict=True)
        ],
    }
    sent = coloured(show_conversation, record)
    assert f"{sgr(COLOURS[1], '1;')}joy" in sent
    assert f"{sgr(COLOURS[5], '1;')}anger" in sent
    assert "│ neutral " in sent  # as it is, so that the others stand out
    assert re.search(re.escape(sgr("#D55E00")) + " *⇊", sent)
    assert re.search(re.escape(sgr("#56B4E9")) + " *↑", sent)
    plain = shown(show_conversation, record)
    assert "\x1b" not in plain
    assert all(name in plain for name in names)


def test_more_emotions_than_colours():
    names = [f"e{number}" for number in range(9)]
    record = {
        "id": "d",
        "utterances": [
            utterance("Hm.", name, probabilities=dict.fromkeys(names, 0.1)) for name in names
        ],
    }
    sent = coloured(show_conversation, record)
    assert f"{sgr(COLOURS[0], '1;')}e0" in sent
    assert f"{sgr(COLOURS[0], '1;')}e6" in sent


def test_a_comparison(tmp_path):
    runs = [
        make_run(tmp_path / "a", {0: dialogues(1, 0.4)}),
        make_run(tmp_path / "b", {0: dialogues(2, 0.9), 3: dialogues(3, 0.9)}),
    ]
    found = compare(runs)
    text = shown(show_comparison, found, width=120)
    assert f"A  {runs[0]}" in text.replace("\n", "")
    difference = found.pairs[0].differences["weighted_f1"]
    low, high = difference["interval"]
    (row,) = [line for line in text.splitlines() if "weighted F1" in line and "[" in line]
    assert f"{100 * difference['difference']:+.2f}" in row
    assert f"[{100 * low:+.2f}, {100 * high:+.2f}]" in row
    assert "± " in text
    assert f"only B right {found.pairs[0].only_second}" in text
    assert "corrected" not in text  # of a single pair there is nothing to correct


def test_a_sweep_fits_a_terminal():
    scores = {"perplexity": 31.234, "bleu": 2.5, "distinct_1": 0.0512, "distinct_2": 0.3012}
    scores |= {"average_length": 11.23, "E6_accuracy": 0.4912, "E6_macro_f1": 0.3123}
    untrained = {"E6_accuracy": None, "E6_macro_f1": None}  # R has no head
    rows = [
        {"tasks": "R", "weights": "", **scores, **untrained},
        {"tasks": "R+E6+E2+E12", "weights": "E6 0.33, E2 0.33, E12 0.33", **scores},
    ]
    text = shown(show_sweep, rows, width=80)
    assert "…" not in text
    assert "None" not in text
    for cell in ("R+E6+E2+E12", "31.23", "2.50", "0.0512", "0.3012", "11.23", "0.4912", "0.3123"):
        assert cell in text
