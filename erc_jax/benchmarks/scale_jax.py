"""The work of the scale benchmark: joint steps of seeds, and steps on several devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.mtl_erc_es import sample
from erc_jax.benchmarks.mtl_erc_es_jax import make_system
from erc_jax.benchmarks.scale import DIALOGUES_PER_DEVICE, WAYS, seed_batches
from erc_jax.sharding import make_mesh, over_rows, put_batch, replicated
from erc_jax.steps import JointStep, first_state


def rows_of_one(batch: Any, mesh: Mesh) -> Any:
    """A joint batch, of a seed in each row, on the devices."""
    return put_batch(jax.tree.map(lambda array: array[:, None], batch), over_rows(mesh))


def seed_cases(width: int, n_batches: int, dtype: str, seeds: Sequence[int]) -> harness.Cases:
    system, examples = make_system("whole"), sample(width)
    optimizers = (optax.adam(1e-4),)
    mesh = make_mesh(jax.devices()[:1])
    blank = examples.batch(np.arange(1))

    def new_state() -> Any:
        params = jax.jit(system.init)(jax.random.key(0), blank)
        return jax.device_put(first_state(params, optimizers), replicated(mesh))

    shardings = jax.tree.map(lambda _: replicated(mesh), jax.eval_shape(new_state))
    steps = {
        way: JointStep(
            system.objectives(),
            optimizers,
            shardings,
            mesh,
            dtype=dtype,
            vectorized=way == "vmapped",
        )
        for way in WAYS
    }
    cases: dict[str, Any] = {
        "facts": lambda step: {"device": jax.devices()[0].device_kind},
    }
    for n_seeds in seeds:
        chosen = seed_batches(examples.n_items, n_seeds, n_batches)
        joint = [rows_of_one(examples.joint_batch(of, 1), mesh) for of in chosen]
        single = [
            [rows_of_one(examples.joint_batch([items], 1), mesh) for items in of] for of in chosen
        ]
        states = [new_state() for _ in range(n_seeds)]

        def together(step: int, way: str, joint=joint, states=states) -> None:
            numbers = np.arange(len(states), dtype=np.uint32)[:, None]
            all_of_them = np.ones_like(numbers, bool)
            results = steps[way](states, joint[step % n_batches], numbers, all_of_them, (0,))
            jax.block_until_ready(results)
            states[:] = [state for state, _ in results]

        def apart(step: int, single=single, states=states) -> None:
            for i, batch in enumerate(single[step % n_batches]):
                number = np.array([[i]], np.uint32)
                results = steps["unrolled"]([states[i]], batch, number, number == i, (0,))
                jax.block_until_ready(results)
                states[i] = results[0][0]

        cases[f"apart {n_seeds}"] = apart
        for way in WAYS:
            cases[f"{way} {n_seeds}"] = lambda step, way=way, run=together: run(step, way)
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
            batch = rows_of_one(examples.joint_batch([items], n_devices), mesh)
            zero = np.zeros((1, 1), np.uint32)
            ((state, parts),) = step([state], batch, zero, zero == 0, (0,))
            found.append(float(parts["loss"]))
        return found

    return {
        "devices": lambda step: jax.device_count(),
        "one device": lambda n: losses(n * DIALOGUES_PER_DEVICE, 1),
        "all devices": lambda n: losses(n * DIALOGUES_PER_DEVICE, n),
    }
