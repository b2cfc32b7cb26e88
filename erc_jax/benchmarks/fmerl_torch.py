"""FMERL in PyTorch, twice: its backbone as SDT's authors write it, and on packed utterances.

``Fusion`` is a transcription of SDT (Ma et al., 2023): each dialogue of a batch is a row, padded to
the longest, and all layers run on all places. ``PackedFusion``, with the same weights, has only the
real utterances in its dense layers, and pads for attention alone. In both, what the nine encoders
have in common (positions, speakers, dropout of the inputs) is worked out once a modality, batches
are arranged outside of the step, and Adam is the fused one.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.fmerl import (
    HEADS,
    HIDDEN_LAYERS,
    LEARNING_RATE,
    SPEAKERS,
    WIDTHS,
    batches,
    descriptions,
    sample,
)
from erc_jax.data.batching import Examples
from erc_jax.data.dialogue import VAD


@dataclasses.dataclass(frozen=True)
class Batch:
    """B dialogues of up to T utterances, N in all.

    The first axes, [...], are [B, T], or [N] if packed.

    Attributes:
      features: modality to [..., D of the modality].
      speakers: int64 [...], which of its dialogue's speakers is speaking.
      positions: int64 [...], the utterance's place in its dialogue.
      emotions: int64 [...], -1 where there is none.
      vad: [..., 3], ratings from 0 to 1, -1 where there is none.
      seen: bool [B, T], whether there is an utterance.
      padded: int64 [B, T], the packed utterance at each place, 0 where there is none.
      place: int64 [N], the place of each packed utterance in [B * T].
    """

    features: Mapping[str, Tensor]
    speakers: Tensor
    positions: Tensor
    emotions: Tensor
    vad: Tensor
    seen: Tensor
    padded: Tensor
    place: Tensor


def arrange(examples: Examples, dialogues: np.ndarray, packed: bool) -> Batch:
    """A batch of a split that lacks no modality anywhere."""
    rows = examples.rows(dialogues)
    lengths = np.diff(examples.starts)[dialogues]
    positions = np.concatenate([np.arange(length) for length in lengths])
    place = np.repeat(np.arange(len(lengths)) * lengths.max(), lengths) + positions
    shape = (len(lengths), lengths.max())
    padded = np.zeros(shape, int)
    padded.reshape(-1)[place] = np.arange(len(rows))

    def tensor(values: np.ndarray, fill: float) -> Tensor:
        if packed:
            return torch.from_numpy(values)
        out = np.full((shape[0] * shape[1], *values.shape[1:]), fill, values.dtype)
        out[place] = values
        return torch.from_numpy(out.reshape(*shape, *values.shape[1:]))

    return Batch(
        features={name: tensor(v[rows], 0) for name, v in examples.features.features.items()},
        speakers=tensor(examples.speaker_number[rows].astype(int), 0),
        positions=tensor(positions, 0),
        emotions=tensor(examples.labels["emotion"][rows].astype(int), -1),
        vad=tensor(examples.labels["vad"][rows], -1),
        seen=torch.arange(int(shape[1])) < torch.from_numpy(lengths)[:, None],
        padded=torch.from_numpy(padded),
        place=torch.from_numpy(place),
    )


class Attention(nn.Module):
    """Multi-head attention over padded rows, in matrix products and a softmax."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, target: Tensor, source: Tensor, batch: Batch) -> Tensor:
        """target, source: [B, T, d]; returns [B, T, d]."""
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(target), self.key(source), self.value(source))
        )
        scores = query / math.sqrt(query.shape[-1]) @ key.transpose(2, 3)
        scores = scores.masked_fill(~batch.seen[:, None, None], -1e10)
        context = self.dropout(scores.softmax(-1)) @ value
        return self.output(context.transpose(1, 2).flatten(2))


