"""Sentence embeddings: a published encoder, its tokenizer and its pooling.

The published configuration decides (modules.json, 1_Pooling/config.json,
sentence_bert_config.json), as it does in sentence-transformers.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from erc_jax.data.dialogue import decode, read_bytes
from erc_jax.encoders import hub
from erc_jax.encoders.bert import Bert
from erc_jax.encoders.packing import SHORTEST, Block, make_blocks, pack_rows
from erc_jax.errors import UserError

ARCHITECTURES = {"bert": Bert}  # by config.json's model_type

# Block shapes, [rows, tokens]. 768 tokens keep two cores busy and still fit a CPU's caches; rows
# of 48 tokens hold nearly every utterance, and attention's cost grows with the row. A request that
# does not fill 16 rows, a conversation say, goes in blocks of 4. Sentences that are longer than
# a row share rows of the longest length that the model takes, one row a block.
FULL = (16, 48)
SMALL = (4, 48)

Progress = Callable[[int, int], None]  # called with (done, total)


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How hidden states become one vector."""

    mode: str  # "mean" or "cls"
    normalize: bool  # to Euclidean length 1


class SentenceEncoder:
    """Turns sentences into vectors with a frozen published model.

    Attributes:
      name: what the user asked for, for example "all-MiniLM-L6-v2".
      sha256: SHA-256 of the weights file.
      fingerprint: SHA-256 over everything that decides an embedding: weights, config, tokenizer,
        pooling and maximum length. Caches are keyed by it.
      width: D, the size of a vector.
      max_length: tokens, [CLS] and [SEP] included, after which a sentence is cut off.
    """

    def __init__(
        self,
        name: str,
        sha256: str,
        fingerprint: str,
        module: Bert,
        params: dict[str, Any],
        tokenizer: Tokenizer,
        pooling: Pooling,
        max_length: int,
        lower_case: bool,
    ):
        self.name = name
        self.sha256 = sha256
        self.fingerprint = fingerprint
        self.width = module.config.hidden_size
        self.max_length = max_length
        self._params = jax.device_put(params)
        self._tokenizer = tokenizer
        self._lower_case = lower_case
        self._embed = jax.jit(functools.partial(_embed, module, pooling))

    @classmethod
    def from_pretrained(cls, name_or_path: str, *, sha256: str | None = None) -> SentenceEncoder:
        """Loads a model: from a local folder, an installed weight package, or the hub.

        Args:
          name_or_path: a folder with config.json, tokenizer.json and model.safetensors, or a
            model's name, such as "all-MiniLM-L6-v2".
          sha256: the weights' SHA-256 that a trained model expects.

        Raises:
          UserError: there is no such model here and the hub cannot be reached; a file is missing,
            damaged, or does not belong to the others; the weights are not the expected ones.
        """
        folder, published = hub.find_model(name_or_path)
        weights = hub.weights_files(folder)
        found = hub.sha256_of(weights)
        if published not in (None, found):
            raise UserError(
                f"{folder}: SHA-256 is {found}, but the published weights of {name_or_path} have "
                f"{published}; the file is damaged or was changed: fetch it again"
            )
        if sha256 not in (None, found):
            raise UserError(
                f"{folder}: this is not the encoder that the model was trained with: its SHA-256 "
                f"is {found}, expected {sha256}; name the encoder that it was trained with"
            )
        config = hub.read_json(folder / "config.json")
        architecture = ARCHITECTURES.get(str(config.get("model_type")))
        if architecture is None:
            raise UserError(
                f"{folder / 'config.json'}: unknown architecture, model_type is "
                f"{config.get('model_type')!r}; expected one of {', '.join(ARCHITECTURES)}"
            )
        module = architecture.from_folder(folder, config)
        params = hub.load_params(weights, module)
        pooling = _read_pooling(folder, module.config.hidden_size)
        max_length, lower_case = _read_limits(folder, module.config.max_position_embeddings)
        tokenizer = _read_tokenizer(folder / "tokenizer.json", module.config.vocab_size, max_length)
        decisive = [
            found,
            hub.sha256_of([folder / "config.json"]),
            hub.sha256_of([folder / "tokenizer.json"]),
            dataclasses.asdict(pooling),
            max_length,
            lower_case,
        ]
        return cls(
            name=name_or_path,
            sha256=found,
            fingerprint=hashlib.sha256(json.dumps(decisive).encode()).hexdigest(),
            module=module,
            params=params,
            tokenizer=tokenizer,
            pooling=pooling,
            max_length=max_length,
            lower_case=lower_case,
        )

    def encode(self, sentences: Sequence[str], *, progress: Progress | None = None) -> np.ndarray:
        """Embeds sentences.

        The empty sentence has a vector too; a sentence above ``max_length`` tokens is cut off.

        Args:
          sentences: texts, [N].
          progress: called with (done, total) sentences now and then, and at the end.

        Returns:
          float32 [N, D], in the order of the sentences; of length 1 if the model normalises.
        """
        if isinstance(sentences, str):
            raise UserError(
                f"encode expects a list of sentences, found one text: {sentences[:40]!r}; "
                "write encode([text])"
            )
        vectors = np.zeros((len(sentences), self.width), np.float32)
        running: deque[tuple[Block, jax.Array]] = deque()
        done = 0

        def collect() -> None:
            nonlocal done
            block, embedded = running.popleft()
            pooled = np.asarray(embedded)
            for row, members in enumerate(block.rows):
                vectors[members] = pooled[row, : len(members)]
                done += len(members)
            if progress is not None:
                progress(done, len(sentences))

        for block in self._blocks(self._tokenize(sentences)):
            embedded = self._embed(self._params, block.ids, block.segments, block.positions)
            running.append((block, embedded))
            # One block is computed while the next one is filled.
            if len(running) > 1:
                collect()
        while running:
            collect()
        return vectors

    def _tokenize(self, sentences: Sequence[str]) -> list[list[int]]:
        # JSON can hold half of a surrogate pair, which no tokenizer takes.
        texts = [sentence.encode("utf-8", "replace").decode() for sentence in sentences]
        if self._lower_case:
            texts = [text.lower() for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    def _blocks(self, tokens: Sequence[Sequence[int]]) -> Iterator[Block]:
        width = min(FULL[1], self.max_length)
        short: dict[int, int] = {}
        long: dict[int, int] = {}
        for sentence, ids in enumerate(tokens):
            (short if len(ids) <= width else long)[sentence] = len(ids)
        rows = pack_rows(short, width)
        height = FULL[0] if len(rows) >= FULL[0] else SMALL[0]
        yield from make_blocks(tokens, rows, height, width)
        yield from make_blocks(tokens, pack_rows(long, self.max_length), 1, self.max_length)


def _embed(
    module: Bert,
    pooling: Pooling,
    params: dict[str, Any],
    ids: jax.Array,
    segments: jax.Array,
    positions: jax.Array,
) -> jax.Array:
    """Vectors float32 [R, S, D] of the S sentences that a row of W tokens can hold."""
    # Accelerators multiply float32 with fewer bits unless they are told not to.
    with jax.default_matmul_precision("float32"):
        hidden: Any = module.apply({"params": params}, ids, segments, positions)
        numbers = jnp.arange(1, ids.shape[1] // SHORTEST + 1)
        pooled = segments[:, None, :] == numbers[:, None]  # [R, S, W]
        if pooling.mode == "cls":
            pooled &= positions[:, None, :] == 0
        weights = pooled / jnp.maximum(pooled.sum(-1, keepdims=True), 1)
        vectors = weights @ hidden
    if pooling.normalize:
        length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
        vectors = vectors / jnp.maximum(length, 1e-12)
    return vectors


def _read_pooling(folder: Path, width: int) -> Pooling:
    """What modules.json and the pooling module's config.json say.

    Raises:
      UserError: the model ends in modules that are not known here.
    """
    file = folder / "modules.json"
    if not file.exists():
        logging.warning("%s: not found; taking the mean over tokens, not normalised", file)
        return Pooling("mean", normalize=False)
    modules = hub.read_json(file, list)
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
    config = hub.read_json(file)
    modes = [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    if modes not in (["mean"], ["cls"]):
        found = ", ".join(modes) or "not named"
        raise UserError(f"{file}: pooling is {found}; expected mean or cls alone")
    if config.get("word_embedding_dimension", width) != width:
        raise UserError(
            f"{file}: word_embedding_dimension is {config['word_embedding_dimension']}, but the "
            f"hidden size is {width} by config.json; take both files from one model"
        )
    return Pooling(modes[0], normalize=kinds[-1] == "Normalize")


def _read_limits(folder: Path, longest: int) -> tuple[int, bool]:
    """Tokens in a sentence, at most the model's longest, and whether texts are lower-cased."""
    file = folder / "sentence_bert_config.json"
    limits = hub.read_json(file) if file.exists() else {}
    max_length = limits.get("max_seq_length") or longest
    if not isinstance(max_length, int) or max_length < 3:
        raise UserError(
            f"{file}: max_seq_length is {max_length!r}; expected a whole number of at least 3"
        )
    return min(max_length, longest), bool(limits.get("do_lower_case", False))


def _read_tokenizer(file: Path, vocab_size: int, max_length: int) -> Tokenizer:
    """The published tokenizer with our truncation and no padding.

    Raises:
      UserError: the file is missing or damaged, or its vocabulary is not the weights'.
    """
    text = decode(read_bytes(file), str(file))
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise UserError(f"{file}: not a tokenizer ({error}); fetch it again") from error
    # Rows without a word are common: embeddings are rounded up to a multiple of 64 or 128.
    spare = vocab_size - tokenizer.get_vocab_size()
    if not 0 <= spare < 128:
        raise UserError(
            f"{file}: the vocabulary has {tokenizer.get_vocab_size()} words, but the weights have "
            f"{vocab_size} rows by config.json; take the tokenizer from where the weights are from"
        )
    # Some published files pad everything to 128 tokens.
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer
