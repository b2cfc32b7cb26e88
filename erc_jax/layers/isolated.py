"""Sub-networks that see an utterance alone: its first tokens' word vectors, one after another.

The baselines of SentEmoContext. The paper says only "simple linear layers" and "LSTM layers", and
nothing of their widths, activation or dropout: those are ours.

Shapes: N utterances, L tokens, D features of a word vector.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from erc_jax.data.packing import Layout
from erc_jax.layers.attention import Drop
from erc_jax.layers.recurrent import lstm


class MLP(nn.Module):
    """Two linear layers with a ReLU between them, on all word vectors of an utterance at once.

    Attributes:
      width: of the output.
      hidden: width of the hidden layer.
    """

    width: int
    hidden: int = 256

    @nn.compact
    def __call__(self, x: jax.Array, drop: Drop) -> jax.Array:
        """The utterances in the learned space.

        Args:
          x: float [N, L * D].
          drop: dropout of the hidden layer; ``hidden`` channels.

        Returns:
          float [N, width].
        """
        hidden = drop(nn.relu(nn.Dense(self.hidden, name="hidden")(x)))
        return nn.Dense(self.width, name="output")(hidden)


class StackedLSTM(nn.Module):
    """The top layer's state at an utterance's last token, after LSTM layers one upon another.

    Equal to ``torch.nn.LSTM(num_layers=layers)`` run on each utterance alone, with the two biases
    of torch added up, but for its dropout: ours zeroes the same channels at all tokens of an
    utterance (Gal and Ghahramani, 2016).

    The last token is the last one whose vector is not zero; where all are zero, because no word of
    the utterance is known, the state after one zero vector is taken.

    Parameters, with l from 1: ``layer_l_input_kernel`` [D or width, 4 width],
    ``layer_l_hidden_kernel`` [width, 4 width], ``layer_l_bias`` [4 width]; gates in torch's order,
    and drawn as torch does, uniformly from ±1/sqrt(width).

    Attributes:
      width: of every layer, and of the output.
      tokens: L.
      layers: number of LSTM layers.
    """

    width: int
    tokens: int = 20
    layers: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, drop: Drop) -> jax.Array:
        """The utterances in the learned space.

        Args:
          x: float [N, L * D]; zeros after an utterance's last token.
          drop: dropout between layers, in their order; (layers - 1) * width channels in all.

        Returns:
          float [N, width].
        """
        n = x.shape[0]
        vectors = x.reshape(n, self.tokens, -1)
        known = (vectors != 0).any(axis=-1)
        last = jnp.where(known, np.arange(self.tokens), 0).max(axis=1)
        # A step of the scan takes one token of every utterance, so tokens come first. What follows
        # the last token costs time, but cannot change the states before it.
        layout = _tokens_first(n, self.tokens)
        states = vectors.swapaxes(0, 1)
        for layer in range(1, self.layers + 1):
            if layer > 1:
                states = states * drop(jnp.ones((n, self.width), x.dtype))
            input_kernel, hidden_kernel, bias = (
                self.param(f"layer_{layer}_{name}", _uniform, shape, self.width).astype(x.dtype)
                for name, shape in (
                    ("input_kernel", (states.shape[-1], 4 * self.width)),
                    ("hidden_kernel", (self.width, 4 * self.width)),
                    ("bias", (4 * self.width,)),
                )
            )
            projected = states.reshape(self.tokens * n, -1) @ input_kernel + bias
            states = lstm(projected, hidden_kernel, layout, False).reshape(self.tokens, n, -1)
        return states[last, np.arange(n)]


def _tokens_first(n: int, tokens: int) -> Layout:
    """Where the tokens of n utterances are in an array [tokens * n]: each utterance is a row."""
    place = np.arange(tokens * n, dtype=np.int32)
    return Layout(
        index=place.reshape(tokens, n),
        inverse=place,
        segment=np.tile(np.arange(n, dtype=np.int32), (tokens, 1)),
        mask=np.ones(tokens * n, bool),
    )


def _uniform(key: jax.Array, shape: tuple[int, ...], width: int) -> jax.Array:
    bound = width**-0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
