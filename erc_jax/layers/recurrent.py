"""Bidirectional LSTM over packed sequences.

Where the work is, and where it is not. The projections of the inputs do not depend on the state,
so they are one product over all utterances in each direction. What remains in the scan is the
product of the state and the gates: a step of the scan takes R utterances, one of each row of the
layout. The derivative is written by hand, so that the scan back holds the state's gradient only,
and the gradient of every weight is one product over all utterances after it.

Shapes: N packed utterances, T time slots, R rows, D input features, H features per direction.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from erc_jax.data.packing import Layout

Array = jax.Array


class PackedBiLSTM(nn.Module):
    """One bidirectional LSTM layer over every sequence of a layout.

    Equal to `torch.nn.LSTM(bidirectional=True)` run on each sequence alone, with the two biases
    of torch added up. Gates are in its order: input, forget, cell, output.

    Parameters, each with the prefix `forward_` and `backward_`: `input_kernel` [D, 4H],
    `hidden_kernel` [H, 4H], `bias` [4H]; all drawn as torch does, uniformly from ±1/sqrt(H), so
    that the two can be compared.

    Attributes:
      features: H, the width of one direction.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array, layout: Layout) -> Array:
        """Args:
          x: `<float>[N, D]` packed utterances; the padded ones change nothing.
          layout: the sequences.

        Returns:
          `<float>[N, 2H]`, forward then backward; zero for padded utterances.
        """
        gates = 4 * self.features
        init = _uniform(self.features**-0.5)
        outputs = []
        for direction in ("forward", "backward"):
            input_kernel, hidden_kernel, bias = (
                self.param(f"{direction}_{name}", init, shape).astype(x.dtype)
                for name, shape in (
                    ("input_kernel", (x.shape[-1], gates)),
                    ("hidden_kernel", (self.features, gates)),
                    ("bias", (gates,)),
                )
            )
            projected = x @ input_kernel + bias
            outputs.append(lstm(projected, hidden_kernel, layout, direction == "backward"))
        return jnp.concatenate(outputs, axis=-1)


def _uniform(bound: float) -> Any:
    return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)


@jax.custom_vjp
def gather_rows(x: Array, layout: Layout) -> Array:
    """Moves packed utterances into their slots.

    A permutation with gaps; so its derivative is `scatter_back`, which is a gather too, and not
    the scatter-add that JAX would derive.

    Args:
      x: `<float>[N, D]`.

    Returns:
      `<float>[T, R, D]`; zero in empty slots.
    """
    return jnp.where(layout.segment[..., None] >= 0, _take(x, layout.index), 0)


@jax.custom_vjp
def scatter_back(y: Array, layout: Layout) -> Array:
    """Moves slots back to the packed utterances: the inverse of `gather_rows`.

    Args:
      y: `<float>[T, R, D]`; what is in empty slots changes nothing.

    Returns:
      `<float>[N, D]`; zero for padded utterances.
    """
    slots = y.reshape(-1, y.shape[-1])
    return jnp.where(layout.mask[:, None], _take(slots, layout.inverse), 0)


def _take(x: Array, index: Any) -> Array:
    return jnp.asarray(x).at[index].get(mode="promise_in_bounds")


