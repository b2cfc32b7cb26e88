"""The files of sentence-transformers beside weights and tokenizer: how a sentence becomes a vector.

modules.json, 1_Pooling/config.json, sentence_bert_config.json, and one file of our own.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from erc_jax.encoders.model_folder import to_json
from erc_jax.encoders.weights import read_json
from erc_jax.errors import UserError

POOLINGS = ("mean", "cls", "max")
CONTEXTS = ("none", "dialogue")
OWN_FILE = "erc_jax.json"  # beside the published files: what only this library knows of an encoder


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How hidden states become one vector."""

    mode: str  # one of POOLINGS
    normalize: bool  # to Euclidean length 1


def read_pooling(folder: Path, width: int) -> Pooling:
    """What modules.json and the pooling module's config.json say.

    Raises:
      UserError: the model ends in modules that are not known here.
    """
    file = folder / "modules.json"
    if not file.exists():
        logging.warning("%s: not found; taking the mean over tokens, not normalised", file)
        return Pooling("mean", normalize=False)
    modules = read_json(file, list)
    # Types are import paths, which moved between versions: "sentence_transformers.models.Pooling".
    kinds = [
        str(module.get("type") if isinstance(module, dict) else module).rpartition(".")[2]
        for module in modules
    ]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(
            f"{file}: the model consists of {', '.join(kinds)}; expected Transformer, Pooling and, "
            "if it is there, Normalize: choose another model"
        )
    file = folder / str(modules[1].get("path")) / "config.json"
    config = read_json(file)
    modes = [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    # What newer versions of sentence-transformers write: {"pooling_mode": "mean"}.
    if isinstance(named := config.get("pooling_mode"), str):
        modes = [named]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        found = ", ".join(modes) or "not named"
        raise UserError(f"{file}: pooling is {found}; expected one of {', '.join(POOLINGS)}")
    size = config.get("word_embedding_dimension", config.get("embedding_dimension", width))
    if size != width:
        raise UserError(
            f"{file}: vectors of {size} are pooled, but the hidden size is {width} by config.json; "
            "take both files from one model"
        )
    return Pooling(modes[0], normalize=kinds[-1] == "Normalize")


def read_limits(folder: Path, longest: int) -> tuple[int, bool]:
    """Tokens in a sentence, at most the model's longest, and whether texts are lower-cased."""
    file = folder / "sentence_bert_config.json"
    limits = read_json(file) if file.exists() else {}
    max_length = limits.get("max_seq_length")
    if max_length is None:
        # Newer versions of sentence-transformers keep it with the tokenizer; 1e30 is "none".
        file = folder / "tokenizer_config.json"
        of_tokenizer = read_json(file) if file.exists() else {}
        max_length = of_tokenizer.get("model_max_length", longest)
        max_length = longest if isinstance(max_length, float) else max_length
    if not isinstance(max_length, int) or max_length < 3:
        raise UserError(
            f"{file}: the maximum length is {max_length!r}; expected a whole number of at least 3"
        )
    return min(max_length, longest), bool(limits.get("do_lower_case", False))


def read_context(folder: Path) -> str:
    """How a fine-tuned encoder reads; published ones read sentences alone."""
    file = folder / OWN_FILE
    if not file.exists():
        return "none"
    context = read_json(file).get("context")
    if context not in CONTEXTS:
        raise UserError(f"{file}: context is {context!r}; expected one of {', '.join(CONTEXTS)}")
    return context


def describing_files(
    pooling: Pooling, width: int, max_length: int, lower_case: bool, context: str
) -> dict[str, str]:
    """What the functions above read, by the files' names.

    Args:
      pooling: of the encoder.
      width: D, of its vectors.
      max_length: tokens in a sentence.
      lower_case: whether texts are lower-cased.
      context: one of CONTEXTS.
    """
    modules = ["Transformer", "Pooling"] + ["Normalize"] * pooling.normalize
    records: dict[str, Any] = {
        "modules.json": [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{kind}" if i else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": pooling.mode == "cls",
            "pooling_mode_mean_tokens": pooling.mode == "mean",
            "pooling_mode_max_tokens": pooling.mode == "max",
        },
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": lower_case},
        OWN_FILE: {"context": context},
    }
    return {name: to_json(record) for name, record in records.items()}
