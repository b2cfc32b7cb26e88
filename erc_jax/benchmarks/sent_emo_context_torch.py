"""SentEmoContext's training step in PyTorch, twice: the peers.

``Model`` is as its users write it: each dialogue of a batch is a row, padded to the longest, of
``nn.TransformerEncoderLayer``, and the anchors are gathered from its output. ``AnchorModel``, as we
do, goes on from attention with the anchors alone. All else is the same: batches are padded outside
of the step, optimizers are the fused ones, and the triplet loss is of the pairs of an anchor and a
positive with all others, a seventh of all triples.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.sent_emo_context import UTTERANCES_BY_EMOTION, batches, recipe, sample
from erc_jax.data.anchors import AnchorExamples


@dataclasses.dataclass(frozen=True)
class Batch:
    """B dialogues of up to T utterances, and A anchors among them.

    Attributes:
      features: [B, T, D].
      padding: bool [B, T], whether there is no utterance.
      anchors: int64 [A], their places in [B * T].
      labels: int64 [A].
    """

    features: Tensor
    padding: Tensor
    anchors: Tensor
    labels: Tensor


def arrange(examples: AnchorExamples, items: np.ndarray) -> Batch:
    anchors = np.unique(items)  # who was drawn twice is there once
    starts = examples.examples.starts
    dialogues, row = np.unique(examples.dialogue_of[anchors], return_inverse=True)
    rows = [
        torch.from_numpy(examples.examples.features[starts[d] : starts[d + 1]]) for d in dialogues
    ]
    features = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    n_places = features.shape[1]
    lengths = torch.tensor([len(of_dialogue) for of_dialogue in rows])
    places = row * n_places + anchors - starts[dialogues][row]
    return Batch(
        features=features,
        padding=torch.arange(n_places) >= lengths[:, None],
        anchors=torch.from_numpy(places),
        labels=torch.from_numpy(examples.labels["emotion"][anchors]).long(),
    )


class Model(nn.Module):
    def __init__(self, config: ConfigDict, width: int):
        super().__init__()
        how = config.sent_emo_context
        shape = {"dim_feedforward": how.ffn, "dropout": config.model.dropout, "batch_first": True}
        self.context = nn.TransformerEncoderLayer(width, how.heads, **shape)
        self.classifier = nn.TransformerEncoderLayer(width, 1, **shape)
        self.head = nn.Linear(width, len(UTTERANCES_BY_EMOTION))
        self.drop = nn.Dropout(config.model.dropout)
        self.margin = how.triplet.margin

    def vectors(self, batch: Batch) -> Tensor:
        """The anchors' contextual vectors [A, D]."""
        hidden = self.context(self.drop(batch.features), src_key_padding_mask=batch.padding)
        return hidden.flatten(0, 1)[batch.anchors]

    def cross_entropy(self, batch: Batch) -> Tensor:
        """Weighted by the inverse frequency of the classes in the batch."""
        logits = self.head(self.classifier(self.vectors(batch)[:, None])[:, 0])
        counts = torch.bincount(batch.labels, minlength=logits.shape[-1])
        return functional.cross_entropy(logits, batch.labels, 1.0 / counts.clamp(min=1))

    def triplet_loss(self, batch: Batch) -> Tensor:
        """Mean over all triplets of an anchor, another of its class and one of another class."""
        vectors = self.vectors(batch)
        same = batch.labels[:, None] == batch.labels
        anchor, positive = same.logical_and(~torch.eye(len(same), dtype=torch.bool)).nonzero().T
        distance = torch.cdist(vectors, vectors)
        losses = (distance[anchor, positive, None] - distance[anchor] + self.margin).relu()
        negative = ~same[anchor]
        return (losses * negative).sum() / negative.sum()


class AnchorModel(Model):
    """The same with the same weights; only the anchors go on from the context layer's attention."""

    def vectors(self, batch: Batch) -> Tensor:
        layer, attention = self.context, self.context.self_attn
        features = self.drop(batch.features)
        projected = functional.linear(features, attention.in_proj_weight, attention.in_proj_bias)
        # Each [B, heads, T, D / heads].
        query, key, value = projected.unflatten(-1, (3, attention.num_heads, -1)).permute(
            2, 0, 3, 1, 4
        )
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=~batch.padding[:, None, None],
            dropout_p=attention.dropout if self.training else 0.0,
        )
        of_anchors = attended.transpose(1, 2).flatten(2).flatten(0, 1)[batch.anchors]
        residual = features.flatten(0, 1)[batch.anchors]
        x = layer.norm1(residual + layer.dropout1(attention.out_proj(of_anchors)))
        hidden = layer.dropout(functional.relu(layer.linear1(x)))
        return layer.norm2(x + layer.dropout2(layer.linear2(hidden)))


class Training:
    """A model, and the recipe's optimizer for each of its losses."""

    def __init__(self, config: ConfigDict, model: Model):
        self.model = model.train()
        triplet = config.sent_emo_context.triplet
        self._sgd = torch.optim.SGD(
            self.model.parameters(), lr=config.train.learning_rate, momentum=0.9, fused=True
        )
        # Like ours, it decays neither biases nor layer norms.
        context = list(self.model.context.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in context if p.ndim > 1], "weight_decay": triplet.weight_decay},
            {"params": [p for p in context if p.ndim == 1], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=triplet.learning_rate, fused=True)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step; returns the losses before it."""
        losses = {}
        for name, loss_of, optimizer in (
            ("cross_entropy", self.model.cross_entropy, self._sgd),
            ("triplet", self.model.triplet_loss, self._adamw),
        ):
            self.model.zero_grad()
            loss = loss_of(batch)
            loss.backward()
            optimizer.step()
            losses[name] = loss.detach()
        return losses


def cases(width: int, n_batches: int) -> harness.Cases:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    config = recipe()
    examples = sample(config, width)
    arrays = [arrange(examples, items) for items in batches(config, examples, n_batches)]

    def case(model: Model) -> Callable[[int], object]:
        training = Training(config, model)
        return lambda step: training.step(arrays[step % n_batches])

    return {
        **harness.torch_product(),
        "train": case(Model(config, width)),
        "train_anchors": case(AnchorModel(config, width)),
    }
