"""Conversations: what is read, what is written back, and what is refused."""

import json
import zipfile

import pytest

from erc_jax.data import dialogue as dialogue_lib
from erc_jax.data.dialogue import (
    Dialogue,
    Utterance,
    group_rows,
    load_dialogues,
    read_bytes,
    remove,
    save_dialogues,
    text_lines,
    write_whole,
)
from erc_jax.errors import UserError

DIALOGUE = Dialogue(
    id="d1",
    utterances=(
        Utterance(
            "Ann",
            "Grüße 🎉\u0085 \u2028 end",
            emotion="joy",
            sentiment="positive",
            vad={"valence": 2.3333, "arousal": 1.0, "dominance": 5.0},
            extra={"seconds": [1.5, 2.0]},
        ),
        Utterance("Bob", ""),
    ),
    extra={"room": "kitchen"},
)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_round_trip_keeps_everything(tmp_path):
    path = tmp_path / "new folder" / "talk.jsonl"
    save_dialogues(path, [DIALOGUE, DIALOGUE])
    assert load_dialogues(path) == [DIALOGUE, DIALOGUE]
    record = json.loads(path.read_text().split("\n")[0])
    assert record["room"] == "kitchen"
    assert record["utterances"][0]["seconds"] == [1.5, 2.0]
    assert record["utterances"][1] == {"speaker": "Bob", "text": ""}


def test_csv_with_other_columns(tmp_path):
    path = write(
        tmp_path / "talk.csv",
        "\ufeffdialogue,speaker,text,emotion,sentiment,clip\r\n"
        'a,Ann,"Well, ""yes""",joy,,a0.wav\r\n'
        'a,Bob,"two\r\nlines",,,a1.wav\r\n'
        "b,Ann,No\u0085.,anger,negative,b0.wav\r\n",
    )
    first, second = load_dialogues(path)
    assert first.id == "a"
    assert first.utterances == (
        Utterance("Ann", 'Well, "yes"', emotion="joy", extra={"clip": "a0.wav"}),
        Utterance("Bob", "two\r\nlines", extra={"clip": "a1.wav"}),
    )
    assert second.utterances[0].text == "No\u0085."
    assert second.utterances[0].sentiment == "negative"


def test_id_is_the_place_where_none_is_given(tmp_path):
    path = write(tmp_path / "talk.jsonl", '\n{"utterances": [{"speaker": "A", "text": "b"}]}\r\n')
    assert [d.id for d in load_dialogues(path)] == [f"{path}:2"]


def test_numbers_are_ids(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"id": 7, "utterances": [{"speaker": "A", "text": "b"}]}')
    assert [d.id for d in load_dialogues(path)] == ["7"]


GOOD = '{"id": "a", "utterances": [{"speaker": "A", "text": "b"}]}'


