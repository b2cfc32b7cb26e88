"""The work of the scale benchmark: joint steps of seeds, and steps on several devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.mtl_erc_es import DIALOGUES_PER_BATCH, sample
from erc_jax.benchmarks.mtl_erc_es_jax import make_system
from erc_jax.benchmarks.scale import DIALOGUES_PER_DEVICE
from erc_jax.data.batching import alike_in_training, training_order
from erc_jax.sharding import (
    SEED_AXIS,
    make_mesh,
    over_rows,
    put_batch,
    replicated,
    side_by_side,
)
from erc_jax.steps import JointStep, first_state


def in_rows(batch: Any, mesh: Mesh) -> Any:
    """A joint batch on the devices, its seeds in rows as long as the mesh's axis of them."""
    in_a_row = mesh.shape[SEED_AXIS]
    return put_batch(
        jax.tree.map(lambda array: array.reshape(-1, in_a_row, *array.shape[1:]), batch),
        over_rows(mesh),
    )


def seed_cases(
    width: int, n_batches: int, dtype: str, seeds: Sequence[int], n_cpus: int
) -> harness.Cases:
    jax.config.update("jax_num_cpu_devices", n_cpus)
    system = make_system("whole")
    examples = alike_in_training(sample(width), DIALOGUES_PER_BATCH, 1)
    optimizers = (optax.adam(1e-4),)
    blank = examples.batch(np.arange(1))
    params = jax.jit(system.init)(jax.random.key(0), blank)
    fresh = jax.device_get(first_state(params, optimizers))

    orders = [
        training_order(examples, DIALOGUES_PER_BATCH, seed, 0)[:n_batches]
        for seed in range(max(seeds))
    ]
    joint = {
        n: [examples.joint_batch(of, 1) for of in zip(*orders[:n], strict=True)]
        for n in {1, *seeds}
    }

    def stepper(n_devices: int, n_seeds: int, vectorized: bool) -> Callable[[int], None]:
        """A function that takes a step with batches, and keeps the states."""
        mesh = make_mesh(jax.devices()[:n_devices], seeds=n_devices)
        whole = jax.tree.map(lambda _: replicated(mesh), fresh)
        step = JointStep(
            system.objectives(), optimizers, whole, mesh, dtype=dtype, vectorized=vectorized
        )
        row, places = fresh, whole
        if n_devices > 1:
            row = jax.tree.map(lambda leaf: np.stack([leaf] * n_devices), fresh)
            places = jax.tree.map(side_by_side, whole)
        states = [jax.device_put(row, places) for _ in range(n_seeds // n_devices)]
        numbers = np.arange(n_seeds, dtype=np.uint32).reshape(-1, n_devices)
        all_of_them = np.ones_like(numbers, bool)
        batches = [in_rows(batch, mesh) for batch in joint[n_seeds]]

        def run(number: int) -> None:
            results = step(states, batches[number % len(batches)], numbers, all_of_them, (0,))
            jax.block_until_ready(results)
            states[:] = [state for state, _ in results]

        return run

    alone = stepper(1, 1, vectorized=False)
    cases: dict[str, Any] = {
        "facts": lambda step: {
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
        }
    }
    for n_seeds in seeds:
        cases[f"apart {n_seeds}"] = lambda step, n=n_seeds: [alone(step) for _ in range(n)]
        cases[f"unrolled {n_seeds}"] = stepper(1, n_seeds, vectorized=False)
        cases[f"vmapped {n_seeds}"] = stepper(1, n_seeds, vectorized=True)
        if (side := math.gcd(n_seeds, jax.device_count())) > 1:
            cases[f"side by side {n_seeds}"] = stepper(side, n_seeds, vectorized=False)
    return cases


def device_cases(width: int, n_steps: int) -> harness.Cases:
    jax.config.update("jax_num_cpu_devices", 8)
    system, examples = make_system("whole"), sample(width)
    optimizers = (optax.adam(1e-3),)
    params = jax.jit(system.init)(jax.random.key(0), examples.batch(np.arange(1)))

    def losses(n_dialogues: int, n_devices: int) -> list[float]:
        mesh = make_mesh(jax.devices()[:n_devices])
        fresh = first_state(jax.tree.map(jax.numpy.array, params), optimizers)
        state = jax.device_put(fresh, replicated(mesh))
        shardings = jax.tree.map(lambda _: replicated(mesh), state)
        step = JointStep(system.objectives(), optimizers, shardings, mesh)
        found = []
        for number in range(n_steps):
            items = np.random.default_rng(number).permutation(examples.n_items)[:n_dialogues]
            batch = in_rows(examples.joint_batch([items], n_devices), mesh)
            zero = np.zeros((1, 1), np.uint32)
            ((state, parts),) = step([state], batch, zero, zero == 0, (0,))
            found.append(float(parts["loss"]))
        return found

    return {
        "devices": lambda step: jax.device_count(),
        "one device": lambda n: losses(n * DIALOGUES_PER_DEVICE, 1),
        "all devices": lambda n: losses(n * DIALOGUES_PER_DEVICE, n),
    }
