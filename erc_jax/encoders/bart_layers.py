"""The layers of BART's encoder and decoder, and their dropout.

Shapes: R rows of L source tokens and T target tokens, K hypotheses a row, D features, H attention
heads, F inner features.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from erc_jax.encoders import transformer
from erc_jax.encoders.transformer import ACTIVATIONS
from erc_jax.layers.dropout import Dropout, PairDropout

NORM_EPS = 1e-5  # no config.json has it

KeyValue = tuple[jax.Array, jax.Array]  # each [R, H, places, D / H]


@dataclasses.dataclass(frozen=True)
class DropoutRates(transformer.DropoutRates):
    """Probabilities of a zero while training."""

    activation: float = 0.0  # within the feed-forward network


NO_DROPOUT = DropoutRates()


class Drops(NamedTuple):
    """The dropout of a layer."""

    hidden: Dropout  # of the outputs of attention and feed-forward network
    activation: Dropout
    attention: PairDropout  # of the weights of the self-attention
    cross: PairDropout  # of the weights of the decoder's attention to the encoder


class Attention(nn.Module):
    """Multi-head attention whose keys and values can be kept for later queries.

    Attributes:
      size: D.
      heads: H.
      dtype: of the computation; the softmax is taken in float32.
      param_dtype: of the parameters.
    """

    size: int
    heads: int
    dtype: Any
    param_dtype: Any

    def setup(self):
        dense = functools.partial(_dense, self.size, self.dtype, self.param_dtype)
        self.q_proj = dense()
        self.k_proj = dense()
        self.v_proj = dense()
        self.out_proj = dense()

    def keys_and_values(self, x: jax.Array) -> KeyValue:
        """What others attend to in x, float [R, L, D]: keys and values [R, H, L, D / H]."""
        return self._by_head(self.k_proj(x)), self._by_head(self.v_proj(x))

    def __call__(
        self, x: jax.Array, attended: KeyValue, mask: jax.Array, drop: PairDropout
    ) -> jax.Array:
        """Reads from what is attended to.

        Args:
          x: float [R, T, D], where the queries come from.
          attended: keys and values, each [R, H, L, D / H].
          mask: bool, of a shape that goes to [R, H, T, L]; True where a query sees a key.
          drop: dropout of the attention weights, float32 [R, H, T, L].

        Returns:
          [R, T, D].
        """
        keys, values = attended
        query = self._by_head(self.q_proj(x))
        scores = jnp.einsum("rhqd,rhkd->rhqk", query, keys) * query.shape[-1] ** -0.5
        scores = scores.astype(jnp.float32)
        weights = nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min))
        weights = drop(weights).astype(self.dtype)
        context = jnp.einsum("rhqk,rhkd->rhqd", weights, values)
        return self.out_proj(context.transpose(0, 2, 1, 3).reshape(x.shape))

    def _by_head(self, x: jax.Array) -> jax.Array:
        # [R, H, T, D / H]: left to itself, XLA's CPU backend multiplies slowly.
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)


class Layer(nn.Module):
    """What layers of encoder and decoder share: self-attention and feed-forward network.

    The output of each is added to its input, and the sum normalised.

    Attributes:
      size: D.
      heads: H.
      ffn: F.
      activation: of the feed-forward network, one of ACTIVATIONS.
      dtype: of the computation; softmax and layer norm reduce in float32.
      param_dtype: of the parameters.
    """

    size: int
    heads: int
    ffn: int
    activation: str
    dtype: Any
    param_dtype: Any

    def setup(self):
        types = self.dtype, self.param_dtype
        self.self_attn = Attention(self.size, self.heads, *types)
        self.self_attn_layer_norm = norm(*types)
        self.fc1 = _dense(self.ffn, *types)
        self.fc2 = _dense(self.size, *types)
        self.final_layer_norm = norm(*types)

    def attend(self, x: jax.Array, own: KeyValue, mask: jax.Array, drops: Drops) -> jax.Array:
        """Self-attention; as ``Attention``."""
        attended = self.self_attn(x, own, mask, drops.attention)
        return self.self_attn_layer_norm(x + drops.hidden(attended))

    def feed_forward(self, x: jax.Array, drops: Drops) -> jax.Array:
        """The feed-forward network, of float [..., D]."""
        inner = drops.activation(ACTIVATIONS[self.activation](self.fc1(x)))
        return self.final_layer_norm(x + drops.hidden(self.fc2(inner)))


class EncoderLayer(Layer):
    """A layer of the encoder."""

    def __call__(self, x: jax.Array, mask: jax.Array, drops: Drops) -> jax.Array:
        """One layer.

        Args:
          x: float [R, L, D].
          mask: bool [R, 1, 1, L], False at padding.
          drops: its dropout.

        Returns:
          float [R, L, D].
        """
        own = self.self_attn.keys_and_values(x)
        return self.feed_forward(self.attend(x, own, mask, drops), drops)


class DecoderLayer(Layer):
    """A layer of the decoder, which between its two parts attends to the encoder's states."""

    def setup(self):
        super().setup()
        types = self.dtype, self.param_dtype
        self.encoder_attn = Attention(self.size, self.heads, *types)
        self.encoder_attn_layer_norm = norm(*types)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        encoded: jax.Array,
        source_mask: jax.Array,
        drops: Drops,
    ) -> jax.Array:
        """One layer, of all positions at once.

        Args:
          x: float [R, T, D].
          mask: bool [R, 1, T, T], True where a token sees another.
          encoded: float [R, L, D].
          source_mask: bool [R, 1, 1, L], False at padding.
          drops: its dropout.

        Returns:
          float [R, T, D].
        """
        own = self.self_attn.keys_and_values(x)
        return self._read(x, own, mask, self.cross(encoded), source_mask, drops)

    def cross(self, encoded: jax.Array) -> KeyValue:
        """Keys and values of the encoder's states, each [R, H, L, D / H]."""
        return self.encoder_attn.keys_and_values(encoded)

    def step(
        self,
        x: jax.Array,
        position: jax.Array,
        cache: KeyValue,
        sees: jax.Array,
        cross: KeyValue,
        source_mask: jax.Array,
    ) -> tuple[jax.Array, KeyValue]:
        """One layer, of one position of K hypotheses; see ``Bart.step``.

        Args:
          x: float [R, K, D].
          position: int32 [].
          cache: keys and values of the positions before, each [R, H, T · K, D / H].
          sees: bool [R, 1, K, T · K].
          cross: what ``cross`` gave.
          source_mask: bool [R, 1, 1, L].

        Returns:
          float [R, K, D], and the cache with this position in it.
        """
        row = position * x.shape[1]
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, new, row, axis=2)
            for old, new in zip(cache, self.self_attn.keys_and_values(x), strict=True)
        )
        x = self._read(x, (keys, values), sees, cross, source_mask, NO_DROPS)
        return x, (keys, values)

    def _read(
        self,
        x: jax.Array,
        own: KeyValue,
        mask: jax.Array,
        cross: KeyValue,
        source_mask: jax.Array,
        drops: Drops,
    ) -> jax.Array:
        """The layer, given what it attends to: itself and the encoder's states."""
        x = self.attend(x, own, mask, drops)
        attended = self.encoder_attn(x, cross, source_mask, drops.cross)
        x = self.encoder_attn_layer_norm(x + drops.hidden(attended))
        return self.feed_forward(x, drops)


