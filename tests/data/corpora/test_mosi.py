"""CMU-MOSI: small files of its format, and the real ones where $ERC_JAX_DATA is."""

import functools
import os
from pathlib import Path

import numpy as np
import pytest

from erc_jax.data.corpora import CORPORA, load_corpus
from erc_jax.data.corpora.mosi import Mosi
from erc_jax.data.dialogue import Utterance, save_dialogues
from erc_jax.data.feature_files import align
from erc_jax.errors import UserError

WIDTHS = {"text": 100, "audio": 73, "visual": 100}
# The transcripts are in the order of names, in which n = 10 comes before 2.
TRANSCRIPTS = [
    *[(f"t{video:02}", 1, f"words of {video}", video % 2) for video in range(12)],
    ("t12", 1, "IT BEGINS", 0),
    ("t12", 10, "IT ENDS", 1),
    ("t12", 2, 'IT GOES ON, "WELL"', 0),
    ("a_film", 1, "NICE", 1),
    ("a_film", 2, "NOT NICE", 0),
]
# Rows of each part, in the order of its files.
PARTS = {"train": [14, *range(14)], "test": [16, 15]}
needs_data = pytest.mark.skipif(
    not os.environ.get("ERC_JAX_DATA"), reason="needs the real corpora, ERC_JAX_DATA"
)


def feature(modality, row):
    """The value of all channels of an utterance."""
    return row + {"text": 0.25, "audio": 100.5, "visual": 0.0}[modality]


def quoted(fields):
    return ",".join('"' + str(field).replace('"', '""') + '"' for field in fields) + "\r\n"


@pytest.fixture
def source(tmp_path):
    """A folder of small files."""
    folder = tmp_path / "source"
    folder.mkdir()

    def write(name, rows):
        (folder / name).write_bytes("".join(map(quoted, rows)).encode())

    write("transcripts.csv", [(f"{v}_{n}", text, 7, label) for v, n, text, label in TRANSCRIPTS])
    for part, rows in PARTS.items():
        write(f"text_{part}.csv", [(row, *[feature("text", row)] * 100) for row in rows])
        for modality, file in (("audio", f"audio_{part}0.csv"), ("visual", f"video_{part}0.csv")):
            write(
                file,
                [
                    (*[feature(modality, row)] * WIDTHS[modality], TRANSCRIPTS[row][-1])
                    for row in rows
                ],
            )
    return folder


@pytest.fixture
def load(monkeypatch, tmp_path):
    monkeypatch.setitem(CORPORA, "mosi", "erc_jax.data.corpora.mosi")
    return functools.partial(load_corpus, "mosi", cache=tmp_path / "cache")


def test_splits(load, source):
    corpus = load(source)
    names = {split: [d.id for d in dialogues] for split, dialogues in corpus.splits.items()}
    assert names == {
        "train": ["t00", "t01", "t02"],
        "validation": [f"t{video:02}" for video in range(3, 13)],
        "test": ["a_film"],
    }
    assert corpus.labels.emotions == ("negative", "positive")
    assert corpus.labels.polarity == {"negative": "negative", "positive": "positive"}
    assert corpus.labels.neutral is None
    assert corpus.splits["validation"][-1].utterances == (
        Utterance("t12", "IT BEGINS", "negative"),
        Utterance("t12", 'IT GOES ON, "WELL"', "negative"),
        Utterance("t12", "IT ENDS", "positive"),
    )


def test_features_are_those_of_the_utterance(load, source):
    corpus = load(source)
    tables = Mosi.feature_tables(Mosi.locate(source))
    row_of = {text: row for row, (_, _, text, _) in enumerate(TRANSCRIPTS)}
    assert list(tables) == ["train", "validation", "test"]
    for split, dialogues in corpus.splits.items():
        assert list(tables[split]) == list(WIDTHS)
        for modality, table in tables[split].items():
            features, there = align(table, dialogues, modality)
            assert features.dtype == np.float32
            assert there.all()
            expected = [feature(modality, row_of[u.text]) for d in dialogues for u in d.utterances]
            np.testing.assert_array_equal(
                features,
                np.repeat(np.array(expected, np.float32)[:, None], WIDTHS[modality], axis=1),
            )
            assert "bc-LSTM" in table.extractor


def test_json_lines_have_no_features(load, source, tmp_path):
    plain = tmp_path / "plain"
    for split, dialogues in load(source).splits.items():
        save_dialogues(plain / f"{split}.jsonl", dialogues)
    assert load(plain).splits == load(source).splits
    assert Mosi.feature_tables(Mosi.locate(plain)) == {}


def replace(old, new):
    return lambda content: content.replace(old, new, 1)


def last_row(content):
    return content[content[:-2].rindex(b"\r\n") + 2 :]


def without_last_row(content):
    return content.removesuffix(last_row(content))


