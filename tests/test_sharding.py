"""The same training on one device and on several, compiled once per shape.

tests/test_processes.py goes further: eight devices, and several processes, with every system.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.config import base_config
from erc_jax.data.batching import make_examples, training_order
from erc_jax.sharding import (
    DATA_AXIS,
    SEED_AXIS,
    make_mesh,
    map_blocks,
    over_blocks,
    replicated,
)
from erc_jax.steps import first_state, make_optimizers, make_train_step
from erc_jax.systems import make_system

BATCH_SIZE = 8
EPOCHS = 2
SEVERAL = 2  # as tests/conftest.py has it


@pytest.mark.parametrize("n_blocks", [1, 2])
def test_blocks_are_each_by_itself(n_blocks):
    x, at = jnp.arange(12.0).reshape(2, 3, 2)[:n_blocks], jnp.array([[0, 2], [1, 1]])[:n_blocks]

    def of_block(block, chosen):
        assert block.ndim == 2
        return {"all": block.sum(), "chosen": block if chosen is None else block[chosen]}

    found, rest = map_blocks(of_block, x, at), map_blocks(of_block, x, None)
    np.testing.assert_array_equal(found["all"], x.sum((1, 2)))
    np.testing.assert_array_equal(found["chosen"], np.take_along_axis(x, at[..., None], 1))
    np.testing.assert_array_equal(rest["chosen"], x)


def test_meshes():
    assert make_mesh().size == len(jax.devices()) == SEVERAL
    mesh = make_mesh(jax.devices()[:2])
    assert dict(mesh.shape) == {SEED_AXIS: 1, DATA_AXIS: 2}
    assert dict(make_mesh(seeds=2).shape) == {SEED_AXIS: 2, DATA_AXIS: 1}
    batch = jax.device_put(np.arange(6).reshape(2, 3), over_blocks(mesh))
    assert [shard.data.tolist() for shard in batch.addressable_shards] == [[[0, 1, 2]], [[3, 4, 5]]]
    whole = jax.device_put(np.arange(3), replicated(mesh))
    assert [shard.data.tolist() for shard in whole.addressable_shards] == [[0, 1, 2]] * 2


@pytest.fixture(scope="module")
def train(labels, random_dialogues):
    """A function that trains on so many devices: losses of each step, state, step, its shapes."""
    config = base_config()
    config.train.batch_size = BATCH_SIZE
    config.train.learning_rate = 1e-3
    config.train.clip_norm = 1.0
    config.model.dropout = 0.3
    system = make_system(config, labels)
    # With a length of each kind in every batch, all batches have one shape, or two.
    dialogues = random_dialogues([3, 4, 5, 5, 6, 6, 9, 12] * 3)
    n = sum(len(dialogue.utterances) for dialogue in dialogues)
    features = np.random.default_rng(0).normal(size=(n, 16)).astype(np.float32)
    examples = make_examples(dialogues, features, system.targets(dialogues))
    params = jax.jit(system.init)(jax.random.key(0), examples.batch(np.arange(8)))

    @functools.cache
    def run(n_devices):
        mesh = make_mesh(jax.devices()[:n_devices])
        optimizers = make_optimizers(config, system.objectives(), 3)
        step = make_train_step(system.objectives(), optimizers)
        state = first_state(params, optimizers)
        # A copy, as the step takes its argument's memory.
        state = jax.device_put(jax.tree.map(jnp.array, state), replicated(mesh))
        seed = jax.device_put(np.uint32(3), replicated(mesh))
        batches = [
            jax.device_put(examples.batch(dialogues, n_devices), over_blocks(mesh))
            for epoch in range(EPOCHS)
            for dialogues in training_order(examples, BATCH_SIZE, seed=0, epoch=epoch)
        ]
        losses = []
        # Nothing but batches goes to the devices; off a CPU the guard also sees what comes back.
        with jax.transfer_guard("disallow"):
            for batch in batches:
                state, parts = step(state, batch, seed)
                losses.append(parts)
        shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(batch)) for batch in batches}
        return jax.device_get(losses), state, step, shapes

    return run


@pytest.mark.slow
@pytest.mark.parametrize("n_devices", [1, SEVERAL])
def test_one_compilation_per_shape(train, n_devices):
    losses, _, step, shapes = train(n_devices)
    assert len(losses) == 6
    assert len(shapes) <= 2
    assert step._cache_size() <= len(shapes)


@pytest.mark.slow
def test_one_device_and_several_agree(train):
    one, state_of_one, _, _ = train(1)
    several, state_of_several, _, _ = train(SEVERAL)
    for a, b in zip(one, several, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-5)
    assert {"loss", "loss_emotion", "loss_shift_speaker"} < one[0].keys()
    assert int(state_of_one.step) == int(state_of_several.step) == 6
    for a, b in zip(
        jax.tree.leaves(state_of_one.params), jax.tree.leaves(state_of_several.params), strict=True
    ):
        # Adam divides by the gradient's size: where that is rounding, so is the direction.
        difference = np.abs(np.asarray(a) - np.asarray(b))
        assert difference.max() < 1e-4
        assert difference.mean() < 1e-6


@pytest.mark.slow
def test_state_stays_whole_on_every_device(train):
    _, state, _, _ = train(SEVERAL)
    for leaf in jax.tree.leaves(state):
        assert len(leaf.sharding.device_set) == SEVERAL
        assert leaf.sharding.is_fully_replicated


@pytest.mark.slow
def test_the_seed_and_the_step_decide_what_is_dropped(labels, random_dialogues):
    """The same weights and batch give another loss under another seed or step."""
    config = base_config()
    config.model.dropout = 0.5
    config.train.learning_rate = 0.0
    config.tasks.sentiment = config.tasks.shift = False
    system = make_system(config, labels)
    dialogues = random_dialogues([4, 6])
    features = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    batch = make_examples(dialogues, features, system.targets(dialogues)).batch(np.arange(2))
    optimizers = make_optimizers(config, system.objectives(), 1)
    params = jax.jit(system.init)(jax.random.key(0), batch)
    step = make_train_step(system.objectives(), optimizers)

    def losses(seed, count=3):
        state = first_state(params, optimizers)
        state = jax.tree.map(jnp.array, state)
        found = []
        for _ in range(count):
            state, parts = step(state, batch, np.uint32(seed))
            found.append(float(parts["loss"]))
        return found

    first = losses(0)
    assert losses(0) == first
    assert len({*first, *losses(1)}) == 6
