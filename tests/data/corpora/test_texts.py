"""TEC, SST-2 and CrowdFlower: small files of their formats, and the real ones in $ERC_JAX_DATA."""

import collections
import functools
import os
import re
from pathlib import Path

import numpy as np
import pytest

from erc_jax.data.corpora import load_corpus
from erc_jax.data.corpora.texts import deal, drawn
from erc_jax.data.dialogue import Utterance, save_dialogues
from erc_jax.errors import UserError

SPLITS = ("train", "validation", "test")
NAMES = ("tec", "sst2", "crowdflower")
needs_data = pytest.mark.skipif(
    not os.environ.get("ERC_JAX_DATA"), reason="needs the real corpora, ERC_JAX_DATA"
)

EMOTIONS = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
TWEETS = [
    ("Tea &amp; toast :: at last \t", "joy"),
    ("a tab\there, and a\u0085line", "fear"),
    ("  #joy at #JOY. #joyful &lt;-#sadness", "joy"),
    ("one&#xA;two", "anger"),
    *[(f"tweet {n}", EMOTIONS[n % 6]) for n in range(18)],
]
SENTENCES = [(f"sentence {n} , so to speak ", n % 2) for n in range(9)]
RATED = [
    ("neutral", "plain, with a comma"),
    ("empty", "nothing in it"),
    ("worry", '"quoted" &quot;entity&quot;'),
    *[("empty" if n % 5 == 0 else "fun", f"rated {n}") for n in range(50)],
]


def csv_field(text):
    return '"' + text.replace('"', '""') + '"'


FILES = {
    "tec": {
        "Jan9-2012-tweets-clean.txt": "".join(
            f"{1000 + n // 2}:\t{tweet}\t:: {emotion}\n"
            for n, (tweet, emotion) in enumerate(TWEETS)
        )
    },
    "sst2": {
        "train.tsv": "sentence\tlabel\n" + "".join(f"{s}\t{label}\n" for s, label in SENTENCES),
        "dev.tsv": "sentence\tlabel\ngood \t1\nbad & worse \t0\n",
        "stsa.binary.test": "0 dull -lrb- or worse -rrb- , and\\/or \\*\\*\\* .\n1 bright .\n",
    },
    "crowdflower": {
        "text_emotion.csv": "tweet_id,sentiment,author,content\n"
        + "".join(f"{70 + n},{e},someone,{csv_field(t)}\n" for n, (e, t) in enumerate(RATED))
    },
}


@pytest.fixture
def source(tmp_path):
    """Writes a corpus' small files and gives their folder."""

    def write(name):
        folder = tmp_path / "source"
        folder.mkdir()
        for file, content in FILES[name].items():
            (folder / file).write_bytes(content.encode())
        return folder

    return write


@pytest.fixture
def load(tmp_path):
    return functools.partial(load_corpus, cache=tmp_path / "cache")


def sizes(corpus):
    """Split to number of texts; each must be a labelled dialogue of its own."""
    for dialogues in corpus.splits.values():
        for dialogue in dialogues:
            (utterance,) = dialogue.utterances
            assert utterance.emotion in corpus.labels.emotions
            assert utterance.text
            assert utterance.text == utterance.text.strip()
    return {split: len(dialogues) for split, dialogues in corpus.splits.items()}


def by_id(corpus):
    found = {d.id: d.utterances[0] for ds in corpus.splits.values() for d in ds}
    assert len(found) == sum(map(len, corpus.splits.values()))
    return found


def test_deal():
    parts = deal(1005, 0.5)  # 502 are used
    assert {split: len(numbers) for split, numbers in parts.items()} == {
        "validation": 50,
        "test": 50,
        "train": 402,
    }
    everything = np.concatenate(list(parts.values()))
    assert sorted(everything) == sorted(drawn(1005, 0.5))
    assert len(set(everything.tolist())) == 502
    for numbers in parts.values():
        assert (np.diff(numbers) > 0).all()  # in the file's order
        assert numbers.max() > 900  # drawn from all of it
        assert numbers.min() < 100


def test_the_draw_is_the_same_everywhere():
    """Another draw is another test set, whose scores do not compare."""
    assert drawn(10).tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]
    assert {s: n.tolist() for s, n in deal(20).items()} == {
        "validation": [4, 19],
        "test": [2, 6],
        "train": [0, 1, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18],
    }


