"""What an exported model computes: from tokens and speakers to probabilities, for any sizes.

Training and ``Recognizer`` read packed batches that the host lays out. Here the dialogues are rows
of places, and the layout is computed in the program, from the speakers alone.

Shapes: B dialogues of T places for utterances, N = B · T of them in all; K blocks of ROWS token
sequences, each up to W tokens long; D features, C classes. B, T, K and W are symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from erc_jax.data.batching import Batch
from erc_jax.data.modalities import Modalities
from erc_jax.data.packing import Layout
from erc_jax.encoders.multimodal import MultimodalEncoder
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.errors import UserError
from erc_jax.experiment import Encoder
from erc_jax.steps import lowered
from erc_jax.systems import Params, Recognition
from erc_jax.systems.fine_tuning import FineTuning

ROWS = 16  # token sequences that are encoded at once: what is in flight fits a CPU's caches
# What ``predict`` of a system gives besides, such as SentEmoContext's other ways, is left out.
OUTPUTS = ("emotion", "sentiment", "shift_global", "shift_speaker", "similarity", "vad")

Program = Callable[..., dict[str, jax.Array]]


def text_encoder(encoder: Encoder) -> SentenceEncoder:
    """The text encoder of a model that reads nothing but text.

    Raises:
      UserError: it reads something else.
    """
    if isinstance(encoder, MultimodalEncoder):
        if encoder.files:
            raise UserError(
                f"this run reads {', '.join(encoder.files)} from feature files, which an exported "
                "model cannot make from text; export a run whose fmerl.modalities is ('text',) and "
                "whose text is read by an encoder"
            )
        encoder = encoder.text  # type: ignore[assignment]
    if not isinstance(encoder, SentenceEncoder):
        raise UserError(
            "this run reads word vectors, whose table of words is no part of an exported model; "
            "export a run that reads a sentence encoder (sent_emo_context.network=transformer)"
        )
    return encoder


def weights_of(system: Recognition, params: Params, encoder: SentenceEncoder) -> Params:
    """The weights that the program takes: those of the encoder and those of the system."""
    if not isinstance(system, FineTuning):
        return {"encoder": encoder.params, "system": params}
    heads = {name: of for name, of in params.items() if name != "encoder"}
    return {"encoder": system.trained_encoder(params), "system": heads}


def make_program(system: Recognition, encoder: SentenceEncoder) -> Program:
    """The function that is exported.

    Args:
      system: trained.
      encoder: of the texts; where the system has fine-tuned one, that one.

    Returns:
      A function of weights (``weights_of``), tokens int32 [K · ROWS, W], lengths int32 [K · ROWS],
      owners int32 [K · ROWS, W] and speakers int32 [B, T], to what the system predicts, by name,
      float32 [B, T, C]:

      - a row of ``tokens`` is what the encoder reads at once; ``lengths`` says how many tokens;
      - ``owners`` names the utterance that a token is part of, as b · T + t; -1 is none. The tokens
        of an utterance stand together, in one row;
      - ``speakers`` are numbers from 0 that tell the speakers of a dialogue apart, -1 where there
        is no utterance. Dialogues begin at their first place and have no gaps.
    """
    module = encoder.module
    if isinstance(system, FineTuning):
        module = module.clone(dtype=system.compute_dtype)

    def program(
        weights: Params,
        tokens: jax.Array,
        lengths: jax.Array,
        owners: jax.Array,
        speakers: jax.Array,
    ) -> dict[str, jax.Array]:
        n_dialogues, n_places = speakers.shape
        vectors = _utterance_vectors(
            lambda *inputs: module.apply({"params": weights["encoder"]}, *inputs),
            encoder.pooling.mode,
            (tokens, lengths, owners),
            n_dialogues * n_places,
            module.config.hidden_size,
        )
        if encoder.pooling.normalize and not isinstance(system, FineTuning):
            norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
            vectors = vectors / jnp.maximum(norms, 1e-12)
        if isinstance(system, FineTuning):
            predicted: Mapping[str, jax.Array] = system.classify(weights["system"], vectors)
        else:
            features: Any = vectors
            if system.inputs == "modalities":
                there = (speakers >= 0).reshape(-1)
                features = Modalities({"text": vectors}, {"text": there})
            batch = lay_out(features, speakers, system.window)
            # One block on one device.
            blocks = jax.tree.map(lambda array: array[None], batch)
            predicted = system.predict(*lowered(weights["system"], blocks, system.dtype))
        return {
            name: predicted[name].astype(jnp.float32).reshape(n_dialogues, n_places, -1)
            for name in OUTPUTS
            if name in predicted
        }

    return program


def _utterance_vectors(
    encode: Callable[..., Any],
    pooling: str,
    rows: tuple[jax.Array, jax.Array, jax.Array],
    count: Any,
    width: int,
) -> jax.Array:
    """Vectors float32 [count, D] of utterances, pooled from their tokens; zero without any.

    Args:
      encode: from tokens, segments and positions, int32 [ROWS, W], to hidden states [ROWS, W, D].
      pooling: see ``erc_jax.encoders.sentence.Pooling``.
      rows: tokens, lengths and owners; see ``make_program``.
      count: of the utterances, N.
      width: D.
    """
    blocks = jax.tree.map(lambda array: array.reshape(-1, ROWS, *array.shape[1:]), rows)
    lowest = -jnp.inf if pooling == "max" else 0.0

    def add(vectors: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        tokens, lengths, owners = block
        places = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        there = places < lengths[:, None]
        # Accelerators multiply float32 with fewer bits unless they are told not to.
        with jax.default_matmul_precision("float32"):
            hidden = encode(
                jnp.where(there, tokens, 0), there.astype(jnp.int32), jnp.where(there, places, 0)
            ).astype(jnp.float32)
        owners = jnp.where(there & (owners >= 0), owners, count)
        if pooling == "max":
            return vectors.at[owners].max(hidden, mode="drop"), None
        if pooling == "cls":
            before = jnp.pad(owners[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
            shares = (owners != before).astype(jnp.float32)
        else:
            shares = 1 / (owners[:, :, None] == owners[:, None, :]).sum(-1)
        return vectors.at[owners].add(hidden * shares[..., None], mode="drop"), None

    vectors, _ = jax.lax.scan(add, jnp.full((count, width), lowest, jnp.float32), blocks)
    return jnp.where(vectors == -jnp.inf, 0.0, vectors)


def lay_out(features: Any, speakers: jax.Array, window: int | None = None) -> Batch:
    """The batch of a system, without its leading axis, as ``erc_jax.data.batching`` lays it out.

    Every dialogue has a row to itself, of T slots. So have its speakers' own utterances together,
    one speaker after another in the order in which they first speak.

    Args:
      features: of the utterances, arrays [N, ...].
      speakers: int32 [B, T]; see ``make_program``.
      window: see ``Examples.window``.
    """
    n_dialogues, n_places = speakers.shape
    real = speakers >= 0
    places = jnp.arange(n_places, dtype=jnp.int32)
    begins = (
        n_places * jnp.arange(n_dialogues, dtype=jnp.int32)[:, None]
    )  # row of a first utterance

    # [B, T, T]: whether the speaker of an utterance (second axis) also says another one (last).
    same = (speakers[:, :, None] == speakers[:, None, :]) & real[:, None, :] & real[:, :, None]
    before = jnp.where(same & (places < places[:, None]), places, -1).max(-1)
    first = jnp.where(real, jnp.where(same, places, n_places).min(-1), n_places)
    speaks_first = (first == places)[:, None, :] & (places < first[:, :, None])
    order = jnp.argsort(first, axis=1, stable=True).astype(jnp.int32)
    by_speaker = jnp.take_along_axis(begins + first, order, axis=1)

    return Batch(
        features=features,
        real=real.reshape(-1),
        ids=jnp.arange(n_dialogues * n_places, dtype=jnp.int32),
        previous_global=jnp.where(places > 0, begins + places - 1, -1).reshape(-1),
        previous_speaker=jnp.where(before >= 0, begins + before, -1).reshape(-1),
        speaker_number=jnp.where(real, speaks_first.sum(-1, dtype=jnp.int32), 0).reshape(-1),
        dialogue=_windows(real, window) if window else _layout(places + 0 * begins, begins, real),
        speaker=_layout(order, jnp.where(real, by_speaker, -1), real),
        labels={},
    )


def _layout(order: jax.Array, segment: jax.Array, real: jax.Array) -> Layout:
    """Sequences that fill a dialogue's row of slots.

    Args:
      order: int32 [B, T], the place of the utterance in each slot; a permutation.
      segment: int32 [B, T] or [B, 1], the number of the sequence in each slot.
      real: bool [B, T], which utterances there are; they fill the first slots.
    """
    n_dialogues, n_places = real.shape
    dialogue = jnp.arange(n_dialogues, dtype=jnp.int32)[:, None]
    slot = jnp.argsort(order, axis=1).astype(jnp.int32)  # of each place
    return Layout(
        index=(dialogue * n_places + order).T,
        inverse=(slot * n_dialogues + dialogue).reshape(-1),
        segment=jnp.where(real, segment, -1).T,
        mask=real.reshape(-1),
    )


def _windows(real: jax.Array, window: int) -> Layout:
    """A row for each run of up to so many utterances of a dialogue; real is bool [B, T]."""
    n_dialogues, n_places = real.shape
    n_windows = (n_places + window - 1) // window
    n_rows = n_dialogues * n_windows
    place = jnp.arange(n_places, dtype=jnp.int32)
    dialogue = jnp.arange(n_dialogues, dtype=jnp.int32)[:, None]
    row = dialogue * n_windows + place // window
    inverse = (place % window) * n_rows + row
    # [B, windows · window] places, of which those past the last are empty.
    padded = jnp.pad(real, ((0, 0), (0, n_windows * window - n_places)))
    at = jnp.arange(n_windows * window, dtype=jnp.int32)
    index = jnp.where(padded, dialogue * n_places + at, 0).reshape(n_rows, window)
    segment = jnp.where(padded.reshape(n_rows, window), jnp.arange(n_rows)[:, None], -1)
    return Layout(
        index=index.T,
        inverse=inverse.reshape(-1).astype(jnp.int32),
        segment=segment.astype(jnp.int32).T,
        mask=real.reshape(-1),
    )
