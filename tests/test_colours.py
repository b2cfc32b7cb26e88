"""Colours of emotions: apart for colour-blind readers, too, on light and on dark pages."""

import itertools
import re
from importlib.resources import files

import numpy as np
import pytest

from erc_jax.charts import N_COLOURS, USUAL_NAMES, colour_number
from erc_jax.drawing import COLOURS, NEUTRAL_ON_DARK, NEUTRAL_ON_LIGHT

# How linear RGB looks to dichromats: Machado, Oliveira and Fernandes (2009), severity 1.
SEEN = {
    "all colours": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
]
LEAST = 15.0  # CIE 1976 colour difference; 2.3 is what one just notices side by side


def linear(colour):
    """Linear RGB of "#rrggbb"."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(colour, seen):
    """CIE L*a*b* of a colour as it is seen."""
    xyz = np.array(TO_XYZ) @ np.clip(np.array(seen) @ linear(colour), 0, 1)
    xyz /= np.array(TO_XYZ).sum(axis=1)  # white
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one, other):
    """WCAG 2's, from 1 to 21."""
    bright, dark = sorted((linear(c) @ TO_XYZ[1] + 0.05 for c in (one, other)), reverse=True)
    return bright / dark


@pytest.mark.parametrize("neutral", [NEUTRAL_ON_LIGHT, NEUTRAL_ON_DARK])
@pytest.mark.parametrize("seen", SEEN)
def test_every_pair_of_emotions_stays_apart(seen, neutral):
    colours = [*COLOURS[:N_COLOURS], neutral]
    for one, other in itertools.combinations(colours, 2):
        difference = np.linalg.norm(lab(one, SEEN[seen]) - lab(other, SEEN[seen]))
        assert difference >= LEAST, (one, other)


def test_the_measure_finds_what_looks_alike():
    """Red and green of one lightness, which is what a palette is to avoid."""
    red, green = "#c04030", "#707a00"
    apart = {name: np.linalg.norm(lab(red, seen) - lab(green, seen)) for name, seen in SEEN.items()}
    assert apart["all colours"] > 40
    assert apart["deuteranopia"] < LEAST


def test_an_emotion_has_one_colour_in_all_corpora():
    corpora = {
        "meld": "neutral joy surprise anger sadness disgust fear",
        "emorynlp": "joyful mad peaceful neutral sad powerful scared",
        "iemocap": "happy sad neutral angry excited frustrated",
    }
    numbers = {
        corpus: {name: colour_number(name, names.split()) for name in names.split()}
        for corpus, names in corpora.items()
    }
    for of_corpus in numbers.values():
        assert len(set(of_corpus.values())) == len(of_corpus), "each has its own"
        assert of_corpus["neutral"] == N_COLOURS
    assert numbers["meld"]["joy"] == numbers["emorynlp"]["joyful"] == numbers["iemocap"]["happy"]
    assert numbers["meld"]["anger"] == numbers["emorynlp"]["mad"] == numbers["iemocap"]["angry"]


def test_other_names_get_what_is_left():
    names = ["joy", "envy", "no emotion", "awe"]
    found = [colour_number(name, names) for name in names]
    assert found == [1, 0, N_COLOURS, 2]
    many = [f"feeling {number}" for number in range(8)]
    assert [colour_number(name, many) for name in many] == [0, 1, 2, 3, 4, 5, 0, 1]
    every = [*USUAL_NAMES, "envy"]
    assert colour_number("envy", every) == 0


def test_colours_can_be_seen_on_both_papers():
    for colour in COLOURS[:N_COLOURS]:
        for paper in ("#ffffff", "#14171b"):
            # Below 3, the limit for pictures, a mark needs the frame that all marks have.
            assert contrast(colour, paper) > 2.2
    assert contrast(NEUTRAL_ON_LIGHT, "#ffffff") > 4.5
    assert contrast(NEUTRAL_ON_DARK, "#14171b") > 4.5


def test_marks_have_a_frame_and_a_name():
    """Yellowish marks are faint on white, and colours come again where there are many emotions."""
    report = files("erc_jax").joinpath("templates", "page.html.j2").read_text()
    page = files("erc_jax.serve").joinpath("page.html").read_text()
    for style, mark in (
        (report, r"\.chip i \{[^}]*border: 1px solid var\(--fg\)"),
        (report, r"\.dot \{[^}]*stroke: var\(--fg\)"),
        (page, r"\.swatch \{[^}]*border: 1px solid var\(--ink\)"),
        (page, r"\.curve circle \{[^}]*stroke: var\(--ink\)"),
        (page, r"\.bar \{[^}]*border: 1px solid"),
    ):
        assert re.search(mark, style), mark
    assert re.findall(r"--neutral: (#\w+)", page) == [NEUTRAL_ON_LIGHT, NEUTRAL_ON_DARK]