class PackedAttention(Attention):
    """The same over packed utterances, in PyTorch's fused attention."""

    def forward(self, target: Tensor, source: Tensor, batch: Batch) -> Tensor:
        """target, source: [N, d]; returns [N, d]."""
        query, key, value = (
            x.index_select(0, batch.padded.flatten())
            .unflatten(0, batch.padded.shape)
            .unflatten(-1, (self.heads, -1))
            .transpose(1, 2)
            for x in (self.query(target), self.key(source), self.value(source))
        )
        rate = self.dropout.p if self.training else 0.0
        context = functional.scaled_dot_product_attention(
            query, key, value, batch.seen[:, None, None], rate
        )
        return self.output(context.transpose(1, 2).flatten(2).flatten(0, 1)[batch.place])


class FeedForward(nn.Module):
    def __init__(self, width: int, ffn: int, dropout: float):
        super().__init__()
        self.layer_norm = nn.LayerNorm(width, eps=1e-6)
        self.w_1 = nn.Linear(width, ffn)
        self.w_2 = nn.Linear(ffn, width)
        self.dropout_1 = nn.Dropout(dropout)
        self.dropout_2 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.gelu(self.w_1(self.layer_norm(x)), approximate="tanh")
        return self.dropout_2(self.w_2(self.dropout_1(hidden))) + x


class Encoder(nn.Module):
    """One layer; the target's stream asks, and is added to."""

    def __init__(self, attention: Attention, width: int, ffn: int, dropout: float):
        super().__init__()
        self.attention = attention
        self.feed_forward = FeedForward(width, ffn, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, target: Tensor, source: Tensor, batch: Batch) -> Tensor:
        return self.feed_forward(self.dropout(self.attention(target, source, batch)) + target)


class Fusion(nn.Module):
    """H of padded dialogues."""

    attention: type[Attention] = Attention

    def __init__(
        self,
        widths: Mapping[str, int],
        width: int,
        heads: int,
        ffn: int,
        speakers: int,
        dropout: float,
        learned_gates: bool = True,
    ):
        """Args:
        widths: of the features of each modality.
        width: d of all inner vectors.
        heads: of each attention.
        ffn: width of the feed-forward networks' hidden layers.
        speakers: embeddings of a dialogue's speakers; those after share the last. 0 is none.
        dropout: rate of every dropout.
        learned_gates: unimodal gates have weights; else those are the identity, as on MELD.
        """
        super().__init__()
        self.names = tuple(widths)
        self.width = width
        pairs = [f"{source}_to_{target}" for target in self.names for source in self.names]
        self.inputs = nn.ModuleDict(
            {name: nn.Conv1d(d, width, kernel_size=1, bias=False) for name, d in widths.items()}
        )
        self.speaker: nn.Embedding | None = nn.Embedding(speakers, width) if speakers else None
        self.dropout = nn.Dropout(dropout)
        self.encoders = nn.ModuleDict(
            {
                pair: Encoder(self.attention(width, heads, dropout), width, ffn, dropout)
                for pair in pairs
            }
        )
        self.gates = nn.ModuleDict(
            {
                pair: nn.Linear(width, width, bias=False) if learned_gates else nn.Identity()
                for pair in pairs
            }
        )
        self.reduce = nn.ModuleDict(
            {name: nn.Linear(len(self.names) * width, width) for name in self.names}
        )
        # The softmax over a single modality would be 1.
        self.gate: nn.Linear | None = None
        if len(self.names) > 1:
            self.gate = nn.Linear(width, width, bias=False)

    def project(self, name: str, features: Tensor) -> Tensor:
        """features: [B, T, D]; returns [B, T, d]."""
        return self.inputs[name](features.transpose(1, 2)).transpose(1, 2)

    def forward(self, batch: Batch) -> Tensor:
        """H [..., d], of any value where no utterance is."""
        added = sinusoids(batch.seen.shape[1], self.width)[batch.positions]
        if self.speaker is not None:
            last = self.speaker.num_embeddings - 1
            added = added + self.speaker(batch.speakers.clamp(max=last))
        streams = {
            name: self.dropout(self.project(name, batch.features[name]) + added)
            for name in self.names
        }
        fused = []
        for target in self.names:
            outputs = []
            for source in self.names:
                pair = f"{source}_to_{target}"
                x = self.encoders[pair](streams[target], streams[source], batch)
                outputs.append(torch.sigmoid(self.gates[pair](x)) * x)
            fused.append(self.reduce[target](torch.cat(outputs, -1)))
        gate = self.gate
        if gate is None:
            return fused[0]
        utterances = torch.stack(fused, -2)
        shares = torch.stack([gate(x) for x in fused], -2).softmax(-2)
        return (shares * utterances).sum(-2)


