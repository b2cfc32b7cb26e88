"""BART (Lewis et al., 2020) as published on the Hugging Face hub: encoder, decoder, LM head.

Submodules carry the published tensors' names ("encoder.layers.0", "self_attn.q_proj"), so that a
parameter's path, joined by dots, is the name of its tensor; see ``load_params``.

Shapes: R rows of L source tokens and T target tokens, K hypotheses a row, D features, H attention
heads, V words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from erc_jax.encoders.bart_config import POSITION_OFFSET, BartConfig, SpecialTokens
from erc_jax.encoders.bart_layers import (
    NO_DROPOUT,
    DecoderLayer,
    DropoutRates,
    EncoderLayer,
    KeyValue,
    draw_dropout,
    norm,
)
from erc_jax.encoders.transformer import Params

# Of fresh tables, as BART's authors drew them (init_std). Words and their scores share a table:
# with flax's wider one a new model is sure of random words.
EMBEDDING_STD = 0.02


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
            embedding_init=nn.initializers.normal(EMBEDDING_STD),
        )
        positions = config.max_position_embeddings + POSITION_OFFSET
        encoder_layer: Any = nn.remat(EncoderLayer) if self.remat else EncoderLayer
        decoder_layer: Any = nn.remat(DecoderLayer) if self.remat else DecoderLayer
        self.shared = table(config.vocab_size)
        self.source_positions = table(positions, name="encoder.embed_positions")
        self.source_norm = norm(*types, name="encoder.layernorm_embedding")
        self.encoder_layers = [
            encoder_layer(
                config.d_model,
                config.encoder_attention_heads,
                config.encoder_ffn_dim,
                config.activation_function,
                *types,
                name=f"encoder.layers.{i}",
            )
            for i in range(config.encoder_layers)
        ]
        self.target_positions = table(positions, name="decoder.embed_positions")
        self.target_norm = norm(*types, name="decoder.layernorm_embedding")
        self.decoder_layers = [
            decoder_layer(
                config.d_model,
                config.decoder_attention_heads,
                config.decoder_ffn_dim,
                config.activation_function,
                *types,
                name=f"decoder.layers.{i}",
            )
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
        rates: DropoutRates = NO_DROPOUT,
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
        rates: DropoutRates = NO_DROPOUT,
    ) -> jax.Array:
        """Encoder states, ``dtype`` [R, L, D]; arguments as above."""
        config = self.config
        drop, drops = draw_dropout(
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
        rates: DropoutRates = NO_DROPOUT,
    ) -> jax.Array:
        """Decoder states, ``dtype`` [R, T, D]; arguments as above, ``encoded`` from ``encode``."""
        config, length = self.config, target.shape[1]
        drop, drops = draw_dropout(
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
        # Rows of one matrix; see bart_layers.Dense.
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
