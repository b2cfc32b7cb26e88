"""Splits of token sequences: every utterance comes back at its place, in few shapes."""

import numpy as np
import pytest

from erc_jax.data.batching import training_order
from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.tokens import TokenExamples
from erc_jax.encoders.packing import NOBODY, SHORTEST, TokenSequence

PLACEMENT = ("words", "segments", "positions", "slots", "tokens")


def examples_of(tokens, seed=0):
    """A split with random words and labels.

    Args:
      tokens: of each sequence, for each of its utterances the number of tokens; a negative number
        is that of tokens which no utterance owns.
    """
    random = np.random.default_rng(seed)
    sequences = []
    count = 0
    for pieces in tokens:
        owners = []
        for piece in pieces:
            owners += [count] * piece if piece > 0 else [NOBODY] * -piece
            count += piece > 0
        words = random.integers(1, 1000, len(owners)).astype(np.int32)
        sequences.append(TokenSequence(words, np.array(owners, np.int32)))
    dialogues = [Dialogue("d", (Utterance("A", ""),) * count)]
    labels = {"emotion": random.integers(-1, 7, count).astype(np.int32)}
    return TokenExamples(sequences, dialogues, labels), sequences


def alone(lengths, seed=0):
    return examples_of([[int(length)] for length in lengths], seed)


def random_split(seed=0):
    """Utterances alone, dialogues, and windows that begin and end with what they do not encode."""
    random = np.random.default_rng(seed)
    tokens = [[int(n)] for n in random.integers(2, 30, 12)]
    tokens += [[-1, *random.integers(2, 9, random.integers(1, 9))] for _ in range(10)]
    tokens += [[-9, *random.integers(2, 9, 4), -7] for _ in range(5)]
    return examples_of([tokens[i] for i in random.permutation(len(tokens))], seed)


def owned_words(sequences):
    """Utterance to the words that it owns."""
    return {
        int(owner): sequence.ids[sequence.owners == owner].tolist()
        for sequence in sequences
        for owner in np.unique(sequence.owners)
        if owner != NOBODY
    }


