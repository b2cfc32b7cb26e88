"""The corpora: small files in the original formats always, the real ones where $ERC_JAX_DATA is.

The small files are written for these tests; their counts were made by hand.
"""

import collections
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from erc_jax.data import dialogue as dialogue_lib
from erc_jax.data.cache import cache_dir
from erc_jax.data.corpora import CORPORA, load_corpus
from erc_jax.data.corpora.dailydialog import ARCHIVE, DailyDialog
from erc_jax.data.corpora.emorynlp import EmoryNlp
from erc_jax.data.corpora.meld import Meld
from erc_jax.data.dialogue import Utterance
from erc_jax.data.labels import UNLABELLED, previous_utterances, shift_ids
from erc_jax.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures"
DATA = os.environ.get("ERC_JAX_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="needs the real corpora, ERC_JAX_DATA")
SPLITS = ("train", "validation", "test")


@pytest.fixture
def load(tmp_path):
    """load_corpus with a cache of its own."""
    return functools.partial(load_corpus, cache=tmp_path / "cache")


@pytest.fixture
def copy(tmp_path):
    """Gives a copy of a fixture's folder to be spoilt."""
    return lambda name: Path(shutil.copytree(FIXTURES / name, tmp_path / "source"))


def sizes(corpus):
    return {
        split: (len(dialogues), sum(len(d.utterances) for d in dialogues))
        for split, dialogues in corpus.splits.items()
    }


def shift_counts(corpus, first_shift):
    """Counts of the classes -2 to +2 in the test split, between neighbours and within speakers."""
    counts = np.zeros((2, 5), int)
    for dialogue in corpus.splits["test"]:
        polarity = corpus.labels.polarity_ids(dialogue)
        for level, previous in enumerate(
            previous_utterances([u.speaker for u in dialogue.utterances])
        ):
            shifts = shift_ids(polarity, previous, first_shift)
            counts[level] += np.bincount(shifts[shifts != UNLABELLED], minlength=5)
    return counts.tolist()


# What is read.


def test_meld(load):
    corpus = load("meld", FIXTURES / "meld")
    assert sizes(corpus) == {"train": (2, 4), "validation": (1, 2), "test": (3, 10)}
    assert [d.id for d in corpus.splits["train"]] == ["0", "2"]
    first, *_, last = corpus.splits["test"][0].utterances
    assert first == Utterance("Ada", "The kettle sings!", "joy", "positive")
    assert last.text == 'And there is cake, "the good one".'
    # The column says what the corpus says; the polarity is the paper's table.
    surprise = corpus.splits["test"][1]
    assert surprise.utterances[0].sentiment == "positive"
    assert corpus.labels.polarity_ids(surprise).tolist() == [1, 0, 0]
    assert corpus.labels.neutral == "neutral"
    assert not corpus.synthetic


def test_shift_counts_of_a_small_file(load):
    # Test dialogues (speaker, polarity): A2 B0 A0 B1 B2 | C1 D0 C0 | E0 E2.
    corpus = load("meld", FIXTURES / "meld")
    assert shift_counts(corpus, "ignore") == [[1, 1, 2, 2, 1], [1, 1, 0, 2, 1]]
    # Three firsts of dialogues, five of speakers.
    assert shift_counts(corpus, "strong_negative") == [[4, 1, 2, 2, 1], [6, 1, 0, 2, 1]]


def test_meld_older_release(load, copy):
    """Line feeds only, and C1 controls where the present one has typographic characters."""
    source = copy("meld")
    for file in source.iterdir():
        text = file.read_bytes().decode().replace("\r\n", "\n").replace("’", "\u0092")
        file.write_bytes(text.encode())
    corpus = load("meld", source)
    assert sizes(corpus)["test"] == (3, 10)
    assert corpus.splits["test"][0].utterances[3].text == "It\u0092s off."


def test_emorynlp_csv(load):
    corpus = load("emorynlp", FIXTURES / "emorynlp")
    assert sizes(corpus) == {"train": (2, 4), "validation": (1, 2), "test": (1, 3)}
    quiet, loud = corpus.splits["train"]
    assert (quiet.id, loud.id) == ("s01_e02_c01", "s01_e11_c03")
    assert [u.speaker for u in quiet.utterances] == ["Ada Park", "Ada's Brother"]
    assert loud.utterances[1] == Utterance("Ada Park", "We all did.", "joyful")
    # An utterance of Dov and Cleo is Dov's, so that Cleo's next is her first.
    assert shift_counts(corpus, "ignore") == [[1, 0, 0, 0, 1], [0, 0, 1, 0, 0]]


def test_emorynlp_json(load):
    corpus = load("emorynlp", FIXTURES / "emorynlp_json")
    assert sizes(corpus) == {"train": (2, 5), "validation": (1, 2), "test": (1, 1)}
    assert corpus.splits["train"][0].id == "s01_e02_c01"
    assert corpus.splits["test"][0].utterances == (Utterance("Dov Reed", "You ate it.", "mad"),)


def test_emorynlp_takes_the_csv_of_both_releases(load, copy):
    source = copy("emorynlp")
    shutil.copytree(FIXTURES / "emorynlp_json", source, dirs_exist_ok=True)
    assert sizes(load("emorynlp", source))["train"] == (2, 4)
    (source / "emorynlp_dev_final.csv").unlink()
    assert sizes(load("emorynlp", source))["train"] == (2, 5)


def zipped(source, folder):
    """train.zip, validation.zip, test.zip of the unpacked folders, as they are published."""
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        shutil.make_archive(str(folder / split), "zip", source, split)
    return folder


def zipped_twice(source, folder):
    zipped(source, folder / "ijcnlp_dailydialog")
    shutil.make_archive(str(folder / ARCHIVE.removesuffix(".zip")), "zip", folder)
    shutil.rmtree(folder / "ijcnlp_dailydialog")
    return folder


@pytest.mark.parametrize("form", ["folders", "zip", "zip of zips"])
def test_dailydialog(load, tmp_path, form):
    source = FIXTURES / "dailydialog"
    (tmp_path / "zips").mkdir()
    if form != "folders":
        source = (zipped if form == "zip" else zipped_twice)(source, tmp_path / "zips")
    corpus = load("dailydialog", source)
    assert sizes(corpus) == {"train": (2, 5), "validation": (1, 2), "test": (1, 3)}
    assert corpus.splits["train"][0].utterances == (
        Utterance("A", "Is this seat taken ?", "no emotion"),
        Utterance("B", "No , please sit down .", "no emotion"),
        Utterance("A", "How kind !", "happiness"),
    )
    emotions = [u.emotion for d in corpus.splits["validation"] for u in d.utterances]
    assert emotions == ["fear", "surprise"]
    assert corpus.labels.neutral == "no emotion"
    # The same texts are the same corpus, however they were packed.
    assert corpus.sha256 == load("dailydialog", FIXTURES / "dailydialog").sha256


def test_iemocap(load):
    corpus = load("iemocap", FIXTURES / "iemocap")
    # Ses03M_impro05a holds no utterance of the six classes, and is left out.
    assert sizes(corpus) == {"train": (3, 5), "validation": (1, 2), "test": (1, 2)}
    first = corpus.splits["train"][0]
    assert first.id == "Ses01F_impro01"
    assert first.extra == {"vad_scale": [1, 5]}
    assert [(u.speaker, u.emotion) for u in first.utterances] == [
        ("F", "neutral"),
        ("M", "frustrated"),
        ("M", "angry"),
    ]
    assert first.utterances[1].text == "Which ladder?"
    assert first.utterances[1].vad == {"valence": 2.0, "arousal": 3.5, "dominance": 3.0}
    assert [d.id for d in corpus.splits["validation"]] == ["Ses01M_impro01"]
    assert [u.emotion for u in corpus.splits["test"][0].utterances] == ["sad", "excited"]


def test_iemocap_keeps_unlabelled_context(load):
    corpus = load("iemocap", FIXTURES / "iemocap", keep_unlabelled=True)
    assert sizes(corpus) == {"train": (4, 8), "validation": (1, 2), "test": (1, 3)}
    utterance = corpus.splits["train"][0].utterances[2]
    assert (utterance.text, utterance.emotion) == ("All of them.", None)
    assert utterance.vad == {"valence": 2.5, "arousal": 3.0, "dominance": 3.3333}
    assert sizes(load("iemocap", FIXTURES / "iemocap"))["train"] == (3, 5)


def test_own(load):
    corpus = load("own", FIXTURES / "own")
    assert corpus.labels.emotions == ("cross", "proud", "wry")
    assert corpus.labels.polarity is None
    assert corpus.labels.neutral is None
    assert corpus.notes == ()
    assert corpus.splits["train"][0].utterances[2].emotion is None
    for split, dialogues in corpus.splits.items():  # every key comes back
        assert dialogues == dialogue_lib.load_dialogues(FIXTURES / "own" / f"{split}.jsonl")
    assert corpus.splits["test"][0].extra == {"room": "kitchen"}


def test_own_with_polarity_and_neutral(load):
    polarity = {"cross": "negative", "proud": "positive", "wry": "neutral"}
    corpus = load("own", FIXTURES / "own", polarity=polarity, neutral="wry")
    assert corpus.labels.polarity == polarity
    assert corpus.labels.neutral == "wry"
    assert corpus.notes == ()
    with pytest.raises(UserError, match="does not say what proud, wry is"):
        load("own", FIXTURES / "own", polarity={"cross": "negative"})


def test_own_as_csv(load, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for split in SPLITS:
        (source / f"{split}.csv").write_text(
            f"dialogue,speaker,text,emotion\n{split}1,A,x,good\n{split}1,B,y,bad\n"
        )
    corpus = load("own", source)
    assert corpus.labels.emotions == ("bad", "good")
    assert [d.id for d in corpus.splits["validation"]] == ["validation1"]


@pytest.mark.parametrize("name", ["meld", "emorynlp", "dailydialog", "iemocap"])
def test_json_lines_of_a_published_corpus(load, tmp_path, name):
    """Written out and read back, a corpus is the same; the labels are checked."""
    original = load(name, FIXTURES / name)
    source = tmp_path / "source"
    for split, dialogues in original.splits.items():
        dialogue_lib.save_dialogues(source / f"{split}.jsonl", dialogues)
    corpus = load(name, source)
    assert corpus.splits == original.splits
    assert corpus.labels == original.labels
    assert corpus.sha256 != original.sha256
    with (source / "test.jsonl").open("a") as file:
        utterances = [
            {"speaker": "A", "text": "x"},
            {"speaker": "A", "text": "x", "emotion": "zeal"},
        ]
        file.write(json.dumps({"id": "z", "utterances": utterances}) + "\n")
    place = rf"test\.jsonl:{len(original.splits['test']) + 1}: utterance 2"
    with pytest.raises(UserError, match=f"{place}: unknown emotion 'zeal'; .* use data.name=own"):
        load(name, source)


def test_sample(load):
    corpus = load("sample")
    assert corpus.synthetic
    assert corpus.labels.emotions == Meld.EMOTIONS
    assert all(dialogues for dialogues in corpus.splits.values())
    with pytest.raises(
        UserError, match=r"the sample, which has files of its own; use data.name=own"
    ):
        load("sample", FIXTURES / "own")


# Preparation.


def test_a_changed_source_is_prepared_anew(load, copy):
    source = copy("own")
    before = load("own", source)
    (source / "test.jsonl").write_text(
        (source / "test.jsonl").read_text().replace("Done", "Finished")
    )
    after = load("own", source)
    assert before.sha256 != after.sha256
    assert after.splits["test"][0].utterances[0].text.startswith("Finished")


def test_the_prepared_corpus_is_read_back(load, monkeypatch):
    first = load("meld", FIXTURES / "meld")
    monkeypatch.setattr(Meld, "read", lambda *_: pytest.fail("parsed again"))
    assert load("meld", FIXTURES / "meld") == first


def test_a_failed_preparation_leaves_nothing(load, copy, tmp_path):
    source = copy("meld")
    file = source / "test_sent_emo.csv"
    good = file.read_bytes()
    file.write_bytes(good[:-30])
    for _ in range(2):  # the second time, too
        with pytest.raises(UserError, match="is the file cut off"):
            load("meld", source)
    file.write_bytes(good)
    assert sizes(load("meld", source))["test"] == (3, 10)
    assert not [path for path in (tmp_path / "cache").rglob("*") if "incomplete" in path.name]


def test_unwritable_cache(tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"cannot be written .*ERC_JAX_CACHE"):
        load_corpus("meld", FIXTURES / "meld", cache=tmp_path / "cache")


def test_quiet_and_without_tensorflow(tmp_path):
    program = (
        "import sys; from erc_jax.data.corpora import load_corpus\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"load_corpus('meld', {str(FIXTURES / 'meld')!r})\n"
        "assert not {'tensorflow', 'torch', 'jax'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "ERC_JAX_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "cache" / "corpora" / "meld").is_dir()


def test_cache_dir(monkeypatch):
    monkeypatch.setenv("ERC_JAX_CACHE", "~/somewhere")
    assert cache_dir() == Path.home() / "somewhere"
    monkeypatch.delenv("ERC_JAX_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "erc_jax"


# Downloads, from a server of our own.


@pytest.fixture
def serve():
    """Serves a folder; gives its address and the list of paths that were asked for."""
    asked, servers = [], []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    def start(folder):
        handler = functools.partial(Handler, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_download(load, serve, monkeypatch):
    address, asked = serve(FIXTURES / "meld")
    monkeypatch.setattr(Meld, "URLS", {name: address + name for name in Meld.RELEASES[0]})
    assert sizes(load("meld"))["test"] == (3, 10)
    assert load("meld").sha256 == load("meld", FIXTURES / "meld").sha256
    assert asked == [f"/{name}" for name in Meld.RELEASES[0]]


def test_download_with_another_checksum(load, serve, monkeypatch, tmp_path):
    address, _ = serve(FIXTURES / "meld")
    monkeypatch.setattr(Meld, "URLS", {name: address + name for name in Meld.RELEASES[0]})
    monkeypatch.setattr(Meld, "published_sha256", lambda: {"dev_sent_emo.csv": "ab" * 32})
    with pytest.raises(
        UserError, match=r"dev_sent_emo\.csv is not .* SHA-256 [0-9a-f]{64}, expected (ab){32}"
    ):
        load("meld")
    assert not list((tmp_path / "cache").rglob("*.csv"))


def test_download_of_a_page_instead_of_an_archive(load, serve, monkeypatch, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / ARCHIVE).write_text("<!DOCTYPE html> moved")
    address, _ = serve(tmp_path / "site")
    monkeypatch.setattr(DailyDialog, "URLS", {ARCHIVE: address + ARCHIVE})
    with pytest.raises(UserError, match=r"not a zip archive.*<!DOCTYPE.*--config\.data\.source"):
        load("dailydialog")
    assert not list((tmp_path / "cache").rglob("*.zip"))


def test_download_is_checked_by_the_texts_in_the_archive(load, serve, monkeypatch, tmp_path):
    (tmp_path / "site").mkdir()
    address, _ = serve(zipped_twice(FIXTURES / "dailydialog", tmp_path / "site"))
    monkeypatch.setattr(DailyDialog, "URLS", {ARCHIVE: address + ARCHIVE})
    with pytest.raises(UserError, match=r"train/dialogues_train\.txt is not the published file"):
        load("dailydialog")


@pytest.mark.parametrize("builder", [Meld, EmoryNlp, DailyDialog])
def test_no_network(load, monkeypatch, builder):
    addresses = {name: "http://127.0.0.1:9/" + name for name in builder.URLS}  # nobody listens
    monkeypatch.setattr(builder, "URLS", addresses)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be downloaded .*refused.*--config\.data\.source"):
        load(builder.name)
    assert time.monotonic() - start < 5


def test_missing_page(load, serve, monkeypatch, tmp_path):
    address, _ = serve(tmp_path)
    monkeypatch.setattr(Meld, "URLS", {"train_sent_emo.csv": address + "train_sent_emo.csv"})
    with pytest.raises(UserError, match=r"train_sent_emo\.csv: cannot be downloaded .*404"):
        load("meld")


@pytest.mark.parametrize("builder", [Meld, EmoryNlp])
def test_checksums_are_on_record(builder):
    assert set(builder.published_sha256()) == set(builder.URLS)


def test_another_release_is_told_of(load):
    notes = load("meld", FIXTURES / "meld").notes
    assert len(notes) == 3
    assert "train_sent_emo.csv is not the published file: SHA-256" in notes[0]
    assert Meld.published_sha256()["train_sent_emo.csv"] in notes[0]


# What is refused.


def test_unknown_corpus():
    with pytest.raises(UserError, match="'meldd', which is no corpus; did you mean 'meld'"):
        load_corpus("meldd")
    with pytest.raises(UserError, match=f"Known are {', '.join(CORPORA)}"):
        load_corpus("xyzzy")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("iemocap", r"not public: .* unpack .*--config\.data\.source=\.\.\./IEMOCAP_full_release"),
        ("own", r"needs --config\.data\.source=DIR, a folder of train\.jsonl"),
    ],
)
def test_corpora_that_need_a_source(load, name, message):
    with pytest.raises(UserError, match=message):
        load(name)


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("meld", "dev_sent_emo.csv", r"missing: dev_sent_emo\.csv\)"),
        ("emorynlp", "emorynlp_train_final.csv", r"missing: emorynlp_train_final\.csv\)"),
        ("emorynlp_json", "emotion-detection-trn.json", r"missing: emotion-detection-trn\.json\)"),
        ("dailydialog", "test/dialogues_emotion_test.txt", r"missing: test\)"),
        ("iemocap", "Session3/dialog/EmoEvaluation/Ses03M_impro05a.txt", "missing: Session3"),
        ("own", "validation.jsonl", r"missing: validation\.jsonl\).*\n.*deal its lines out"),
        ("own", "test.jsonl", r"missing: test\.jsonl\).*\n.*deal its lines out"),
    ],
)
def test_missing_file(load, copy, name, lost, message):
    source = copy(name)
    (source / lost).unlink()
    with pytest.raises(UserError, match=message):
        load(name.removesuffix("_json"), source)


