"""BART (Lewis et al., 2020) as published on the Hugging Face hub: encoder, decoder, LM head.

Submodules carry the published tensors' names ("encoder.layers.0", "self_attn.q_proj"), so that a
parameter's path, joined by dots, is the name of its tensor; see ``load_params``.

Shapes: R rows of L source tokens and T target tokens, K hypotheses a row, D features, H attention
heads, F inner features, V words.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from erc_jax.encoders import transformer
from erc_jax.encoders.transformer import ACTIVATIONS, Params, check_known, read_fields
from erc_jax.errors import UserError
from erc_jax.layers.dropout import Dropout, PairDropout

# Rows of the position tables before the one that a text's first token reads. They were the
# padding's once; published tables still have them.
POSITION_OFFSET = 2
NORM_EPS = 1e-5  # no config.json has it
INIT_STD = 0.02  # of kernels and tables, as BART's authors drew them

KeyValue = tuple[jax.Array, jax.Array]  # each [R, H, places, D / H]


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Numbers of the tokens that are no words."""

    start: int  # what the decoder reads first
    bos: int  # <s>, begins a text
    eos: int  # </s>, ends it
    pad: int  # <pad>


def shift_right(target: jax.Array, special: SpecialTokens) -> jax.Array:
    """What the decoder reads to say a text: the start token, and all but the text's last place.

    Args:
      target: int [..., T], texts that end in </s> and padding.
      special: of the model.

    Returns:
      int [..., T]. Where a text is shorter its </s> is read too, and nobody asks what follows.
    """
    start = jnp.full_like(target[..., :1], special.start)
    return jnp.concatenate([start, target[..., :-1]], axis=-1)


@dataclasses.dataclass(frozen=True)
class BartConfig:
    """The fields of config.json that decide what BART computes."""

    vocab_size: int
    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    activation_function: str
    max_position_embeddings: int
    scale_embedding: bool
    decoder_start_token_id: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> Self:
        """Takes every field from a parsed config.json; none has a default.

        Raises:
          UserError: a field is missing or is nothing that ``Bart`` computes.
        """
        config = cls(**read_fields(cls, record, where))
        if config.activation_function not in ACTIVATIONS:
            raise UserError(
                f"{where}: unknown activation_function {config.activation_function!r}; "
                f"expected one of {', '.join(ACTIVATIONS)}"
            )
        for part in ("encoder", "decoder"):
            heads = getattr(config, f"{part}_attention_heads")
            if config.d_model % heads:
                raise UserError(
                    f"{where}: d_model {config.d_model} is not a multiple of "
                    f"{part}_attention_heads {heads}"
                )
        for name, token in dataclasses.asdict(config).items():
            if name.endswith("_token_id") and token >= config.vocab_size:
                raise UserError(
                    f"{where}: {name} is {token}, but there are {config.vocab_size} words by "
                    "vocab_size; take config.json from where the weights come from"
                )
        check_known(record, _KNOWN, where)
        return config

    @property
    def special(self) -> SpecialTokens:
        return SpecialTokens(
            start=self.decoder_start_token_id,
            bos=self.bos_token_id,
            eos=self.eos_token_id,
            pad=self.pad_token_id,
        )


# What relatives of BART, which call themselves by its name, say in their config.json.
_KNOWN = {
    "tie_word_embeddings": True,
    "normalize_before": False,
    "normalize_embedding": True,
    "add_final_layer_norm": False,
    "static_position_embeddings": False,
    "extra_pos_embeddings": POSITION_OFFSET,
}


@dataclasses.dataclass(frozen=True)
class DropoutRates(transformer.DropoutRates):
    """Probabilities of a zero while training."""

    activation: float = 0.0  # within the feed-forward network


