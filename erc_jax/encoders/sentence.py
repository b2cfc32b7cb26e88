"""Sentence embeddings: a published encoder, its tokenizer and its pooling.

The published configuration decides (modules.json, 1_Pooling/config.json,
sentence_bert_config.json), as it does in sentence-transformers.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from erc_jax.data.dialogue import Dialogue
from erc_jax.encoders.bert import Bert
from erc_jax.encoders.model_folder import (
    CONFIG,
    TOKENIZER,
    ModelFolder,
    fingerprint_of,
    type_of,
    write_model,
)
from erc_jax.encoders.mpnet import MPNet
from erc_jax.encoders.packing import SHORTEST, Block, TokenSequence, make_blocks, pack_rows
from erc_jax.encoders.reading import Reader
from erc_jax.encoders.roberta import Roberta
from erc_jax.encoders.sentence_files import (
    CONTEXTS,
    POOLINGS,
    Pooling,
    describing_files,
    read_context,
    read_limits,
    read_pooling,
)
from erc_jax.encoders.transformer import Encoder
from erc_jax.encoders.weights import load_params
from erc_jax.errors import UserError

# By config.json's model_type. (DistilRoBERTa calls itself a roberta.)
ARCHITECTURES: dict[str, type[Encoder]] = {"bert": Bert, "roberta": Roberta, "mpnet": MPNet}

# Block shapes, [rows, tokens]. 768 tokens keep two cores busy and still fit a CPU's caches; rows
# of 48 tokens hold nearly every utterance, and attention's cost grows with the row. A request that
# does not fill 16 rows, a conversation say, goes in blocks of 4. Sequences that are longer than
# a row share rows of the longest length that the model takes, one row a block.
FULL = (16, 48)
SMALL = (4, 48)

Progress = Callable[[int, int], None]  # called with (done, total)

CROSS_FITTED = "train_features.safetensors"  # beside the published files; see cross_fitting
# Published files that say nothing to us, but without which other libraries do not load a folder.
CARRIED_ALONG = ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


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
        self._files = files
        self._embed = functools.partial(_embed, module, pooling.mode)

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
        kind = type_of(dtype)
        found = ModelFolder.find(name_or_path, sha256)
        architecture = ARCHITECTURES.get(str(found.config.get("model_type")))
        if architecture is None:
            raise UserError(
                f"{found.path / CONFIG}: unknown architecture, model_type is "
                f"{found.config.get('model_type')!r}; expected one of {', '.join(ARCHITECTURES)}"
            )
        module = architecture.from_folder(found.path, found.config, dtype=kind, param_dtype=kind)
        params = load_params(found.weights, module, kind)
        pooling = read_pooling(found.path, module.config.hidden_size)
        max_length, lower_case = read_limits(found.path, module.config.longest)
        context = read_context(found.path)
        tokenizer = found.tokenizer(module.config.vocab_size)
        decisive = [
            found.sha256,
            *found.sums((CONFIG, TOKENIZER)),
            dataclasses.asdict(pooling),
            context,
            max_length,
            lower_case,
            dtype,
            *found.sums((CROSS_FITTED,)),
        ]
        cross_fitted = found.path / CROSS_FITTED
        return cls(
            name=name_or_path,
            folder=found.path.absolute(),
            module=module,
            params=params,
            pooling=pooling,
            context=context,
            tokenizer=tokenizer,
            max_length=max_length,
            lower_case=lower_case,
            sha256=found.sha256,
            fingerprint=fingerprint_of(decisive),
            files=found.contents((CONFIG, TOKENIZER, *CARRIED_ALONG)),
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
        other.reader = Reader(self.reader.tokenizer, other.max_length, self.reader.lower_case)
        other._embed = functools.partial(_embed, self.module, other.pooling.mode)
        decisive = [other.fingerprint, repr(other.pooling), other.context, other.max_length]
        other.fingerprint = fingerprint_of(decisive)
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
        described = describing_files(
            self.pooling, self.width, self.max_length, self.reader.lower_case, self.context
        )
        params = self.params if params is None else params
        write_model(Path(folder), params, {**described, **self._files})


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


# One function for all encoders: those of one architecture are traced and compiled once.
@functools.partial(jax.jit, static_argnums=(0, 1))
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
