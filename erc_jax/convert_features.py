r"""Converts the field's pickled features of IEMOCAP and MELD into feature files.

    python -m erc_jax.convert_features meld_multimodal_features.pkl \
        --config meld --config.data.source=MELD --output features

writes features/text, features/audio and features/visual, each with a file for every split of the
corpus (see ``erc_jax.data.feature_files``). Pickles of two layouts are known, those of MMGCN and of
SDT: a tuple of dictionaries by dialogue, whose items are named in ``LAYOUTS``. SDT's hold the [CLS]
of RoBERTa's last four layers; text is the first of these, videoText, which is all that SDT's own
loader gives to its model.

Pickles are programs. This is the only place that reads them, and nothing that a pickle names is
run: what arrays, numbers and texts need has a stand-in here, which only notes what it is given, and
a pickle that names anything else is refused.

A dialogue is found in the corpus by its texts (MELD's ids start anew in every split), or else by
its id, if most texts are the same; its utterances are then those of the same texts, in order. Case,
spaces and everything but ASCII letters and digits do not count: releases differ in their quotes and
dashes. What is not found, or not certain, is counted and left out; it is then a missing utterance.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import hashlib
import math
import pickle
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from erc_jax import main as command_line
from erc_jax.data.corpora import Corpus, load_corpus
from erc_jax.data.dialogue import MODALITIES
from erc_jax.data.feature_files import FeatureTable, save_feature_file
from erc_jax.errors import UserError
from erc_jax.progress import say

_HEAD, _TAIL = (
    ("ids", "speakers", "labels", "text"),
    ("audio", "visual", "sentences", "train", "test"),
)
_ROBERTA = ("roberta2", "roberta3", "roberta4")
# The tuple's items, by how many there are; MELD's have one more, its labels of sentiment.
LAYOUTS = {
    9: (*_HEAD, *_TAIL),
    10: (*_HEAD, *_TAIL, "more"),
    12: (*_HEAD, *_ROBERTA, *_TAIL),
    13: (*_HEAD, *_ROBERTA, *_TAIL, "more"),
}


# What a pickle of arrays builds its values with. Nothing here calls what it is given.


class _DType:
    """Stands for numpy.dtype: a kind and size such as "f4", and later a byte order."""

    def __init__(self, code: str, *options: Any):
        if not (isinstance(code, str) and re.fullmatch(r"[<>|=]?(O8?|[fiubSU]\d{1,6})", code)):
            raise ValueError(f"an array of {str(code)[:20]!r}")
        self.is_object = "O" in code
        self.dtype = np.dtype("O" if self.is_object else code)

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray; ``value`` is the array, or the list of an array of objects."""

    value: Any = None

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, dtype, fortran, content = state
        if dtype.is_object:
            self.value = list(content)
        else:
            self.value = _array_of(content, dtype, shape, "F" if fortran else "C")


def _array_of(content: bytes | str, dtype: _DType, shape: Sequence[int], order: Any) -> np.ndarray:
    # The bytes of Python 2 come as text.
    raw = content.encode("latin1") if isinstance(content, str) else bytes(content)
    if dtype.is_object or len(raw) != math.prod(shape) * dtype.dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes for an array of shape {list(shape)}")
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    """Stands for numpy's function of this name: an array whose content comes later."""
    return _Array()


def _frombuffer(content: bytes, dtype: _DType, shape: Sequence[int], order: str) -> _Array:
    """Stands for numpy's function of this name, in pickles of protocol 5."""
    array = _Array()
    array.value = _array_of(content, dtype, shape, order)
    return array


def _scalar(dtype: _DType, content: bytes | str) -> Any:
    """Stands for numpy's function of this name."""
    return _array_of(content, dtype, (), "C").item()


def _encode(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, with which Python 3 writes bytes for Python 2."""
    if encoding != "latin1":
        raise ValueError(f"bytes as {encoding}")
    return text.encode("latin1")


def _new_dict(content: Any = ()) -> dict[Any, Any]:
    """Stands for OrderedDict, of these items, and for defaultdict, whose default is not used."""
    return dict(content) if isinstance(content, list | tuple) else {}


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _new_dict,
    ("collections", "defaultdict"): _new_dict,
}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _scalar
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _frombuffer
for _builtins in ("builtins", "__builtin__"):  # of Python 3 and 2
    for _type in (list, set, frozenset, bytes):
        _STAND_INS[_builtins, _type.__name__] = _type


class _Unpickler(pickle.Unpickler):
    """Reads a pickle without running anything that it names."""

    def __init__(self, file: Any, path: Path):
        super().__init__(file, encoding="latin1")  # Python 2's texts and arrays
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise UserError(
                f"{self._path}: refused, for it wants to use {module}.{name}, which arrays, "
                "numbers and texts do not need. Nothing was run. Do not open this file with "
                "pickle, unless you trust whoever made it"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise UserError(
            f"{self._path}: refused, for it names data outside of the file ({str(pid)[:40]!r}); a "
            "pickle of arrays, numbers and texts is whole in itself"
        )


def read_pickle(path: Path) -> Any:
    """What a pickle of arrays, numbers and texts holds; its arrays are ``_Array``.

    Raises:
      UserError: the file is missing or damaged, or wants to run anything.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, path).load()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # of a damaged file anything can be raised
        raise UserError(
            f"{path}: damaged, cut off, or no pickle of arrays, numbers and texts "
            f"({type(error).__name__}: {error}); get it again"
        ) from error


