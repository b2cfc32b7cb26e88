"""What BART's config.json says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from erc_jax.encoders.transformer import ACTIVATIONS, check_known, read_fields
from erc_jax.errors import UserError

# Rows of the position tables before the one that a text's first token reads. They were the
# padding's once; published tables still have them.
POSITION_OFFSET = 2


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Numbers of the tokens that are no words."""

    start: int  # what the decoder reads first
    bos: int  # <s>, begins a text
    eos: int  # </s>, ends it
    pad: int  # <pad>


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
