"""What BERT, RoBERTa and MPNet share: configuration, layer and stack.

Submodules carry the published tensors' names ("encoder.layer.0", "attention.self.query"), so that
a parameter's path, joined by dots, is the name of its tensor; see ``load_params``.

Shapes: R rows of W tokens, D features, H attention heads.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from erc_jax.errors import UserError
from erc_jax.layers.dropout import Dropout, PairDropout

Params = dict[str, Any]
LAYER = "encoder.layer"  # parameters of layer 3 lie under "encoder.layer.3"


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
class EncoderConfig:
    """The fields of config.json that decide what an encoder computes."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    layer_norm_eps: float

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> Self:
        """Takes every field from a parsed config.json; none has a default.

        Defaults in code differ from those that checkpoints were trained with.

        Raises:
          UserError: a field is missing or is nothing that these modules compute.
        """
        config = cls(**read_fields(cls, record, where))
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
        # What later versions added and these modules do not compute.
        check_known(record, {"position_embedding_type": "absolute", "is_decoder": False}, where)
        return config

    @property
    def first_position(self) -> int:
        """Row of the position table that a sentence's first token reads."""
        return 0

    @property
    def longest(self) -> int:
        """Tokens that a sentence can have."""
        return self.max_position_embeddings - self.first_position


def read_fields(kind: type, record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a dataclass of numbers, texts and flags, taken from a parsed config.json.

    Raises:
      UserError: one is missing, of another type, or below what makes sense.
    """
    fields: dict[str, Any] = {}
    for name, wanted in typing.get_type_hints(kind).items():
        value = record.get(name)
        good = isinstance(value, (int, float) if wanted is float else wanted)
        good = good and isinstance(value, bool) == (wanted is bool)
        least = 0 if name.endswith("token_id") or wanted is bool else 1e-300
        if not good or (isinstance(value, int | float) and value < least):
            raise UserError(
                f"{where}: expected {wanted.__name__} as {name!r}, found {value!r}; "
                "take config.json from where the weights come from"
            )
        fields[name] = value
    return fields


def check_known(record: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Raises UserError if a field of config.json says other than the one thing that is known."""
    for name, value in known.items():
        if record.get(name, value) != value:
            raise UserError(
                f"{where}: {name} is {record[name]!r}; only {value!r} is supported: "
                "choose another model"
            )


@dataclasses.dataclass(frozen=True)
class DropoutRates:
    """Probabilities of a zero while training."""

    hidden: float = 0.0  # of embeddings, attention outputs and feed-forward outputs
    attention: float = 0.0  # of attention weights


@dataclasses.dataclass(frozen=True)
class Names:
    """What the parts of a layer are called in published files."""

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    inner: str = "intermediate.dense"
    outer: str = "output.dense"
    output_norm: str = "output.LayerNorm"


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward network, each added to its input and then normalised.

    Attributes:
      config: sizes.
      names: of the parameters.
      dtype: of the computation; softmax and layer norm reduce in float32.
      param_dtype: of the parameters.
    """

    config: EncoderConfig
    names: Names
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        key: jax.Array | None,
        mask: jax.Array,
        bias: jax.Array | None,
        tokens: jax.Array | None,
        rates: DropoutRates,
    ) -> tuple[jax.Array, None]:
        """One layer, in the form that ``nn.scan`` asks for.

        Args:
          x: float [R, W, D].
          key: PRNG key of the dropout; None is evaluation.
          mask: bool [R, 1, W, W], True where a token sees another.
          bias: float [1, H, W, W], added to the attention scores; None adds nothing.
          tokens: int32 [R, W], each token's place in the whole batch; masks belong to them.
          rates: of the dropout.

        Returns:
          float [R, W, D], and None.
        """
        config, names = self.config, self.names
        rows, width, size = x.shape
        heads = config.num_attention_heads
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = functools.partial(nn.Dense, size, **types)
        norm = functools.partial(
            nn.LayerNorm, config.layer_norm_eps, use_fast_variance=False, **types
        )
        drop_hidden: Callable[[jax.Array], jax.Array] = _no_dropout
        drop_attention = drop_hidden
        if key is not None and tokens is not None:
            hidden_key, attention_key = jax.random.split(key)
            drop = Dropout(hidden_key, tokens.reshape(-1), rates.hidden, 2 * size)
            drop_hidden = functools.partial(_over_tokens, drop)
            drop_attention = PairDropout(attention_key, tokens, rates.attention, heads)

        def by_head(projected: jax.Array) -> jax.Array:
            # [R, H, W, D / H]: left to itself, XLA's CPU backend multiplies slowly.
            return projected.reshape(rows, width, heads, size // heads).transpose(0, 2, 1, 3)

        query = by_head(dense(name=names.query)(x))
        keys = by_head(dense(name=names.key)(x))
        value = by_head(dense(name=names.value)(x))
        scores = jnp.einsum("rhqd,rhkd->rhqk", query, keys) * (size // heads) ** -0.5
        scores = scores.astype(jnp.float32)
        if bias is not None:
            scores = scores + bias
        weights = nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min))
        weights = drop_attention(weights).astype(self.dtype)
        context = jnp.einsum("rhqk,rhkd->rhqd", weights, value)
        context = context.transpose(0, 2, 1, 3).reshape(x.shape)
        attended = drop_hidden(dense(name=names.attention_output)(context))
        x = norm(name=names.attention_norm)(x + attended)

        inner = nn.Dense(config.intermediate_size, name=names.inner, **types)(x)
        outer = dense(name=names.outer)(ACTIVATIONS[config.hidden_act](inner))
        return norm(name=names.output_norm)(x + drop_hidden(outer)), None


def _no_dropout(x: jax.Array) -> jax.Array:
    return x


def _over_tokens(drop: Dropout, x: jax.Array) -> jax.Array:
    """Dropout of [R, W, D], whose masks belong to the R·W tokens."""
    return drop(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class Encoder(nn.Module):
    """A published text encoder without a head: tokens to hidden states.

    Rows may hold several sentences; a token attends to those of its own segment only. A row with
    one padded sentence is the plain case: ``segments`` is then the attention mask.

    Attributes:
      config: of the published model.
      dtype: of the computation.
      param_dtype: of the parameters.
      scan_layers: one loop over stacked layers: compiles in a fraction of the time, and on CPUs
        runs slower, for layers are copied out of the stack. See ``stack_layers``.
      remat: keep only each layer's input for the backward pass and compute the rest again.
    """

    config: EncoderConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    scan_layers: bool = False
    remat: bool = False

    CONFIG: ClassVar[type[EncoderConfig]]
    NAMES: ClassVar[Names] = Names()
    # Models with a head on top keep the encoder's tensors under this prefix.
    PREFIX: ClassVar[str]
    # Tensors of published files that hidden states do not need: heads, and the numbers 0, 1, 2, …
    IGNORED: ClassVar[re.Pattern[str]]
    TIED: ClassVar[Mapping[str, str]] = {}
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any], **options: Any) -> Self:
        """The module that a folder's parsed config.json describes.

        Args:
          folder: for the messages of errors.
          config: the parsed file.
          options: the module's other attributes.
        """
        return cls(cls.CONFIG.from_json(config, str(folder / "config.json")), **options)

    def shapes(self) -> Params:
        """Shapes and types of the parameters."""
        token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        return jax.eval_shape(self.init, jax.random.key(0), token, token, token)["params"]

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        token_types: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        tokens: jax.Array | None = None,
        rates: DropoutRates = DropoutRates(),
    ) -> jax.Array:
        """Last hidden states.

        Args:
          ids: token numbers, int [R, W].
          segments: int [R, W]; equal numbers mark one sentence, which stands in consecutive
            places; 0 marks padding.
          positions: int [R, W], each token's place in its sentence, from 0 (for every model: the
            offset that RoBERTa and MPNet add is added here).
          token_types: int [R, W], 1 in the second sentence of a pair; None is all 0.
          key: PRNG key of the dropout; None is evaluation.
          tokens: int32 [R, W], each token's place in the whole batch; needed with a key.
          rates: of the dropout.

        Returns:
          ``dtype`` [R, W, D]; what stands at padding has no meaning.
        """
        config = self.config
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        keys: list[Any] = [None] * (config.num_hidden_layers + 1)
        if key is not None:
            keys = list(jax.random.split(key, len(keys)))

        x = self.embed(ids, positions, token_types)
        x = nn.LayerNorm(
            config.layer_norm_eps, use_fast_variance=False, name="embeddings.LayerNorm", **types
        )(x)
        if keys[0] is not None and tokens is not None:
            drop = Dropout(keys[0], tokens.reshape(-1), rates.hidden, x.shape[-1])
            x = _over_tokens(drop, x)
        # Padding sees padding, so that no softmax is empty; nothing reads its hidden states.
        mask = (segments[:, :, None] == segments[:, None, :])[:, None]
        bias = self.attention_bias(ids.shape[1])

        layer: Any = EncoderLayer
        if self.remat:
            layer = nn.remat(layer, static_argnums=(6,))
        if self.scan_layers:
            layer = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
                length=config.num_hidden_layers,
            )
            stacked = None if key is None else jnp.stack(keys[1:])
            x, _ = layer(config, self.NAMES, name=LAYER, **types)(
                x, stacked, mask, bias, tokens, rates
            )
            return x
        for i in range(config.num_hidden_layers):
            x, _ = layer(config, self.NAMES, name=f"{LAYER}.{i}", **types)(
                x, keys[i + 1], mask, bias, tokens, rates
            )
        return x

    def embed(
        self, ids: jax.Array, positions: jax.Array, token_types: jax.Array | None
    ) -> jax.Array:
        """Sum of the embeddings, float [R, W, D], before the layer norm."""
        config = self.config
        x = self.table(config.vocab_size, "embeddings.word_embeddings")(ids)
        places = positions + config.first_position
        rows = config.max_position_embeddings
        return x + self.table(rows, "embeddings.position_embeddings")(places)

    def attention_bias(self, width: int) -> jax.Array | None:
        """What is added to the attention scores, float [1, H, W, W], if anything is."""
        return None

    def table(self, rows: int, name: str, size: int | None = None) -> nn.Embed:
        return nn.Embed(
            rows,
            size or self.config.hidden_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def stack_layers(self, params: Params) -> Params:
        """Parameters of the published layout as ``scan_layers`` has them, one array per kind."""
        names = [f"{LAYER}.{i}" for i in range(self.config.num_hidden_layers)]
        rest = {name: value for name, value in params.items() if name not in names}
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(params[name] for name in names))
        return {**rest, LAYER: stacked}

    def unstack_layers(self, params: Params) -> Params:
        """The inverse of ``stack_layers``."""
        params = dict(params)
        stacked = params.pop(LAYER)
        layers = {
            f"{LAYER}.{i}": jax.tree.map(lambda x, i=i: x[i], stacked)
            for i in range(self.config.num_hidden_layers)
        }
        return {**params, **layers}