@dataclasses.dataclass(frozen=True)
class PickledDialogue:
    """A dialogue of a pickle.

    Attributes:
      texts: of its T utterances.
      features: of each modality, float32 [T, D].
    """

    texts: Sequence[str]
    features: Mapping[str, np.ndarray]


def read_dialogues(path: Path) -> dict[str, PickledDialogue]:
    """The dialogues of a pickle by their ids.

    Raises:
      UserError: see ``read_pickle``; or the content has neither of the known layouts.
    """
    content = read_pickle(path)
    if not isinstance(content, tuple | list) or len(content) not in LAYOUTS:
        held = f"{len(content)} items" if isinstance(content, tuple | list) else "something else"
        raise UserError(
            f"{path}: expected a tuple of {', '.join(map(str, LAYOUTS))} items, as MMGCN's and "
            f"SDT's pickles hold, found {held}"
        )
    items = dict(zip(LAYOUTS[len(content)], content, strict=True))
    for name in ("labels", "sentences", *MODALITIES):
        if not isinstance(items[name], dict):
            raise UserError(
                f"{path}: expected a dictionary by dialogue as {name}, item "
                f"{list(items).index(name) + 1} of {len(content)}; is this a pickle of another "
                "project? Only the layouts of MMGCN and SDT are known"
            )
    dialogues = {}
    for key, sentences in items["sentences"].items():
        where = f"{path}: dialogue {key}"
        texts = _plain(sentences)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where}: expected a list of texts as sentences")
        labels = _plain(items["labels"].get(key))
        # COSMIC's pickles have as many items as MMGCN's, but others: vectors stand here.
        if (
            not isinstance(labels, list)
            or len(labels) != len(texts)
            or not all(isinstance(label, int | float | str) for label in labels)
        ):
            raise UserError(
                f"{where}: expected a label for each of its {len(texts)} utterances in item 3 of "
                "the tuple; is this a pickle of another project? Only the layouts of MMGCN and "
                "SDT are known"
            )
        features = {
            modality: _vectors(items[modality].get(key), len(texts), f"{where}: {modality}")
            for modality in MODALITIES
        }
        dialogues[str(key)] = PickledDialogue(texts, features)
    for modality in MODALITIES:
        widths = {dialogue.features[modality].shape[1] for dialogue in dialogues.values()}
        if len(widths) > 1:
            raise UserError(
                f"{path}: vectors of {modality} have different widths: {sorted(widths)}; get the "
                "file again"
            )
    return dialogues


def _plain(value: Any) -> Any:
    """A list of what a pickle holds as a list, a tuple or an array."""
    if isinstance(value, _Array):
        value = value.value
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, list | tuple) else value


def _vectors(value: Any, count: int, where: str) -> np.ndarray:
    """The vectors of a dialogue, float32 [count, D], from a list of them or an array."""
    rows = value.value if isinstance(value, _Array) else value
    if isinstance(rows, list | tuple):
        rows = [row.value if isinstance(row, _Array) else row for row in rows]
    try:
        vectors = np.asarray(rows, np.float32)
    except (TypeError, ValueError):
        vectors = np.zeros((0, 0), np.float32)
    if vectors.ndim != 2 or len(vectors) != count or vectors.shape[1] == 0:
        raise UserError(f"{where}: expected {count} vectors of numbers, one for each sentence")
    return vectors


@dataclasses.dataclass(frozen=True)
class Found:
    """Where a pickle's utterances are in a corpus.

    Attributes:
      places: of each split, (its dialogue's id, position from 1, the pickle's dialogue, position
        from 1 there) of each utterance.
      unmatched: dialogues of the pickle that are not in the corpus.
      ambiguous: dialogues of the pickle whose texts occur more than once, or hold no letters.
    """

    places: Mapping[str, Sequence[tuple[str, int, str, int]]]
    unmatched: int
    ambiguous: int


