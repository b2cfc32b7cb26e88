r"""Feature files: vectors of utterances that other programs made, such as audio or visual ones.

A modality is a folder with one file per split: train, validation and test, each either
``.safetensors`` or ``.npz``. A file holds M utterances of its split, in any order; those that it
leaves out count as missing. An utterance is named by its dialogue's id and by its place in the
dialogue, from 1, as the corpus is read (``data.keep_unlabelled`` of IEMOCAP changes places).

``.npz``, as ``numpy.savez`` writes it (nothing in it may need pickle):

* ``features``: float32 [M, D], all finite.
* ``dialogue``: text [M].
* ``utterance``: any integers [M].
* ``manifest``: one text, a JSON object. ``extractor`` says what made the features. Optional are
  ``version``, of the extractor; ``width``, D; and ``sha256``, the checksum below. What is given
  must be right; a file written by hand may leave it out.

For instance::

    numpy.savez("audio/train.npz", features=features, dialogue=["d1", "d1"], utterance=[1, 2],
                manifest='{"extractor": "my program"}')

``.safetensors``: the tensors ``features`` float32 [M, D], ``dialogue`` int32 [M] and ``utterance``
int32 [M]; ``dialogue`` counts from 0 in the list ``dialogues`` of the ids, which stands in the
manifest. The manifest is the metadata's entry ``manifest``.

The checksum is the SHA-256, in hex, of the UTF-8 bytes of Python's
``json.dumps([extractor, version, D, dialogue ids, utterances])``, ids and utterances as two lists
of M, followed by ``\n`` and the features as little-endian float32, utterance by utterance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from erc_jax.data.dialogue import Dialogue, parse_json, read_bytes, write_whole
from erc_jax.errors import UserError

SUFFIXES = (".safetensors", ".npz")
ARRAYS = ("features", "dialogue", "utterance")
# What numpy raises for an archive that is cut off, altered, encrypted or no archive at all.
NPZ_ERRORS = (
    *(OSError, ValueError, EOFError, RuntimeError, MemoryError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of one modality, of some utterances of a split.

    Attributes:
      features: float32 [M, D], finite.
      dialogues: text [M], the dialogue's id.
      positions: int32 [M], the utterance's place in its dialogue, from 1.
      extractor: what made them, such as "opensmile eGeMAPSv02".
      version: of the extractor; "" where unknown.
    """

    features: np.ndarray
    dialogues: np.ndarray
    positions: np.ndarray
    extractor: str
    version: str

    @property
    def width(self) -> int:
        """D."""
        return self.features.shape[1]

    @property
    def sha256(self) -> str:
        """Of everything in the table, hex; see the module's text."""
        facts: list[Any] = [self.extractor, self.version, self.width]
        facts += [self.dialogues.tolist(), self.positions.tolist()]
        digest = hashlib.sha256(f"{json.dumps(facts)}\n".encode())
        digest.update(self.features.astype("<f4").tobytes())
        return digest.hexdigest()


