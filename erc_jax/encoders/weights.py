"""Tensors of published models, in safetensors, and parameters of Flax modules.

Other formats are not read: pytorch_model.bin is a pickle and can run code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import flax.traverse_util
import numpy as np
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from erc_jax.data.dialogue import decode, parse_json, read_bytes, write_whole
from erc_jax.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # in which shard a tensor is, where there is no WEIGHTS
FLOATS = ("F32", "F16", "BF16")  # as safetensors calls the types that become parameters


class PublishedModule(Protocol):
    """What ``load_params`` asks of an encoder's Flax module."""

    IGNORED: ClassVar[re.Pattern[str]]  # names of tensors in published files it does not need
    PREFIX: ClassVar[str]  # what its tensors' names begin with in models with a head on top
    TIED: ClassVar[Mapping[str, str]]  # further names of tensors that files may keep as copies
    OPTIONAL: ClassVar[frozenset[str]]  # tensors that files may lack, and that are then 0

    def shapes(self) -> Any: ...  # of the parameters, as jax.eval_shape tells them


def weights_files(folder: Path) -> list[Path]:
    """The folder's safetensors file, or the shards that its index names, sorted.

    Raises:
      UserError: there is none, or a shard is missing, or it lacks a tensor that the index says is
        in it; a pickle is named, and never read.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if index.is_file():
        return _check_shards(index)
    unread = sorted(f.name for f in folder.glob("*") if f.suffix in (".bin", ".pt", ".pth"))
    if unread:
        raise UserError(
            f"{folder / unread[0]}: a pickle, which can run any code when it is read, so it never "
            f"is; expected {WEIGHTS}. Ask the publisher for safetensors, or convert the file "
            "where you trust it: https://huggingface.co/docs/safetensors/convert-weights"
        )
    found = ", ".join(sorted(f.name for f in folder.glob("*"))) or "an empty folder"
    raise UserError(
        f"{folder}: expected {WEIGHTS}, found {found}; put it there, or its shards with {INDEX}"
    )


def _check_shards(index: Path) -> list[Path]:
    by_shard: dict[str, set[str]] = {}
    for tensor, shard in weight_map(index).items():
        by_shard.setdefault(shard, set()).add(tensor)
    files = []
    for shard, tensors in sorted(by_shard.items()):
        file = index.parent / shard
        if not file.is_file():
            raise UserError(f"{file}: not found, but {index.name} names it; fetch it again")
        with _open(file) as stored:
            lacking = sorted(tensors.difference(stored.keys()))
        if lacking:
            raise UserError(
                f"{file}: tensor {lacking[0]} is missing, but {index.name} says that it is there "
                f"({len(lacking)} such in all); fetch the index and all shards again"
            )
        files.append(file)
    return files


def weight_map(index: Path) -> dict[str, str]:
    """The shard's name of each tensor.

    Raises:
      UserError: a shard's name is not that of a safetensors file beside the index.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: expected an object 'weight_map' that names shards by tensor")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise UserError(
                f"{index}: names {shard!r} as a shard; expected the plain name of a safetensors "
                "file in the same folder"
            )
    return weight_map


def read_json(file: Path, kind: type = dict) -> Any:
    """A file that holds one JSON object, or one list.

    Raises:
      UserError: the file is missing or holds something else.
    """
    record = parse_json(decode(read_bytes(file), str(file)), str(file))
    if not isinstance(record, kind):
        raise UserError(f"{file}: expected a {kind.__name__}, found {type(record).__name__}")
    return record


def sha256_of(files: Sequence[Path]) -> str:
    """SHA-256 of one file; of several, that of their own sums (in hex) joined in order."""
    sums = []
    for file in files:
        with file.open("rb") as stream:
            sums.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def check_sha256(
    weights: Sequence[Path], name: str, published: str | None, expected: str | None
) -> str:
    """The weights' SHA-256.

    Args:
      weights: from ``weights_files``.
      name: of the model, for messages.
      published: what it should be by the model's name, if that is known.
      expected: what it should be by whoever loads it, likewise.

    Raises:
      UserError: it is another one.
    """
    found = sha256_of(weights)
    if published not in (None, found):
        raise UserError(
            f"{weights[0]}: SHA-256 is {found}, but the published weights of {name} "
            f"have {published}; the file is damaged or was changed: delete {weights[0].parent} and "
            "fetch it again"
        )
    if expected not in (None, found):
        raise UserError(
            f"{weights[0]}: this is not the encoder that the model was trained with: its "
            f"SHA-256 is {found}, expected {expected}; name the encoder that it was trained with"
        )
    return found


