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
    query: jax.Array, key: jax.Array, value: jax.Array, layout: Layout, drop_weights: Drop
) -> jax.Array:
    """Single-head scaled dot-product attention in which each utterance sees its own sequence only.

    Args:
      query, key, value: float [N, D].
      layout: where the sequences stand in the R rows of T slots.
      drop_weights: applied to the attention weights [R, T, T].

    Returns:
      float [N, D].
    """
    # The scan's rows run along the second axis; the products below want them in front.
    q, k, v = (gather_rows(x, layout).swapaxes(0, 1) for x in (query, key, value))
    segment = layout.segment.T  # [R, T]
    same = (segment[:, :, None] == segment[:, None, :]) & (segment >= 0)[:, None, :]
    scores = jnp.einsum("rqd,rkd->rqk", q, k) / jnp.sqrt(query.shape[-1]).astype(q.dtype)
    # An empty slot sees nothing: the softmax is then uniform, finite, and never gathered back.
    weights = jax.nn.softmax(jnp.where(same, scores, jnp.finfo(scores.dtype).min), axis=-1)
    attended = jnp.einsum("rqk,rkd->rqd", drop_weights(weights), v)
    return scatter_back(attended.swapaxes(0, 1), layout)


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
          drop_weights: dropout of the attention weights, float [R, T, T].

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