def find_utterances(pickled: Mapping[str, PickledDialogue], corpus: Corpus) -> Found:
    """Finds a pickle's utterances in a corpus; see the module's text."""
    in_corpus = [
        _InCorpus(split, dialogue.id, tuple(_normalized(u.text) for u in dialogue.utterances))
        for split, dialogues in corpus.splits.items()
        for dialogue in dialogues
    ]
    by_id = _unique_by(in_corpus, lambda dialogue: dialogue.id)
    by_texts = _unique_by(in_corpus, lambda dialogue: dialogue.texts)
    texts_of = {key: tuple(map(_normalized, d.texts)) for key, d in pickled.items()}
    times = collections.Counter(texts_of.values())

    pairs_of: dict[str, tuple[_InCorpus, list[tuple[int, int]]]] = {}
    for key, texts in texts_of.items():
        match = by_texts.get(texts)
        if match and times[texts] == 1 and any(texts):
            pairs_of[key] = match, [(t, t) for t in range(len(texts))]
    taken = {match for match, _ in pairs_of.values()}
    for key, texts in texts_of.items():
        match = by_id.get(key)
        if key not in pairs_of and match and match not in taken:
            pairs = _same_texts(match.texts, texts)
            if 2 * len(pairs) > len(texts):  # MELD's ids may by chance be those of other dialogues
                pairs_of[key] = match, pairs

    places: dict[str, list[tuple[str, int, str, int]]] = {split: [] for split in corpus.splits}
    for key, (match, pairs) in pairs_of.items():
        places[match.split] += [(match.id, ours + 1, key, its + 1) for ours, its in pairs]
    lost = [texts for key, texts in texts_of.items() if key not in pairs_of]
    ambiguous = sum(texts in by_texts for texts in lost)
    return Found(places, len(lost) - ambiguous, ambiguous)


@dataclasses.dataclass(frozen=True)
class _InCorpus:
    split: str
    id: str
    texts: tuple[str, ...]


def _normalized(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isascii() and c.isalnum())


def _unique_by(
    dialogues: Sequence[_InCorpus], key: Callable[[_InCorpus], Any]
) -> dict[Any, _InCorpus | None]:
    """Dialogues by key; None where several have it."""
    found: dict[Any, _InCorpus | None] = {}
    for dialogue in dialogues:
        found[key(dialogue)] = None if key(dialogue) in found else dialogue
    return found


def _same_texts(ours: Sequence[str], its: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of places, from 0, of the same texts in the same order; either side may have more."""
    blocks = difflib.SequenceMatcher(None, ours, its, autojunk=False).get_matching_blocks()
    return [(a + i, b + i) for a, b, size in blocks for i in range(size) if ours[a + i]]


def convert(path: Path, corpus: Corpus, output: Path) -> Found:
    """Writes the feature files of a pickle's utterances that are in a corpus.

    Args:
      path: of the pickle.
      corpus: with the dialogues that the features belong to.
      output: folder of the three modalities' folders.

    Returns:
      Where the utterances were found.

    Raises:
      UserError: the pickle is damaged, wants to run anything or has another layout; nothing in it
        is of this corpus; or a file cannot be written.
    """
    pickled = read_dialogues(path)
    found = find_utterances(pickled, corpus)
    total = sum(map(len, found.places.values()))
    if not total:
        raise UserError(
            f"{path}: none of its {len(pickled)} dialogues is in {corpus.name}; is --config that "
            "of the corpus which the features belong to?"
        )
    with path.open("rb") as file:
        version = f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
    for split, places in found.places.items():
        utterances = sum(len(dialogue.utterances) for dialogue in corpus.splits[split])
        say(f"{split}: {len(places):,} of {utterances:,} utterances")
        for modality in MODALITIES:
            width = next(iter(pickled.values())).features[modality].shape[1]
            features = np.array(
                [pickled[key].features[modality][its - 1] for _, _, key, its in places], np.float32
            ).reshape(-1, width)
            finite = np.isfinite(features).all(axis=1)
            if not finite.all():
                say(f"  {modality}: {(~finite).sum()} left out, which have NaN or infinity")
            table = FeatureTable(
                features[finite],
                np.array([identifier for identifier, *_ in places], str)[finite],
                np.array([ours for _, ours, *_ in places], np.int32)[finite],
                extractor=f"{modality} of {path.name}",
                version=version,
            )
            save_feature_file(output / modality / f"{split}.safetensors", table)
    left_out = sum(len(dialogue.texts) for dialogue in pickled.values()) - total
    if left_out:
        say(
            f"{left_out:,} utterances of the pickle were left out; {found.unmatched} dialogues are "
            f"not in the corpus, {found.ambiguous} have texts that occur more than once or hold no "
            "letters"
        )
    return found


FLAGS = flags.FLAGS
for _name in ("config", "output"):  # those of the main command
    flags.declare_key_flag(_name)


def main(argv: Sequence[str]) -> None:
    """Runs the command line; a user's mistake becomes one message and exit code 1."""
    command_line.quiet_logs()
    try:
        if len(argv) != 2 or not FLAGS.config or not FLAGS.output:
            raise UserError(
                "expected one pickle, --config and --output: python -m erc_jax.convert_features "
                "FILE.pkl --config meld --config.data.source=FOLDER --output features"
            )
        data = FLAGS.config.data
        corpus = load_corpus(
            data.name, data.source, neutral=data.neutral, keep_unlabelled=data.keep_unlabelled
        )
        convert(Path(argv[1]), corpus, Path(FLAGS.output))
    except UserError as error:
        sys.exit(f"Error: {error}")
    print(
        "".join(
            f"--config.data.features.{modality}={Path(FLAGS.output) / modality}\n"
            for modality in MODALITIES
        ),
        end="",
    )


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