def test_missing_folder(load, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        load("meld", tmp_path / "nowhere")


def replace(old, new):
    return lambda content: content.replace(old, new, 1)


BAD = {
    "cut inside quotes": (
        "meld",
        "test_sent_emo.csv",
        lambda content: content[: content.index(b"before it boils")],
        r":3: unexpected end of data; is the file cut off",
    ),
    "cut between fields": (
        "meld",
        "test_sent_emo.csv",
        lambda content: content[: content.index(b"anger,negative,0,1")],
        r":3: the row does not have 11 fields; is the file cut off",
    ),
    "not UTF-8": (
        "meld",
        "test_sent_emo.csv",
        replace("It’s".encode(), b"It\x92s"),
        r":5: not UTF-8 \(byte 0x92.*iconv",
    ),
    "missing column": (
        "meld",
        "train_sent_emo.csv",
        replace(b"Emotion", b"Feeling"),
        r":1: columns Emotion are missing; found .*Feeling",
    ),
    "unknown emotion": (
        "meld",
        "test_sent_emo.csv",
        replace(b"Ben,anger", b"Ben,rage"),
        r":3: unknown emotion 'rage'; expected one of neutral, joy",
    ),
    "unknown sentiment": (
        "meld",
        "test_sent_emo.csv",
        replace(b"anger,negative", b"anger,bad"),
        r":3: unknown sentiment 'bad'; expected one of negative",
    ),
    "rows not together": (
        "meld",
        "test_sent_emo.csv",
        replace(b"negative,2,1", b"negative,0,1"),
        r":10: dialogue '0' goes on after another one began",
    ),
    "no rows": (
        "meld",
        "train_sent_emo.csv",
        lambda content: content[: content.index(b"\r\n") + 2],
        "no dialogues in the train split",
    ),
    "speaker that is no list": (
        "emorynlp",
        "emorynlp_test_final.csv",
        replace(b"['Cleo Lind']", b"Cleo Lind"),
        r":3: speakers are None; expected a list",
    ),
    "speaker that is code": (
        "emorynlp",
        "emorynlp_test_final.csv",
        replace(b"['Cleo Lind']", b"[print(1)]"),
        r":3: speakers are None; expected a list",
    ),
    "nobody speaks": (
        "emorynlp",
        "emorynlp_test_final.csv",
        replace(b"['Cleo Lind']", b"[]"),
        r":3: speakers are \[\]; expected a list",
    ),
    "scene without a number": (
        "emorynlp",
        "emorynlp_test_final.csv",
        replace(b"Mad,1,", b"Mad,x,"),
        r":2: Season, Episode, Scene_ID are \['1', '2', 'x'\]",
    ),
    "truncated JSON": (
        "emorynlp_json",
        "emotion-detection-trn.json",
        lambda content: content[:300],
        r"trn\.json:\d+: not JSON .* cut off",
    ),
    "other JSON": (
        "emorynlp_json",
        "emotion-detection-trn.json",
        replace(b'"transcript"', b'"words"'),
        r"trn\.json: not the JSON release of EmoryNLP \(KeyError\('transcript'\)\)",
    ),
    "empty scene": (
        "emorynlp_json",
        "emotion-detection-tst.json",
        lambda content: b'{"episodes": [{"scenes": [{"scene_id": "s1", "utterances": []}]}]}',
        "scene s1: the dialogue has no utterances",
    ),
    "unknown emotion in JSON": (
        "emorynlp_json",
        "emotion-detection-tst.json",
        replace(b'"Mad"', b'"Furious"'),
        r"tst\.json: s01_e02_c01_u001: unknown emotion 'furious'",
    ),
    "more utterances than labels": (
        "dailydialog",
        "train/dialogues_train.txt",
        replace(b"You broke my cup .", b"You broke __eou__ my cup ."),
        r"dialogues_train\.txt:2: 3 utterances, 2 emotion labels .*emotion_train\.txt:2",
    ),
    "unknown number": (
        "dailydialog",
        "test/dialogues_emotion_test.txt",
        replace(b"5", b"7"),
        r"emotion_test\.txt:1: unknown emotion '7'; expected a number, 0 to 6",
    ),
    "blank line": (
        "dailydialog",
        "train/dialogues_train.txt",
        replace(
            b"Is this seat taken ? __eou__ No , please sit down . __eou__ How kind ! __eou__", b""
        ),
        r"dialogues_train\.txt:1: the line does not end with __eou__",
    ),
    "cut line": (
        "dailydialog",
        "train/dialogues_train.txt",
        lambda content: content[:-12],
        r"dialogues_train\.txt:2: the line does not end with __eou__, found 'I am so sorr'",
    ),
    "lost lines": (
        "dailydialog",
        "train/dialogues_emotion_train.txt",
        lambda content: content.split(b"\n")[0] + b"\n",
        "dialogues_train.txt has 2 lines, .*emotion_train.txt has 1; .* cut off",
    ),
    "utterance without a line": (
        "iemocap",
        "Session5/dialog/transcriptions/Ses05F_impro01.txt",
        lambda content: content[: content.index(b"Ses05F_impro01_F001")],
        "Ses05F_impro01_F001 is labelled in .* but has no line here; is the file cut off",
    ),
    "unknown IEMOCAP label": (
        "iemocap",
        "Session5/dialog/EmoEvaluation/Ses05F_impro01.txt",
        replace(b"exc", b"joy"),
        r"EmoEvaluation/Ses05F_impro01\.txt:11: unknown emotion 'joy'; expected one of hap",
    ),
    "cut ratings": (
        "iemocap",
        "Session5/dialog/EmoEvaluation/Ses05F_impro01.txt",
        replace(b", 4.0000, 4.0000]", b""),
        r"Ses05F_impro01\.txt:11: expected \[start - end\], utterance, emotion, \[V, A, D\]",
    ),
    "label that train does not have": (
        "own",
        "validation.jsonl",
        replace(b"cross", b"calm"),
        r"validation\.jsonl:1: utterance 1: unknown emotion 'calm'; .* those of the train split",
    ),
    "truncated JSON line": (
        "own",
        "test.jsonl",
        lambda content: content[:-20],
        r"test\.jsonl:1: not a JSON object .* cut off",
    ),
    "empty dialogue": (
        "own",
        "train.jsonl",
        lambda content: content + b'{"id": "t3", "utterances": []}\n',
        r"train\.jsonl:3: the dialogue has no utterances; remove it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file(load, copy, case):
    name, file, spoil, message = BAD[case]
    source = copy(name)
    content = (source / file).read_bytes()
    spoilt = spoil(content)
    assert spoilt != content
    (source / file).write_bytes(spoilt)
    with pytest.raises(UserError, match=message):
        load(name.removesuffix("_json"), source)


@pytest.mark.parametrize("name", ["meld", "emorynlp_json", "dailydialog", "iemocap", "own"])
def test_too_long_a_dialogue(load, monkeypatch, name):
    monkeypatch.setattr(dialogue_lib, "MAX_UTTERANCES", 1)
    with pytest.raises(UserError, match=r"\d: .*dialogue has \d utterances, the limit is 1; split"):
        load(name.removesuffix("_json"), FIXTURES / name)


def test_damaged_archive(load, tmp_path):
    (tmp_path / "zips").mkdir()
    source = zipped(FIXTURES / "dailydialog", tmp_path / "zips")
    archive = source / "train.zip"
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"train\.zip: not a zip archive"):
        load("dailydialog", source)


def test_a_bad_line_in_an_archive_is_named(load, copy, tmp_path):
    source = copy("dailydialog")
    file = source / "train" / "dialogues_train.txt"
    file.write_text(file.read_text().replace("You broke", "You __eou__ broke"))
    (tmp_path / "zips").mkdir()
    member = r"train\.zip/train/dialogues_train\.txt:2: 3 utterances, 2 emotion labels"
    with pytest.raises(UserError, match=member):
        load("dailydialog", zipped(source, tmp_path / "zips"))


# The real corpora.


def iemocap_to_json_lines():
    """The conversion of a JSON table of IEMOCAP's six classes, whose arguments are TABLE FOLDER."""
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    fence = r"`iemocap_to_json_lines\.py`:\n\n```python\n(.*?)```"
    return re.search(fence, page, re.DOTALL)[1]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Loads a real corpus, once."""
    cache = tmp_path_factory.mktemp("cache")

    @functools.cache
    def load(name):
        source = Path(DATA, name)
        if name == "iemocap":
            table = source / "iemocap_6way_local_validation_only.json"
            source = tmp_path_factory.mktemp("iemocap")
            command = [sys.executable, "-c", iemocap_to_json_lines(), str(table), str(source)]
            subprocess.run(command, check=True)
        return load_corpus(name, source, cache=cache)

    return load


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        # Mtl-ERC-ES, Table 2: test splits, classes from -2 to +2, global then speaker.
        ("meld", [[325, 467, 1298, 473, 47], [780, 350, 1092, 353, 35]]),
        ("dailydialog", [[1007, 483, 5574, 665, 11], [2004, 327, 4849, 556, 4]]),
        ("emorynlp", [[162, 167, 413, 161, 81], [310, 132, 348, 127, 67]]),
        ("iemocap", [[48, 221, 1125, 209, 20], [79, 96, 1337, 92, 19]]),
    ],
)
def test_shift_counts_of_the_paper(real, name, counts):
    assert shift_counts(real(name), "strong_negative") == counts


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize(
    ("name", "expected", "train_emotions"),
    [
        (
            "meld",
            {"train": (1038, 9989), "validation": (114, 1109), "test": (280, 2610)},
            (4710, 1743, 1205, 1109, 683, 271, 268),
        ),
        (
            "emorynlp",
            {"train": (659, 7551), "validation": (89, 954), "test": (79, 984)},
            (2485, 1677, 941, 785, 638, 551, 474),
        ),
        (
            "dailydialog",
            {"train": (11118, 87170), "validation": (1000, 8069), "test": (1000, 7740)},
            (72143, 827, 303, 146, 11182, 969, 1600),
        ),
        (
            "iemocap",
            {"train": (108, 5163), "validation": (12, 647), "test": (31, 1623)},
            (451, 771, 1221, 831, 593, 1296),
        ),
    ],
)
def test_sizes_of_the_real_corpora(real, name, expected, train_emotions):
    corpus = real(name)
    assert sizes(corpus) == expected
    counts = collections.Counter(u.emotion for d in corpus.splits["train"] for u in d.utterances)
    # The counts are given in descending order for MELD and EmoryNLP, in that of the classes else.
    if name in ("meld", "emorynlp"):
        assert sorted(counts.values(), reverse=True) == list(train_emotions)
    else:
        assert tuple(counts[emotion] for emotion in corpus.labels.emotions) == train_emotions
    assert corpus.notes == ()  # these are the published files


@pytest.mark.slow
@needs_data
def test_real_iemocap_has_ratings(real):
    utterance = real("iemocap").splits["train"][0].utterances[1]
    assert utterance.vad == {"valence": 2.5, "arousal": 2.0, "dominance": 2.5}


@pytest.mark.slow
@needs_data
def test_first_release_of_dailydialog_is_refused(load, tmp_path):
    source = tmp_path / "source"
    for split in ("validation", "test"):
        shutil.copytree(Path(DATA, "dailydialog", split), source / split)
    shutil.copy(Path(DATA, "dailydialog", "train_first_release.zip"), source / "train.zip")
    place = r"train\.zip/train/dialogues_train\.txt:7852"
    with pytest.raises(
        UserError, match=f"{place}: 12 utterances, 11 emotion labels .* take the corrected release"
    ):
        load("dailydialog", source)


@needs_data
def test_real_emorynlp_json_release_lacks_train(load, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for part in ("dev", "tst"):
        shutil.copy(Path(DATA, "emorynlp", f"emotion-detection-{part}.json"), source)
    with pytest.raises(UserError, match=r"missing: emotion-detection-trn\.json"):
        load("emorynlp", source)
    # With a train file of our own, the others are read as they are published.
    shutil.copy(FIXTURES / "emorynlp_json" / "emotion-detection-trn.json", source)
    corpus = load("emorynlp", source)
    assert sizes(corpus) == {"train": (2, 5), "validation": (99, 1344), "test": (85, 1328)}
