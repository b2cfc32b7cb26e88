"""Our side of the Mtl-ERC-ES benchmark: the package's own model and training step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.mtl_erc_es import (
    CLASSES,
    DIALOGUES_PER_BATCH,
    batches,
    dropout_of,
    sample,
    tasks_of,
)
from erc_jax.config import base_config
from erc_jax.data.batching import alike_in_training
from erc_jax.data.labels import SENTIMENTS, LabelSpace
from erc_jax.layers.recurrent import PackedBiLSTM
from erc_jax.steps import first_state, lowered, make_train_step
from erc_jax.systems.mtl_erc_es import MtlErcEs


def make_system(model: str, dtype: str = "float32") -> MtlErcEs:
    config = base_config()
    config.tasks.shift = "shift_global" in tasks_of(model)
    config.model.dropout = dropout_of(model)
    config.model.dtype = dtype
    config.model.normalize_input = False
    emotions = tuple(f"emotion {number}" for number in range(CLASSES["emotion"]))
    polarity = {name: SENTIMENTS[i % len(SENTIMENTS)] for i, name in enumerate(emotions)}
    return MtlErcEs(config, LabelSpace(emotions, None, polarity))


def cases(model: str, width: int, n_batches: int, dtype: str) -> harness.Cases:
    system = make_system(model, dtype)
    examples = alike_in_training(sample(width), DIALOGUES_PER_BATCH, n_blocks=1)
    arrays = [jax.device_put(examples.batch(b)) for b in batches(examples, n_batches)]
    optimizers = (optax.adam(1e-4),)
    params = jax.jit(system.init)(jax.random.key(0), arrays[0])
    state = first_state(params, optimizers)
    train_step = make_train_step(system.objectives(), optimizers, dtype)
    predict_step = jax.jit(lambda params, batch: system.predict(*lowered(params, batch, dtype)))

    def train(step: int) -> None:
        nonlocal state
        state, losses = train_step(state, arrays[step % n_batches], np.uint32(0))
        jax.block_until_ready((state, losses))

    def predict(step: int) -> None:
        jax.block_until_ready(predict_step(state.params, arrays[step % n_batches]))

    return {**harness.jax_product(dtype), "train": train, "predict": predict}


def speaker_cases(width: int, n_batches: int) -> harness.Cases:
    """Forward and backward of the speaker level's two layers, by the number of speakers."""
    layers = [PackedBiLSTM(width // 2, name=name) for name in ("first", "second")]

    def run(params, x, layout):
        for layer in layers:
            x = layer.apply(params[layer.name], x, layout)
        return jnp.square(x).sum()

    gradient = jax.jit(jax.grad(run))

    def case(n_speakers):
        examples = sample(width, n_speakers)
        arrays = [
            jax.device_put((batch.features[0], jax.tree.map(lambda a: a[0], batch.speaker)))
            for batch in (examples.batch(b) for b in batches(examples, n_batches))
        ]
        params = {layer.name: layer.init(jax.random.key(0), *arrays[0]) for layer in layers}
        return lambda step: jax.block_until_ready(gradient(params, *arrays[step % n_batches]))

    return {"two": case(2), "nine": case(9)}