def save_feature_file(path: str | Path, table: FeatureTable) -> None:
    """Writes a ``.safetensors`` or ``.npz`` file; it appears whole.

    Raises:
      UserError: the table is no valid one, or the file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    _check(table, str(path))
    manifest: dict[str, Any] = {
        "extractor": table.extractor,
        "version": table.version,
        "width": table.width,
        "sha256": table.sha256,
    }
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(
            buffer,
            features=table.features,
            dialogue=table.dialogues,
            utterance=table.positions,
            manifest=json.dumps(manifest),
        )
        write_whole(path, buffer.getvalue())
        return
    ids, indices = np.unique(table.dialogues, return_inverse=True)
    manifest["dialogues"] = ids.tolist()
    arrays = {
        "features": np.ascontiguousarray(table.features),
        "dialogue": indices.astype(np.int32),
        "utterance": np.ascontiguousarray(table.positions),
    }
    write_whole(path, save(arrays, {"manifest": json.dumps(manifest)}))


def load_feature_file(path: str | Path) -> FeatureTable:
    """Reads a ``.safetensors`` or ``.npz`` file; see the module's text.

    Raises:
      UserError: the file is missing, damaged, or not of the format; the message names the file
        and, where there is one, dialogue and utterance.
    """
    path = Path(path)
    check_suffix(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; see erc_jax.data.feature_files")
    arrays, text = (_read_npz if path.suffix == ".npz" else _read_safetensors)(path)
    manifest = parse_json(text, f"{path}: manifest")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("extractor"), str):
        raise UserError(
            f'{path}: expected a JSON object with the text "extractor" as manifest, found '
            f"{text[:80]}"
        )
    for name in ("version", "sha256"):
        if not isinstance(manifest.get(name, ""), str):
            raise UserError(f'{path}: expected text as "{name}" in the manifest')
    dialogues, positions = arrays["dialogue"], arrays["utterance"]
    if positions.dtype.kind not in "iu":
        raise UserError(f"{path}: expected integers as utterance, found {positions.dtype}")
    if path.suffix == ".safetensors":
        dialogues = _dialogue_ids(dialogues, manifest.get("dialogues"), path)
    limits = np.iinfo(np.int32)
    if positions.size and not limits.min <= positions.min() <= positions.max() <= limits.max:
        raise UserError(f"{path}: places of utterances beyond 32 bits; count them from 1")
    table = FeatureTable(
        features=arrays["features"],
        dialogues=dialogues,
        positions=positions.astype(np.int32),
        extractor=manifest["extractor"],
        version=manifest.get("version", ""),
    )
    _check(table, str(path))
    if manifest.get("width", table.width) != table.width:
        raise UserError(
            f"{path}: the manifest's width is {manifest['width']}, the features have "
            f"{table.width}; write the file anew"
        )
    if manifest.get("sha256", table.sha256) != table.sha256:
        raise UserError(
            f"{path}: the checksum is not the manifest's: the file was damaged or changed; get it "
            "again, or make it anew"
        )
    return table


def load_split(folder: str | Path, split: str) -> FeatureTable:
    """Reads the file of a split in a modality's folder.

    Args:
      folder: of the modality.
      split: "train", "validation" or "test".

    Raises:
      UserError: there is no such file, or one of each kind; see also ``load_feature_file``.
    """
    folder = Path(folder).expanduser()
    candidates = [folder / f"{split}{suffix}" for suffix in SUFFIXES]
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise UserError(
            f"{folder}: no features of {split}; looked for "
            f"{' and '.join(path.name for path in candidates)}. A modality is a folder with a file "
            "for each split, see erc_jax.data.feature_files"
        )
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]}: which one is meant? Remove the other")
    return load_feature_file(found[0])


def align(
    table: FeatureTable, dialogues: Sequence[Dialogue], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Brings features into the order of utterances.

    Args:
      table: features of some of the utterances.
      dialogues: with N utterances in all.
      where: the table's place, such as its file, for the message of an error.

    Returns:
      float32 [N, D], zero where missing, and bool [N]: whether it is there.

    Raises:
      UserError: the table has an utterance that the dialogues lack, or one twice.
    """
    _check(table, where)
    place_of: dict[tuple[str, int], int] = {}
    for dialogue in dialogues:
        for position in range(1, len(dialogue.utterances) + 1):
            if place_of.setdefault((dialogue.id, position), len(place_of)) != len(place_of) - 1:
                raise UserError(
                    f"{where}: two dialogues of the split have the id {dialogue.id}, so that "
                    "features cannot be told apart; give the dialogues ids of their own"
                )
    lengths = {dialogue.id: len(dialogue.utterances) for dialogue in dialogues}
    keys = list(zip(table.dialogues.tolist(), table.positions.tolist(), strict=True))
    strangers = [key for key in keys if key not in place_of]
    if strangers:
        dialogue_id, position = strangers[0]
        has = f"has {lengths[dialogue_id]} utterances" if dialogue_id in lengths else "is not there"
        raise UserError(
            f"{where}: features of dialogue {dialogue_id}, utterance {position}, but in the corpus "
            f"that dialogue {has} ({len(strangers)} of {len(keys)} do not fit); are the features "
            "of this split, and of this version of the corpus?"
        )
    features = np.zeros((len(place_of), table.width), np.float32)
    there = np.zeros(len(place_of), bool)
    places = np.array([place_of[key] for key in keys], np.int64)
    features[places] = table.features
    there[places] = True
    return features, there


