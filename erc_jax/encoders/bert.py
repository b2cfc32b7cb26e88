"""BERT (Devlin et al., 2019) as published on the Hugging Face hub.

Submodules carry the published tensors' names ("encoder.layer.0", "attention.self.query"), so that
a parameter's path, joined by dots, is the name of its tensor; see ``hub.load_params``.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from erc_jax.errors import UserError


def _gelu(x: jax.Array) -> jax.Array:
    """Exact GELU. jax.nn.gelu computes it with erfc, which is slower on CPUs."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


_gelu_tanh = functools.partial(nn.gelu, approximate=True)

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": nn.relu,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The fields of config.json that decide what the model computes."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> BertConfig:
        """Takes every field from a parsed config.json; none has a default.

        Defaults in code differ from those that checkpoints were trained with.

        Raises:
          UserError: a field is missing or is nothing that this module computes.
        """
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            kind: Any = {"int": int, "float": (int, float), "str": str}[str(field.type)]
            value = record.get(field.name)
            good = isinstance(value, kind) and not isinstance(value, bool)
            if not good or (isinstance(value, int | float) and value <= 0):
                raise UserError(
                    f"{where}: expected {field.type} as {field.name!r}, found {value!r}; "
                    "take config.json from where the weights come from"
                )
            fields[field.name] = value
        config = cls(**fields)
        if config.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"{where}: unknown hidden_act {config.hidden_act!r}; "
                f"expected one of {', '.join(ACTIVATIONS)}"
            )
        if config.hidden_size % config.num_attention_heads:
            raise UserError(
                f"{where}: hidden_size {config.hidden_size} is not a multiple of "
                f"num_attention_heads {config.num_attention_heads}"
            )
        # What later versions of BERT added and this module does not compute.
        for name, known in (("position_embedding_type", "absolute"), ("is_decoder", False)):
            if record.get(name, known) != known:
                raise UserError(
                    f"{where}: {name} is {record[name]!r}; only {known!r} is supported: "
                    "choose another model"
                )
        return config


class BertLayer(nn.Module):
    """Self-attention and feed-forward network, each added to its input and then normalised."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x: float32 [R, W, D]; mask: bool [R, 1, W, W], True where a token sees another."""
        config = self.config
        rows, width, size = x.shape
        heads = config.num_attention_heads
        dense = functools.partial(nn.Dense, size)
        norm = functools.partial(nn.LayerNorm, config.layer_norm_eps, use_fast_variance=False)

        def by_head(projected: jax.Array) -> jax.Array:
            # [R, heads, W, D / heads]: left to itself, XLA's CPU backend multiplies slowly.
            return projected.reshape(rows, width, heads, size // heads).transpose(0, 2, 1, 3)

        query = by_head(dense(name="attention.self.query")(x))
        key = by_head(dense(name="attention.self.key")(x))
        value = by_head(dense(name="attention.self.value")(x))
        scores = jnp.einsum("rhqd,rhkd->rhqk", query, key) * (size // heads) ** -0.5
        weights = nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min))
        context = jnp.einsum("rhqk,rhkd->rhqd", weights, value)
        context = context.transpose(0, 2, 1, 3).reshape(x.shape)
        attended = dense(name="attention.output.dense")(context)
        x = norm(name="attention.output.LayerNorm")(x + attended)

        inner = nn.Dense(config.intermediate_size, name="intermediate.dense")(x)
        outer = dense(name="output.dense")(ACTIVATIONS[config.hidden_act](inner))
        return norm(name="output.LayerNorm")(x + outer)


class Bert(nn.Module):
    """The encoder without a head: tokens to hidden states.

    Rows may hold several sentences; a token attends to those of its own segment only. A row with
    one padded sentence is the plain case: ``segments`` is then the attention mask.
    """

    config: BertConfig

    # Tensors of published files that hidden states do not need: heads, and the numbers 0, 1, 2, …
    IGNORED = re.compile(r"(pooler|cls)\.|embeddings\.position_ids$")
    # Models with a head on top keep the encoder's tensors under this prefix.
    PREFIX = "bert."

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> Bert:
        """The module that a folder's parsed config.json describes."""
        return cls(BertConfig.from_json(config, str(folder / "config.json")))

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        token_types: jax.Array | None = None,
    ) -> jax.Array:
        """Last hidden states.

        Args:
          ids: token numbers, int [R, W].
          segments: int [R, W]; equal numbers mark one sentence, 0 marks padding.
          positions: int [R, W], each token's place in its sentence, from 0.
          token_types: int [R, W], 1 in the second sentence of a pair; None is all 0.

        Returns:
          float32 [R, W, D]; what stands at padding has no meaning.
        """
        config = self.config

        def table(rows: int, name: str) -> nn.Embed:
            return nn.Embed(rows, config.hidden_size, name=f"embeddings.{name}")

        if token_types is None:
            token_types = jnp.zeros_like(ids)
        x = table(config.vocab_size, "word_embeddings")(ids)
        x = x + table(config.max_position_embeddings, "position_embeddings")(positions)
        x = x + table(config.type_vocab_size, "token_type_embeddings")(token_types)
        x = nn.LayerNorm(
            config.layer_norm_eps, use_fast_variance=False, name="embeddings.LayerNorm"
        )(x)
        # Padding sees padding, so that no softmax is empty; nothing reads its hidden states.
        mask = (segments[:, :, None] == segments[:, None, :])[:, None]
        for i in range(config.num_hidden_layers):
            x = BertLayer(config, name=f"encoder.layer.{i}")(x, mask)
        return x