def test_tec(load, source):
    corpus = load("tec", source("tec"))
    assert sizes(corpus) == {"train": 18, "validation": 2, "test": 2}
    assert corpus.labels.emotions == EMOTIONS
    tweets = by_id(corpus)
    assert list(tweets) != sorted(tweets, key=int)  # the splits are drawn
    assert tweets["1"] == Utterance("A", "Tea & toast :: at last", "joy")
    assert tweets["2"].text == "a tab\there, and a\u0085line"
    # The hashtags that tell the emotion are gone, others and the words are not.
    assert tweets["3"] == Utterance("A", "at . #joyful <-", "joy")
    assert tweets["4"].text == "one\ntwo"
    assert {t.emotion for t in tweets.values()} == set(EMOTIONS)


def test_sst2(load, source):
    corpus = load("sst2", source("sst2"))
    assert sizes(corpus) == {"train": 2, "validation": 2, "test": 2}
    assert corpus.labels.emotions == ("negative", "positive")
    assert [d.utterances[0] for d in corpus.splits["validation"]] == [
        Utterance("A", "good", "positive"),
        Utterance("A", "bad & worse", "negative"),
    ]
    # As GLUE writes it.
    assert [d.utterances[0] for d in corpus.splits["test"]] == [
        Utterance("A", "dull ( or worse ) , and/or *** .", "negative"),
        Utterance("A", "bright .", "positive"),
    ]
    for dialogue in corpus.splits["train"]:
        text, label = SENTENCES[int(dialogue.id) - 2]  # line 1 is the header
        assert dialogue.utterances[0] == Utterance(
            "A", text.strip(), ("negative", "positive")[label]
        )


def test_crowdflower(load, source):
    corpus = load("crowdflower", source("crowdflower"))
    # 53 less 11 that are "empty" are 42, half of which are 21.
    assert sizes(corpus) == {"train": 17, "validation": 2, "test": 2}
    assert len(corpus.labels.emotions) == 12
    assert corpus.labels.neutral == "neutral"
    for identifier, utterance in by_id(corpus).items():
        emotion, text = RATED[int(identifier) - 70]
        assert emotion != "empty"
        assert utterance == Utterance("A", text.replace("&quot;", '"'), emotion)


@pytest.mark.parametrize("name", NAMES)
def test_the_splits_come_again(load, source, tmp_path, name):
    folder = source(name)
    assert load(name, folder).splits == load_corpus(name, folder, cache=tmp_path / "other").splits


@pytest.mark.parametrize("name", NAMES)
def test_json_lines(load, source, tmp_path, name):
    original = load(name, source(name))
    for split, dialogues in original.splits.items():
        save_dialogues(tmp_path / "plain" / f"{split}.jsonl", dialogues)
    assert load(name, tmp_path / "plain").splits == original.splits


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_not_the_published_ones_are_told_of(load, source, name):
    notes = [note for note in load(name, source(name)).notes if "is not the published file" in note]
    assert [note.split()[0] for note in notes] == list(FILES[name])


def replace(old, new):
    return lambda content: content.replace(old, new, 1)


