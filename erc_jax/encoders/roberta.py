"""RoBERTa (Liu et al., 2019) as published on the Hugging Face hub.

DistilRoBERTa is a RoBERTa of 6 layers.
"""

from __future__ import annotations

import dataclasses
import re

from erc_jax.encoders.bert import Bert, BertConfig


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """See ``EncoderConfig``."""

    pad_token_id: int

    @property
    def first_position(self) -> int:
        """Positions count on from the padding's number, whose own row means "padding"."""
        return self.pad_token_id + 1


class Roberta(Bert):
    """BERT with a single token type, whose positions begin after the padding's number."""

    config: RobertaConfig

    CONFIG = RobertaConfig
    PREFIX = "roberta."
    IGNORED = re.compile(r"(pooler|lm_head|classifier)\.|embeddings\.position_ids$")
