"""Sentence embeddings: a published encoder, its tokenizer and its pooling.

The published configuration decides (modules.json, 1_Pooling/config.json,
sentence_bert_config.json), as it does in sentence-transformers.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from erc_jax.data.dialogue import Dialogue, decode, read_bytes, write_whole
from erc_jax.encoders import hub
from erc_jax.encoders.bert import Bert
from erc_jax.encoders.mpnet import MPNet
from erc_jax.encoders.packing import SHORTEST, Block, TokenSequence, make_blocks, pack_rows
from erc_jax.encoders.reading import Reader
from erc_jax.encoders.roberta import Roberta
from erc_jax.encoders.transformer import Encoder
from erc_jax.encoders.weights import (
    WEIGHTS,
    check_sha256,
    load_params,
    read_json,
    save_params,
    sha256_of,
    weights_files,
)
from erc_jax.errors import UserError

# By config.json's model_type. (DistilRoBERTa calls itself a roberta.)
ARCHITECTURES: dict[str, type[Encoder]] = {"bert": Bert, "roberta": Roberta, "mpnet": MPNet}
POOLINGS = ("mean", "cls", "max")
CONTEXTS = ("none", "dialogue")

# Block shapes, [rows, tokens]. 768 tokens keep two cores busy and still fit a CPU's caches; rows
# of 48 tokens hold nearly every utterance, and attention's cost grows with the row. A request that
# does not fill 16 rows, a conversation say, goes in blocks of 4. Sequences that are longer than
# a row share rows of the longest length that the model takes, one row a block.
FULL = (16, 48)
SMALL = (4, 48)

Progress = Callable[[int, int], None]  # called with (done, total)

# Beside the published files: what only this library knows of an encoder.
OWN_FILE = "erc_jax.json"
CROSS_FITTED = "train_features.safetensors"  # see erc_jax.cross_fitting
# Published files that say nothing to us, but without which other libraries do not load a folder.
CARRIED_ALONG = ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How hidden states become one vector."""

    mode: str  # one of POOLINGS
    normalize: bool  # to Euclidean length 1