def load_params(
    files: Sequence[Path], module: PublishedModule, dtype: DTypeLike = np.float32
) -> dict[str, Any]:
    """Reads a module's parameters from published safetensors files.

    A parameter's path, joined by dots, is its tensor's name; PyTorch keeps the kernels of dense
    layers transposed. Files are mapped, so that only one tensor at a time is held twice.

    Args:
      files: model.safetensors, or all its shards.
      module: its submodules are named after the tensors.
      dtype: of the parameters, float32 or bfloat16.

    Raises:
      UserError: a file is cut off or damaged; a tensor is missing, comes twice, has another shape
        or type, is not known, or is not the same as one that it is tied to.
    """
    wanted = {
        _tensor_name(path): (path, want.shape[::-1] if path[-1] == "kernel" else want.shape)
        for path, want in flax.traverse_util.flatten_dict(module.shapes()).items()
    }
    tied = set(module.TIED.values())
    params: dict[tuple[str, ...], np.ndarray] = {}
    sources: dict[str, Path] = {}  # the file of each tensor
    for file in files:
        with _open(file) as stored:
            for key in stored.keys():  # noqa: SIM118 (not a dict)
                name = _plain_name(key, module)
                if module.IGNORED.match(name):
                    continue
                repeated = name in sources
                if repeated and name not in tied:
                    raise UserError(
                        f"{file}: tensor {name} comes a second time, after {sources[name]}; "
                        "fetch the files again"
                    )
                sources[name] = file
                if name not in wanted:
                    continue  # all of them are reported, below
                path, shape = wanted[name]
                header = stored.get_slice(key)
                kind, found = header.get_dtype(), tuple(header.get_shape())
                if found != shape or kind not in FLOATS:
                    raise UserError(
                        f"{file}: tensor {name} is {kind}{list(found)}, expected "
                        f"{'/'.join(FLOATS)} and {list(shape)} by config.json; take both from "
                        "one model"
                    )
                value = stored.get_tensor(key)
                # A transposed view would be copied at every use.
                value = value.T if path[-1] == "kernel" else value
                value = np.ascontiguousarray(value, dtype=dtype)
                if repeated and not np.array_equal(value, params[path]):
                    raise UserError(
                        f"{file}: tensor {key} differs from others that it should be a copy of; "
                        f"only models that have a single {name} are supported: choose another"
                    )
                params[path] = value
    whole = files[0] if len(files) == 1 else files[0].parent / INDEX
    for name, (path, shape) in wanted.items():
        if name in module.OPTIONAL and name not in sources:
            params[path] = np.zeros(shape, dtype)
        elif name not in sources:
            raise UserError(
                f"{whole}: tensor {name} is missing; config.json and weights do not belong "
                "together, or the file is incomplete: fetch both again"
            )
    unknown = sorted(sources.keys() - wanted.keys())
    if unknown:
        raise UserError(
            f"{sources[unknown[0]]}: unknown tensors {', '.join(unknown[:5])} ({len(unknown)} in "
            "all); the weights hold more than config.json describes: take both from one model"
        )
    return flax.traverse_util.unflatten_dict(params)


def save_params(file: Path, params: Mapping[str, Any], prefix: str = "") -> None:
    """The inverse of load_params: one published safetensors file, written whole or not at all.

    Args:
      file: model.safetensors.
      params: an encoder module's parameters, of type float32 or bfloat16, which is kept.
      prefix: what the tensors' names begin with; a module's PREFIX if the model has a head.

    Raises:
      UserError: the file cannot be written.
    """
    tensors = {}
    for path, value in flax.traverse_util.flatten_dict(params).items():
        value = np.asarray(value)
        # Safetensors writes the memory of an array as it lies, whatever its strides.
        tensors[prefix + _tensor_name(path)] = np.ascontiguousarray(
            value.T if path[-1] == "kernel" else value
        )
    # Transformers refuses files that do not name the framework that they are laid out for.
    write_whole(file, save(tensors, {"format": "pt"}))


def _tensor_name(path: tuple[str, ...]) -> str:
    """The published name of the parameter at a path."""
    *scope, leaf = path
    return ".".join((*scope, "weight" if leaf in ("kernel", "embedding", "scale") else leaf))


def _plain_name(tensor: str, module: PublishedModule) -> str:
    """The name under which a module has a tensor.

    Models with a head on top prefix the encoder's tensors; old ones name like TensorFlow.
    """
    name = tensor.removeprefix(module.PREFIX)
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    return module.TIED.get(name, name)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not a whole safetensors file ({error}; {file.stat().st_size:,} bytes); "
            "fetch it again"
        ) from error
