"""MPNet (Song et al., 2020) as published on the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from erc_jax.encoders.transformer import Encoder, EncoderConfig, Names

# Distances from here on share a bucket; published configurations do not name it.
MAX_DISTANCE = 128


@dataclasses.dataclass(frozen=True)
class MPNetConfig(EncoderConfig):
    """See ``EncoderConfig``."""

    pad_token_id: int
    relative_attention_num_buckets: int

    @property
    def first_position(self) -> int:
        """Positions count on from the padding's number, whose own row means "padding"."""
        return self.pad_token_id + 1


class MPNet(Encoder):
    """No token types; a learned bias of every attention score by the tokens' distance."""

    config: MPNetConfig

    CONFIG = MPNetConfig
    PREFIX = "mpnet."
    IGNORED = re.compile(r"(pooler|lm_head|classifier)\.|embeddings\.position_ids$")
    NAMES = Names(
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_output="attention.attn.o",
        attention_norm="attention.LayerNorm",
    )

    def attention_bias(self, width: int) -> jax.Array:
        """The bias float [1, H, W, W] of each head; the same in every layer and every sentence.

        A sentence's tokens stand in consecutive places of a row, so places give the distances.
        """
        config = self.config
        table = self.table(
            config.relative_attention_num_buckets,
            "encoder.relative_attention_bias",
            config.num_attention_heads,
        )
        # Of each distance, farthest before to farthest after; farther ones share their buckets. So
        # the width may be a symbol, as it is in exported programs.
        distances = np.arange(-MAX_DISTANCE, MAX_DISTANCE + 1)
        of_distance = table(_bucket(distances, config.relative_attention_num_buckets))
        places = jnp.arange(width)
        distance = jnp.clip(places[None, :] - places[:, None], -MAX_DISTANCE, MAX_DISTANCE)
        return of_distance[distance + MAX_DISTANCE].transpose(2, 0, 1)[None]


def _bucket(distance: np.ndarray, buckets: int) -> np.ndarray:
    """Number of the bucket of each distance (key less query), as in T5.

    Half of the buckets are for keys before the query, half for keys after it; in each half, half
    are exact distances and the others grow logarithmically.
    """
    half = buckets // 2
    exact = half // 2
    size = np.abs(distance)
    # In float32, as the published models were trained: a bucket's edge must fall the same way.
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(MAX_DISTANCE / exact)) * np.float32(half - exact)
    logarithmic = np.minimum(exact + ratio.astype(np.int32), half - 1)
    return np.where(distance > 0, half, 0) + np.where(size < exact, size, logarithmic)