class SentenceEncoder:
    """Turns sentences, or the utterances of dialogues, into vectors.

    Attributes:
      name: what the user asked for, for example "all-MiniLM-L6-v2".
      folder: where its files were found.
      sha256: SHA-256 of the weights.
      fingerprint: SHA-256 over everything that decides an embedding: weights, config, tokenizer,
        pooling, context and maximum length. Caches are keyed by it.
      module: the Flax module of the hidden states.
      params: its parameters.
      pooling: how hidden states become a vector.
      context: "none": an utterance is read alone; "dialogue": together with the utterances before
        and after it, and with the speakers' names.
      cross_fitted: file of features of the dialogues that it was fine-tuned on, from encoders that
        were not; None if there is none.
      width: D, the size of a vector.
      max_length: tokens, special ones included, after which a sentence is cut off.
      reader: makes token sequences of texts.
    """

    def __init__(
        self,
        *,
        name: str,
        folder: Path,
        module: Encoder,
        params: dict[str, Any],
        pooling: Pooling,
        context: str,
        tokenizer: Tokenizer,
        max_length: int,
        lower_case: bool,
        sha256: str,
        fingerprint: str,
        files: Mapping[str, bytes],
        cross_fitted: Path | None,
    ):
        """Made by ``from_pretrained``.

        Args:
          files: the published files that ``save_pretrained`` writes again, by name.
        """
        self.name = name
        self.folder = folder
        self.sha256 = sha256
        self.fingerprint = fingerprint
        self.module = module
        self.params = jax.device_put(params)
        self.pooling = pooling
        self.context = context
        self.cross_fitted = cross_fitted
        self.width = module.config.hidden_size
        self.max_length = max_length
        self.reader = Reader(tokenizer, max_length, lower_case)
        self._tokenizer = tokenizer
        self._lower_case = lower_case
        self._files = files
        self._embed = jax.jit(functools.partial(_embed, module, pooling.mode))

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, *, sha256: str | None = None, dtype: str = "float32"
    ) -> SentenceEncoder:
        """Loads a model: from a local folder, an installed weight package, or the hub.

        Args:
          name_or_path: a folder with config.json, tokenizer.json and model.safetensors; the workdir
            of a run that fine-tuned an encoder; or a model's name, such as "all-MiniLM-L6-v2".
          sha256: the weights' SHA-256 that a trained model expects.
          dtype: "float32", or "bfloat16" for parameters and computation of half the size.

        Raises:
          UserError: there is no such model here and the hub cannot be reached; a file is missing,
            damaged, or does not belong to the others; the weights are not the expected ones.
        """
        folder, published = hub.find_model(name_or_path)
        weights = weights_files(folder)
        found = check_sha256(weights, name_or_path, published, sha256)
        if dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype is {dtype!r}; expected 'float32' or 'bfloat16'")
        config = read_json(folder / "config.json")
        architecture = ARCHITECTURES.get(str(config.get("model_type")))
        if architecture is None:
            raise UserError(
                f"{folder / 'config.json'}: unknown architecture, model_type is "
                f"{config.get('model_type')!r}; expected one of {', '.join(ARCHITECTURES)}"
            )
        kind = jnp.dtype(dtype)
        module = architecture.from_folder(folder, config, dtype=kind, param_dtype=kind)
        params = load_params(weights, module, kind)
        pooling = _read_pooling(folder, module.config.hidden_size)
        max_length, lower_case = _read_limits(folder, module.config.longest)
        context = _read_context(folder)
        tokenizer = read_tokenizer(folder / "tokenizer.json", module.config.vocab_size)
        decisive = [
            found,
            sha256_of([folder / "config.json"]),
            sha256_of([folder / "tokenizer.json"]),
            dataclasses.asdict(pooling),
            context,
            max_length,
            lower_case,
            dtype,
        ]
        cross_fitted = folder / CROSS_FITTED
        if cross_fitted.is_file():
            decisive.append(sha256_of([cross_fitted]))
        carried = ("config.json", "tokenizer.json", *CARRIED_ALONG)
        return cls(
            name=name_or_path,
            folder=folder.absolute(),
            module=module,
            params=params,
            pooling=pooling,
            context=context,
            tokenizer=tokenizer,
            max_length=max_length,
            lower_case=lower_case,
            sha256=found,
            fingerprint=hashlib.sha256(json.dumps(decisive).encode()).hexdigest(),
            files={f: (folder / f).read_bytes() for f in carried if (folder / f).is_file()},
            cross_fitted=cross_fitted if cross_fitted.is_file() else None,
        )

    def adapted(
        self,
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        context: str | None = None,
        max_length: int | None = None,
        params: dict[str, Any] | None = None,
    ) -> Self:
        """A copy that differs in some parts; None leaves a part as it is.

        Raises:
          UserError: the model cannot do that.
        """
        other = copy.copy(self)
        other.cross_fitted = None
        if params is not None:
            other.params = params
            other.sha256 = other.fingerprint = "not saved"  # nothing of it is kept in a cache
        other.pooling = Pooling(
            self.pooling.mode if pooling is None else pooling,
            self.pooling.normalize if normalize is None else normalize,
        )
        if other.pooling.mode not in POOLINGS:
            raise UserError(
                f"fine_tuning.pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}"
            )
        other.context = self.context if context is None else context
        if other.context not in CONTEXTS:
            raise UserError(f"context is {context!r}; expected one of {', '.join(CONTEXTS)}")
        longest = self.module.config.longest
        other.max_length = self.max_length if max_length is None else max_length
        if not SHORTEST < other.max_length <= longest:
            raise UserError(
                f"fine_tuning.max_tokens is {max_length}; expected more than {SHORTEST} and at "
                f"most {longest}, which is how many positions {self.name} has"
            )
        other.reader = Reader(self._tokenizer, other.max_length, self._lower_case)
        other._embed = jax.jit(functools.partial(_embed, self.module, other.pooling.mode))
        decisive = [other.fingerprint, repr(other.pooling), other.context, other.max_length]
        other.fingerprint = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
        return other

    def encode(
        self,
        sentences: Sequence[str],
        *,
        normalize: bool | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Embeds sentences, each by itself.

        The empty sentence has a vector too; a sentence above ``max_length`` tokens is cut off.

        Args:
          sentences: texts, [N].
          normalize: bring vectors to Euclidean length 1; None does what the model's files say.
          progress: called with (done, total) sentences now and then, and at the end.

        Returns:
          float32 [N, D], in the order of the sentences.
        """
        if isinstance(sentences, str):
            raise UserError(
                f"encode expects a list of sentences, found one text: {sentences[:40]!r}; "
                "write encode([text])"
            )
        sequences = self.reader.alone(sentences)
        return self._vectors(sequences, len(sentences), normalize, progress)

    def encode_dialogues(
        self, dialogues: Sequence[Dialogue], *, progress: Progress | None = None
    ) -> np.ndarray:
        """Embeds all utterances of dialogues, in their context if the encoder was trained so.

        Args:
          dialogues: with N utterances in all.
          progress: called with (done, total) utterances now and then, and at the end.

        Returns:
          float32 [N, D], in the order of the dialogues and their utterances.
        """
        texts = [utterance.text for dialogue in dialogues for utterance in dialogue.utterances]
        if self.context == "dialogue":
            sequences = self.reader.in_context(dialogues)
            return self._vectors(sequences, len(texts), None, progress)
        # A text that comes twice is encoded once.
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        vectors = self.encode(list(row_of), progress=progress)
        return vectors[[row_of[text] for text in texts]]

    def sequences(self, dialogues: Sequence[Dialogue]) -> list[TokenSequence]:
        """What the encoder reads of dialogues; the owners are all their utterances, numbered."""
        if self.context == "dialogue":
            return self.reader.in_context(dialogues)
        return self.reader.alone([u.text for d in dialogues for u in d.utterances])

    def _vectors(
        self,
        sequences: Sequence[TokenSequence],
        count: int,
        normalize: bool | None,
        progress: Progress | None,
    ) -> np.ndarray:
        """Vectors float32 [count, D] of the utterances that own tokens."""
        vectors = np.zeros((count, self.width), np.float32)
        running: deque[tuple[Block, jax.Array]] = deque()
        done = 0

        def collect() -> None:
            nonlocal done
            block, embedded = running.popleft()
            pooled = np.asarray(embedded)
            for row, members in enumerate(block.utterances):
                vectors[members] = pooled[row, : len(members)]
                done += len(members)
            if progress is not None:
                progress(done, count)

        for block in self._blocks(sequences):
            arrays = (block.ids, block.segments, block.positions, block.slots)
            running.append((block, self._embed(self.params, *arrays)))
            # One block is computed while the next one is filled.
            if len(running) > 1:
                collect()
        while running:
            collect()
        if self.pooling.normalize if normalize is None else normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return vectors

    def _blocks(self, sequences: Sequence[TokenSequence]) -> Iterator[Block]:
        width = min(FULL[1], self.max_length)
        short: dict[int, int] = {}
        long: dict[int, int] = {}
        for number, sequence in enumerate(sequences):
            length = len(sequence.ids)
            (short if length <= width else long)[number] = length
        rows = pack_rows(short, width)
        height = FULL[0] if len(rows) >= FULL[0] else SMALL[0]
        yield from make_blocks(sequences, rows, height, width)
        yield from make_blocks(sequences, pack_rows(long, self.max_length), 1, self.max_length)

    def save_pretrained(self, folder: str | Path, params: dict[str, Any] | None = None) -> None:
        """Writes a folder in the published layout.

        transformers and sentence-transformers load it too; that an encoder reads utterances in
        their dialogue is known to erc_jax alone.

        Args:
          folder: made if it is not there.
          params: parameters to be written instead of the encoder's own.

        Raises:
          UserError: nothing can be written there.
        """
        folder = Path(folder)
        modules = ["Transformer", "Pooling"] + ["Normalize"] * self.pooling.normalize
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
                "word_embedding_dimension": self.width,
                "pooling_mode_cls_token": self.pooling.mode == "cls",
                "pooling_mode_mean_tokens": self.pooling.mode == "mean",
                "pooling_mode_max_tokens": self.pooling.mode == "max",
            },
            "sentence_bert_config.json": {
                "max_seq_length": self.max_length,
                "do_lower_case": self._lower_case,
            },
            OWN_FILE: {"context": self.context},
        }
        save_params(folder / WEIGHTS, self.params if params is None else params)
        # config.json goes first and comes last: a folder without it, whose saving was broken off,
        # is no model.
        (folder / "config.json").unlink(missing_ok=True)
        for name, record in records.items():
            write_whole(folder / name, json.dumps(record, indent=2) + "\n")
        for name in sorted(self._files, key=lambda name: name == "config.json"):
            write_whole(folder / name, self._files[name])


def pool(hidden: jax.Array, slots: jax.Array, mode: str) -> jax.Array:
    """Vectors of the utterances in rows of tokens.

    Args:
      hidden: float [R, W, D].
      slots: int [R, W], which utterance of the row a token is part of, from 1; 0 is none.
      mode: "mean" or "max" over an utterance's tokens, or "cls", its first token.

    Returns:
      float32 [R, W // 2, D]; zeros where a row has fewer utterances.
    """
    hidden = hidden.astype(jnp.float32)
    rows, width, size = hidden.shape
    count = width // SHORTEST
    numbers = jnp.arange(1, count + 1)
    member = slots[:, None, :] == numbers[:, None]  # [R, S, W]
    if mode == "max":
        of_row = (count + 1) * jnp.arange(rows)[:, None]
        largest = jax.ops.segment_max(
            hidden.reshape(-1, size), (slots + of_row).reshape(-1), rows * (count + 1)
        ).reshape(rows, count + 1, size)[:, 1:]
        return jnp.where(member.any(-1, keepdims=True), largest, 0.0)
    if mode == "cls":
        before = jnp.pad(slots[:, :-1], ((0, 0), (1, 0)))
        member &= (slots != before)[:, None, :]
    weights = member / jnp.maximum(member.sum(-1, keepdims=True), 1)
    return weights @ hidden


def _embed(
    module: Encoder,
    mode: str,
    params: dict[str, Any],
    ids: jax.Array,
    segments: jax.Array,
    positions: jax.Array,
    slots: jax.Array,
) -> jax.Array:
    """Vectors float32 [R, S, D] of the S utterances that a row of W tokens can hold."""
    # Accelerators multiply float32 with fewer bits unless they are told not to.
    with jax.default_matmul_precision("float32"):
        hidden: Any = module.apply({"params": params}, ids, segments, positions)
        return pool(hidden, slots, mode)


def _read_context(folder: Path) -> str:
    """How a fine-tuned encoder reads; published ones read sentences alone."""
    file = folder / OWN_FILE
    if not file.exists():
        return "none"
    context = read_json(file).get("context")
    if context not in CONTEXTS:
        raise UserError(f"{file}: context is {context!r}; expected one of {', '.join(CONTEXTS)}")
    return context


def _read_pooling(folder: Path, width: int) -> Pooling:
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


def _read_limits(folder: Path, longest: int) -> tuple[int, bool]:
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


def read_tokenizer(file: Path, vocab_size: int) -> Tokenizer:
    """The published tokenizer without its truncation and padding.

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
    tokenizer.no_truncation()
    frame = tokenizer.encode("").ids
    if len(frame) != 2:
        raise UserError(
            f"{file}: a sentence must begin and end with one special token, such as [CLS] and "
            f"[SEP], but the empty one has {len(frame)} tokens; take the file from where the "
            "weights are from, or choose another model"
        )
    return tokenizer
