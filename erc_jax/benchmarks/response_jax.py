"""Our side of the benchmark of replies: the package's own system, training step and search."""

from __future__ import annotations

import jax
import numpy as np
from ml_collections import ConfigDict

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.response import (
    BEAMS,
    CLIP_NORM,
    LEARNING_RATE,
    LENGTH,
    LENGTH_PENALTY,
    NO_REPEAT_NGRAM,
    SMOOTHING,
    WEIGHT_DECAY,
    batches,
)
from erc_jax.config import base_config
from erc_jax.data.pairs import GENERATION
from erc_jax.encoders.seq2seq import Seq2Seq
from erc_jax.steps import first_state, make_optimizers, make_train_step
from erc_jax.systems.response import MODEL, Response


def make_system(
    encoder: Seq2Seq, dropout: float = 0.0, dtype: str = "float32"
) -> tuple[ConfigDict, Response]:
    """Config and system, of replies alone."""
    config = base_config()
    config.system = "response"
    config.model.dropout = dropout
    config.response.tasks = GENERATION
    config.response.max_tokens = LENGTH
    config.response.min_length = LENGTH + 1  # it counts what the decoder starts with
    config.response.label_smoothing = SMOOTHING
    config.response.attention_dropout = 0.0
    config.response.dtype = dtype
    config.response.beams = BEAMS
    config.response.length_penalty = LENGTH_PENALTY
    config.response.no_repeat_ngram = NO_REPEAT_NGRAM
    config.train.learning_rate = LEARNING_RATE
    config.train.weight_decay = WEIGHT_DECAY
    config.train.clip_norm = CLIP_NORM
    return config, Response(config, {}, encoder)


def train_cases(encoder: str, n_batches: int, dropout: float, dtype: str) -> harness.Cases:
    start = Seq2Seq.from_pretrained(encoder)
    config, system = make_system(start, dropout, dtype)
    arrays = [jax.device_put(batch) for batch in batches(start.module.config, n_batches)]
    optimizers = make_optimizers(config, system.objectives(), n_batches)
    state = first_state(system.init(jax.random.key(0), None), optimizers)
    train_step = make_train_step(system.objectives(), optimizers)

    def train(step: int) -> None:
        nonlocal state
        state, losses = train_step(state, arrays[step % n_batches], np.uint32(0))
        jax.block_until_ready((state, losses))

    return {**harness.jax_product(dtype), "train": train}


def generate_cases(encoder: str, n_batches: int, dtype: str) -> harness.Cases:
    start = Seq2Seq.from_pretrained(encoder)
    _, system = make_system(start, dtype=dtype)
    arrays = [jax.device_put(batch) for batch in batches(start.module.config, n_batches)]
    params = {MODEL: start.params}

    def generate(step: int) -> None:
        jax.block_until_ready(system.reply(params, arrays[step % n_batches]))

    return {**harness.jax_product(dtype), "generate": generate}
