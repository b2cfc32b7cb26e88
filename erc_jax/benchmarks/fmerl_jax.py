"""Our side of the FMERL benchmark: the package's own system and training step."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
import optax

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.fmerl import (
    CASES,
    EMOTIONS,
    HEADS,
    HIDDEN_LAYERS,
    LEARNING_RATE,
    SPEAKERS,
    WIDTHS,
    batches,
    descriptions,
    sample,
)
from erc_jax.config import base_config
from erc_jax.data.labels import LabelSpace
from erc_jax.steps import first_state, make_train_step
from erc_jax.systems.fmerl import Fmerl


class Descriptions:
    """In place of the text encoder: the descriptions' vectors."""

    def encode(self, phrases: Sequence[str], *, normalize: bool) -> np.ndarray:
        vectors = descriptions()
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make_system(width: int, dtype: str = "float32") -> Fmerl:
    config = base_config()
    config.fmerl.modalities = tuple(WIDTHS)
    config.fmerl.width = config.fmerl.ffn = width
    config.fmerl.heads = HEADS
    config.fmerl.speakers = SPEAKERS
    config.fmerl.vad.hidden_layers = HIDDEN_LAYERS
    config.fmerl.centred = False
    config.model.dropout = 0.0
    config.model.dtype = dtype
    config.model.normalize_input = False
    return Fmerl(config, LabelSpace(EMOTIONS, vad_scale=(0.0, 1.0)), Descriptions())


def cases(width: int, n_batches: int, dtype: str) -> harness.Cases:
    system = make_system(width, dtype)
    examples = sample(n_batches)
    arrays = [jax.device_put(examples.batch(dialogues)) for dialogues in batches(n_batches)]
    optimizers = (optax.adam(LEARNING_RATE),)
    state = first_state(system.init(jax.random.key(0), arrays[0]), optimizers)
    train_step = make_train_step(system.objectives(), optimizers, dtype)

    def train(step: int) -> None:
        nonlocal state
        state, losses = train_step(state, arrays[step % n_batches], np.uint32(0))
        jax.block_until_ready((state, losses))

    # One step of ours, whichever peer it is paired with.
    return {**harness.jax_product(dtype), **dict.fromkeys(CASES, train)}
