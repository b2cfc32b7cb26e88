import importlib
import json
import re

import pytest

from erc_jax.data.corpora import CORPORA
from erc_jax.data.descriptions import (
    PACKAGED,
    known_descriptions,
    load_descriptions,
    read_descriptions,
)
from erc_jax.errors import UserError

FORM = re.compile(
    r"Arousal: (?P<arousal>[^,:]+), Valence: (?P<valence>[^,:]+), Dominance: (?P<dominance>[^,:]+)"
)
# Forms of the same word. All other emotions differ.
SAME = {
    "no emotion": "neutral",
    "joyful": "joy",
    "happy": "happiness",
    "sad": "sadness",
    "angry": "anger",
    "scared": "fear",
    "excited": "excitement",
    "frustrated": "frustration",
}
GOEMOTIONS = """admiration amusement anger annoyance approval caring confusion curiosity desire
    disappointment disapproval disgust embarrassment excitement fear gratitude grief joy love
    nervousness optimism pride realization relief remorse sadness surprise neutral""".split()
CROWDFLOWER = """anger boredom enthusiasm fun happiness hate love neutral relief sadness surprise
    worry""".split()


def emotions_of_corpora():
    import tensorflow_datasets as tfds

    for name, module in CORPORA.items():
        importlib.import_module(module)
        if emotions := tfds.builder_cls(name).EMOTIONS:
            yield name, emotions


def test_every_corpus_emotion_is_described_and_no_two_alike():
    known = known_descriptions()
    names = []
    sets = [*emotions_of_corpora(), ("polarity", ("negative", "neutral", "positive"))]
    for name, emotions in [*sets, ("goemotions", GOEMOTIONS), ("crowdflower", CROWDFLOWER)]:
        names.append(name)
        phrases = [known[emotion] for emotion in emotions]
        assert len(set(phrases)) == len(emotions), name
    assert {"meld", "iemocap", "dailydialog", "emorynlp", "sample"} <= set(names)


def test_descriptions_have_the_papers_form():
    known = known_descriptions()
    assert known["joy"] == (
        "Arousal: Moderately high arousal, Valence: Positive valence, Dominance: High dominance"
    )
    for name, phrase in known.items():
        found = FORM.fullmatch(phrase)
        assert found, name
        for dimension, level in found.groupdict().items():
            assert dimension in level, (name, level)
            assert level[0].isupper(), (name, level)


def test_only_forms_of_one_word_share_a_description():
    known = known_descriptions()
    for name, other in SAME.items():
        assert known[name] == known[other]
    distinct = [phrase for name, phrase in known.items() if name not in SAME]
    assert len(set(distinct)) == len(distinct)


@pytest.mark.parametrize(
    ("dimension", "more", "less"),
    [
        ("valence", "joy", "sadness"),
        ("valence", "relief", "envy"),
        ("valence", "positive", "negative"),
        ("valence", "peaceful", "mad"),
        ("arousal", "anger", "sadness"),
        ("arousal", "excitement", "boredom"),
        ("dominance", "anger", "fear"),
        ("dominance", "powerful", "scared"),
        ("dominance", "pride", "shame"),
    ],
)
def test_descriptions_say_what_psychology_says(dimension, more, less):
    words = (
        ("extremely negative", -4),
        ("very negative", -3),
        ("strongly negative", -3),
        ("moderately negative", -1),
        ("negative", -2),
        ("moderately positive", 1),
        ("very positive", 3),
        ("positive", 2),
        ("very low", -3),
        ("moderately low", -1),
        ("low", -2),
        ("very high", 3),
        ("moderately high", 1),
        ("high", 2),
        ("moderate", 0),
    )

    def level(name):
        text = FORM.fullmatch(known_descriptions()[name])[dimension].lower()
        return next(value for start, value in words if text.startswith(start))

    assert level(more) > level(less)


def test_every_packaged_description_says_its_origin():
    entries = read_descriptions(PACKAGED)
    assert all(entry["origin"] for entry in entries.values())
    assert entries["relief"]["origin"] == "written for erc_jax"


def test_descriptions_of_ones_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        '{"relief": "Valence:  Positive\\n valence", "Vorfreude": {"description": "x", '
        '"origin": "me"}, "ärger": {"description": "y"}}',
        encoding="utf-8-sig",
    )
    found = {"relief": "Valence: Positive valence", "Vorfreude": "x", "ärger": "y"}
    assert load_descriptions(path) == found
    assert read_descriptions(path)["Vorfreude"]["origin"] == "me"
    assert read_descriptions(path)["relief"]["origin"] == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"relief": "x",\n "envy": ', r"mine.json:2: not JSON .*cut off"),
        ('["relief"]', r"mine.json: expected a JSON object, found \[\"relief\"\]"),
        ('{"relief": ""}', "the description of 'relief' is \"\"; expected a phrase"),
        ('{"relief": 3}', "the description of 'relief' is 3"),
        ('{"relief": {"origin": "me"}}', "the description of 'relief' is null"),
        ('{"relief": {"description": "x", "author": "me"}}', "'relief' has 'author', which is unk"),
        ('{"relief": {"description": "x", "origin": 1}}', "the origin of 'relief' is 1, not text"),
        ('{"relief": "x", "relief": "y"}', "'relief' is there twice"),
        ('{" relief": "x"}', "' relief' is no emotion's name"),
        ('{"": "x"}', "'' is no emotion's name"),
        ('{"relief": "\\ud83d"}', "holds half of a character"),
    ],
)
def test_mistakes_in_descriptions(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_descriptions(path)


def test_descriptions_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none.json: cannot be read"):
        load_descriptions(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match=r"bad.json: not UTF-8"):
        load_descriptions(tmp_path / "bad.json")


def test_the_packaged_file_is_what_people_read():
    text = PACKAGED.read_text()
    assert text == json.dumps(json.loads(text), indent=2) + "\n"
