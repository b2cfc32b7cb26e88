"""An utterance's modalities as arrays: text, audio and visual features, each where it is there."""

from __future__ import annotations

from collections.abc import Mapping

from flax import struct

from erc_jax.data.packing import Array


@struct.dataclass
class Modalities:
    """Features of N utterances; those that lack a modality are told apart, not zero in silence.

    Attributes:
      features: modality to float32 [..., N, D] of its own width D, zero where it is missing.
      present: modality to bool [..., N], whether it is there.
    """

    features: Mapping[str, Array]
    present: Mapping[str, Array]
