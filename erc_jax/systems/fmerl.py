"""FMERL: modalities fused, matched with described emotions; valence, arousal and dominance besides.

"Emotion Recognition in Conversation Based on the Fine-grained Multidimensional Emotion
Representation Learning". Text, audio and visual features are fused into a vector H of each
utterance (``erc_jax.layers.fusion``). Nets on H regress its valence, arousal and dominance. A text
encoder, which stays frozen, embeds a phrase about each emotion; an utterance has the emotion whose
phrase has the highest cosine with it. So an emotion can be named that training has never seen: a
phrase about it will do.

Where the paper is silent: vectors are compared as f = P H, with a learned map P without bias, where
their widths differ; of descriptions' vectors, their mean is left out (``fmerl.centred``, ours);
the contrast is with the distinct emotions of the batch
(``fmerl.negatives="classes"``); similarities are divided by a temperature; ratings are brought to
[0, 1] to be learned, and back to be reported; what is not rated is masked. Where emotions are held
out of training, the trained ones' lead is taken from them (``zero_shot.give_up``, ours).

The model reads the whole dialogue, later turns too: a label can change when the conversation goes
on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from erc_jax import metrics
from erc_jax.data.batching import Batch, Split
from erc_jax.data.dialogue import MODALITIES, VAD, Dialogue
from erc_jax.data.labels import LabelSpace
from erc_jax.data.modalities import Modalities
from erc_jax.errors import UserError
from erc_jax.layers.fusion import Fusion
from erc_jax.losses import contrast, masked_squared_error
from erc_jax.sharding import map_blocks
from erc_jax.systems import REFERENCE, Params, Recognition, Run, Task


class RatingNet(nn.Module):
    """A dimension's net: hidden layers with ReLU, sigmoid output (equation 2).

    Attributes:
      hidden_layers: d wide each.
    """

    hidden_layers: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Ratings float [N] in [0, 1] of x, float [N, d]."""
        width = x.shape[-1]
        for layer in range(self.hidden_layers):
            x = nn.relu(nn.Dense(width, name=f"hidden_{layer + 1}")(x))
        return nn.sigmoid(nn.Dense(1, name="output")(x))[:, 0]