def one(**keys):
    return json.dumps({"id": "a", "utterances": [{"speaker": "A", "text": "b", **keys}]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no dialogues"),
        ("\n \n", "no dialogues"),
        (GOOD + "\n" + GOOD[:-20] + "\n", ":2: not a JSON object .* cut off"),
        (GOOD + "\n[1]\n", r":2: expected an object, found \[1\]"),
        ('{"id": "a"}', ':1: expected a list "utterances"'),
        ('{"id": "a", "utterances": []}', ":1: the dialogue has no utterances; remove"),
        ('{"id": ["a"], "utterances": [{"speaker": "A", "text": "b"}]}', ':1: expected text as "i'),
        ('{"id": "a", "utterances": ["Hello"]}', ":1: utterance 1: expected an object"),
        ('{"id": "a", "utterances": [{"text": "b"}]}', ':1: utterance 1: "speaker" is missing'),
        ('{"id": "a", "utterances": [{"speaker": "A"}]}', '"text" is missing'),
        (one(text=3), 'utterance 1: expected text as "text", found 3'),
        (one(speaker=" "), '"speaker" is empty'),
        (one(emotion=3), 'expected a label name .* as "emotion", found 3'),
        (one(emotion=""), 'as "emotion"'),
        (one(emotion="joy "), "without spaces around it"),
        (one(emotion="joy\nfear"), 'as "emotion"'),
        (
            one(vad={"valence": 1, "anger": 2}),
            'expected numbers valence, arousal, dominance, or some of them, in "vad"',
        ),
        (one(vad={"valence": True, "arousal": 2, "dominance": 3}), "expected numbers"),
        (one(vad={"valence": float("nan"), "arousal": 2, "dominance": 3}), "expected numbers"),
        (
            GOOD.encode() + b"\n" + GOOD.encode().replace(b"b", b"\x92"),
            r":2: not UTF-8 \(byte 0x92",
        ),
        (GOOD.replace('"b"', r'"\ud83d"'), ":1: holds half of a character"),
    ],
)
def test_bad_json_lines(tmp_path, content, message):
    path = write(tmp_path / "talk.jsonl", content)
    with pytest.raises(UserError, match=message) as error:
        load_dialogues(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dialogue,speaker\na,b\n", r":1: columns text are missing; found dialogue, speaker"),
        ("", ":1: columns dialogue, speaker, text are missing; found nothing"),
        ("dialogue,speaker,text\n", "no dialogues"),
        ("dialogue,speaker,text\na,A,x\na,A\n", r":3: the row does not have 3 fields; .* cut off"),
        ("dialogue,speaker,text\na,A,x,y\n", ":2: the row does not have 3 fields"),
        ('dialogue,speaker,text\na,A,x\na,A,"cut he', ":3: unexpected end of data; .* cut off"),
        ("dialogue,speaker,text\na,A,x\na,,y\n", ':3: "speaker" is empty'),
        ("dialogue,speaker,text\na,A,x\nb,B,y\na,A,z\n", ":4: dialogue 'a' goes on after another"),
        (b"dialogue,speaker,text\na,A,x\na,A,\xe9t\xe9\n", ":3: not UTF-8 .* iconv"),
    ],
)
def test_bad_csv(tmp_path, content, message):
    path = write(tmp_path / "talk.csv", content)
    with pytest.raises(UserError, match=message) as error:
        load_dialogues(path)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none.jsonl: cannot be read .No such file"):
        load_dialogues(tmp_path / "none.jsonl")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_too_long_a_dialogue(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(dialogue_lib, "MAX_UTTERANCES", 3)
    turns = [{"speaker": "A", "text": "b"}] * 4
    content = (
        json.dumps({"id": "a", "utterances": turns})
        if suffix == "jsonl"
        else "dialogue,speaker,text\n" + "a,A,b\n" * 4
    )
    path = write(tmp_path / f"talk.{suffix}", content)
    with pytest.raises(UserError, match=r"talk\.\w+:[12]: .* 4 utterances, the limit is 3; split"):
        load_dialogues(path)


def test_places_are_those_of_the_rows():
    rows = [("f:2", "a", Utterance("A", "x")), ("f:5", "a", Utterance("B", "y"))]
    assert list(group_rows(rows)) == [
        (("f:2", "f:5"), Dialogue("a", (Utterance("A", "x"), Utterance("B", "y"))))
    ]


def test_lines_end_at_line_feeds_only(tmp_path):
    path = write(tmp_path / "lines.txt", "\ufeffa\u0085b\u2028c\r\n\n d \n")
    assert list(text_lines(path)) == [(f"{path}:1", "a\u0085b\u2028c"), (f"{path}:3", " d ")]


def test_damaged_archive(tmp_path):
    path = tmp_path / "talk.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("talk.txt", "hello " * 100)
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"talk\.zip/talk\.txt: the archive is damaged"):
        read_bytes(zipfile.Path(path, "talk.txt"))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write(tmp_path / "talk.jsonl", "old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "replace", full)
    with pytest.raises(UserError, match=r"talk.jsonl: cannot be written .No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_removed_if_it_is_there(tmp_path):
    path = write(tmp_path / "config.json", "{}")
    remove(path)
    assert not path.exists()
    remove(path)
    below_a_file = write(tmp_path / "file", "") / "config.json"
    with pytest.raises(UserError, match=r"config\.json: cannot be removed \(Not a directory\)"):
        remove(below_a_file)