class _Drops(NamedTuple):
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


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward network, each added to its input and then normalised."""

    config: BartConfig
    dtype: Any
    param_dtype: Any

    def setup(self):
        config, types = self.config, (self.dtype, self.param_dtype)
        self.self_attn = Attention(config.d_model, config.encoder_attention_heads, *types)
        self.self_attn_layer_norm = _norm(*types)
        self.fc1 = _dense(config.encoder_ffn_dim, *types)
        self.fc2 = _dense(config.d_model, *types)
        self.final_layer_norm = _norm(*types)

    def __call__(self, x: jax.Array, mask: jax.Array, drops: _Drops) -> jax.Array:
        """One layer.

        Args:
          x: float [R, L, D].
          mask: bool [R, 1, 1, L], False at padding.
          drops: its dropout.

        Returns:
          float [R, L, D].
        """
        own = self.self_attn.keys_and_values(x)
        x = self.self_attn_layer_norm(
            x + drops.hidden(self.self_attn(x, own, mask, drops.attention))
        )
        inner = drops.activation(ACTIVATIONS[self.config.activation_function](self.fc1(x)))
        return self.final_layer_norm(x + drops.hidden(self.fc2(inner)))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's states and feed-forward network."""

    config: BartConfig
    dtype: Any
    param_dtype: Any

    def setup(self):
        config, types = self.config, (self.dtype, self.param_dtype)
        heads = config.decoder_attention_heads
        self.self_attn = Attention(config.d_model, heads, *types)
        self.self_attn_layer_norm = _norm(*types)
        self.encoder_attn = Attention(config.d_model, heads, *types)
        self.encoder_attn_layer_norm = _norm(*types)
        self.fc1 = _dense(config.decoder_ffn_dim, *types)
        self.fc2 = _dense(config.d_model, *types)
        self.final_layer_norm = _norm(*types)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        encoded: jax.Array,
        source_mask: jax.Array,
        drops: _Drops,
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
        x = self._read(x, (keys, values), sees, cross, source_mask, _NO_DROPS)
        return x, (keys, values)

    def _read(
        self,
        x: jax.Array,
        own: KeyValue,
        mask: jax.Array,
        cross: KeyValue,
        source_mask: jax.Array,
        drops: _Drops,
    ) -> jax.Array:
        x = self.self_attn_layer_norm(
            x + drops.hidden(self.self_attn(x, own, mask, drops.attention))
        )
        x = self.encoder_attn_layer_norm(
            x + drops.hidden(self.encoder_attn(x, cross, source_mask, drops.cross))
        )
        inner = drops.activation(ACTIVATIONS[self.config.activation_function](self.fc1(x)))
        return self.final_layer_norm(x + drops.hidden(self.fc2(inner)))


