"""Emotion-aware response generation: BART that replies and classifies, a mini-batch of one task.

Ide and Kawahara, "Multi-Task Learning of Generation and Classification for Emotion-Aware Dialogue
Response Generation" (NAACL SRW 2021). One encoder and one decoder serve all tasks. To reply (task
R), the encoder reads the utterance and the decoder the response, shifted right (equation 1). To
classify (tasks E…), both read the utterance, and the task's head reads the decoder's state at the
utterance's end (equation 2), as BART's own sequence classifier does. Each mini-batch is of one task
(MT-DNN), whose loss is multiplied by the task's weight.

Departures from the paper: the published text writes the loss as a sum. Here a mini-batch that
classifies has the mean over its utterances, and one that replies the sum over its tokens, divided
by its replies times a reply's mean length: the mean over tokens, but for how long its replies are.

Shapes: G blocks of R rows, L source tokens, T target tokens, K beams, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from erc_jax.data.pairs import GENERATION, TextBatch
from erc_jax.decoding import Decoding, generate
from erc_jax.encoders.bart import shift_right
from erc_jax.encoders.bart_layers import DropoutRates
from erc_jax.encoders.seq2seq import Seq2Seq
from erc_jax.layers.dropout import Dropout
from erc_jax.losses import cross_entropy, smoothed_cross_entropy
from erc_jax.systems import HEAD, Params, System

MODEL = "model"  # parameters of encoder and decoder lie under this name


class ClassificationHead(nn.Module):
    """Dropout, dense, tanh, dropout, projection: the head of BART's sequence classifier.

    Attributes:
      width: D.
      classes: C.
    """

    width: int
    classes: int

    @nn.compact
    def __call__(self, states: jax.Array, drop: Dropout) -> jax.Array:
        """Logits float32 [R, C] of decoder states float32 [R, D]."""
        x = nn.tanh(nn.Dense(self.width, name="dense")(drop(states)))
        return nn.Dense(self.classes, name="out_proj")(drop(x))


class Response(System):
    """The system: BART and its heads."""

    def __init__(self, config: ConfigDict, labels: Mapping[str, tuple[str, ...]], encoder: Seq2Seq):
        """Args:
        config: of the experiment.
        labels: task to its classes, of every task but GENERATION.
        encoder: the encoder-decoder to start from.
        """
        how = config.response
        self.classes = dict(labels)
        self.replies = GENERATION in how.tasks.split("+")
        self._published = encoder.params if encoder.folder else None
        self._special = encoder.special
        self._module = encoder.module.clone(dtype=jnp.dtype(how.dtype), remat=how.remat)
        width = encoder.width
        self._heads = {task: ClassificationHead(width, len(of)) for task, of in labels.items()}
        self._rates = DropoutRates(config.model.dropout, how.attention_dropout)
        self._smoothing = how.label_smoothing
        self._weights = config.weights
        self.decoding = Decoding(
            beams=how.beams,
            length_penalty=how.length_penalty,
            no_repeat_ngram=how.no_repeat_ngram,
            min_length=how.min_length,
            max_length=how.max_tokens + 1,  # it counts what the decoder starts with
            forced_first=encoder.special.bos,
            forced_last=encoder.forced_last,
        )

    def init(self, key: jax.Array, batch: Any) -> Params:
        """The model to start from, and heads drawn at random."""
        del batch
        blank = jnp.zeros((1, self._module.config.d_model))
        keys = jax.random.split(key, len(self._heads) + 1)
        no_drop = Dropout(None, jnp.zeros(1, jnp.int32), 0.0, 0)
        heads = {
            HEAD + task: head.init(head_key, blank, no_drop)["params"]
            for head_key, (task, head) in zip(keys[1:], self._heads.items(), strict=True)
        }
        if self._published is None:
            return {MODEL: self._module.fresh_params(keys[0]), **heads}
        # Copies: the train step donates its parameters, and seeds start from the same ones.
        model = jax.tree.map(lambda x: jnp.array(x, copy=True), self._published)
        return {MODEL: model, **heads}

    def trained_encoder(self, params: Params) -> Params:
        return params[MODEL]

    def _states(self, params: Params, batch: TextBatch, key: jax.Array | None) -> jax.Array:
        """What the decoder makes of a batch, float [G · R, T, D]."""
        source, source_mask, target, target_mask, source_tokens, target_tokens = (
            x.reshape(-1, x.shape[-1])  # type: ignore[union-attr]
            for x in (
                *(batch.source, batch.source_mask, batch.target, batch.target_mask),
                *(batch.source_tokens, batch.target_tokens),
            )
        )
        states: Any = self._module.apply(
            {"params": params[MODEL]},
            source,
            source_mask,
            shift_right(jnp.asarray(target), self._special),
            target_mask,
            key=key,
            source_tokens=source_tokens,
            target_tokens=target_tokens,
            rates=self._rates,
        )
        return states

    def _next_words(self, params: Params, batch: TextBatch, key: jax.Array | None) -> jax.Array:
        """Logits float32 [G, R, T, V] of the tokens of the target."""
        states = self._states(params, batch, key)
        logits: Any = self._module.apply({"params": params[MODEL]}, states, method="logits")
        return logits.reshape(*batch.target.shape, -1)

    def _class_logits(self, params: Params, batch: TextBatch, key: jax.Array | None) -> jax.Array:
        """Logits float32 [G, R, C] of the batch's task."""
        model_key, head_key = (None, None) if key is None else jax.random.split(key)
        states = self._states(params, batch, model_key)
        mask = batch.target_mask.reshape(len(states), -1)
        last = jnp.maximum(mask.sum(-1) - 1, 0)  # where the utterance ends
        ends = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
        ends = ends.astype(jnp.float32)
        drop = Dropout(head_key, batch.ids.reshape(-1), self._rates.hidden, 2 * ends.shape[-1])
        head = self._heads[batch.task]
        logits = head.apply({"params": params[HEAD + batch.task]}, ends, drop)
        return logits.reshape(*batch.ids.shape, -1)  # type: ignore[union-attr]

    def loss(
        self, params: Params, batch: TextBatch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of the batch's task, times the task's weight (section 3.3)."""
        if batch.task == GENERATION:
            logits = self._next_words(params, batch, key)
            loss = smoothed_cross_entropy(logits, batch.target, batch.target_mask, self._smoothing)
            # A batch is of replies of about one length. That tokens of long ones count as much as
            # those of short ones, a batch counts by its tokens: on average, this factor is 1.
            usual = jnp.sum(batch.real * jnp.asarray(batch.usual_length)[:, None])
            loss *= jnp.sum(batch.target_mask) / jnp.maximum(usual, 1)
        else:
            logits = self._class_logits(params, batch, key)
            loss = cross_entropy(logits, batch.labels[batch.task])
        return self._weights[batch.task] * loss, {batch.task: loss}

    def likelihood(self, params: Params, batch: TextBatch) -> dict[str, jax.Array]:
        """``nll`` float32 [G, R, 2]: of each response the negative log-likelihood, and its tokens.

        The end of the response counts as a token; its beginning, which is always the same, does
        not.
        """
        logits = self._next_words(params, batch, None)
        per_token = optax.softmax_cross_entropy_with_integer_labels(logits, batch.target)
        counted = batch.target_mask & (jnp.arange(batch.target.shape[-1]) > 0)
        sums = jnp.sum(per_token * counted, axis=-1)
        return {"nll": jnp.stack([sums, counted.sum(-1).astype(sums.dtype)], axis=-1)}

    def classify(self, params: Params, batch: TextBatch) -> dict[str, jax.Array]:
        """The batch's task to class probabilities float32 [G, R, C]."""
        return {batch.task: jax.nn.softmax(self._class_logits(params, batch, None))}

    def reply(
        self, params: Params, batch: TextBatch, key: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """``tokens`` int32 [G, R, K · T] of the best hypotheses, ``scores`` float32 [G, R, K].

        Args:
          params: of the system.
          batch: whose sources are replied to.
          key: PRNG key, where words are drawn at random.
        """
        rows = (-1, batch.source.shape[-1])
        generated = generate(
            self._module,
            params[MODEL],
            jnp.reshape(batch.source, rows),
            jnp.reshape(batch.source_mask, rows),
            self.decoding,
            self._special,
            key,
            jnp.reshape(batch.items, -1),
        )
        blocks = batch.real.shape
        return {
            "tokens": generated.tokens.reshape(*blocks, -1),
            "scores": generated.scores.reshape(*blocks, -1),
        }
