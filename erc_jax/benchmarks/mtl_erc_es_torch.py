"""The Mtl-ERC-ES model in PyTorch, written as well as we can: the peer to beat.

Its context module runs on packed sequences over all (dialogue, speaker) pairs, without padding and
without a loop over speakers; their order is worked out once per batch, outside of the step, and the
second layer goes on with the packed sequence of the first. Dense layers see no padding either;
attention has a row a dialogue, with a mask that keeps speakers apart. Adam is the fused one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.mtl_erc_es import CLASSES, batches, dropout_of, sample, tasks_of
from erc_jax.data.batching import Examples

LEVELS = ("global", "speaker")


class Order:
    """The utterances of a batch as a PackedSequence has them: by time, the longest first."""

    def __init__(self, sequence_of: np.ndarray):
        _, sequence, lengths = np.unique(sequence_of, return_inverse=True, return_counts=True)
        time = np.zeros(len(sequence), int)
        for number, length in enumerate(lengths):
            time[sequence == number] = np.arange(length)
        order = np.lexsort((sequence, -lengths[sequence], time))
        self.index = torch.from_numpy(order)
        self.inverse = torch.from_numpy(np.argsort(order))
        self.batch_sizes = torch.from_numpy(np.bincount(time))


@dataclasses.dataclass(frozen=True)
class Batch:
    """N utterances of B dialogues of up to T utterances.

    Attributes:
      features: [N, D].
      labels: task to int64 [N].
      order: level to the sequences of that level.
      previous: level to int64 [N], the previous utterance; N on firsts.
      padded: int64 [B, T], the utterance at each place; N where there is none.
      place: int64 [N], the place of each utterance in [B * T].
      seen: level to bool [B, 1, T, T], what each utterance attends to.
    """

    features: Tensor
    labels: Mapping[str, Tensor]
    order: Mapping[str, Order]
    previous: Mapping[str, Tensor]
    padded: Tensor
    place: Tensor
    seen: Mapping[str, Tensor]


def arrange(examples: Examples, dialogues: np.ndarray) -> Batch:
    rows = examples.rows(dialogues)
    n = len(rows)
    dialogue = examples.dialogue_of[rows]
    speaker = examples.speaker_sequence[rows]
    _, row, lengths = np.unique(dialogue, return_inverse=True, return_counts=True)
    column = np.concatenate([np.arange(length) for length in np.diff(examples.starts)[dialogues]])
    padded = np.full((len(lengths), lengths.max()), n)
    padded[row, column] = np.arange(n)
    speakers = np.append(speaker, -1)[padded]
    real = padded < n
    # An empty place may see all: it must see something, and nothing reads what it has seen.
    of_dialogue = real[:, None, :] | ~real[:, :, None]
    same_speaker = (speakers[:, :, None] == speakers[:, None, :]) | ~real[:, :, None]
    back = {"global": examples.back_global[rows], "speaker": examples.back_speaker[rows]}
    return Batch(
        features=torch.from_numpy(examples.features[rows]),
        labels={t: torch.from_numpy(v[rows].astype(int)) for t, v in examples.labels.items()},
        order={"global": Order(dialogue), "speaker": Order(speaker)},
        previous={
            level: torch.from_numpy(np.where(b > 0, np.arange(n) - b, n))
            for level, b in back.items()
        },
        padded=torch.from_numpy(padded),
        place=torch.from_numpy(row * padded.shape[1] + column),
        seen={
            "global": torch.from_numpy(of_dialogue[:, None]),
            "speaker": torch.from_numpy(same_speaker[:, None]),
        },
    )


class ShiftUnit(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.ffn_in = nn.Linear(width, width)
        self.ffn_out = nn.Linear(width, width)
        self.norm_attention = nn.LayerNorm(width)
        self.norm_ffn = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, query: Tensor, memory: Tensor, batch: Batch, seen: Tensor) -> Tensor:
        """query, memory: [N, D]; returns [N, D]."""
        dropout = self.dropout if self.training else 0.0
        key, value = self.key_value(memory).chunk(2, -1)
        q, k, v = (_at(x, batch.padded)[:, None] for x in (self.query(query), key, value))
        attended = functional.scaled_dot_product_attention(q, k, v, seen, dropout)
        x = self.norm_attention(query + attended.flatten(0, 2)[batch.place])
        hidden = functional.dropout(functional.relu(self.ffn_in(x)), dropout, self.training)
        return self.norm_ffn(x + self.ffn_out(hidden))


class Model(nn.Module):
    def __init__(self, model: str, width: int):
        super().__init__()
        self.dropout = dropout_of(model)
        self.lstms = nn.ModuleDict(
            {
                f"{level}_{layer}": nn.LSTM(width, width // 2, bidirectional=True)
                for level in LEVELS
                for layer in (1, 2)
            }
        )
        self.shift_levels = [level for level in LEVELS if f"shift_{level}" in tasks_of(model)]
        self.units = nn.ModuleDict(
            {
                f"{level}_{number}": ShiftUnit(width, self.dropout)
                for level in self.shift_levels
                for number in (1, 2)
            }
        )
        self.heads = nn.ModuleDict(
            {task: nn.Linear(2 * width, CLASSES[task]) for task in tasks_of(model)}
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        u = batch.features
        dropped = self.drop(u)
        first, second = {}, {}
        for level in LEVELS:
            order = batch.order[level]
            x = PackedSequence(dropped[order.index], order.batch_sizes)
            x = self.lstms[f"{level}_1"](x)[0]
            first[level] = x.data[order.inverse]
            x = PackedSequence(self.drop(x.data), order.batch_sizes)
            second[level] = self.lstms[f"{level}_2"](x)[0].data[order.inverse]
        inputs = {"emotion": list(second.values()), "sentiment": list(first.values())}
        for level in self.shift_levels:
            previous = batch.previous[level]
            has_previous = (previous < len(u))[:, None]
            t = torch.where(has_previous, u - _at(u, previous), 0.0)
            seen = batch.seen[level]
            x1 = self.units[f"{level}_1"](t, t, batch, seen)
            x2 = self.units[f"{level}_2"](first[level], x1, batch, seen)
            inputs[f"shift_{level}"] = [x1, x2]
        return {
            task: head(self.drop(torch.cat(inputs[task], -1))) for task, head in self.heads.items()
        }

    def drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x


def _at(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x; a row of zeros where index is one past the last."""
    return (
        functional.pad(x, (0, 0, 0, 1)).index_select(0, index.flatten()).unflatten(0, index.shape)
    )


def cases(model: str, width: int, n_batches: int) -> harness.Cases:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    examples = sample(width)
    arrays = [arrange(examples, b) for b in batches(examples, n_batches)]
    module = Model(model, width)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)

    def train(step: int) -> None:
        batch = arrays[step % n_batches]
        module.train()
        optimizer.zero_grad()
        losses = [
            functional.cross_entropy(logits, batch.labels[task])
            for task, logits in module(batch).items()
        ]
        torch.stack(losses).sum().backward()
        optimizer.step()

    def predict(step: int) -> None:
        module.eval()
        with torch.inference_mode():
            for logits in module(arrays[step % n_batches]).values():
                logits.softmax(-1)

    return {**harness.torch_product(), "train": train, "predict": predict}