BAD = {
    "a name without a number": (
        "transcripts.csv",
        replace(b'"t03_1"', b'"t03"'),
        r"transcripts\.csv:4: the utterance's name is 't03'; expected VIDEO_n",
    ),
    "a name that is there twice": (
        "transcripts.csv",
        replace(b'"t12_10"', b'"t12_2"'),
        r"transcripts\.csv:15: utterance t12_2 is in .*transcripts\.csv:14 already",
    ),
    "an unknown label": (
        "transcripts.csv",
        replace(b'"7","1"', b'"7","2"'),
        r"transcripts\.csv:2: unknown label '2'; expected 0 or 1",
    ),
    "a column too many": (
        "transcripts.csv",
        replace(b'"7","1"', b'"7","x","1"'),
        r"transcripts\.csv:2: 5 fields, expected 4",
    ),
    "cut inside quotes": (
        "transcripts.csv",
        lambda content: content[:-4],
        r"transcripts\.csv:17: unexpected end of data; is the file cut off\?",
    ),
    "cut between fields": (
        "audio_train0.csv",
        lambda content: content[: content.rindex(b",")],
        r"audio_train0\.csv:15: 73 fields, expected 74; is the file cut off\?",
    ),
    "rows lost in transcripts": (
        "transcripts.csv",
        without_last_row,
        r"text_test\.csv:1: the first column is '16'; expected a row of transcripts\.csv, counted "
        r"from 0, which has 16\. Is that file cut off\?",
    ),
    "rows lost in one modality": (
        "video_test0.csv",
        without_last_row,
        r"video_test0\.csv has 1 rows, .*text_test\.csv has 2; .* Is one cut off\?",
    ),
    "not UTF-8": (
        "transcripts.csv",
        replace(b"NICE", b"NI\x92E"),
        r"transcripts\.csv:16: not UTF-8",
    ),
    "a row number that is none": (
        "text_test.csv",
        replace(b'"15"', b'"x"'),
        r"text_test\.csv:2: the first column is 'x'; expected a row of transcripts\.csv",
    ),
    "a row twice": (
        "text_train.csv",
        replace(b'"0","0.25"', b'"2","0.25"'),
        r"text_train\.csv:4: the row .*transcripts\.csv:3 was taken by .*text_train\.csv:2",
    ),
    "a row in both parts": (
        "text_test.csv",
        replace(b'"16","16.25"', b'"14","16.25"'),
        r"text_test\.csv:1: the row .*transcripts\.csv:15 was taken by .*text_train\.csv:1",
    ),
    "a video in both parts": (
        "transcripts.csv",
        replace(b'"a_film_1"', b'"t00_2"'),
        r"text_test\.csv:2: video t00 has utterances in train, too; expected whole videos",
    ),
    "another label in audio": (
        "audio_test0.csv",
        replace(b'"0"\r\n', b'"1"\r\n'),
        r"audio_test0\.csv:1: label '1', but .*transcripts\.csv:17 says negative; are the rows not "
        r"in the order of text_test\.csv",
    ),
    "another label in video": (
        "video_train0.csv",
        replace(b'"1"\r\n', b'"0"\r\n'),
        r"video_train0\.csv:3: label '0', but .*transcripts\.csv:2 says positive",
    ),
    "a word among features": (
        "text_train.csv",
        replace(b"14.25", b"many"),
        r"text_train\.csv:1: could not convert string to float: .*many.*; expected a number",
    ),
    "NaN": (
        "audio_train0.csv",
        replace(b"100.5", b"nan"),
        r"audio_train0\.csv:2: a feature is nan; expected a finite number",
    ),
    "beyond 32 bits": (
        "video_test0.csv",
        replace(b"15.0", b"1e39"),
        r"video_test0\.csv:2: a feature is 1e39; expected a finite number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file(load, source, case):
    file, spoil, message = BAD[case]
    content = (source / file).read_bytes()
    spoilt = spoil(content)
    assert spoilt != content
    (source / file).write_bytes(spoilt)
    with pytest.raises(UserError, match=message):
        load(source)
    with pytest.raises(UserError, match=message):
        Mosi.feature_tables(Mosi.locate(source))


def test_an_utterance_in_neither_part(load, source):
    for file in ("text_test.csv", "audio_test0.csv", "video_test0.csv"):
        (source / file).write_bytes(without_last_row((source / file).read_bytes()))
    with pytest.raises(UserError, match=r"transcripts\.csv:16: no row of .*\(1 lack one\)"):
        load(source)


def test_a_missing_file(load, source):
    (source / "audio_test0.csv").unlink()
    with pytest.raises(UserError, match=r"missing: audio_test0\.csv\)"):
        load(source)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    source = Path(os.environ["ERC_JAX_DATA"], "mosi")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CORPORA, "mosi", "erc_jax.data.corpora.mosi")
        corpus = load_corpus("mosi", source, cache=tmp_path_factory.mktemp("cache"))
    return corpus, Mosi.feature_tables(Mosi.locate(source))


@pytest.mark.slow
@needs_data
def test_the_real_corpus(real):
    corpus, _ = real
    sizes = {s: (len(ds), sum(len(d.utterances) for d in ds)) for s, ds in corpus.splits.items()}
    assert sizes == {"train": (52, 1228), "validation": (10, 219), "test": (31, 752)}
    counts = {s: corpus.labels.counted(ds).counts for s, ds in corpus.splits.items()}
    assert np.add(counts["train"], counts["validation"]).tolist() == [738, 709]
    assert counts["test"] == (285, 467)
    assert corpus.splits["validation"][0].id == "ob23OKe5a9Q"
    assert corpus.splits["validation"][-1].id == "zhpQhgha_KU"
    assert corpus.notes == ()  # these are the published files


@pytest.mark.slow
@needs_data
def test_the_real_features_belong_to_their_utterances(real):
    """Utterances that follow each other look and sound alike; of shuffled rows they would not."""
    corpus, tables = real
    random = np.random.default_rng(0)
    for modality in ("audio", "visual"):
        features, there = align(tables["train"][modality], corpus.splits["train"], modality)
        assert there.all()
        deviation = features.std(axis=0)
        features = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
        ends = np.cumsum([len(d.utterances) for d in corpus.splits["train"]])[:-1]
        videos = np.split(features, ends)

        def steps(videos):
            return np.sum([np.square(np.diff(video, axis=0)).sum() for video in videos])

        shuffled = [steps([random.permutation(v) for v in videos]) for _ in range(10)]
        assert steps(videos) < min(shuffled)
