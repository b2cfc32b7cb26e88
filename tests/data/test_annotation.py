import json

import pytest

from erc_jax.data.annotation import Annotation, annotated, load_annotation, save_annotation
from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.errors import UserError

SCALE = (1.0, 9.0)
FACTS = {
    "annotator": "lexicon",
    "scale": [1, 9],
    "corpus": {"name": "own", "sha256": "abc"},
    "coverage": {
        "train": {"utterances": 3, "rated": 2},
        "validation": {"utterances": 2, "rated": 0},
        "test": {"utterances": 1, "rated": 1},
    },
}


def vad(valence, arousal=5.0, dominance=5.0):
    return {"valence": valence, "arousal": arousal, "dominance": dominance}


RATINGS = {
    "train": {("d1", 1): vad(1.0, 9.0, 2.5), ("ä2", 4): vad(3.25)},
    "validation": {},
    "test": {("t1", 1): vad(9.0)},
}
DESCRIPTIONS = {"joy": {"description": "Valence: Positive valence", "origin": "a person"}}


@pytest.fixture
def folder(tmp_path):
    save_annotation(tmp_path / "new" / "own", RATINGS, DESCRIPTIONS, FACTS)
    return tmp_path / "new" / "own"


def test_what_is_written_is_read(folder):
    names = {"annotation.json", "descriptions.json", "train.jsonl", "validation.jsonl"}
    assert {path.name for path in folder.iterdir()} == {*names, "test.jsonl"}
    found = load_annotation(folder)
    assert isinstance(found, Annotation)
    assert found.scale == SCALE
    assert found.ratings == RATINGS
    assert found.descriptions == {"joy": "Valence: Positive valence"}
    assert found.facts == {**FACTS, "sha256": found.sha256}
    assert json.loads((folder / "test.jsonl").read_text()) == {
        "dialogue": "t1", "utterance": 1, "annotator": "lexicon",
        "valence": 9.0, "arousal": 5.0, "dominance": 5.0,
    }  # fmt: skip


def test_the_sum_is_of_the_content(folder, tmp_path):
    save_annotation(tmp_path / "copy", RATINGS, DESCRIPTIONS, FACTS)
    assert load_annotation(tmp_path / "copy").sha256 == load_annotation(folder).sha256
    for changed in (
        ({**RATINGS, "test": {("t1", 1): vad(8.0)}}, DESCRIPTIONS, FACTS),
        (RATINGS, {}, FACTS),
        (RATINGS, DESCRIPTIONS, {**FACTS, "scale": [0, 9]}),
    ):
        save_annotation(tmp_path / "copy", *changed)
        assert load_annotation(tmp_path / "copy").sha256 != load_annotation(folder).sha256


def test_ratings_by_people_need_little(tmp_path):
    (tmp_path / "annotation.json").write_text('{"annotator": "Ann", "scale": [0, 5]}')
    line = {"dialogue": "d1", "utterance": 2, **vad(0, 5, 2.5), "annotator": "Ann"}
    (tmp_path / "test.jsonl").write_text(json.dumps(line))
    found = load_annotation(tmp_path)
    assert found.ratings == {"test": {("d1", 2): vad(0, 5, 2.5)}}
    assert found.descriptions == {}


def line(**changed):
    record = {"dialogue": "d9", "utterance": 1, **vad(5.0), "annotator": "lexicon", **changed}
    return json.dumps({key: value for key, value in record.items() if value != "left out"})


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (line(valence=9.01), 'expected a number from 1 to 9 as "valence", found 9.01'),
        (line(arousal=0.99), 'expected a number from 1 to 9 as "arousal", found 0.99'),
        (line(dominance=float("nan")), 'expected a number from 1 to 9 as "dominance", found NaN'),
        (line(valence=float("inf")), "found Infinity"),
        (line(valence=10**400), "found 1000"),
        (line(valence="5"), 'found "5"'),
        (line(valence=True), "found true"),
        (line(valence=None), "found null"),
        (line(valence="left out"), r"expected an object of dialogue, utterance, valence, .* found"),
        (line(valance=5), "expected an object of dialogue, utterance, valence, arousal"),
        ("[1]", r"expected an object of .* found \[1\]"),
        (line()[:40], "not a JSON object .* is the file cut off"),
        (line(utterance=0), 'place in the dialogue, from 1, as "utterance"; found 0'),
        (line(utterance=1.0), "from 1, .* found 1.0"),
        (line(utterance=True), "from 1, .* found true"),
        (line(dialogue=3), 'expected text as "dialogue", found 3'),
        (line(annotator=None), 'expected text as "annotator", found null'),
        (line(dialogue="d1"), r"utterance 1 of dialogue 'd1' is rated twice, before at .*l:1; rem"),
    ],
)
def test_mistakes_in_ratings(folder, added, message):
    path = folder / "train.jsonl"
    with path.open("a") as file:
        file.write(added + "\n")
    with pytest.raises(UserError, match=rf"^{path}:3: .*{message}"):
        load_annotation(folder)


