"""Fine-tuning: a text encoder and a linear layer learn the emotion of utterances together.

This makes the features that Mtl-ERC-ES and FMERL read: their papers take those of a RoBERTa-large
fine-tuned on the corpus' emotions. An utterance is read alone, or within its dialogue; its vector
is pooled from its own tokens (``erc_jax.encoders.reading``). The encoder that comes out is the one
that scored best on validation; it is saved in the published layout in the workdir's folder
``encoder/``, and the workdir is the name by which every system can ask for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from erc_jax.data.dialogue import Dialogue
from erc_jax.data.labels import LabelSpace
from erc_jax.data.tokens import TokenBatch
from erc_jax.encoders.sentence import SentenceEncoder, pool
from erc_jax.encoders.transformer import DropoutRates
from erc_jax.layers.dropout import Dropout
from erc_jax.losses import cross_entropy
from erc_jax.systems import HEAD, Params, Recognition, Task


class FineTuning(Recognition):
    """The system: encoder, pooling and head around published weights."""

    inputs = "tokens"

    def __init__(
        self, config: ConfigDict, labels: LabelSpace, encoder: SentenceEncoder | Any = None
    ):
        if encoder is None:
            raise ValueError("fine-tuning needs an encoder to start from")
        how = config.fine_tuning
        self.tasks: Sequence[Task] = (Task("emotion", labels.emotions, labels.neutral),)
        self.notes: Sequence[str] = ()
        self._labels = labels
        self._published = encoder.params
        self._pooling = encoder.pooling.mode
        self.compute_dtype = jnp.dtype(how.dtype)
        self._module = encoder.module.clone(
            dtype=self.compute_dtype, scan_layers=how.scan_layers, remat=how.remat
        )
        self._head = nn.Dense(len(labels.emotions))
        self._dropout = DropoutRates(config.model.dropout, how.attention_dropout)
        self._class_weights = labels.class_weights(config.train.class_weights)

    def targets(self, dialogues: Sequence[Dialogue]) -> dict[str, np.ndarray]:
        return {"emotion": np.concatenate([self._labels.emotion_ids(d) for d in dialogues])}

    def init(self, key: jax.Array, batch: TokenBatch) -> Params:
        """The published encoder, and a head drawn at random."""
        blank = jnp.zeros((1, self._module.config.hidden_size))
        head = self._head.init(key, blank)["params"]
        # Copies: the train step donates its parameters, and seeds start from the same ones.
        published = jax.tree.map(lambda x: jnp.array(x, copy=True), self._published)
        return self.from_published({"encoder": published, HEAD + "emotion": head})

    def from_published(self, params: Params) -> Params:
        """Parameters whose encoder is in the published layout, as this system keeps them."""
        if not self._module.scan_layers:
            return params
        return {**params, "encoder": self._module.stack_layers(params["encoder"])}

    def to_published(self, params: Params) -> Params:
        """The inverse of ``from_published``."""
        if not self._module.scan_layers:
            return params
        return {**params, "encoder": self._module.unstack_layers(params["encoder"])}

    def trained_encoder(self, params: Params) -> Params:
        return self.to_published(params)["encoder"]

    def _vectors(self, params: Params, batch: TokenBatch, key: jax.Array | None) -> jax.Array:
        """Vectors float32 [G · N, D] of the places for utterances; with a key, for training."""
        rows = (-1, batch.words.shape[-1])
        words, segments, positions, slots, tokens = (
            jnp.reshape(x, rows)
            for x in (batch.words, batch.segments, batch.positions, batch.slots, batch.tokens)
        )
        hidden = self._module.apply(
            {"params": params["encoder"]},
            words,
            segments,
            positions,
            key=key,
            tokens=tokens,
            rates=self._dropout,
        )
        vectors = pool(hidden, slots, self._pooling)  # type: ignore[arg-type]
        return vectors.reshape(batch.ids.size, -1)

    def _logits(self, params: Params, vectors: jax.Array) -> jax.Array:
        """Logits float32 [..., C] of vectors float32 [..., D]."""
        return self._head.apply({"params": params[HEAD + "emotion"]}, vectors)  # type: ignore[return-value]

    def loss(
        self, params: Params, batch: TokenBatch, key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy, each class weighted as the config says."""
        # Without a key nothing is dropped.
        encoder_key, head_key = (None, None) if key is None else jax.random.split(key)
        vectors = self._vectors(params, batch, encoder_key)
        drop = Dropout(head_key, batch.ids.reshape(-1), self._dropout.hidden, vectors.shape[-1])
        logits = self._logits(params, drop(vectors)).reshape(*batch.ids.shape, -1)
        return cross_entropy(logits, batch.labels["emotion"], self._class_weights), {}

    def predict(self, params: Params, batch: TokenBatch) -> dict[str, jax.Array]:
        vectors = self._vectors(params, batch, None)
        return self.classify(params, vectors.reshape(*batch.ids.shape, -1))

    def classify(self, params: Params, vectors: jax.Array) -> dict[str, jax.Array]:
        """As ``predict``, of the encoder's vectors of utterances, float32 [..., D]."""
        return {"emotion": jax.nn.softmax(self._logits(params, vectors))}

    def describe(
        self, dialogue: Dialogue, probabilities: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """Emotion and probabilities."""
        return self._labels.describe(probabilities["emotion"])