class Dense(nn.Dense):
    """Takes the rows of all batch axes as those of one matrix.

    XLA's CPU backend takes a fifth longer for the gradient of a product with several batch axes.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        flat = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return flat.reshape(*inputs.shape[:-1], -1)


def _dense(size: int, dtype: Any, param_dtype: Any) -> nn.Dense:
    return Dense(size, dtype=dtype, param_dtype=param_dtype)


def norm(dtype: Any, param_dtype: Any, name: str | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(
        NORM_EPS, use_fast_variance=False, dtype=dtype, param_dtype=param_dtype, name=name
    )


_NO_DROP = Dropout(None, np.zeros((0, 0)), 0.0, 0)
_NO_PAIR_DROP = PairDropout(None, np.zeros((0, 0)), 0.0, 0)
NO_DROPS = Drops(_NO_DROP, _NO_DROP, _NO_PAIR_DROP, _NO_PAIR_DROP)


def draw_dropout(
    key: jax.Array | None,
    tokens: jax.Array | None,
    rates: DropoutRates,
    size: int,
    inner: int,
    heads: int,
    layers: int,
    sources: int | None,
) -> tuple[Dropout, list[Drops]]:
    """The dropout of embeddings, and of each layer.

    Of each kind the masks of all layers are drawn at once: many small draws compile long.

    Args:
      key: PRNG key; None is evaluation.
      tokens: int32 [R, T], each token's place in the whole batch.
      rates: of the dropout.
      size: D.
      inner: F.
      heads: H.
      layers: how many there are.
      sources: L, where a layer attends to the encoder, too.
    """
    if key is None:
        return _NO_DROP, [NO_DROPS] * layers
    assert tokens is not None  # to which the masks belong
    keys = jax.random.split(key, 4)
    of_layer = 2 * size if sources is None else 3 * size
    hidden = Dropout(keys[0], tokens, rates.hidden, size + layers * of_layer)
    embeddings, *hiddens = hidden.split([size] + [of_layer] * layers)
    activations = Dropout(keys[1], tokens, rates.activation, layers * inner).split([inner] * layers)
    pairs = (tokens, rates.attention, layers * heads)
    attentions = PairDropout(keys[2], *pairs).split([heads] * layers)
    crosses = [_NO_PAIR_DROP] * layers
    if sources is not None:
        # In its row, a source token is told apart by its position.
        over = jnp.broadcast_to(jnp.arange(sources), (len(tokens), sources))
        crosses = PairDropout(keys[3], *pairs, over).split([heads] * layers)
    return embeddings, [
        Drops(*drops) for drops in zip(hiddens, activations, attentions, crosses, strict=True)
    ]
