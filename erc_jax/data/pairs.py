"""Pairs of texts, source and target, for several tasks: a split, and the batches cut from it.

Generation learns to answer an utterance with the one after it. In classification the target is the
utterance itself: encoder and decoder both read it. A batch is of one task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from flax import struct

from erc_jax.data.dialogue import Dialogue
from erc_jax.data.labels import UNLABELLED
from erc_jax.data.packing import Array
from erc_jax.errors import UserError

GENERATION = "R"  # the task's name
# Tokens in a row. What is padded costs time, and each pair of widths is another compilation.
WIDTHS = (12, 20, 32, 64)
FEW = 4000  # texts
PAD = 1  # BART's <pad>
NO_ITEM = -1  # fills up a batch

# From texts, and the most tokens that a text may have, to the tokens int32 [L] of each.
Tokenize = Callable[[Sequence[str], int], Sequence[np.ndarray]]


class Pair(NamedTuple):
    """An utterance, the response to it, and the number of their dialogue."""

    utterance: str
    response: str
    dialogue: int


@struct.dataclass
class TextBatch:
    """G blocks of R pairs of one task: L tokens of a source, T of a target.

    Attributes:
      source: token numbers, int32 [G, R, L], PAD where there is none.
      source_mask: bool [G, R, L], whether there is a token.
      target: int32 [G, R, T], as the decoder is to give it out: not shifted.
      target_mask: bool [G, R, T].
      source_tokens: int32 [G, R, L], the token's place among the sources of the whole batch,
        whichever its block; 0 where there is none.
      target_tokens: int32 [G, R, T], the same among the targets.
      real: bool [G, R], whether there is a pair.
      ids: int32 [G, R], the pair's place in the whole batch, whichever its block.
      items: int32 [G, R], the pair's number in the split.
      labels: in classification, the task to int32 [G, R], UNLABELLED (-1) where there is no label.
      usual_length: float32 [G], the mean number of tokens of all the split's targets of this task.
      task: its name; static, so that a step is compiled for each task.
    """

    source: Array
    source_mask: Array
    target: Array
    target_mask: Array
    source_tokens: Array
    target_tokens: Array
    real: Array
    ids: Array
    items: Array
    labels: Mapping[str, Array]
    usual_length: Array
    task: str = struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class TaskTexts:
    """What there is to learn, or to score, of one task: N pairs.

    Attributes:
      task: its name.
      sources: tokens int32 [L] of each pair.
      targets: tokens int32 [T] of each pair.
      labels: in classification int32 [N], UNLABELLED (-1) where there is no label.
      dialogue_of: int64 [N], the dialogue of each pair.
      n_dialogues: with those that have no pair.
    """

    task: str
    sources: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    labels: np.ndarray | None
    dialogue_of: np.ndarray
    n_dialogues: int


class TextExamples:
    """A split over the N pairs of several tasks, which are its items and, to the loop, utterances.

    Attributes:
      tasks: their names.
      labels: the tasks that are classifications to int32 [N], UNLABELLED (-1) on others' pairs.
      n_dialogues: of all tasks together.
      dialogue_of: int64 [N], the dialogue of each pair.
    """

    def __init__(self, parts: Sequence[TaskTexts], max_tokens: int):
        """Args:
        parts: of the tasks, one each.
        max_tokens: of a text, special tokens included.
        """
        self.tasks = tuple(part.task for part in parts)
        if len(set(self.tasks)) != len(parts):
            raise ValueError(f"a task comes twice: {', '.join(self.tasks)}")
        counts = [len(part.sources) for part in parts]
        ends = np.cumsum(counts)
        self.labels = {}
        for part, end in zip(parts, ends, strict=True):
            if part.labels is not None:
                self.labels[part.task] = np.full(ends[-1], UNLABELLED, np.int32)
                self.labels[part.task][end - len(part.sources) : end] = part.labels
        offsets = np.cumsum([0] + [part.n_dialogues for part in parts])
        self.n_dialogues = int(offsets[-1])
        self.dialogue_of = np.concatenate(
            [part.dialogue_of + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
        )
        self._parts = tuple(parts)
        self._max_tokens = max_tokens
        self._task_of = np.repeat(np.arange(len(parts)), counts)
        self._usual_length = {
            part.task: sum(map(len, part.targets)) / max(len(part.targets), 1) for part in parts
        }
        self._sources = [tokens for part in parts for tokens in part.sources]
        self._targets = [tokens for part in parts for tokens in part.targets]
        # Of few texts, few compilations matter more than little padding.
        usual = WIDTHS if len(self._sources) >= FEW else ()
        widths = np.array([*(w for w in usual if w < max_tokens), max_tokens])
        self._source_width = _widths_of(self._sources, widths)
        self._target_width = _widths_of(self._targets, widths)

    @classmethod
    def of_pairs(
        cls, dialogues: Sequence[Dialogue], tokenize: Tokenize, max_tokens: int
    ) -> TextExamples:
        """Generation: the pairs of ``response_pairs``.

        Raises:
          UserError: there is no pair, or an utterance is empty.
        """
        pairs = response_pairs(dialogues)
        if not pairs:
            raise UserError(
                f"none of the {len(dialogues)} dialogues has two utterances, so that there is no "
                "response to learn from or to compare with"
            )
        tokens = _tokens([text for pair in pairs for text in pair[:2]], tokenize, max_tokens)
        part = TaskTexts(
            task=GENERATION,
            sources=tokens[::2],
            targets=tokens[1::2],
            labels=None,
            dialogue_of=np.array([pair.dialogue for pair in pairs]),
            n_dialogues=len(dialogues),
        )
        return cls([part], max_tokens)

    @classmethod
    def of_labelled(
        cls,
        task: str,
        dialogues: Sequence[Dialogue],
        labels: np.ndarray,
        tokenize: Tokenize,
        max_tokens: int,
    ) -> TextExamples:
        """Classification of each utterance by itself.

        Args:
          task: its name.
          dialogues: with N utterances in all.
          labels: int32 [N], UNLABELLED (-1) where there is none.
          tokenize: see ``Tokenize``.
          max_tokens: of a text, special tokens included.

        Raises:
          UserError: an utterance is empty.
        """
        texts = [_text(d, position) for d in dialogues for position in range(len(d.utterances))]
        if len(labels) != len(texts):
            raise ValueError(f"{len(labels)} labels of {len(texts)} utterances")
        tokens = _tokens(texts, tokenize, max_tokens)
        part = TaskTexts(
            task=task,
            sources=tokens,
            targets=tokens,
            labels=labels,
            dialogue_of=np.repeat(
                np.arange(len(dialogues)), [len(d.utterances) for d in dialogues]
            ),
            n_dialogues=len(dialogues),
        )
        return cls([part], max_tokens)

    @classmethod
    def joined(cls, splits: Sequence[TextExamples]) -> TextExamples:
        """The pairs of several splits, one after another; each has other tasks."""
        parts = [part for split in splits for part in split._parts]
        return cls(parts, max(split._max_tokens for split in splits))

    def of_task(self, task: str) -> TextExamples:
        """The pairs of one task, in order, with its dialogues."""
        return TextExamples([self._parts[self.tasks.index(task)]], self._max_tokens)

    def unanswered(self) -> TextExamples:
        """The same pairs with empty targets: what reads sources alone compiles for fewer shapes."""
        nothing = np.zeros(0, np.int32)
        parts = [
            dataclasses.replace(part, targets=[nothing] * len(part.sources)) for part in self._parts
        ]
        return TextExamples(parts, self._max_tokens)

    @property
    def n_items(self) -> int:
        """What ``batches`` counts: pairs."""
        return len(self._sources)

    @property
    def n_utterances(self) -> int:
        """Pairs, too."""
        return len(self._sources)

    def batches(self, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Numbers of the pairs of batches; the batches of all tasks come in random order.

        So a task is met in proportion to its batches (MT-DNN). A batch has pairs of one task and
        of one width of source and target; the last such batch is filled up with NO_ITEM, so that
        its shape is that of the others.

        Args:
          batch_size: pairs in a batch. Where there are fewer of a width in all, the batch has the
            next power of two.
          rng: draws the batches.

        Returns:
          Arrays of item numbers; every item is in one of them.
        """
        kinds = np.stack([self._task_of, self._source_width, self._target_width], axis=1)
        of_kind = np.unique(kinds, axis=0, return_inverse=True)[1].ravel()
        batches: list[np.ndarray] = []
        for kind in range(of_kind.max(initial=-1) + 1):
            items = rng.permutation(np.flatnonzero(of_kind == kind))
            size = min(batch_size, 1 << (len(items) - 1).bit_length())
            filled = np.full(-(-len(items) // size) * size, NO_ITEM)
            filled[: len(items)] = items
            batches += list(filled.reshape(-1, size))
        return [batches[number] for number in rng.permutation(len(batches))]

    def rows(self, items: np.ndarray) -> np.ndarray:
        """Numbers of the pairs: the items themselves, without NO_ITEM."""
        return items[items != NO_ITEM]

    def batch(self, items: np.ndarray, n_blocks: int = 1) -> TextBatch:
        """Fills a batch of numpy arrays.

        Args:
          items: int [B], numbers of pairs of one task, or NO_ITEM.
          n_blocks: blocks (G) to deal them out to, one after another.
        """
        chosen = self.rows(items)
        (task,) = {self.tasks[number] for number in self._task_of[chosen]}
        height = -(-len(items) // n_blocks)
        count = height * n_blocks

        def in_blocks(rows: np.ndarray) -> np.ndarray:
            """[G, R, ...] of [R · G, ...]."""
            dealt = rows.reshape(height, n_blocks, *rows.shape[1:]).swapaxes(0, 1)
            return np.ascontiguousarray(dealt)

        def tokens_of(texts: Sequence[np.ndarray], widths: np.ndarray) -> list[np.ndarray]:
            rows = _rows([texts[i] for i in chosen], count, int(widths[chosen].max()))
            return [in_blocks(array) for array in rows]

        source, source_mask, source_tokens = tokens_of(self._sources, self._source_width)
        target, target_mask, target_tokens = tokens_of(self._targets, self._target_width)
        real = np.arange(count) < len(chosen)

        def in_place(values: np.ndarray, fill: int) -> np.ndarray:
            """int32 [G, R] of the chosen pairs' values."""
            return in_blocks(np.append(values, [fill] * (count - len(chosen))).astype(np.int32))

        labels = {}
        if task in self.labels:
            labels[task] = in_place(self.labels[task][chosen], UNLABELLED)
        return TextBatch(
            source=source,
            source_mask=source_mask,
            target=target,
            target_mask=target_mask,
            source_tokens=source_tokens,
            target_tokens=target_tokens,
            real=in_blocks(real),
            ids=in_place(np.arange(len(chosen)), 0),
            items=in_place(chosen, 0),
            labels=labels,
            usual_length=np.full(n_blocks, self._usual_length[task], np.float32),
            task=task,
        )


def response_pairs(dialogues: Sequence[Dialogue]) -> list[Pair]:
    """Each utterance with the one after it, in the dialogues' order.

    Raises:
      UserError: an utterance is empty.
    """
    return [
        Pair(_text(dialogue, position), _text(dialogue, position + 1), number)
        for number, dialogue in enumerate(dialogues)
        for position in range(len(dialogue.utterances) - 1)
    ]


def _text(dialogue: Dialogue, position: int) -> str:
    text = dialogue.utterances[position].text
    if not text.strip():
        raise UserError(
            f"dialogue {dialogue.id}, utterance {position + 1}: the text is empty; expected words "
            "to read or to answer. Remove the utterance"
        )
    return text


def _tokens(texts: Sequence[str], tokenize: Tokenize, max_tokens: int) -> list[np.ndarray]:
    """Each text's tokens. Most utterances come twice, to be answered and as an answer."""
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    tokens = tokenize(list(number), max_tokens)
    return [tokens[number[text]] for text in texts]


def _widths_of(texts: Sequence[np.ndarray], widths: np.ndarray) -> np.ndarray:
    """The least of the widths that holds each text, int64 [N]."""
    lengths = np.array([len(tokens) for tokens in texts], int)
    if lengths.max(initial=0) > widths[-1]:
        raise ValueError(f"a text of {lengths.max()} tokens, but at most {widths[-1]} are allowed")
    return widths[np.searchsorted(widths, lengths)]


def _rows(
    texts: Sequence[np.ndarray], count: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, whether there is one, and their places among all; [count, width] each."""
    lengths = np.zeros(count, int)
    lengths[: len(texts)] = [len(tokens) for tokens in texts]
    mask = np.arange(width) < lengths[:, None]
    words = np.full(mask.shape, PAD, np.int32)
    words[mask] = np.concatenate(texts)
    places = np.zeros(mask.shape, np.int32)
    places[mask] = np.arange(lengths.sum())
    return words, mask, places
