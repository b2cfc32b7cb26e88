"""Our side of the encoder benchmark: the package's own encoder, system and training step."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.encoder import (
    CLASSES,
    LEARNING_RATE,
    WEIGHT_DECAY,
    flops,
    labels,
    train_batches,
)
from erc_jax.benchmarks.meld_sentences import sentences
from erc_jax.config import base_config
from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.labels import LabelSpace
from erc_jax.data.tokens import TokenExamples
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.errors import UserError
from erc_jax.steps import first_state, make_optimizers, make_train_step
from erc_jax.systems.fine_tuning import FineTuning


def load(encoder: str, dtype: str = "float32") -> SentenceEncoder:
    """The encoder with the pooling that both sides use."""
    return SentenceEncoder.from_pretrained(encoder, dtype=dtype).adapted(
        pooling="mean", normalize=True, context="none"
    )


def lengths_of(encoder: SentenceEncoder, texts: list[str]) -> np.ndarray:
    """Tokens in each text, int64 [N].

    Raises:
      UserError: the encoder would cut some of them off, which the peer does not.
    """
    lengths = np.array([len(sequence.ids) for sequence in encoder.reader.alone(texts)])
    if lengths.max() >= encoder.max_length:
        raise UserError(
            f"{encoder.name} reads {encoder.max_length} tokens at most, too few for the "
            "benchmark's sentences; choose another encoder"
        )
    return lengths


def compiles(jitted: Any) -> int:
    """For how many shapes a function was compiled."""
    return jitted._cache_size()


def encode_cases(encoder: str, n_sentences: int, dtype: str) -> harness.Cases:
    ours = load(encoder, dtype)
    texts = sentences(n_sentences)
    lengths = lengths_of(ours, texts).tolist()
    work = len(texts), flops(ours.module.config, lengths, training=False)

    def encode(step: int) -> None:
        ours.encode(texts)

    return {
        **harness.jax_product(dtype, precision="float32"),  # as in ``encode``
        "encode": encode,
        "work": lambda step: work,
        "compiles": lambda step: compiles(ours._embed.func),
    }


def fine_tuning(
    encoder: SentenceEncoder, n_sentences: int, dropout: float, dtype: str
) -> tuple[ConfigDict, FineTuning, TokenExamples]:
    """Config, system and examples: the sentences, each a dialogue of its own."""
    config = base_config()
    config.system = "fine_tuning"
    config.model.dropout = dropout
    config.fine_tuning.dtype = dtype
    config.train.learning_rate = LEARNING_RATE
    config.train.weight_decay = WEIGHT_DECAY
    dialogues = [
        Dialogue(str(number), (Utterance("A", text),))
        for number, text in enumerate(sentences(n_sentences))
    ]
    emotions = tuple(f"emotion {number}" for number in range(CLASSES))
    targets = {"emotion": labels(n_sentences).astype(np.int32)}
    examples = TokenExamples(encoder.sequences(dialogues), dialogues, targets)
    return config, FineTuning(config, LabelSpace(emotions), encoder), examples


def train_cases(
    encoder: str, batch_size: int, n_batches: int, dropout: float, dtype: str
) -> harness.Cases:
    start = load(encoder)
    n_sentences = batch_size * n_batches
    config, system, examples = fine_tuning(start, n_sentences, dropout, dtype)
    batches = train_batches(batch_size, n_batches)
    lengths = lengths_of(start, sentences(n_sentences))
    arrays = [jax.device_put(examples.batch(batch)) for batch in batches]
    optimizers = make_optimizers(config, system.objectives(), n_batches)
    params = system.init(jax.random.key(0), arrays[0])
    state = first_state(params, optimizers)
    train_step = make_train_step(system.objectives(), optimizers)

    def train(step: int) -> None:
        nonlocal state
        state, losses = train_step(state, arrays[step % n_batches], np.uint32(0))
        jax.block_until_ready((state, losses))

    def work(step: int) -> tuple[int, float]:
        of_batch = lengths[batches[step % n_batches]].tolist()
        return batch_size, flops(start.module.config, of_batch, training=True)

    return {
        **harness.jax_product(dtype),
        "train": train,
        "work": work,
        "compiles": lambda step: compiles(train_step),
    }
