"""Operations are counted as they run, and peaks are those of the device at hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from erc_jax.sharding import DATA_AXIS, SEED_AXIS, make_mesh
from erc_jax.utilization import PEAKS, flops_of, peak_flops

A, B, C = 3, 5, 7
ONE_PRODUCT = 2 * A * B * C


def product(x, y):
    return x @ y


def traced(function, *arguments):
    return flops_of(jax.jit(function).trace(*arguments).jaxpr)


X, Y = np.ones((A, B), np.float32), np.ones((B, C), np.float32)


def test_a_product():
    assert traced(product, X, Y) == ONE_PRODUCT
    batched = jax.vmap(product)
    assert traced(batched, np.stack([X] * 4), np.stack([Y] * 4)) == 4 * ONE_PRODUCT


def test_its_gradient_has_two_more():
    def loss(x, y):
        return (jnp.tanh(x @ y) ** 2).sum()

    assert traced(jax.grad(loss, argnums=(0, 1)), X, Y) == 3 * ONE_PRODUCT
    # What is computed again in the backward pass counts again.
    assert traced(jax.grad(jax.checkpoint(loss), argnums=(0, 1)), X, Y) == 4 * ONE_PRODUCT


def test_a_loop_counts_as_often_as_it_runs():
    def loop(x, y):
        return jax.lax.scan(lambda carry, _: (carry, carry @ y), x, length=11)[1]

    assert traced(loop, X, Y) == 11 * ONE_PRODUCT


def test_the_costlier_branch_counts():
    def choice(which, x, y):
        return jax.lax.cond(which, lambda: x @ y, lambda: (2 * x) @ (y @ y.T @ y))

    assert traced(choice, True, X, Y) == ONE_PRODUCT + 2 * 2 * B * C * B


@pytest.mark.parametrize("axes", [{SEED_AXIS}, {SEED_AXIS, DATA_AXIS}])
def test_all_devices_count(axes):
    mesh = make_mesh(seeds=2)
    spec = PartitionSpec(SEED_AXIS)
    both = jax.shard_map(
        jax.vmap(product),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
        axis_names=axes,
        check_vma=False,
    )
    assert traced(both, np.stack([X] * 2), np.stack([Y] * 2)) == 2 * ONE_PRODUCT


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100"),
        ("NVIDIA A10", "NVIDIA A10"),
        ("NVIDIA L40S", "NVIDIA L40S"),
        ("TPU v5 lite", "TPU v5 lite"),
        ("TPU v5", "TPU v5"),
        ("TPU v4", "TPU v4"),
        ("NVIDIA A1000 Laptop", None),
        ("cpu", None),
    ],
)
def test_peaks(kind, name):
    device = types.SimpleNamespace(device_kind=kind)
    assert peak_flops(device) == (PEAKS[name] if name else None)