def check_suffix(path: Path) -> None:
    """Raises UserError unless a file of this name can be a feature file."""
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}; pickles are converted "
            "with python -m erc_jax.convert_features"
        )


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], str]:
    raw = read_bytes(path)
    try:
        if not raw.startswith(b"PK\x03\x04"):  # numpy would take it for a pickle
            raise ValueError("no archive of arrays")
        stored = np.load(io.BytesIO(raw), allow_pickle=False)
        _require_names(stored.files, (*ARRAYS, "manifest"), path)
        arrays = {name: stored[name] for name in ARRAYS}
        manifest = stored["manifest"]
    except NPZ_ERRORS as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"{path}: holds pickled Python objects, which can run any program and are not "
                "read; write plain arrays: float32 features, text dialogue, integer utterance"
            ) from error
        raise _damaged(path, error) from error
    if manifest.shape != () or manifest.dtype.kind != "U":
        raise UserError(
            f"{path}: expected one text as manifest, found {_kind(manifest)}; write it with "
            "manifest=json.dumps({...})"
        )
    return arrays, manifest.item()


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], str]:
    try:
        with safe_open(path, framework="np") as stored:
            metadata = stored.metadata() or {}
            _require_names([*stored.keys(), *metadata], (*ARRAYS, "manifest"), path)
            found = stored.get_slice("features").get_dtype()
            if found != "F32":  # numpy has no bfloat16
                raise UserError(f"{path}: expected float32 features, found {found}; convert them")
            return {name: stored.get_tensor(name) for name in ARRAYS}, metadata["manifest"]
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _require_names(found: Sequence[str], expected: Sequence[str], path: Path) -> None:
    if missing := [name for name in expected if name not in found]:
        raise UserError(
            f"{path}: {', '.join(missing)} missing; found {', '.join(sorted(found)) or 'nothing'}. "
            "erc_jax.data.feature_files describes the format"
        )


def _damaged(path: Path, error: BaseException) -> UserError:
    return UserError(
        f"{path}: damaged, cut off or not a {path.suffix} file ({error}); get it again, or make it "
        "anew"
    )


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _dialogue_ids(indices: np.ndarray, ids: Any, path: Path) -> np.ndarray:
    """The ids of a .safetensors file, text [M], whose tensor ``dialogue`` counts in ``ids``."""
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise UserError(
            f"{path}: expected the list of the dialogues' ids as manifest's \"dialogues\""
        )
    if indices.dtype.kind not in "iu":
        raise UserError(f"{path}: expected integers as dialogue, found {indices.dtype}")
    if indices.size and not 0 <= indices.min() <= indices.max() < len(ids):
        raise UserError(
            f"{path}: dialogue goes from {indices.min()} to {indices.max()}, but the manifest "
            f'names {len(ids)} "dialogues", counted from 0'
        )
    return np.array(ids, str)[indices]


def _check(table: FeatureTable, where: str) -> None:
    """Raises UserError unless the table is what its docstring says, each utterance once."""
    features, dialogues, positions = table.features, table.dialogues, table.positions
    if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] == 0:
        raise UserError(
            f"{where}: expected float32 [utterances, width] as features, found {_kind(features)}; "
            "convert them with features.astype(numpy.float32)"
        )
    if dialogues.dtype.kind != "U" or dialogues.ndim != 1:
        raise UserError(
            f"{where}: expected one text for each utterance as dialogue, found {_kind(dialogues)}"
        )
    if positions.ndim != 1:
        raise UserError(
            f"{where}: expected one number for each utterance as utterance, found "
            f"{_kind(positions)}"
        )
    if not len(features) == len(dialogues) == len(positions):
        raise UserError(
            f"{where}: {len(features)} rows of features, {len(dialogues)} of dialogue, "
            f"{len(positions)} of utterance; there must be as many of each"
        )
    keys = list(zip(dialogues.tolist(), positions.tolist(), strict=True))
    seen: set[tuple[str, int]] = set()
    for dialogue, position in keys:
        if position < 1:
            raise UserError(
                f"{where}: dialogue {dialogue}, utterance {position}: utterances are counted from 1"
            )
        if (dialogue, position) in seen:
            raise UserError(
                f"{where}: dialogue {dialogue}, utterance {position} is there twice; keep one"
            )
        seen.add((dialogue, position))
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        dialogue, position = keys[int(bad.argmax())]
        raise UserError(
            f"{where}: dialogue {dialogue}, utterance {position}: NaN or infinity in the features "
            f"({bad.sum()} of {len(bad)} utterances); extract them anew, or leave these utterances "
            "out: they then count as missing"
        )