gather_rows.defvjp(
    lambda x, layout: (gather_rows(x, layout), layout),
    lambda layout, dy: (scatter_back(dy, layout), None),
)
scatter_back.defvjp(
    lambda y, layout: (scatter_back(y, layout), layout),
    lambda layout, dx: (gather_rows(dx, layout), None),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def lstm(projected: Array, kernel: Array, layout: Layout, reverse: bool) -> Array:
    """The part of an LSTM that runs along its sequences, in one direction.

        i, f, g, o = gates(projected[t] + h[t-1] kernel)
        c[t] = f * c[t-1] + i * g
        h[t] = o * tanh(c[t])

    Args:
      projected: `<float>[N, 4H]` inputs times their kernel, plus bias.
      kernel: `<float>[H, 4H]`.
      layout: the sequences; the state is zero where one starts.
      reverse: run from a sequence's last utterance to its first.

    Returns:
      h, `<float>[N, H]`, of projected's dtype; the state is float32 at least.
    """
    return _lstm_fwd(projected, kernel, layout, reverse)[0]


def _lstm_fwd(projected: Array, kernel: Array, layout: Layout, reverse: bool) -> Any:
    dtype = projected.dtype

    def step(carry: tuple[Array, ...], inputs: tuple[Array, Array]) -> Any:
        h, c = carry
        x, keep = inputs
        h, c = jnp.where(keep, h, 0), jnp.where(keep, c, 0)
        z = _activate(x + _dot(h.astype(dtype), kernel))
        i, f, g, o = jnp.split(z, 4, axis=-1)
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (h, c), (h.astype(dtype), c, z.astype(dtype))

    zero = jnp.zeros((layout.index.shape[1], kernel.shape[0]), _wide(dtype))
    _, (h, c, gates) = jax.lax.scan(
        step,
        (zero, zero),
        (gather_rows(projected, layout), _goes_on(layout, reverse)),
        reverse=reverse,
    )
    return scatter_back(h, layout), (h, c, gates, kernel, layout)


def _lstm_bwd(reverse: bool, saved: tuple[Any, ...], dh_packed: Array) -> Any:
    h, c, gates, kernel, layout = saved
    dtype = gates.dtype
    keep = _goes_on(layout, reverse)
    h_before, c_before = (jnp.where(keep, _before(s, reverse), 0) for s in (h, c))
    # Transposed once: left to itself, XLA folds the transpose into every step's product, which is
    # half as fast on a CPU.
    transposed = jax.lax.optimization_barrier(kernel.T)

    def step(carry: tuple[Array, ...], inputs: tuple[Array, ...]) -> Any:
        dh, dc = carry
        gates_t, dh_t, c_t, c_before_t, keep_t = inputs
        i, f, g, o = jnp.split(gates_t.astype(c.dtype), 4, axis=-1)
        tanh_c = jnp.tanh(c_t)
        dh = dh + dh_t
        dc = dc + dh * o * (1 - tanh_c**2)
        dz = jnp.concatenate(
            [
                dc * g * i * (1 - i),
                dc * c_before_t * f * (1 - f),
                dc * i * (1 - g**2),
                dh * tanh_c * o * (1 - o),
            ],
            axis=-1,
        ).astype(dtype)
        dh = jnp.where(keep_t, _dot(dz, transposed), 0)
        dc = jnp.where(keep_t, dc * f, 0)
        return (dh, dc), dz

    zero = jnp.zeros_like(c[0])
    _, dz = jax.lax.scan(
        step,
        (zero, zero),
        (gates, gather_rows(dh_packed, layout), c, c_before, keep),
        reverse=not reverse,
    )
    dz = scatter_back(dz, layout)
    return dz, scatter_back(h_before, layout).T @ dz, None


lstm.defvjp(_lstm_fwd, _lstm_bwd)


def _goes_on(layout: Layout, reverse: bool) -> Array:
    """`<bool>[T, R, 1]` whether a slot goes on with the sequence of the slot before it."""
    same = layout.segment[1:] == layout.segment[:-1]
    edge = jnp.zeros((1, same.shape[1]), bool)
    return jnp.concatenate([same, edge] if reverse else [edge, same])[..., None]


def _before(s: Array, reverse: bool) -> Array:
    """`<float>[T, R, H]` what the scan had in the step before each slot's."""
    edge = jnp.zeros_like(s[:1])
    return jnp.concatenate([s[1:], edge] if reverse else [edge, s[:-1]])


def _activate(z: Array) -> Array:
    """Sigmoid on the gates i, f and o, tanh on g, in one expression: σ(z) = tanh(z/2)/2 + 1/2."""
    scale = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), z.shape[-1] // 4)
    return jnp.tanh(z * scale) * scale + (1 - scale)


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=_wide(a.dtype))


def _wide(dtype: Any) -> Any:
    """The state's type: float32 under bfloat16 too, where small steps would be lost."""
    return jnp.promote_types(dtype, jnp.float32)
