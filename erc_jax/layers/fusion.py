"""Fusion of modalities over packed dialogues (FMERL, section 3.2).

The backbone is SDT's (Ma et al., 2023, "A Transformer-based Model with Self-distillation for
Multimodal ERC"): each modality is read by itself and by each other one, gated, and the modalities
are mixed by a softmax gate. As SDT's authors have it, input maps and gates have no bias, GELU is
its tanh form, layer norms have epsilon 1e-6, attention has no norm before it, and its residual is
on the target's stream.

All of it runs on the real utterances of a batch (``erc_jax.data.packing``); attention stays within
a dialogue. An utterance that lacks a modality is not attended to in it, and the gate leaves that
modality out.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from erc_jax.data.batching import Batch
from erc_jax.data.modalities import Modalities
from erc_jax.data.packing import Layout
from erc_jax.layers.attention import Drop, sequence_attention
from erc_jax.layers.dropout import Dropout, PairDropout

EPSILON = 1e-6


class CrossModalEncoder(nn.Module):
    """One Transformer layer in which a target modality attends to a source modality.

    Attributes:
      heads: of the attention; they divide D.
      ffn: width of the feed-forward network's hidden layer.
    """

    heads: int
    ffn: int

    @nn.compact
    def __call__(
        self,
        target: jax.Array,
        source: jax.Array,
        layout: Layout,
        visible: jax.Array,
        drop: Drop,
        drop_weights: Drop,
    ) -> jax.Array:
        """The target's new stream.

        Args:
          target: float [N, D], asks, and is added to.
          source: float [N, D], gives keys and values.
          layout: where the dialogues stand in rows.
          visible: bool [N], the utterances whose source is there.
          drop: dropout of the attention's output, the hidden layer and the network's output, in
            this order; 2 D + ffn channels in all.
          drop_weights: dropout of the attention weights, float [R, heads, T, T].

        Returns:
          float [N, D].
        """
        width = target.shape[-1]
        attended = sequence_attention(
            nn.Dense(width, name="query")(target),
            nn.Dense(width, name="key")(source),
            nn.Dense(width, name="value")(source),
            layout,
            drop_weights,
            self.heads,
            visible=visible,
        )
        x = target + drop(nn.Dense(width, name="output")(attended))
        normed = nn.LayerNorm(epsilon=EPSILON, name="norm_ffn")(x)
        hidden = drop(nn.gelu(nn.Dense(self.ffn, name="ffn_in")(normed), approximate=True))
        return x + drop(nn.Dense(width, name="ffn_out")(hidden))


class Fusion(nn.Module):
    """Utterance vectors H of all modalities.

    Attributes:
      modalities: names, in order.
      width: d of all inner vectors.
      heads: of each attention; they divide d.
      ffn: width of the feed-forward networks' hidden layers.
      speakers: embeddings of a dialogue's speakers; those after share the last. 0 is none.
      dropout: rate of every dropout.
      learned_gates: unimodal gates have weights; else they are sigmoid(x) x (SDT on MELD).
    """

    modalities: Sequence[str]
    width: int
    heads: int
    ffn: int
    speakers: int
    dropout: float
    learned_gates: bool = True

    @nn.compact
    def __call__(self, inputs: Modalities, block: Batch, key: jax.Array | None = None) -> jax.Array:
        """H.

        Args:
          inputs: of a block; features float [N, D] of each modality.
          block: a Batch without its leading axis.
          key: PRNG key of the dropout; None is evaluation.

        Returns:
          float [N, d]; zero where an utterance has none of the modalities.
        """
        names, layout, ids = self.modalities, block.dialogue, jnp.asarray(block.ids)
        n_pairs = len(names) ** 2
        keys = (None, None) if key is None else jax.random.split(key)
        channels = len(names) * self.width + n_pairs * (2 * self.width + self.ffn)
        drop = Dropout(keys[0], ids, self.dropout, channels)
        drop_weights = PairDropout(
            keys[1], ids[layout.index].T, self.dropout, heads=n_pairs * self.heads
        )
        present = {name: jnp.asarray(inputs.present[name]) for name in names}

        place = positions(layout)
        added = sinusoids(layout.index.shape[0], self.width)[place]
        if self.speakers:
            speaker = jnp.minimum(block.speaker_number, self.speakers - 1)
            added += nn.Embed(self.speakers, self.width, name="speaker")(speaker)
        # A convolution over utterances of width 1 is a linear map of each.
        streams = {
            name: drop(
                nn.Dense(self.width, use_bias=False, name=f"input_{name}")(inputs.features[name])
                + added
            )
            for name in names
        }

        fused = []
        for target in names:
            outputs = []
            for source in names:
                encoder = CrossModalEncoder(self.heads, self.ffn, name=f"{source}_to_{target}")
                x = encoder(
                    streams[target], streams[source], layout, present[source], drop, drop_weights
                )
                gate = x
                if self.learned_gates:
                    gate = nn.Dense(self.width, use_bias=False, name=f"gate_{source}_to_{target}")(
                        x
                    )
                outputs.append(nn.sigmoid(gate) * x)
            fused.append(
                nn.Dense(self.width, name=f"reduce_{target}")(jnp.concatenate(outputs, axis=-1))
            )

        there = jnp.stack([present[name] for name in names])[..., None]  # [M, N, 1]
        stacked = jnp.stack(fused)
        if len(names) == 1:
            return jnp.where(there[0], fused[0], 0.0)
        # Across modalities, per channel.
        scores = nn.Dense(self.width, use_bias=False, name="gate")(stacked)
        shares = jax.nn.softmax(jnp.where(there, scores, jnp.finfo(scores.dtype).min), axis=0)
        return jnp.sum(jnp.where(there, shares * stacked, 0.0), axis=0)


def positions(layout: Layout) -> jax.Array:
    """int32 [N], the place of each packed utterance in its sequence, from 0."""
    segment = jnp.asarray(layout.segment)
    slots = jnp.arange(segment.shape[0], dtype=jnp.int32)[:, None]
    begins = jnp.concatenate(
        [jnp.ones((1, segment.shape[1]), bool), segment[1:] != segment[:-1]], axis=0
    )
    first = jax.lax.cummax(jnp.where(begins, slots, 0), axis=0)
    return (slots - first).reshape(-1)[layout.inverse]


def sinusoids(length: int, width: int) -> jax.Array:
    """Positions float32 [length, width] as in Vaswani et al., sines and cosines in turn."""
    rates = jnp.exp(jnp.arange(0, width, 2) * (-jnp.log(10_000.0) / width))
    angles = jnp.arange(length)[:, None] * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(length, -1)[:, :width]
