"""BERT (Devlin et al., 2019) as published on the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

import jax
import jax.numpy as jnp

from erc_jax.encoders.transformer import Encoder, EncoderConfig


@dataclasses.dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """See ``EncoderConfig``."""

    type_vocab_size: int


class Bert(Encoder):
    """BERT: learned positions and token types."""

    config: BertConfig

    CONFIG: ClassVar[type[BertConfig]] = BertConfig
    PREFIX = "bert."
    IGNORED = re.compile(r"(pooler|cls|classifier)\.|embeddings\.position_ids$")

    def embed(
        self, ids: jax.Array, positions: jax.Array, token_types: jax.Array | None
    ) -> jax.Array:
        """Words, positions and token types."""
        if token_types is None:
            token_types = jnp.zeros_like(ids)
        table = self.table(self.config.type_vocab_size, "embeddings.token_type_embeddings")
        return super().embed(ids, positions, None) + table(token_types)