class Model(nn.Module):
    """The network, on one block of a batch (figure 1).

    Attributes:
      fusion: of the modalities.
      dimensions: those of VAD that are regressed.
      hidden_layers: of each one's net.
      width: of the descriptions' vectors, E.
      normalize_text: bring each utterance's text features to mean 0 and variance 1.
    """

    fusion: Fusion
    dimensions: Sequence[str]
    hidden_layers: int
    width: int
    normalize_text: bool

    @nn.compact
    def __call__(
        self, block: Batch, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Vectors and ratings.

        Args:
          block: a Batch without its leading axis; its features are ``Modalities``.
          key: PRNG key of the dropout; None is evaluation.

        Returns:
          f, float [N, E] of length 1, to be compared with descriptions; and ratings float [N, V] in
          [0, 1], or None.
        """
        inputs: Modalities = block.features
        if self.normalize_text and "text" in inputs.features:
            text = jax.nn.standardize(inputs.features["text"])
            inputs = inputs.replace(features={**inputs.features, "text": text})  # type: ignore[attr-defined]
        h = self.fusion(inputs, block, key)
        f = h
        if h.shape[-1] != self.width:
            f = nn.Dense(self.width, use_bias=False, name="projection")(h)
        ratings = [
            RatingNet(self.hidden_layers, name=dimension)(h) for dimension in self.dimensions
        ]
        return unit(f), jnp.stack(ratings, axis=-1) if ratings else None


def unit(x: jax.Array) -> jax.Array:
    """Vectors float [..., E] brought to length 1; zero stays zero."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


class Fmerl(Recognition):
    """The system: labels, losses and matching around the network.

    Raises:
      UserError: the config's fields do not fit each other.
    """

    inputs = "modalities"
    longest = 1024  # each head scores all pairs of a dialogue's utterances

    def __init__(self, config: ConfigDict, labels: LabelSpace, encoder: Any = None):
        """The system.

        Args:
          config: of the experiment.
          labels: with descriptions, and the scale of the ratings where there are any.
          encoder: embeds the descriptions.
        """
        if config.train.class_weights != "none":
            raise UserError(
                "train.class_weights is for classifiers; fmerl compares with descriptions. Leave "
                "it out"
            )
        how = config.fmerl
        if not how.modalities:
            raise UserError(f"fmerl.modalities is empty; expected some of {', '.join(MODALITIES)}")
        if how.width % how.heads:
            raise UserError(
                f"fmerl.heads is {how.heads}, which does not divide fmerl.width, {how.width}"
            )
        self._how = how
        self._encoder = encoder
        self._unseen = tuple(name for name in config.zero_shot.unseen.split(",") if name)
        self._give_up = config.zero_shot.give_up
        self.has_reference = bool(self._unseen and self._give_up)
        self.rated = tuple(d for d in how.vad.dimensions if labels.vad_scale is not None)
        self.notes: Sequence[str] = ()
        if how.vad.dimensions and not self.rated:
            self.notes = (
                "No utterance is rated, so valence, arousal and dominance are left out; --mode "
                "annotate makes ratings, config.data.annotation names them.",
            )
        # All phrases are alike (cosines of 0.95 and more), for they name the same three dimensions.
        # Without what they share, what is left tells the emotions apart.
        self._trained = [e for e in labels.emotions if e not in self._unseen]
        self._shared = self._embed(labels, self._trained).mean(axis=0) if how.centred else 0.0
        self._set_labels(labels)
        fusion = Fusion(
            modalities=tuple(name for name in MODALITIES if name in how.modalities),
            width=how.width,
            heads=how.heads,
            ffn=how.ffn,
            speakers=how.speakers,
            dropout=config.model.dropout,
            learned_gates=how.learned_gates,
            name="fusion",
        )
        self._model = Model(
            fusion,
            self.rated,
            how.vad.hidden_layers,
            self._emotion_vectors.shape[-1],
            config.model.normalize_input,
        )

    def _set_labels(self, labels: LabelSpace) -> None:
        self._labels = labels
        self.tasks: Sequence[Task] = (Task("emotion", labels.emotions, labels.neutral),)
        embedded = self._embed(labels, labels.emotions)
        same = embedded @ embedded.T > 1 - 1e-6
        if (same.sum(axis=-1) > 1).any():
            alike = [e for e, n in zip(labels.emotions, same.sum(axis=-1), strict=True) if n > 1]
            raise UserError(
                f"descriptions of {', '.join(alike)} are embedded alike, so that nothing tells "
                "these emotions apart; describe them in other words, see config.data.annotation "
                "and --descriptions"
            )
        vectors = embedded - self._shared
        self._emotion_vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def _embed(self, labels: LabelSpace, emotions: Sequence[str]) -> np.ndarray:
        """Vectors float32 [C, E] of length 1 of what describes some emotions."""
        phrases = list(emotions)  # of an emotion that nothing describes, its name
        described = labels.descriptions or {}
        if self._how.descriptions == "phrase":
            phrases = [described.get(emotion, emotion) for emotion in emotions]
        elif self._how.descriptions == "named_phrase":
            phrases = [f"{e}: {described[e]}" if e in described else e for e in emotions]
        return self._encoder.encode(phrases, normalize=True)

    def with_emotions(self, labels: LabelSpace) -> Recognition:
        """The same system that names other emotions; the parameters stay as they are."""
        other = copy.copy(self)
        other._set_labels(labels)
        return other

    def targets(self, dialogues: Sequence[Dialogue]) -> dict[str, np.ndarray]:
        """``emotion`` int32 [N]; where it is regressed, ``vad`` float32 [N, 3] in [0, 1] or -1."""
        emotions = np.concatenate([self._labels.emotion_ids(d) for d in dialogues])
        if not self.rated:
            return {"emotion": emotions}
        ratings = np.concatenate([self._labels.vad_ratings(d) for d in dialogues])
        return {"emotion": emotions, "vad": ratings}

    def init(self, key: jax.Array, batch: Batch) -> Params:
        block = jax.tree.map(lambda x: x[0], batch)
        return jax.jit(self._model.init)(key, block)["params"]

    def _outputs(
        self, params: Params, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Cosines float32 [G, N, C] with the emotions, and ratings [G, N, V] if there are any."""

        def of_block(block: Batch) -> Any:
            return self._model.apply({"params": params}, block, key)

        vectors, ratings = map_blocks(of_block, batch)
        cosines = vectors.astype(jnp.float32) @ jnp.asarray(self._emotion_vectors).T
        return cosines, ratings

    def loss(
        self, params: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The ratings' squared errors and the triple loss (equations 3, 5, 7, 9 and 10)."""
        how = self._how
        cosines, ratings = self._outputs(params, batch, key)
        l1, l2 = contrast(
            cosines, batch.labels["emotion"], how.temperature, in_batch=how.negatives == "in_batch"
        )
        total = how.lambda_triple * (l1 + how.lambda_negative * l2)
        parts = {"contrast": l1, "negatives": l2}
        for number, dimension in enumerate(self.rated):
            target = jnp.asarray(batch.labels["vad"])[..., VAD.index(dimension)]
            assert ratings is not None
            parts[dimension] = masked_squared_error(ratings[..., number], target)
            total += parts[dimension]
        return total, parts

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """``emotion``: probabilities; ``similarity``: cosines; ``vad``: ratings in [0, 1]."""
        cosines, ratings = self._outputs(params, batch, None)
        lead: Any = 0.0  # of the trained emotions, which is taken from them
        if REFERENCE in params:
            lead = params[REFERENCE]["lead"] * self._seen()
        predicted = {
            "emotion": jax.nn.softmax((cosines - lead) / self._how.temperature),
            "similarity": cosines,
        }
        return predicted if ratings is None else predicted | {"vad": ratings}

    def _seen(self) -> np.ndarray:
        """bool [C], whether training saw an emotion."""
        return np.array([emotion in self._trained for emotion in self._labels.emotions])

    def fit_reference(self, params: Params, run: Run, train: Split, selection: Split) -> Params:
        """Adds ``lead``: by how much trained emotions' cosines are lowered, for unseen ones' sake.

        It is the largest one with which no more than ``zero_shot.give_up`` of the utterances of
        ``selection`` that get the right one of the trained emotions get an unseen one instead.
        """
        del train
        labels = selection.labels["emotion"]
        cosines = run(self.predict, params, selection)["similarity"]
        seen = self._seen()
        right = np.where(seen, cosines, -np.inf).argmax(-1) == labels  # never where not labelled
        lead = 0.0
        if right.any():
            ahead = cosines[right, labels[right]] - cosines[right][:, ~seen].max(-1)
            # A little less, for a tie may fall to either.
            lead = np.sort(ahead)[int(self._give_up * len(ahead))] - 1e-5
        return {**params, REFERENCE: {"lead": jnp.float32(lead)}}

    def _on_scale(self, ratings: np.ndarray) -> np.ndarray:
        assert self._labels.vad_scale is not None
        low, high = self._labels.vad_scale
        return low + (high - low) * ratings.astype(np.float64)

    def further_scores(self, params: Params, run: Run, examples: Split) -> dict[str, Any]:
        """Agreement with the ratings, on their scale; and what held-out emotions are named."""
        outputs = run(self.predict, params, examples)
        scores: dict[str, Any] = {}
        if self.rated:
            agreement = {}
            for number, dimension in enumerate(self.rated):
                target = examples.labels["vad"][:, VAD.index(dimension)]
                rated = target >= 0
                if rated.any():
                    agreement[dimension] = metrics.agreement(
                        self._on_scale(target[rated]), self._on_scale(outputs["vad"][rated, number])
                    )
            if agreement:
                scores["vad"] = agreement
        labels = examples.labels["emotion"]
        unseen = [self._labels.emotions.index(name) for name in self._unseen]
        if np.isin(labels, unseen).any():
            confusion = metrics.confusion(
                labels, outputs["emotion"].argmax(-1), len(self._labels.emotions)
            )
            scores["zero_shot"] = metrics.zero_shot(confusion, unseen)
        return scores

    def about(self) -> dict[str, Any]:
        """The scale of ``vad``, where it is predicted."""
        return {"vad_scale": list(self._labels.vad_scale or ())} if self.rated else {}

    def describe(
        self, dialogue: Dialogue, probabilities: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """Emotion, probabilities, ``similarity`` to each emotion and, where learned, ``vad``."""
        described = self._labels.describe(probabilities["emotion"])
        for record, cosines in zip(described, probabilities["similarity"], strict=True):
            record["similarity"] = dict(zip(self._labels.emotions, cosines.tolist(), strict=True))
        if self.rated:
            for record, ratings in zip(
                described, self._on_scale(probabilities["vad"]), strict=True
            ):
                record["vad"] = dict(zip(self.rated, ratings.tolist(), strict=True))
        return described
