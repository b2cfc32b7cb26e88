"""A model's folder in the published layout: what is read and written alike of every kind of model.

Beside the weights, which ``weights`` reads, it holds config.json and tokenizer.json; ``hub`` finds
it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from erc_jax.data.dialogue import decode, read_bytes, remove, write_whole
from erc_jax.encoders import hub
from erc_jax.encoders.weights import (
    WEIGHTS,
    check_sha256,
    read_json,
    save_params,
    sha256_of,
    weights_files,
)
from erc_jax.errors import UserError

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model that was found, and whose weights are the expected ones.

    Attributes:
      path: of the folder.
      weights: its safetensors files.
      sha256: of the weights.
      config: what config.json holds.
    """

    path: Path
    weights: Sequence[Path]
    sha256: str
    config: Mapping[str, Any]

    @classmethod
    def find(
        cls,
        name_or_path: str,
        sha256: str | None,
        *,
        part: str = hub.ENCODER,
        files: Sequence[str] = hub.FILES,
    ) -> Self:
        """Finds a model; arguments as of ``hub.find_model``, and the SHA-256 that is expected.

        Raises:
          UserError: there is no such model, a file is missing, or the weights are others.
        """
        path, published = hub.find_model(name_or_path, part=part, files=files)
        weights = weights_files(path)
        found = check_sha256(weights, name_or_path, published, sha256)
        return cls(path, weights, found, read_json(path / CONFIG))

    def contents(self, names: Iterable[str]) -> dict[str, bytes]:
        """Of these files, what those hold that are there."""
        files = {name: self.path / name for name in names}
        return {name: file.read_bytes() for name, file in files.items() if file.is_file()}

    def sums(self, names: Iterable[str]) -> list[str]:
        """Of these files, the SHA-256 of those that are there."""
        files = [self.path / name for name in names]
        return [sha256_of([file]) for file in files if file.is_file()]

    def tokenizer(self, vocab_size: int) -> Tokenizer:
        """The published tokenizer without its truncation and padding.

        Args:
          vocab_size: by config.json.

        Raises:
          UserError: the file is missing or damaged, or its vocabulary is not the weights'.
        """
        file = self.path / TOKENIZER
        text = decode(read_bytes(file), str(file))
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise UserError(f"{file}: not a tokenizer ({error}); fetch it again") from error
        # Rows without a word are common: embeddings are rounded up to a multiple of 64 or 128.
        spare = vocab_size - tokenizer.get_vocab_size()
        if not 0 <= spare < 128:
            raise UserError(
                f"{file}: the vocabulary has {tokenizer.get_vocab_size()} words, but the weights "
                f"have {vocab_size} rows by config.json; take the tokenizer from where the weights "
                "are from"
            )
        # Some published files pad everything to 128 tokens.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        frame = tokenizer.encode("").ids
        if len(frame) != 2:
            raise UserError(
                f"{file}: a sentence must begin and end with one special token, such as [CLS] and "
                f"[SEP], but the empty one has {len(frame)} tokens; take the file from where the "
                "weights are from, or choose another model"
            )
        return tokenizer


def type_of(dtype: str) -> np.dtype:
    """The type that models are loaded in.

    Raises:
      UserError: they cannot be loaded in this one.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype is {dtype!r}; expected 'float32' or 'bfloat16'")
    return jnp.dtype(dtype)


def write_model(folder: Path, params: Mapping[str, Any], files: Mapping[str, str | bytes]) -> None:
    """Writes a model's folder.

    Args:
      folder: made if it is not there.
      params: of the module, for ``save_params``.
      files: what stands beside the weights, by name; config.json among them.

    Raises:
      UserError: nothing can be written there.
    """
    # Under another name first: where they cannot be written, the model that was there stays whole.
    new_weights = folder / f"{WEIGHTS}.new"
    save_params(new_weights, params)
    # config.json goes first and comes last: a folder without it, whose saving was broken off, is no
    # model.
    remove(folder / CONFIG)
    new_weights.replace(folder / WEIGHTS)
    for name in sorted(files, key=lambda name: name == CONFIG):
        write_whole(folder / name, files[name])


def fingerprint_of(decisive: Any) -> str:
    """SHA-256 over everything that decides what a model says, as JSON."""
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def to_json(record: Any) -> str:
    """A record as the files of models hold it."""
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
