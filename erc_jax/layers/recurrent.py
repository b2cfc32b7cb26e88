"""Bidirectional LSTM over packed sequences.

Where the work is, and where it is not. The projections of the inputs do not depend on the state,
so they are one product over all utterances, for both directions. What remains in the scan is the
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

    Parameters, with direction 0 forward and 1 backward: `input_kernel` [D, 2, 4H],
    `hidden_kernel` [2, H, 4H], `bias` [2, 4H]; all drawn as torch does, uniformly from
    ±1/sqrt(H), so that the two can be compared.

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
        input_kernel = self.param("input_kernel", init, (x.shape[-1], 2, gates))
        hidden_kernel = self.param("hidden_kernel", init, (2, self.features, gates))
        bias = self.param("bias", init, (2, gates))
        input_kernel, hidden_kernel, bias = (
            p.astype(x.dtype) for p in (input_kernel, hidden_kernel, bias)
        )
        projected = x @ input_kernel.reshape(x.shape[-1], 2 * gates) + bias.reshape(2 * gates)
        slots = gather_rows(projected, layout)
        forward = lstm_scan(slots[..., :gates], hidden_kernel[0], _keep_forward(layout), False)
        backward = lstm_scan(slots[..., gates:], hidden_kernel[1], _keep_backward(layout), True)
        return scatter_back(jnp.concatenate([forward, backward], axis=-1), layout)


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
    return x.at[index].get(mode="promise_in_bounds")


gather_rows.defvjp(
    lambda x, layout: (gather_rows(x, layout), layout),
    lambda layout, dy: (scatter_back(dy, layout), None),
)
scatter_back.defvjp(
    lambda y, layout: (scatter_back(y, layout), layout),
    lambda layout, dx: (gather_rows(dx, layout), None),
)


def _keep_forward(layout: Layout) -> Array:
    """`<bool>[T, R, 1]` whether a slot goes on with the sequence of the slot before it."""
    same = layout.segment[1:] == layout.segment[:-1]
    return jnp.concatenate([jnp.zeros_like(same[:1]), same])[..., None]


def _keep_backward(layout: Layout) -> Array:
    """`<bool>[T, R, 1]` whether a slot goes on with the sequence of the slot after it."""
    same = layout.segment[1:] == layout.segment[:-1]
    return jnp.concatenate([same, jnp.zeros_like(same[:1])])[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def lstm_scan(projected: Array, kernel: Array, keep: Array, reverse: bool) -> Array:
    """The part of an LSTM that runs along time.

        i, f, g, o = gates(projected[t] + keep[t] h[t-1] kernel)
        c[t] = f * keep[t] c[t-1] + i * g
        h[t] = o * tanh(c[t])

    Args:
      projected: `<float>[T, R, 4H]` inputs times their kernel, plus bias.
      kernel: `<float>[H, 4H]`.
      keep: `<bool>[T, R, 1]` false where a sequence starts: the state begins at zero.
      reverse: run from the last slot to the first.

    Returns:
      h, `<float>[T, R, H]`, of projected's dtype; the state is float32 at least.
    """
    return _scan(projected, kernel, keep, reverse)[0]


def _scan(projected: Array, kernel: Array, keep: Array, reverse: bool) -> tuple[Array, ...]:
    """h, c and gates of every slot: what the derivative needs again."""
    hidden, dtype = kernel.shape[0], projected.dtype

    def step(state: tuple[Array, Array], inputs: tuple[Array, Array]) -> Any:
        projected_t, keep_t = inputs
        h, c = (jnp.where(keep_t, s, 0) for s in state)
        gates = _activate(projected_t + _dot(h.astype(dtype), kernel))
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (h, c), (h.astype(dtype), c, gates.astype(dtype))

    start = jnp.zeros((projected.shape[1], hidden), _wide(dtype))
    return jax.lax.scan(step, (start, start), (projected, keep), reverse=reverse)[1]


def _scan_fwd(projected: Array, kernel: Array, keep: Array, reverse: bool) -> Any:
    h, c, gates = _scan(projected, kernel, keep, reverse)
    return h, (h, c, gates, kernel, keep)


def _scan_bwd(reverse: bool, saved: tuple[Array, ...], dh_out: Array) -> Any:
    h, c, gates, kernel, keep = saved
    dtype = gates.dtype
    h_before, c_before = (jnp.where(keep, _before(s, reverse), 0) for s in (h, c))

    def step(carry: tuple[Array, Array], inputs: tuple[Array, ...]) -> Any:
        dh, dc = carry
        dh_out_t, gates_t, c_t, c_before_t, keep_t = inputs
        i, f, g, o = jnp.split(gates_t.astype(c.dtype), 4, axis=-1)
        tanh_c = jnp.tanh(c_t)
        dh = dh + dh_out_t
        dc = dc + dh * o * (1 - tanh_c**2)
        dgates = jnp.concatenate(
            [
                dc * g * i * (1 - i),
                dc * c_before_t * f * (1 - f),
                dc * i * (1 - g**2),
                dh * tanh_c * o * (1 - o),
            ],
            axis=-1,
        ).astype(dtype)
        dh = jnp.where(keep_t, _dot(dgates, kernel.T), 0)
        dc = jnp.where(keep_t, dc * f, 0)
        return (dh, dc), dgates

    zero = jnp.zeros_like(c[0])
    _, dgates = jax.lax.scan(
        step, (zero, zero), (dh_out, gates, c, c_before, keep), reverse=not reverse
    )
    dkernel = jnp.einsum("trh,trg->hg", h_before, dgates)
    return dgates, dkernel, None


lstm_scan.defvjp(_scan_fwd, _scan_bwd)


def _activate(z: Array) -> Array:
    """Sigmoid on the gates i, f and o, tanh on g, in one expression: σ(z) = tanh(z/2)/2 + 1/2."""
    quarter = z.shape[-1] // 4
    scale = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), quarter)
    return jnp.tanh(z * scale) * scale + (1 - scale)


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=_wide(a.dtype))


def _wide(dtype: Any) -> Any:
    """The state's type: float32 under bfloat16 too, where small steps would be lost."""
    return jnp.promote_types(dtype, jnp.float32)


def _before(s: Array, reverse: bool) -> Array:
    """What the scan had in the step before each slot's."""
    zero = jnp.zeros_like(s[:1])
    return jnp.concatenate([s[1:], zero] if reverse else [zero, s[:-1]])