class PackedFusion(Fusion):
    """The same of packed utterances."""

    attention = PackedAttention

    def project(self, name: str, features: Tensor) -> Tensor:
        """features: [N, D]; returns [N, d]."""
        return functional.linear(features, self.inputs[name].get_parameter("weight").squeeze(-1))


def sinusoids(length: int, width: int) -> Tensor:
    """Positions [length, width], sines and cosines in turn."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class Model(nn.Module):
    """The fusion, the VAD nets and the comparison with descriptions."""

    def __init__(self, fusion: Fusion, descriptions: Tensor, hidden_layers: int):
        """Args:
        fusion: gives H.
        descriptions: [C, E], a vector for each emotion; frozen.
        hidden_layers: of each net.
        """
        super().__init__()
        width, described = fusion.width, descriptions.shape[1]
        self.fusion = fusion
        self.descriptions: Tensor
        self.register_buffer("descriptions", descriptions)
        self.projection = nn.Linear(width, described, bias=False) if described != width else None
        self.vad = nn.ModuleDict()
        for dimension in VAD:
            hidden = [
                layer
                for _ in range(hidden_layers)
                for layer in (nn.Linear(width, width), nn.ReLU())
            ]
            self.vad[dimension] = nn.Sequential(*hidden, nn.Linear(width, 1), nn.Sigmoid())

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ratings [..., 3] from 0 to 1, and cosine similarities to the descriptions [..., C]."""
        fused = self.fusion(batch)
        ratings = torch.cat([net(fused) for net in self.vad.values()], -1)
        vectors = fused if self.projection is None else self.projection(fused)
        similarities = (
            functional.normalize(vectors, dim=-1)
            @ functional.normalize(self.descriptions, dim=-1).T
        )
        return ratings, similarities


def losses(ratings: Tensor, similarities: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Each a mean over the utterances that have its label; equations 5, 7 and 8.

    "mse" is the sum of the three errors; "contrast" (L1) and "negatives" (L2) compare with the
    descriptions of the emotions in the batch.
    """
    rated = batch.vad[..., 0] >= 0
    mse = functional.mse_loss(ratings[rated], batch.vad[rated], reduction="none").mean(0).sum()
    labelled = batch.emotions >= 0
    classes, right = batch.emotions[labelled].unique(return_inverse=True)
    cosines = similarities[labelled][:, classes]
    wrong = functional.one_hot(right, len(classes)) == 0
    return {
        "mse": mse,
        "contrast": functional.cross_entropy(cosines, right),
        "negatives": ((1 + cosines) * wrong).sum(1).mean(),
    }


def total(parts: Mapping[str, Tensor]) -> Tensor:
    """L, with the paper's weights."""
    return parts["mse"] + 1.0 * (parts["contrast"] + 0.5 * parts["negatives"])


def make_model(fusion: type[Fusion], width: int) -> Model:
    """The model that is measured."""
    return Model(
        fusion(WIDTHS, width, HEADS, ffn=width, speakers=SPEAKERS, dropout=0.0),
        torch.from_numpy(descriptions()),
        HIDDEN_LAYERS,
    )


def cases(width: int, n_batches: int) -> harness.Cases:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    examples = sample(n_batches)

    def case(fusion: type[Fusion]) -> Callable[[int], None]:
        arrays = [
            arrange(examples, dialogues, packed=fusion is PackedFusion)
            for dialogues in batches(n_batches)
        ]
        model = make_model(fusion, width).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)

        def train(step: int) -> None:
            batch = arrays[step % n_batches]
            optimizer.zero_grad()
            ratings, similarities = model(batch)
            total(losses(ratings, similarities, batch)).backward()
            optimizer.step()

        return train

    return {
        **harness.torch_product(),
        "train": case(Fusion),
        "train_packed": case(PackedFusion),
    }