@pytest.mark.parametrize(
    "scale", [None, 5, [1], [1, 9, 9], [9, 1], [5, 5], ["1", "9"], [1, float("inf")],
              [float("nan"), 9], [False, True]]
)  # fmt: skip
def test_what_is_no_scale(folder, scale):
    (folder / "annotation.json").write_text(json.dumps({**FACTS, "scale": scale}))
    with pytest.raises(UserError, match=r'annotation.json: expected \[low, high\] as "scale"'):
        load_annotation(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"annotator": "x",\n"scale": [1', "annotation.json:2: not JSON"),
        ('{"scale": [1, 9]}', 'expected text as "annotator", found null'),
        ('{"annotator": "x", "scale": [1, 9], "scale": [0, 9]}', "'scale' is there twice"),
        ('{"annotator": "x", "scale": [1, 9], "corpus": "meld"}', 'as "corpus", found "meld"'),
        ('{"annotator": "x", "scale": [1, 9], "coverage": [1]}', 'as "coverage"'),
        ('{"annotator": "x", "scale": [1, 9], "coverage": {"dev": {"rated": 1}}}', "splits being"),
        ('{"annotator": "x", "scale": [1, 9], "coverage": {"test": 1}}', 'as "coverage"'),
    ],
)
def test_mistakes_in_the_manifest(folder, content, message):
    (folder / "annotation.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_annotation(folder)


def test_files_that_lost_lines_or_are_gone(folder):
    path = folder / "train.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match=r"train.jsonl: 1 utterances are rated, but .* says 2; was"):
        load_annotation(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"train.jsonl: cannot be read"):
        load_annotation(folder)


def test_what_is_no_annotation(tmp_path):
    with pytest.raises(UserError, match=r"there is no annotation.json; make one with .* annotate"):
        load_annotation(tmp_path)
    (tmp_path / "annotation.json").write_text('{"annotator": "x", "scale": [0, 5]}')
    with pytest.raises(UserError, match=r"no ratings; expected train.jsonl, validation.jsonl or"):
        load_annotation(tmp_path)


def dialogue(identifier, n, **arguments):
    return Dialogue(identifier, tuple(Utterance("A", f"{i}", **arguments) for i in range(n)))


def test_ratings_take_the_place_of_the_corpus_own():
    first, second = annotated(
        [dialogue("d1", 2, vad=vad(2)), dialogue("d2", 1)], {("d1", 2): vad(7)}, SCALE, "here"
    )
    assert [utterance.vad for utterance in first.utterances] == [None, vad(7)]
    assert [utterance.text for utterance in first.utterances] == ["0", "1"]
    assert second.utterances[0].vad is None
    assert first.extra == second.extra == {"vad_scale": [1.0, 9.0]}


@pytest.mark.parametrize("place", [("d1", 3), ("d2", 1)])
def test_ratings_of_what_is_not_there(place):
    identifier, position = place
    ratings = {("d1", 1): vad(7), place: vad(7)}
    with pytest.raises(UserError) as told:
        annotated([dialogue("d1", 2)], ratings, SCALE, "folder/train.jsonl")
    assert str(told.value).startswith(
        f"folder/train.jsonl: utterance {position} of dialogue {identifier!r} is rated, but not"
    )


def test_two_dialogues_of_one_id():
    with pytest.raises(UserError, match="two dialogues of a split have the id 'd1'"):
        annotated([dialogue("d1", 2), dialogue("d1", 1)], {}, SCALE, "here")
