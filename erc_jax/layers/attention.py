"""Attention among the utterances of a sequence, over packed rows."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from erc_jax.data.packing import Layout
from erc_jax.layers.recurrent import gather_rows, scatter_back

Drop = Callable[[jax.Array], jax.Array]  # dropout, or nothing in evaluation


def sequence_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    layout: Layout,
    drop_weights: Drop,
    heads: int = 1,
    bias: jax.Array | None = None,
    visible: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention in which each utterance sees its own sequence only.

    Args:
      query, key, value: float [N, D].
      layout: where the sequences stand in the R rows of T slots.
      drop_weights: applied to the attention weights [R, heads, T, T].
      heads: H, among which the D features are divided.
      bias: float [heads, T, T], added to the scores of queries (second axis) over keys (last).
      visible: bool [N], the utterances that may be attended to; None is all. Who sees none gets 0.

    Returns:
      float [N, D].
    """

    def rows(x: jax.Array) -> jax.Array:
        # [R, H, T, D / H]. The scan's rows run along the second axis, the products want them first.
        slots = gather_rows(x, layout)
        return slots.reshape(*slots.shape[:2], heads, -1).transpose(1, 2, 0, 3)

    q, k, v = rows(query), rows(key), rows(value)
    segment = layout.segment.T  # [R, T]
    same = (segment[:, :, None] == segment[:, None, :]) & (segment >= 0)[:, None, :]
    if visible is not None:
        same &= visible[layout.index].T[:, None, :]
    scores = jnp.einsum("rhqd,rhkd->rhqk", q, k) / jnp.sqrt(q.shape[-1]).astype(q.dtype)
    if bias is not None:
        scores = scores + bias
    # An empty slot sees nothing: the softmax is then uniform, finite, and never gathered back.
    seen = jnp.where(same[:, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(seen.astype(jnp.float32), axis=-1).astype(seen.dtype)
    if visible is not None:
        weights = jnp.where(same[:, None], weights, 0.0)
    weights = drop_weights(weights)
    attended = jnp.einsum("rhqk,rhkd->rhqd", weights, v).transpose(2, 0, 1, 3)
    return scatter_back(attended.reshape(*attended.shape[:2], -1), layout)


class ShiftUnit(nn.Module):
    """A Transformer encoder block with one attention head (Mtl-ERC-ES, equations 9, 10, 12, 13).

    The residual is on the query's stream; normalisation follows each residual sum, as in Vaswani et
    al. The paper's attention has W_q, W_k, W_v and nothing else: no biases, no output projection.
    """

    @nn.compact
    def __call__(
        self, query: jax.Array, memory: jax.Array, layout: Layout, drop: Drop, drop_weights: Drop
    ) -> jax.Array:
        """The block's output.

        Args:
          query: float [N, D], the stream that attends and is added to.
          memory: float [N, D], what is attended to.
          layout: the sequences within which attention stays.
          drop: dropout of the feed-forward network's hidden layer, float [N, D].
          drop_weights: dropout of the attention weights, float [R, 1, T, T].

        Returns:
          float [N, D].
        """
        width = query.shape[-1]
        attended = sequence_attention(
            nn.Dense(width, use_bias=False, name="query")(query),
            nn.Dense(width, use_bias=False, name="key")(memory),
            nn.Dense(width, use_bias=False, name="value")(memory),
            layout,
            drop_weights,
        )
        x = nn.LayerNorm(epsilon=1e-5, name="norm_attention")(query + attended)
        hidden = drop(nn.relu(nn.Dense(width, name="ffn_in")(x)))
        return nn.LayerNorm(epsilon=1e-5, name="norm_ffn")(
            x + nn.Dense(width, name="ffn_out")(hidden)
        )
