"""A Transformer encoder layer over the utterances of packed dialogues."""

from __future__ import annotations

import flax.linen as nn
import jax

from erc_jax.data.packing import Layout
from erc_jax.layers.attention import Drop, sequence_attention


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward network, each added to its input and then normalised.

    Equal to ``torch.nn.TransformerEncoderLayer`` (post-norm, ReLU) run on each sequence alone.

    Attributes:
      heads: of the attention; they divide D.
      ffn: width of the feed-forward network's hidden layer.
    """

    heads: int
    ffn: int

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
        query, key, value = (nn.Dense(width, name=n)(x) for n in ("query", "key", "value"))
        # Who is alone attends to itself only.
        attended = value
        if layout is not None:
            attended = sequence_attention(query, key, value, layout, drop_weights, self.heads)
        if at is not None:
            x, attended = x[at], attended[at]
        x = nn.LayerNorm(epsilon=1e-5, name="norm_attention")(
            x + drop(nn.Dense(width, name="output")(attended))
        )
        hidden = drop(nn.relu(nn.Dense(self.ffn, name="ffn_in")(x)))
        return nn.LayerNorm(epsilon=1e-5, name="norm_ffn")(
            x + drop(nn.Dense(width, name="ffn_out")(hidden))
        )
