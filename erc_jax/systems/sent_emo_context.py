"""SentEmoContext: a Siamese encoder over frozen sentence embeddings, trained on triplets.

Gendron and Guibon, "SEC: Context-Aware Metric Learning for Efficient Emotion Recognition in
Conversation". A Transformer layer gives utterances their context, a classifier (one layer and a
linear map) sits on top. Each batch takes two steps: the classifier's cross-entropy, and the triplet
loss of the contextual vectors; both train the encoder. (The published code detaches the vectors
before the triplet loss, which then trains nothing.)

An utterance is classified in three ways: by the classifier ("head"), by the nearest class centroid,
and by its nearest neighbours among training utterances. Training sees rare emotions more often than
they occur, so each way weighs its result by the classes' frequency to a power; that power, and
which way is taken, are chosen on validation.

Ours: attention knows distances, the context starts as the identity, classes' frequency is weighed
in, and the default recipe (``erc_jax.config.sent_emo_context``, where the published code's is the
variant "sent_emo_context_paper").

Two baselines are this system without context: ``context="none"`` classifies sentence embeddings
directly, the networks "mlp" and "lstm" read the words of an utterance alone.

The model reads the whole dialogue, later turns too: a label can change when the conversation goes
on.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from erc_jax import metrics
from erc_jax.data.anchors import AnchorBatch, AnchorExamples
from erc_jax.data.batching import Batch, Split
from erc_jax.data.dialogue import Dialogue
from erc_jax.data.labels import LabelSpace
from erc_jax.data.packing import Array, Layout
from erc_jax.errors import UserError
from erc_jax.layers.dropout import Dropout, PairDropout
from erc_jax.layers.isolated import MLP, StackedLSTM
from erc_jax.layers.recurrent import gather_rows, scatter_back
from erc_jax.layers.transformer import TransformerLayer
from erc_jax.losses import batch_class_weights, cross_entropy, triplet_loss
from erc_jax.sharding import map_blocks
from erc_jax.systems import HEAD, REFERENCE, Objective, Params, Recognition, Run, Task
from erc_jax.triplets import verification_with_chance

WAYS = ("head", "centroid", "knn")
WINDOW = 15  # utterances in a dialogue vector
MOST_ANCHORS = 512  # of a batch whose triplets are all formed: a gigabyte or two
# Powers of the classes' frequency among which validation chooses.
PRIOR_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)


class ContextEncoder(nn.Module):
    """Makes utterance vectors contextual; no dialogue sees another.

    Attributes:
      form: "utterances": attention across a dialogue's utterances; "dialogue_vector": windows of 15
        utterances, each concatenated into one vector that goes through the layer and is split again
        (the paper's 159 million parameters). Its softmax over one vector is 1, so query and key
        never get a gradient.
      heads: of the attention.
      ffn: width of the feed-forward network's hidden layer.
      dropout: rate of every dropout.
      reach: of distances between utterances that attention learns to weigh ("utterances" only).
      starts_as_identity: see ``TransformerLayer`` ("utterances" only: a dialogue vector is
        normalised as a whole, with its empty places).
    """

    form: str
    heads: int
    ffn: int
    dropout: float
    reach: int
    starts_as_identity: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, block: Batch, key: jax.Array | None, at: jax.Array | None
    ) -> jax.Array:
        """Contextual vectors.

        Args:
          x: float [N, D], of the utterances of a block.
          block: a Batch without its leading axis; "dialogue_vector" wants windows (``Examples``).
          key: PRNG key of the dropout; None is evaluation.
          at: int [A], the utterances that are wanted; None is all.

        Returns:
          float [A, D].
        """
        whole = self.form == "dialogue_vector"
        layer = TransformerLayer(
            self.heads,
            self.ffn,
            reach=0 if whole else self.reach,
            starts_as_identity=not whole and self.starts_as_identity,
            name="layer",
        )
        keys = (None, None) if key is None else jax.random.split(key)
        layout: Layout = block.dialogue
        if whole:
            slots = gather_rows(x, layout)  # [15, W, D]
            windows = slots.swapaxes(0, 1).reshape(slots.shape[1], -1)
            first = jnp.asarray(block.ids)[layout.index[0]]
            drop = Dropout(keys[0], first, self.dropout, 2 * windows.shape[-1] + self.ffn)
            outputs = layer(windows, None, drop, drop)
            vectors = scatter_back(
                outputs.reshape(slots.shape[1], *slots.shape[::2]).swapaxes(0, 1), layout
            )
            return vectors if at is None else vectors[at]
        ids = jnp.asarray(block.ids)
        wanted = ids if at is None else ids[at]
        drop = Dropout(keys[0], wanted, self.dropout, 2 * x.shape[-1] + self.ffn)
        drop_weights = PairDropout(keys[1], ids[layout.index].T, self.dropout, self.heads)
        return layer(x, layout, drop, drop_weights, at)


class SentEmoContext(Recognition):
    """The system: labels, the two losses, and classification in the learned space."""

    learns_space = True
    has_reference = True
    longest = 1024  # each head scores all pairs of a dialogue's utterances

    def __init__(self, config: ConfigDict, labels: LabelSpace, encoder: Any = None):
        how = config.sent_emo_context
        has_context = how.network == "transformer" and how.context != "none"
        if has_context and how.pretraining_epochs >= config.train.epochs:
            raise UserError(
                f"sent_emo_context.pretraining_epochs is {how.pretraining_epochs} of "
                f"{config.train.epochs} train.epochs; none is left to train the context"
            )
        triplet = how.triplet
        if how.network != "transformer" and triplet.learning_rate == 0:
            raise UserError(
                f"sent_emo_context.triplet.learning_rate is 0, but {how.network} learns from "
                "triplets alone"
            )
        if triplet.strategy != "batch_hard" and config.train.batch_size > MOST_ANCHORS:
            raise UserError(
                f"train.batch_size is {config.train.batch_size}: triplet.strategy="
                f"{triplet.strategy} compares all threes of a batch; at most {MOST_ANCHORS}, or "
                "give --config.sent_emo_context.triplet.strategy=batch_hard"
            )
        self._how = how
        self._labels = labels
        self._dropout = config.model.dropout
        self._normalize = config.model.normalize_input
        self._class_weights = labels.class_weights(config.train.class_weights)
        self._select_metric = config.train.select_metric
        self._encoder: nn.Module | None = None
        if how.network == "mlp":
            self._encoder = mlp = MLP(how.width)
            self._channels = mlp.hidden
        elif how.network == "lstm":
            self._encoder = lstm = StackedLSTM(how.width)
            self._channels = (lstm.layers - 1) * how.width
        elif has_context:
            self._encoder = ContextEncoder(
                how.context,
                how.heads,
                how.ffn,
                self._dropout,
                how.reach,
                how.starts_as_identity,
            )
        self.window = WINDOW if how.context == "dialogue_vector" else None
        # The isolated networks learn from triplets alone: they have no classifier.
        self._has_head = how.network == "transformer"
        # It sees one utterance at a time, where heads make no difference.
        self._classifier = TransformerLayer(1, how.ffn)
        self._head = nn.Dense(len(labels.emotions))
        names = (labels.emotions, labels.neutral)
        ways = WAYS if self._has_head else WAYS[1:]
        self.tasks: Sequence[Task] = tuple(Task(name, *names) for name in ("emotion", *ways))

    @property
    def _ways(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks[1:])

    def targets(self, dialogues: Sequence[Dialogue]) -> dict[str, np.ndarray]:
        emotions = np.concatenate([self._labels.emotion_ids(d) for d in dialogues])
        return {task.name: emotions for task in self.tasks}

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Parameters.

        Raises:
          UserError: the heads do not divide the width of the features.
        """
        width, heads = batch.features.shape[-1], self._how.heads
        # A dialogue vector is alone, too.
        in_sequences = isinstance(self._encoder, ContextEncoder) and not self.window
        if in_sequences and width % heads:
            raise UserError(
                f"sent_emo_context.heads is {heads}, which does not divide the width of the "
                f"encoder's vectors, {width}"
            )
        block = jax.tree.map(lambda x: x[0], batch)
        keys = jax.random.split(key, 3)

        @jax.jit
        def init() -> Params:
            x, params = self._input(block), {}
            if isinstance(self._encoder, ContextEncoder):
                params["context"] = self._encoder.init(keys[0], x, block, None, None)["params"]
            elif self._encoder is not None:
                params["context"] = self._encoder.init(keys[0], x, lambda y: y)["params"]
            if self._has_head:
                layer = self._classifier.init(keys[1], x, None, lambda y: y, lambda y: y)
                params["classifier"] = layer["params"]
                params[HEAD + "emotion"] = self._head.init(keys[2], x)["params"]
            return params

        return init()

    def training_examples(self, examples: Split) -> AnchorExamples:
        """Utterances with their dialogues, rare emotions more often than they occur."""
        return AnchorExamples(examples, "emotion", self._how.balance)  # type: ignore[arg-type]

    def objectives(self) -> Sequence[Objective]:
        """Pre-training of the classifier; then cross-entropy and triplet loss in turn."""
        how, triplet = self._how, self._how.triplet
        changes = {name: triplet[name] for name in ("learning_rate", "weight_decay")}
        # The paper's code minimises the triplet loss with AdamW, the other with SGD.
        by_triplets = Objective(self.triplets, {**changes, "optimizer": "adam"}, ("context",))
        if self._encoder is None:
            return (Objective(self.loss),)
        if not self._has_head:
            return (by_triplets,)
        first = how.pretraining_epochs
        objectives = [Objective(self.loss, epochs=(first, None))]
        if first:
            trained = ("classifier", HEAD + "emotion")
            objectives.insert(0, Objective(self.pretraining, modules=trained, epochs=(0, first)))
        if triplet.learning_rate > 0:
            objectives.append(dataclasses.replace(by_triplets, epochs=(first, None)))
        return tuple(objectives)

    def _input(self, block: Batch, key: jax.Array | None = None) -> jax.Array:
        """Features float [N, D]; with a key, some of them are dropped."""
        x = jnp.asarray(block.features)
        if not self._has_head:
            return x  # the words of an utterance, not a vector of it
        if self._normalize:
            x = jax.nn.standardize(x)
        return Dropout(key, block.ids, self._how.input_dropout, x.shape[-1])(x)

    def _vectors(
        self,
        params: Params,
        batch: Batch,
        anchors: Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Vectors float [G, A, D] of anchors int [G, A], or of all utterances."""

        def of_block(block: Batch, at: Any) -> Any:
            input_key, encoder_key = (None, None) if key is None else jax.random.split(key)
            x = self._input(block, input_key)
            if isinstance(self._encoder, ContextEncoder):
                return self._encoder.apply({"params": params["context"]}, x, block, encoder_key, at)
            ids = jnp.asarray(block.ids)
            if at is not None:
                x, ids = x[at], ids[at]
            if self._encoder is None:
                return x
            drop = Dropout(encoder_key, ids, self._dropout, self._channels)
            return self._encoder.apply({"params": params["context"]}, x, drop)

        return map_blocks(of_block, batch, anchors)

    def _logits(
        self,
        params: Params,
        vectors: jax.Array,
        ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The classifier's logits float [G, A, C] of vectors float [G, A, D]."""
        width = vectors.shape[-1]
        flat = vectors.reshape(-1, width)
        of = jnp.zeros(flat.shape[0], jnp.int32) if ids is None else ids.reshape(-1)
        drop = Dropout(key, of, self._dropout, 2 * width + self._how.ffn)
        hidden: Any = self._classifier.apply(
            {"params": params["classifier"]}, flat, None, drop, drop
        )
        logits: Any = self._head.apply({"params": params[HEAD + "emotion"]}, hidden)
        return logits.reshape(*vectors.shape[:-1], -1)

    def _classification(
        self, params: Params, batch: AnchorBatch, vectors: jax.Array, key: jax.Array
    ) -> jax.Array:
        ids = jnp.take_along_axis(jnp.asarray(batch.ids), jnp.asarray(batch.anchors), axis=1)
        logits = self._logits(params, vectors, ids, key)
        labels = jnp.asarray(batch.labels["emotion"])
        weights: Array | None = self._class_weights
        if self._how.batch_weights:
            weights = batch_class_weights(labels, len(self._labels.emotions))
        return cross_entropy(logits, labels, weights)

    def pretraining(
        self, params: Params, batch: AnchorBatch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the classifier on the sentence embeddings themselves."""
        input_key, classifier_key = jax.random.split(key)
        vectors = map_blocks(
            lambda block, at: self._input(block, input_key)[at], batch.utterances, batch.anchors
        )
        loss = self._classification(params, batch, vectors, classifier_key)
        return loss, {"cross_entropy": loss}

    def loss(
        self, params: Params, batch: AnchorBatch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the classifier on the anchors' contextual vectors."""
        encoder_key, classifier_key = jax.random.split(key)
        vectors = self._vectors(params, batch.utterances, batch.anchors, encoder_key)
        loss = self._classification(params, batch, vectors, classifier_key)
        return loss, {"cross_entropy": loss}

    def triplets(
        self, params: Params, batch: AnchorBatch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Triplet loss of the anchors' contextual vectors."""
        how = self._how.triplet
        if isinstance(self._encoder, ContextEncoder) and self._encoder.form == "utterances":
            # Distances stay when all vectors are moved alike, which is all that this bias does. Its
            # gradient is rounding errors, and Adam would make steps as large as any of them.
            norm = params["context"]["layer"]["norm_ffn"]
            still = {**norm, "bias": jax.lax.stop_gradient(norm["bias"])}
            layer = {**params["context"]["layer"], "norm_ffn": still}
            params = {**params, "context": {**params["context"], "layer": layer}}
        vectors = self._vectors(params, batch.utterances, batch.anchors, jax.random.split(key)[0])
        labels = jnp.asarray(batch.labels["emotion"]).reshape(-1)
        loss = triplet_loss(
            vectors.reshape(len(labels), -1), labels, margin=how.margin, strategy=how.strategy
        )
        return loss, {"triplet": loss}

    def embed(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """``vectors`` float32 [G, N, D] of all utterances in the learned space."""
        return {"vectors": self._vectors(params, batch).astype(jnp.float32)}

    def _evidence(self, params: Params, vectors: jax.Array) -> dict[str, jax.Array]:
        """What each way says of vectors float [G, N, D], before classes' frequency is weighed in.

        Returns:
          Way to logits float32 [G, N, C].
        """
        reference = params[REFERENCE]
        evidence = {}
        if "head" in self._ways:
            evidence["head"] = self._logits(params, vectors).astype(jnp.float32)
        evidence["centroid"] = -_distances(vectors, reference["centroids"])
        if "memory" in reference:
            n_classes = len(reference["centroids"])
            memory, labels = reference["memory"], reference["memory_labels"]
            neighbours = min(self._how.neighbours, len(memory))
            _, nearest = jax.lax.top_k(-_distances(vectors, memory), neighbours)
            # The memory holds more of some classes than of others: they vote less each.
            kept = jnp.maximum(jnp.bincount(labels, length=n_classes), 1)
            votes = jax.nn.one_hot(labels, n_classes) / kept
            share = votes[nearest].sum(-2)
            share /= share.sum(-1, keepdims=True)
            evidence["knn"] = jnp.log(share + 1e-2 / n_classes)  # no class is impossible
        return evidence

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """Class probabilities of each way, and under "emotion" those of the chosen way."""
        reference = params[REFERENCE]
        evidence = self._evidence(params, self._vectors(params, batch))
        result = {
            way: jax.nn.softmax(logits + reference["log_prior"][way])
            for way, logits in evidence.items()
        }
        if len(result) == 1:
            return {"emotion": result["centroid"]}
        stacked = jnp.stack([result[way] for way in self._ways])
        return {"emotion": stacked[reference["chosen"]], **result}

    def fit_reference(self, params: Params, run: Run, train: Split, selection: Split) -> Params:
        """Adds centroids and memory of the training split, and choices made on ``selection``."""
        vectors = run(self.embed, params, train)["vectors"]
        labels = train.labels["emotion"]
        n_classes = len(self._labels.emotions)
        counts = np.bincount(labels[labels >= 0], minlength=n_classes)
        rng = np.random.default_rng(0)
        kept = [
            np.sort(rng.permutation(np.flatnonzero(labels == c))[: self._how.memory])
            for c in range(n_classes)
        ]
        remembered = np.concatenate(kept)
        none = np.zeros(n_classes, np.float32)
        reference = {
            "centroids": centroids_of(vectors, labels, n_classes),
            "memory": vectors[remembered],
            "memory_labels": labels[remembered].astype(np.int32),
            "log_prior": dict.fromkeys(self._ways, none),
            "chosen": np.int32(0),
        }
        params = {**params, REFERENCE: jax.tree.map(jnp.asarray, reference)}

        # Every way with every power of the prior, on the split that selects.
        log_prior = np.log((counts + 1) / (counts + 1).sum()).astype(np.float32)
        outputs = run(self.predict, params, selection)
        best = dict.fromkeys(self._ways, (-np.inf, 0.0))
        for way in self._ways:
            log_likelihood = np.log(outputs[way] + 1e-30)
            for power in PRIOR_POWERS:
                score = self._score(log_likelihood + power * log_prior, selection.labels[way])
                if score > best[way][0]:
                    best[way] = (score, power)
        params[REFERENCE] |= {
            "log_prior": {way: jnp.asarray(best[way][1] * log_prior) for way in self._ways},
            "chosen": jnp.int32(np.argmax([best[way][0] for way in self._ways])),
        }
        return params

    def _score(self, logits: np.ndarray, labels: np.ndarray) -> float:
        confusion = metrics.confusion(labels, logits.argmax(-1), logits.shape[-1])
        block = metrics.block(confusion, self._labels.emotions, self._labels.neutral)
        return block[self._select_metric]

    def further_scores(self, params: Params, run: Run, examples: Split) -> dict[str, Any]:
        """Which way was chosen, and the paper's metric with its chance level."""
        scores = {"classifier": self._ways[int(params[REFERENCE]["chosen"])]}
        if self._encoder is None:
            return scores  # sentence embeddings are no learned space
        untrained = self
        if isinstance(self._encoder, ContextEncoder):
            # One that starts as the identity would measure the sentence embeddings.
            untrained = copy.copy(self)
            untrained._encoder = self._encoder.clone(starts_as_identity=False)
        random = untrained.init(jax.random.key(0), examples.batch(np.array([0])))
        return scores | {
            "triplet_verification": verification_with_chance(
                run(self.embed, params, examples)["vectors"],
                run(untrained.embed, random, examples)["vectors"],
                examples.labels["emotion"],
                self._labels.emotions,
                self._labels.neutral,
            ),
        }

    def with_support(
        self, params: Params, run: Run, examples: Split, labels: LabelSpace
    ) -> tuple[Recognition, Params]:
        """Classifies by the nearest centroid of the examples, all emotions alike."""
        vectors = run(self.embed, params, examples)["vectors"]
        n_classes = len(labels.emotions)
        other = copy.copy(self)
        other._labels = labels
        other.tasks = (Task("emotion", labels.emotions, labels.neutral),)
        reference = {
            "centroids": centroids_of(vectors, examples.labels["emotion"], n_classes),
            "log_prior": {"centroid": np.zeros(n_classes, np.float32)},
        }
        return other, {**params, REFERENCE: jax.tree.map(jnp.asarray, reference)}

    def describe(
        self, dialogue: Dialogue, probabilities: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """Emotion and probabilities of the chosen way."""
        return self._labels.describe(probabilities["emotion"])


def centroids_of(vectors: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Mean vector float32 [C, D] of each class; one without examples is far from everything."""
    centroids = np.full((n_classes, vectors.shape[-1]), 1e6, np.float32)
    for c in range(n_classes):
        if (labels == c).any():
            centroids[c] = vectors[labels == c].mean(axis=0)
    return centroids


def _distances(vectors: jax.Array, points: jax.Array) -> jax.Array:
    """Euclidean distances float32 [G, N, M] from vectors [G, N, D] to points [M, D]."""
    v, p = vectors.astype(jnp.float32), points.astype(jnp.float32)
    squared = (v**2).sum(-1, keepdims=True) + (p**2).sum(-1) - 2 * v @ p.T
    return jnp.sqrt(jnp.maximum(squared, 0.0))