TEC = "Jan9-2012-tweets-clean.txt"
RATINGS = "text_emotion.csv"
BAD = {
    "TEC, cut in a tweet": ("tec", TEC, lambda c: c[:-18], r":22: expected 'id:<tab>tweet<tab>:: "),
    "TEC, cut in a label": (
        "tec",
        TEC,
        lambda c: c[:-4],
        r":22: unknown emotion 'surpr'; expected",
    ),
    "TEC, another label": ("tec", TEC, replace(b":: anger", b":: rage"), r":4: unknown emotion"),
    "TEC, no id": ("tec", TEC, replace(b"1001:\t", b""), r":3: expected 'id:<tab>tweet"),
    "TEC, no tweet": ("tec", TEC, replace(b"tweet 3", b"#Joy "), r":8: the text is empty; remove"),
    "TEC, not UTF-8": ("tec", TEC, replace(b"tweet 3", b"tw\x92"), r":8: not UTF-8"),
    "SST-2, cut in a sentence": ("sst2", "train.tsv", lambda c: c[:-8], r":10: the label is ''"),
    "SST-2, without labels": (
        "sst2",
        "dev.tsv",
        replace(b"sentence\tlabel", b"index\tsentence"),
        r"dev\.tsv:1: expected the header 'sentence\\tlabel', found 'index\\tsentence'",
    ),
    "SST-2, no lines": ("sst2", "dev.tsv", lambda _: b"", r"dev\.tsv:1: expected the header"),
    "SST-2, another label": (
        "sst2",
        "dev.tsv",
        replace(b"\t1\n", b"\t2\n"),
        r"dev\.tsv:2: the label is '2'; expected 0 or 1",
    ),
    "SST-2, no label in test": (
        "sst2",
        "stsa.binary.test",
        replace(b"1 bright", b"bright"),
        r"test:2: the label is 'bright'; expected 0 or 1",
    ),
    "SST-2, no sentence": (
        "sst2",
        "stsa.binary.test",
        replace(b"1 bright .", b"1 "),
        r"test:2: the text is empty",
    ),
    "SST-2, not UTF-8": ("sst2", "train.tsv", replace(b"sentence 4", b"\xff"), r":6: not UTF-8"),
    "CrowdFlower, cut in quotes": (
        "crowdflower",
        RATINGS,
        lambda c: c[:-3],
        r":54: unexpected end of data; is the file cut off",
    ),
    "CrowdFlower, cut between fields": (
        "crowdflower",
        RATINGS,
        lambda c: c[: c.rindex(b",")],
        r":54: the row does not have 4 fields; is the file cut off",
    ),
    "CrowdFlower, another label": (
        "crowdflower",
        RATINGS,
        replace(b"worry", b"woe"),
        r":4: unknown emotion 'woe'; expected one of anger, boredom",
    ),
    "CrowdFlower, no text": (
        "crowdflower",
        RATINGS,
        replace(b"rated 7", b"  "),
        r":12: the text is empty",
    ),
    "CrowdFlower, other columns": (
        "crowdflower",
        RATINGS,
        replace(b"content", b"text"),
        r":1: columns content are missing",
    ),
    "CrowdFlower, not UTF-8": (
        "crowdflower",
        RATINGS,
        replace(b"rated 7", b"\x92"),
        r":12: not UTF-8",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file(load, source, case):
    name, file, spoil, message = BAD[case]
    folder = source(name)
    content = (folder / file).read_bytes()
    spoilt = spoil(content)
    assert spoilt != content
    (folder / file).write_bytes(spoilt)
    with pytest.raises(UserError, match=message):
        load(name, folder)


def test_the_labelled_test_file_of_sst2_is_asked_for(load, source):
    folder = source("sst2")
    (folder / "stsa.binary.test").rename(folder / "test.tsv")
    with pytest.raises(UserError, match=r"missing: stsa\.binary\.test\)(.|\n)*test\.tsv has none"):
        load("sst2", folder)


# The real corpora.


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Loads a real corpus, once."""
    cache = tmp_path_factory.mktemp("cache")
    return functools.cache(
        lambda name: load_corpus(name, Path(os.environ["ERC_JAX_DATA"], name), cache=cache)
    )


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tec", (16841, 2105, 2105)),
        ("sst2", (16837, 872, 1821)),
        ("crowdflower", (15670, 1958, 1958)),
    ],
)
def test_the_real_corpora_have_the_papers_sizes(real, name, expected):
    corpus = real(name)
    assert sizes(corpus) == dict(zip(SPLITS, expected, strict=True))
    assert not any("published" in note for note in corpus.notes)
    for dialogues in corpus.splits.values():  # every class is met in every split
        assert all(corpus.labels.counted(dialogues).counts)


def emotion_counts(corpus, splits=SPLITS):
    return collections.Counter(d.utterances[0].emotion for s in splits for d in corpus.splits[s])


@pytest.mark.slow
@needs_data
def test_the_real_labels(real):
    assert emotion_counts(real("tec")) == {
        "joy": 8240, "surprise": 3849, "sadness": 3830, "fear": 2816, "anger": 1555, "disgust": 761,
    }  # fmt: skip
    sst2 = real("sst2")
    assert emotion_counts(sst2, ["validation"]) == {"negative": 428, "positive": 444}
    assert emotion_counts(sst2, ["test"]) == {"negative": 912, "positive": 909}


@pytest.mark.slow
@needs_data
def test_no_real_tweet_tells_its_emotion(real):
    corpus = real("tec")
    texts = [u.text for u in by_id(corpus).values()]
    tags = re.compile(r"#(anger|disgust|fear|joy|sadness|surprise)\b", re.IGNORECASE)
    assert not any(tags.search(text) for text in texts)
    assert sum("#" in text for text in texts) > 4000  # others stay
    assert not any(re.search(r"&(amp|quot|lt|gt);|&#xA;", text) for text in texts)


@pytest.mark.slow
@needs_data
def test_the_real_sentences_are_spelt_alike(real):
    """Without labels the test sentences of both files are the same ones, but for a few words."""
    corpus = real("sst2")
    file = Path(os.environ["ERC_JAX_DATA"], "sst2", "test.tsv")
    if not file.exists():
        pytest.skip("needs GLUE's test.tsv, too")
    glue = {line.split("\t")[1].strip() for line in file.read_text().split("\n")[1:] if line}
    mine = {d.utterances[0].text for d in corpus.splits["test"]}
    assert len(mine) == len(glue) == 1821
    assert len(mine - glue) == 6  # such as "humour", "humor"
