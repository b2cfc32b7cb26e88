"""Dropout whose masks belong to utterances, not to their places in arrays.

An utterance's mask is drawn from (key, its id). Where packing, padding or the number of devices
puts the utterance then changes nothing, so a run on eight devices drops what a run on one does.

All masks of a forward pass are drawn at once: one large draw compiles in a fraction of the time
that a dozen small ones take.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from erc_jax.data.packing import Array


class _Drawn:
    """Random bits; each use takes as many places of the last axis as it needs.

    A pytree, so that it can be an argument of a function that JAX transforms.
    """

    _rate: float
    _bits: jax.Array | None  # uint16; None drops nothing
    _used: int = 0

    def split(self, sizes: Sequence[int]) -> list[Self]:
        """Parts with uses of their own, for the layers of a network, say.

        Args:
          sizes: how many of all channels, or heads, each part has.
        """
        ends = np.cumsum(sizes)
        parts = []
        for size, end in zip(sizes, ends, strict=True):
            part = copy.copy(self)
            part._bits = None if self._bits is None else self._bits[..., end - size : end]
            parts.append(part)
        return parts

    def _next(self, bits: jax.Array, count: int) -> jax.Array:
        start, self._used = self._used, self._used + count
        return bits[..., start : self._used]

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self._bits,), (self._rate, self._used)

    @classmethod
    def tree_unflatten(cls, rest: Any, children: Any) -> Self:
        drawn = object.__new__(cls)
        (drawn._bits,), (drawn._rate, drawn._used) = children, rest
        return drawn


@jax.tree_util.register_pytree_node_class
class Dropout(_Drawn):
    """Zeroes channels of utterances at random, and scales the others up.

    Each call uses up as many of the drawn channels as its argument has.

    Args:
      key: PRNG key; None is evaluation, and nothing is dropped.
      ids: int32 [N], each utterance's place in the whole batch; or [R, T], each token's.
      rate: probability of a zero, in [0, 1).
      channels: sum of the widths of all arrays that will be passed.
    """

    def __init__(self, key: jax.Array | None, ids: Array, rate: float, channels: int):
        self._rate = rate
        self._bits = None
        if key is not None and rate > 0.0:
            self._bits = _draw(key, ids.reshape(-1), (channels,)).reshape(*ids.shape, channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Drops channels of x, float [N, D] or [R, T, D]."""
        if self._bits is None:
            return x
        return _drop(x, self._rate, self._next(self._bits, x.shape[-1]))


@jax.tree_util.register_pytree_node_class
class PairDropout(_Drawn):
    """Zeroes attention weights at random; a mask belongs to a pair of utterances.

    Each call uses up as many of the drawn masks as its argument has heads.

    Args:
      key: PRNG key; None is evaluation, and nothing is dropped.
      ids: int32 [R, T], each utterance's place in the whole batch.
      rate: probability of a zero, in [0, 1).
      heads: sum of the heads of all weights that will be passed.
      over: int32 [R, S], what tells apart the keys that a row's queries attend over, where these
        are not the queries themselves.
    """

    def __init__(
        self,
        key: jax.Array | None,
        ids: Array,
        rate: float,
        heads: int,
        over: Array | None = None,
    ):
        self._rate = rate
        self._bits = None
        if key is not None and rate > 0.0:
            over = ids if over is None else over
            # The queries' keys, folded again with each id of their row, give the pairs' draws.
            queries = jax.vmap(jax.random.fold_in, (None, 0))(key, ids.reshape(-1))
            of_row = jnp.repeat(over, ids.shape[1], axis=0)
            bits = jax.vmap(lambda k, row: _draw(k, row, (heads,)))(queries, of_row)
            self._bits = bits.reshape(*ids.shape, over.shape[1], heads)

    def __call__(self, weights: jax.Array) -> jax.Array:
        """Drops weights, float [R, H, T, S], of each query (third axis) over the keys (last)."""
        if self._bits is None:
            return weights
        bits = self._next(self._bits, weights.shape[1])
        return _drop(weights, self._rate, bits.transpose(0, 3, 1, 2))


def _draw(key: jax.Array, ids: Array, shape: tuple[int, ...]) -> jax.Array:
    """Random uint16 [N, *shape]; 16 bits cost half of the usual 32."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
    return jax.vmap(lambda k: jax.random.bits(k, shape, jnp.uint16))(keys)


def _drop(x: jax.Array, rate: float, bits: jax.Array) -> jax.Array:
    threshold = round(rate * 2**16)
    return jnp.where(bits >= threshold, x * (2**16 / (2**16 - threshold)), 0).astype(x.dtype)
