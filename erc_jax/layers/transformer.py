"""A Transformer encoder layer over the utterances of packed dialogues."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from erc_jax.data.packing import Layout
from erc_jax.layers.attention import Drop, sequence_attention


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward network, each added to its input and then normalised.

    Equal to ``torch.nn.TransformerEncoderLayer`` (post-norm, ReLU) run on each sequence alone, but
    that without a layout the one attention weight of each utterance is not dropped in training.

    Attributes:
      heads: of the attention; they divide D.
      ffn: width of the feed-forward network's hidden layer.
      reach: if positive, each head learns what distances up to so many utterances, before and
        after, count in its scores (as in T5; farther ones count alike). Heads start with a penalty
        on distance, each with a slope of its own (as in ALiBi).
      starts_as_identity: the two maps that are added to the residual stream start at zero, so that
        what comes in normalised comes out as it was.
    """

    heads: int
    ffn: int
    reach: int = 0
    starts_as_identity: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        layout: Layout | None,
        drop: Drop,
        drop_weights: Drop,
        at: jax.Array | None = None,
    ) -> jax.Array:
        """The layer's output.

        Args:
          x: float [N, D].
          layout: the sequences within which attention stays; None leaves every utterance alone.
          drop: dropout of the attention's output, the hidden layer and the network's output, in
            this order; 2 D + ffn channels in all.
          drop_weights: dropout of the attention weights, float [R, heads, T, T].
          at: int [A], the utterances whose output is wanted; the others are only attended to, which
            costs a sixth. None is all N.

        Returns:
          float [A, D].
        """
        width = x.shape[-1]
        added = nn.initializers.zeros if self.starts_as_identity else nn.linear.default_kernel_init
        query, key, value = (nn.Dense(width, name=n)(x) for n in ("query", "key", "value"))
        # Who is alone attends to itself only.
        attended = value
        if layout is not None:
            bias = None
            if self.reach:
                table = self.param(
                    "distance_bias", distance_penalty, (2 * self.reach + 1, self.heads)
                )
                # A sequence's utterances stand in consecutive slots.
                slots = jnp.arange(layout.index.shape[0])
                distance = jnp.clip(slots[:, None] - slots, -self.reach, self.reach)
                bias = table[distance + self.reach].transpose(2, 0, 1)
            attended = sequence_attention(query, key, value, layout, drop_weights, self.heads, bias)
        if at is not None:
            x, attended = x[at], attended[at]
        x = nn.LayerNorm(epsilon=1e-5, name="norm_attention")(
            x + drop(nn.Dense(width, kernel_init=added, name="output")(attended))
        )
        hidden = drop(nn.relu(nn.Dense(self.ffn, name="ffn_in")(x)))
        return nn.LayerNorm(epsilon=1e-5, name="norm_ffn")(
            x + drop(nn.Dense(width, kernel_init=added, name="ffn_out")(hidden))
        )


def distance_penalty(_key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Scores float32 [2 reach + 1, heads] of distances -reach to reach; slopes from 2 to 1/8."""
    n_distances, heads = shape
    distance = jnp.abs(jnp.arange(n_distances) - n_distances // 2)
    return -distance[:, None] * 2.0 ** jnp.linspace(1, -3, heads)