@pytest.mark.parametrize("n_blocks", [1, 4])
def test_every_utterance_is_at_its_place_with_its_label(n_blocks):
    examples, sequences = random_split()
    expected = owned_words(sequences)
    seen = []
    for items in training_order(examples, 6, seed=0, epoch=0):
        batch = examples.batch(items, n_blocks)
        assert batch.real.shape[1] == batch.words.shape[1] * (batch.words.shape[2] // SHORTEST)
        # As Predictor puts its outputs back.
        utterances = examples.rows(items)[batch.ids]
        assert sorted(batch.ids[batch.real]) == list(range(batch.real.sum()))
        for g, n in zip(*np.nonzero(batch.real), strict=True):
            row, slot = divmod(int(n), batch.words.shape[2] // SHORTEST)
            own = batch.slots[g, row] == slot + 1
            assert batch.words[g, row][own].tolist() == expected[utterances[g, n]]
            assert batch.labels["emotion"][g, n] == examples.labels["emotion"][utterances[g, n]]
        assert (batch.labels["emotion"][~batch.real] == -1).all()
        seen += utterances[batch.real].tolist()
    assert sorted(seen) == list(range(examples.n_utterances))


@pytest.mark.parametrize("n_blocks", [1, 4])
def test_sequences_keep_to_themselves(n_blocks):
    """A segment is one sequence in consecutive places; what belongs to none is padding."""
    examples, sequences = random_split()
    items = np.arange(len(sequences))[::-1]
    batch = examples.batch(items, n_blocks)
    found = []
    for words, segments, positions in zip(
        *(getattr(batch, name).reshape(-1, batch.words.shape[2]) for name in PLACEMENT[:3]),
        strict=True,
    ):
        for segment in np.unique(segments[segments > 0]):
            places = np.flatnonzero(segments == segment)
            assert (np.diff(places) == 1).all()
            assert positions[places].tolist() == list(range(len(places)))
            found.append(tuple(words[places]))
    assert sorted(found) == sorted(tuple(s.ids) for s in sequences)
    padding = batch.segments == 0
    for name in PLACEMENT:
        assert getattr(batch, name).dtype == np.int32
        assert (getattr(batch, name)[padding] == 0).all()


def test_a_token_has_the_same_number_in_any_block():
    """Dropout's masks belong to these numbers."""
    examples, sequences = random_split()
    items = np.array([3, 17, 5, 20, 11, 0, 9])
    numbered = []
    for n_blocks in (1, 4):
        batch = examples.batch(items, n_blocks)
        real = batch.segments > 0
        numbered.append(
            sorted(zip(batch.tokens[real], batch.words[real], batch.positions[real], strict=True))
        )
    assert numbered[0] == numbered[1]
    assert [number for number, _, _ in numbered[0]] == list(range(len(numbered[0])))
    words = np.concatenate([sequences[i].ids for i in items])
    assert [word for _, word, _ in numbered[0]] == words.tolist()


def test_more_blocks_than_sequences():
    examples, _ = random_split()
    batch = examples.batch(np.array([2, 4]), n_blocks=8)
    assert batch.words.shape[0] == 8
    used = batch.segments.any((1, 2))
    assert used.sum() == 2
    assert (batch.real.any(1) == used).all()
    utterances = examples.rows(np.array([2, 4]))[batch.ids[batch.real]]
    assert sorted(utterances) == sorted(examples.rows(np.array([2, 4])))


def test_what_a_split_says_of_itself():
    dialogues = [Dialogue(str(n), (Utterance("A", ""),) * n) for n in (3, 1, 2)]
    pieces = [[-1, 2, 2], [-3, 4], [2, 3, 4]]
    _, sequences = examples_of(pieces)
    labels = {"emotion": np.arange(6, dtype=np.int32)}
    examples = TokenExamples(sequences, dialogues, labels)
    assert (examples.n_items, examples.n_dialogues, examples.n_utterances) == (3, 3, 6)
    assert examples.dialogue_of.tolist() == [0, 0, 0, 1, 2, 2]
    assert examples.rows(np.array([2, 0])).tolist() == [3, 4, 5, 0, 1]
    assert examples.rows(np.array([], int)).tolist() == []
    # Without labels nothing is scored.
    unlabelled = TokenExamples(sequences, dialogues, {}).batch(np.arange(3))
    assert unlabelled.labels == {}
    assert unlabelled.real.sum() == 6


@pytest.mark.parametrize(
    ("lengths", "widths"),
    [
        # Small splits have one width, of few: conversations of many lengths compile seldom.
        ([2, 9, 40], {64}),
        ([2] * 10 + [65], {256}),
        ([20] * 400, {48}),
        ([20] * 400 + [49], {48, 64}),
        ([20] * 400 + [200], {48, 256}),  # one in 400 does not make rows wide
        ([20] * 100 + [200], {256}),
        ([60] * 400 + [512], {64, 512}),
        ([60] * 400 + [513], {64, 576}),  # above the ladder, multiples of 64
        ([513, 600, 640], {640}),
    ],
)
def test_widths_of_rows(lengths, widths):
    examples, _ = alone(lengths)
    found = {examples.batch(np.array([i])).words.shape[-1] for i in range(len(lengths))}
    assert found == widths


def meld_like(kind, seed=0):
    """Lengths that are distributed as those of MELD's training split."""
    random = np.random.default_rng(seed)
    utterances = np.clip(random.lognormal(2.4, 0.55, 9989), 3, 90).astype(int)
    if kind == "none":
        return [[n] for n in utterances], 32
    ends = np.cumsum(np.clip(random.lognormal(2.1, 0.65, 1038), 1, 33).astype(int))
    dialogues = np.split(utterances, ends[ends < len(utterances)])
    return [[-1, *d] for d in dialogues if d.sum() < 256], 4


@pytest.mark.parametrize(("kind", "n_blocks", "most"), [
    ("none", 1, 4), ("none", 8, 2), ("dialogue", 1, 2), ("dialogue", 4, 1),
])  # fmt: skip
def test_an_epoch_is_of_few_shapes_and_little_padding(kind, n_blocks, most):
    tokens, batch_size = meld_like(kind)
    examples, sequences = examples_of(tokens)
    shapes = set()
    computed = 0
    for items in training_order(examples, batch_size, seed=0, epoch=0):
        batch = examples.batch(items, n_blocks)
        shapes.add(batch.words.shape)
        computed += batch.words.size
    assert len(shapes) <= most
    if n_blocks == 1:  # over many blocks, rows are spread thinly
        assert computed < 1.4 * sum(len(s.ids) for s in sequences)


def test_conversations_of_many_sizes_are_of_few_shapes():
    random = np.random.default_rng(0)
    shapes = set()
    for turns in range(1, 60):
        examples, _ = alone(np.clip(random.lognormal(2.4, 0.55, turns), 3, 60).astype(int))
        for items in examples.batches(32, random):
            shapes.add(examples.batch(items).words.shape)
    assert len(shapes) <= 5