class Bart(nn.Module):
    """BART: source tokens to encoder states, target tokens to decoder states and to words.

    Attributes:
      config: of the published model.
      dtype: of the computation; softmax and layer norm reduce in float32.
      param_dtype: of the parameters.
      remat: keep only each layer's input for the backward pass and compute the rest again.
    """

    config: BartConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: bool = False

    # For ``load_params``.
    PREFIX: ClassVar[str] = "model."
    IGNORED: ClassVar[re.Pattern[str]] = re.compile(
        r"(classification_head|qa_outputs)\.|(encoder|decoder)\.version$"
    )
    # One table in several places, of which some files keep all and some any one.
    TIED: ClassVar[Mapping[str, str]] = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    }
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"final_logits_bias"})

    def setup(self):
        config, types = self.config, (self.dtype, self.param_dtype)
        table = functools.partial(
            nn.Embed,
            features=config.d_model,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            embedding_init=nn.initializers.normal(INIT_STD),
        )
        positions = config.max_position_embeddings + POSITION_OFFSET
        encoder_layer: Any = nn.remat(EncoderLayer) if self.remat else EncoderLayer
        decoder_layer: Any = nn.remat(DecoderLayer) if self.remat else DecoderLayer
        self.shared = table(config.vocab_size)
        self.source_positions = table(positions, name="encoder.embed_positions")
        self.source_norm = _norm(*types, name="encoder.layernorm_embedding")
        self.encoder_layers = [
            encoder_layer(config, *types, name=f"encoder.layers.{i}")
            for i in range(config.encoder_layers)
        ]
        self.target_positions = table(positions, name="decoder.embed_positions")
        self.target_norm = _norm(*types, name="decoder.layernorm_embedding")
        self.decoder_layers = [
            decoder_layer(config, *types, name=f"decoder.layers.{i}")
            for i in range(config.decoder_layers)
        ]
        self.final_logits_bias = self.param(
            "final_logits_bias", nn.initializers.zeros, (1, config.vocab_size), self.param_dtype
        )

    def shapes(self) -> Params:
        """Shapes and types of the parameters."""
        return jax.eval_shape(self.fresh_params, jax.random.key(0))

    def fresh_params(self, key: jax.Array) -> Params:
        """Random parameters of a model that has read nothing yet."""
        token, seen = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
        return self.init(key, token, seen, token, seen)["params"]

    def __call__(
        self,
        source: jax.Array,
        source_mask: jax.Array,
        target: jax.Array,
        target_mask: jax.Array,
        *,
        key: jax.Array | None = None,
        source_tokens: jax.Array | None = None,
        target_tokens: jax.Array | None = None,
        rates: DropoutRates = DropoutRates(),
    ) -> jax.Array:
        """Decoder states.

        Args:
          source: token numbers, int [R, L].
          source_mask: bool [R, L], False at padding.
          target: int [R, T], what the decoder reads: shifted right already.
          target_mask: bool [R, T], False at padding.
          key: PRNG key of the dropout; None is evaluation.
          source_tokens: int32 [R, L], each token's place in the whole batch; needed with a key.
          target_tokens: int32 [R, T], likewise.
          rates: of the dropout.

        Returns:
          ``dtype`` [R, T, D]; what stands at padding has no meaning.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        encoded = self.encode(source, source_mask, key=keys[0], tokens=source_tokens, rates=rates)
        return self.decode(
            target,
            target_mask,
            encoded,
            source_mask,
            key=keys[1],
            tokens=target_tokens,
            rates=rates,
        )

    def encode(
        self,
        source: jax.Array,
        source_mask: jax.Array,
        *,
        key: jax.Array | None = None,
        tokens: jax.Array | None = None,
        rates: DropoutRates = DropoutRates(),
    ) -> jax.Array:
        """Encoder states, ``dtype`` [R, L, D]; arguments as above."""
        config = self.config
        drop, drops = _draw_dropout(
            *(key, tokens, rates, config.d_model, config.encoder_ffn_dim),
            *(config.encoder_attention_heads, config.encoder_layers, None),
        )
        places = self.source_positions(jnp.arange(source.shape[1]) + POSITION_OFFSET)
        x = drop(self.source_norm(self._embed(source) + places))
        mask = source_mask[:, None, None, :]
        for layer, of_layer in zip(self.encoder_layers, drops, strict=True):
            x = layer(x, mask, of_layer)
        return x

    def decode(
        self,
        target: jax.Array,
        target_mask: jax.Array,
        encoded: jax.Array,
        source_mask: jax.Array,
        *,
        key: jax.Array | None = None,
        tokens: jax.Array | None = None,
        rates: DropoutRates = DropoutRates(),
    ) -> jax.Array:
        """Decoder states, ``dtype`` [R, T, D]; arguments as above, ``encoded`` from ``encode``."""
        config, length = self.config, target.shape[1]
        drop, drops = _draw_dropout(
            *(key, tokens, rates, config.d_model, config.decoder_ffn_dim),
            *(config.decoder_attention_heads, config.decoder_layers, encoded.shape[1]),
        )
        places = self.target_positions(jnp.arange(length) + POSITION_OFFSET)
        x = drop(self.target_norm(self._embed(target) + places))
        mask = jnp.tri(length, dtype=bool) & target_mask[:, None, None, :]
        source_mask = source_mask[:, None, None, :]
        for layer, of_layer in zip(self.decoder_layers, drops, strict=True):
            x = layer(x, mask, encoded, source_mask, of_layer)
        return x

    def logits(self, states: jax.Array) -> jax.Array:
        """Scores of all words, float32 [..., V], after decoder states, [..., D]."""
        table = self.shared.embedding.astype(self.dtype)
        # Rows of one matrix; see _Dense.
        flat = states.reshape(-1, states.shape[-1])
        scores = jnp.einsum("nd,vd->nv", flat, table, preferred_element_type=jnp.float32)
        # Published with the model, but not trained: in transformers it is no parameter.
        scores = scores + jax.lax.stop_gradient(self.final_logits_bias[0])
        return scores.reshape(*states.shape[:-1], -1)

    def cross(self, encoded: jax.Array) -> tuple[KeyValue, ...]:
        """Each decoder layer's keys and values of the encoder's states, for ``step``.

        Args:
          encoded: [R, L, D].

        Returns:
          For each layer two of [R, H, L, D / H].
        """
        return tuple(layer.cross(encoded) for layer in self.decoder_layers)

    def blank_caches(self, rows: int, hypotheses: int, length: int) -> tuple[KeyValue, ...]:
        """Caches for ``length`` steps, before the first; needs no parameters.

        Returns:
          For each decoder layer two of zeros [R, H, T · K, D / H].
        """
        heads = self.config.decoder_attention_heads
        shape = (rows, heads, length * hypotheses, self.config.d_model // heads)
        blank = jnp.zeros(shape, self.dtype)
        return ((blank, blank),) * self.config.decoder_layers

    def step(
        self,
        tokens: jax.Array,
        position: jax.Array,
        caches: tuple[KeyValue, ...],
        cross: tuple[KeyValue, ...],
        source_mask: jax.Array,
        sees: jax.Array,
    ) -> tuple[jax.Array, tuple[KeyValue, ...]]:
        """Decoder states of the next token of K hypotheses a row.

        Row t · K + k of a cache is what slot k read at step t. When hypotheses change slots the
        caches stay as they are, and ``sees`` follows the hypotheses' ancestors.

        Args:
          tokens: int [R, K].
          position: int32 [], of these tokens in their hypotheses, from 0.
          caches: of the steps before; this one writes rows position · K to position · K + K - 1
            and then attends.
          cross: from ``cross``.
          source_mask: bool [R, L].
          sees: bool [R, K, T · K], which rows a hypothesis attends to, its new one included.

        Returns:
          ``dtype`` [R, K, D], and the caches.
        """
        x = self.target_norm(
            self._embed(tokens) + self.target_positions(position + POSITION_OFFSET)
        )
        source_mask, sees = source_mask[:, None, None, :], sees[:, None]
        written = []
        for layer, cache, of_source in zip(self.decoder_layers, caches, cross, strict=True):
            x, cache = layer.step(x, position, cache, sees, of_source, source_mask)
            written.append(cache)
        return x, tuple(written)

    def _embed(self, tokens: jax.Array) -> jax.Array:
        x = self.shared(tokens)
        return x * self.config.d_model**0.5 if self.config.scale_embedding else x


class _Dense(nn.Dense):
    """Takes the rows of all batch axes as those of one matrix.

    XLA's CPU backend takes a fifth longer for the gradient of a product with several batch axes.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        flat = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return flat.reshape(*inputs.shape[:-1], -1)


def _dense(size: int, dtype: Any, param_dtype: Any) -> nn.Dense:
    kernel_init = nn.initializers.normal(INIT_STD)
    return _Dense(size, dtype=dtype, param_dtype=param_dtype, kernel_init=kernel_init)


def _norm(dtype: Any, param_dtype: Any, name: str | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(
        NORM_EPS, use_fast_variance=False, dtype=dtype, param_dtype=param_dtype, name=name
    )


_NO_DROP = Dropout(None, np.zeros((0, 0)), 0.0, 0)
_NO_PAIR_DROP = PairDropout(None, np.zeros((0, 0)), 0.0, 0)
_NO_DROPS = _Drops(_NO_DROP, _NO_DROP, _NO_PAIR_DROP, _NO_PAIR_DROP)


def _draw_dropout(
    key: jax.Array | None,
    tokens: jax.Array | None,
    rates: DropoutRates,
    size: int,
    inner: int,
    heads: int,
    layers: int,
    sources: int | None,
) -> tuple[Dropout, list[_Drops]]:
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
        return _NO_DROP, [_NO_DROPS] * layers
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
        _Drops(*drops) for drops in zip(hiddens, activations, attentions, crosses, strict=True)
    ]
