import dataclasses

import jax
import numpy as np
import pytest

from erc_jax.data.batching import alike_in_training, make_examples, training_order
from erc_jax.data.labels import UNLABELLED
from erc_jax.data.shapes import shapes_up_to

RAGGED = [5, 1, 9, 3, 1, 7, 2, 12]


@pytest.fixture
def examples_of(random_dialogues):
    """A function that makes a split in which every number tells which utterance it belongs to."""

    def make(lengths, n_speakers=3):
        dialogues = random_dialogues(lengths, n_speakers)
        number = np.arange(sum(lengths))
        features = np.stack([number + 1, -number - 1], axis=-1).astype(np.float32)
        labels = {"emotion": number.astype(np.int32), "other": (number + 1000).astype(np.int32)}
        return make_examples(dialogues, features, labels), dialogues

    return make


def expected_rows(dialogues):
    """Per utterance in order: dialogue, speaker, rows of its two predecessors (-1 for none)."""
    rows = []
    for d, dialogue in enumerate(dialogues):
        last, start = {}, len(rows)
        for i, utterance in enumerate(dialogue.utterances):
            before = start + i - 1 if i else -1
            rows.append((d, utterance.speaker, before, last.get(utterance.speaker, -1)))
            last[utterance.speaker] = start + i
    return rows


def test_examples(examples_of):
    examples, dialogues = examples_of(RAGGED)
    expected = expected_rows(dialogues)
    assert examples.n_dialogues == len(RAGGED)
    assert examples.n_utterances == sum(RAGGED)
    assert examples.dialogue_of.tolist() == [row[0] for row in expected]
    here = np.arange(sum(RAGGED))
    for back, column in ((examples.back_global, 2), (examples.back_speaker, 3)):
        assert np.where(back > 0, here - back, -1).tolist() == [row[column] for row in expected]
    # Two utterances have the same number where dialogue and speaker are the same, and only there.
    names = [row[:2] for row in expected]
    numbers = examples.speaker_sequence.tolist()
    assert len(set(zip(names, numbers, strict=True))) == len(set(names)) == len(set(numbers))


def test_features_that_are_not_the_dialogues_are_refused(random_dialogues):
    with pytest.raises(ValueError, match="7 feature rows for 8 utterances"):
        make_examples(random_dialogues([3, 5]), np.zeros((7, 2), np.float32), {})


@pytest.mark.parametrize("shapes", ["own", "usual", "few"])
@pytest.mark.parametrize("n_blocks", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("lengths", [RAGGED, [1], [40], [1, 1, 1]])
def test_everything_lands_on_its_row(examples_of, lengths, n_blocks, shapes):
    examples, dialogues = examples_of(lengths)
    if shapes == "few":
        examples = dataclasses.replace(examples, few_shapes=True)
    if shapes == "usual":
        examples = alike_in_training(examples, len(lengths), n_blocks)
    expected = expected_rows(dialogues)
    chosen = np.random.default_rng(1).permutation(len(lengths))[: max(1, len(lengths) - 2)]
    batch = examples.batch(chosen, n_blocks)
    rows = examples.rows(chosen)
    assert {len(leaf) for leaf in jax.tree.leaves(batch)} == {n_blocks}
    assert batch.features.dtype == np.float32
    assert sorted(batch.ids[batch.real]) == list(range(len(rows)))

    for g in range(n_blocks):
        real = batch.real[g]
        n = real.sum()
        assert not real[n:].any(), "real utterances come first"
        assert not batch.features[g, n:].any()
        of_split = rows[batch.ids[g, :n]]  # the split's row of each utterance of this block
        assert np.array_equal(batch.features[g, :n], examples.features[of_split])
        for task, labels in examples.labels.items():
            assert np.array_equal(batch.labels[task][g, :n], labels[of_split])
            assert (batch.labels[task][g, n:] == UNLABELLED).all()
        for previous, column in ((batch.previous_global, 2), (batch.previous_speaker, 3)):
            found = [of_split[p] if p >= 0 else -1 for p in previous[g, :n]]
            assert found == [expected[row][column] for row in of_split]
            assert (previous[g, n:] == -1).all()
        for layout, names in (
            (batch.dialogue, [expected[row][0] for row in of_split]),
            (batch.speaker, [expected[row][:2] for row in of_split]),
        ):
            assert np.array_equal(layout.mask[g], real)
            segment = layout.segment[g].reshape(-1)[layout.inverse[g, :n]]
            assert len(set(zip(segment, names, strict=True))) == len(set(segment))
            assert len(set(segment)) == len(set(names))
            assert (layout.segment[g] >= 0).sum() == n

    # A dialogue lies whole in one block.
    block_of = np.repeat(np.arange(n_blocks), batch.real.sum(axis=1))
    dialogue_of = examples.dialogue_of[rows[batch.ids[batch.real]]]
    assert len(set(zip(block_of, dialogue_of, strict=True))) == len(chosen)


def test_blocks_hold_about_as_many_utterances(examples_of):
    lengths = np.random.default_rng(0).integers(1, 25, 40)
    examples, _ = examples_of(list(lengths))
    loads = examples.batch(np.arange(40), 4).real.sum(axis=1)
    assert loads.max() - loads.min() <= 3


def test_more_blocks_than_dialogues(examples_of):
    examples, _ = examples_of([4, 6])
    batch = examples.batch(np.array([0, 1]), 8)
    assert sorted(batch.real.sum(axis=1)) == [0] * 6 + [4, 6]
    assert (batch.dialogue.segment[batch.real.sum(axis=1) == 0] == -1).all()


def test_a_dialogue_of_5000_utterances(examples_of):
    examples, _ = examples_of([5000, 3, 4], n_speakers=5)
    batch = examples.batch(np.arange(3), 2)
    assert batch.real.sum() == 5007
    assert batch.features.shape[1] == 5120
    assert batch.dialogue.index.shape[1] >= 5000  # time slots


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8, 100])
def test_every_dialogue_once_an_epoch_in_even_batches(examples_of, batch_size):
    examples, _ = examples_of(RAGGED * 3)
    for epoch in range(3):
        batches = training_order(examples, batch_size, seed=4, epoch=epoch)
        assert sorted(np.concatenate(batches)) == list(range(examples.n_dialogues))
        sizes = {len(batch) for batch in batches}
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        assert len(batches) == -(-examples.n_dialogues // batch_size)


def test_order_is_a_function_of_seed_and_epoch(examples_of):
    examples, _ = examples_of(RAGGED * 3)

    def order(seed, epoch):
        return [tuple(batch) for batch in training_order(examples, 6, seed, epoch)]

    assert order(1, 2) == order(1, 2)
    sets = {tuple(map(frozenset, order(seed, epoch))) for seed in range(3) for epoch in range(3)}
    assert len(sets) == 9


def shapes_of(batch):
    return {tuple(leaf.shape for leaf in jax.tree.leaves(batch))}


@pytest.mark.parametrize("n_blocks", [1, 8])
def test_training_has_one_shape_for_every_seed_and_epoch(examples_of, n_blocks):
    """MELD's training split has 1,038 dialogues of 1 to 24 utterances, 9.6 on average."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.geometric(1 / 9.6, 1038), 1, 24)
    examples, _ = examples_of(list(lengths), n_speakers=4)
    examples = alike_in_training(examples, 32, n_blocks)
    shapes, padded = set(), []
    for seed in (0, 5):
        for epoch in (0, 9):
            for dialogues in training_order(examples, 32, seed, epoch):
                batch = examples.batch(dialogues, n_blocks)
                shapes |= shapes_of(batch)
                padded.append(1 - batch.real.mean())
    assert len(shapes) <= 2  # seldom a batch is larger than any of the sample
    assert np.mean(padded) < (0.1 if n_blocks == 1 else 0.2)


def test_seeds_have_the_shape_that_they_have_alone(examples_of):
    """So that the sums over a batch are the same ones, in the same order."""
    lengths = np.random.default_rng(0).integers(1, 25, 320)
    examples, _ = examples_of(list(lengths))
    examples = alike_in_training(examples, 32, 1)
    orders = [training_order(examples, 32, seed, 0) for seed in range(4)]
    joint = examples.joint_batch([order[0] for order in orders])
    for seed, order in enumerate(orders):
        of_seed = jax.tree.map(lambda array, seed=seed: array[seed], joint)
        assert jax.tree.all(jax.tree.map(np.array_equal, of_seed, examples.batch(order[0])))


def test_an_enormous_dialogue_leaves_the_other_batches_small(examples_of):
    lengths = [*np.random.default_rng(0).integers(1, 25, 319), 5000]
    examples, _ = examples_of(lengths)
    examples = alike_in_training(examples, 32, 1)
    places = [examples.batch(b).real.shape[1] for b in training_order(examples, 32, 3, 0)]
    assert sorted(places)[-1] > 5000
    assert set(sorted(places)[:-1]) == {examples.usual.places}
    assert examples.usual.places < 512
    assert examples.usual.dialogue[0] == 24


def test_no_batches_have_no_usual_shape(examples_of):
    examples, _ = examples_of([4, 7])
    assert examples.alike([]) is examples
    assert examples.batch(np.arange(0)).real.shape == (1, 8)
    few = dataclasses.replace(examples, few_shapes=True)
    assert few.alike([np.array([0, 1])]) is few


def test_a_usual_shape_is_of_the_latest_batches_alone(examples_of):
    examples, _ = examples_of([20, 3, 4])
    large = examples.alike([np.array([0])])
    small = [np.array([1]), np.array([2])]
    assert large.alike(small).usual == examples.alike(small).usual != large.usual


def test_what_is_larger_than_usual_is_whole(examples_of):
    examples, _ = examples_of([4, 4, 4, 4, 30, 7])
    examples = examples.alike([np.array([0]), np.array([1])])
    batch = examples.batch(np.array([4, 2]))
    assert batch.real.sum() == 34
    assert (batch.dialogue.segment >= 0).sum() == (batch.speaker.segment >= 0).sum() == 34


def test_what_is_asked_for_has_few_shapes(examples_of):
    """Conversations of any length, alone and together, as a server meets them."""
    rng = np.random.default_rng(0)
    met, usual = set(), set()
    for _ in range(300):
        lengths = [int(rng.integers(1, 101)), *rng.integers(1, 25, rng.integers(3))]
        examples, _ = examples_of(lengths, n_speakers=int(rng.integers(1, 6)))
        usual |= shapes_of(examples.batch(np.arange(len(lengths))))
        batch = dataclasses.replace(examples, few_shapes=True).batch(np.arange(len(lengths)))
        slots, rows = batch.dialogue.index.shape[1:]
        assert batch.speaker.index.shape == batch.dialogue.index.shape
        assert batch.real.shape == (1, slots * rows)
        met |= shapes_of(batch)
        if len(lengths) == 1:
            assert (slots // 2 < max(lengths[0], 9) <= slots, rows) == (True, 1)
    assert len(met) <= len(shapes_up_to(256)) < len(usual) / 5


def test_very_long_dialogues_are_padded_less(examples_of):
    examples, _ = examples_of([513, 700], n_speakers=1)
    examples = dataclasses.replace(examples, few_shapes=True)
    assert examples.batch(np.arange(2)).speaker.index.shape == (1, 768, 2)


def test_shapes_up_to_so_many_places():
    assert shapes_up_to(15) == []
    assert shapes_up_to(16) == [(16, 1)]
    assert shapes_up_to(64) == [(16, 1), (32, 1), (16, 2), (64, 1), (32, 2), (16, 4)]


def test_few_shapes_of_windows(examples_of):
    examples, _ = examples_of([31, 15, 1, 16, 4])
    examples = dataclasses.replace(examples, window=15, few_shapes=True)
    batch = examples.batch(np.arange(5))
    assert batch.dialogue.index.shape[:2] == (1, 15)
    assert batch.speaker.index.shape[1:] == (32, 4)
    assert batch.real.sum() == 67
    assert (batch.dialogue.segment >= 0).sum() == 67


def test_batches_of_a_split_are_balanced(examples_of):
    lengths = np.random.default_rng(0).integers(1, 25, 320)
    examples, _ = examples_of(list(lengths))
    loads = [lengths[b].sum() for b in examples.batches(32, np.random.default_rng(0))]
    assert max(loads) <= 1.1 * min(loads)


@pytest.mark.parametrize("usual", [False, True])
@pytest.mark.parametrize("n_blocks", [1, 2, 8])
def test_windows(examples_of, n_blocks, usual):
    """Runs of up to 15 utterances of a dialogue, each in a row of its own."""
    lengths = [31, 15, 1, 16, 4]
    plain, _ = examples_of(lengths)
    chosen = np.array([3, 0, 4, 2, 1])
    if usual:
        plain = plain.alike([chosen], n_blocks)
    examples = dataclasses.replace(plain, window=15)
    if usual:
        examples = examples.alike([chosen], n_blocks)
        assert examples.usual.dialogue[0] == 15
    batch = examples.batch(chosen, n_blocks)
    rows = examples.rows(chosen)
    assert batch.dialogue.index.shape[:2] == (n_blocks, 15)
    windows = {}
    for g in range(n_blocks):
        n = batch.real[g].sum()
        layout = jax.tree.map(lambda x, g=g: x[g], batch.dialogue)
        of_split = rows[batch.ids[g]]
        # Every utterance has one slot, from which it is read back.
        filled = layout.segment >= 0
        assert sorted(layout.index[filled]) == list(range(n))
        assert np.array_equal(layout.index.reshape(-1)[layout.inverse[:n]], np.arange(n))
        for of_row, slots in zip(layout.segment.T, layout.index.T, strict=True):
            length = (of_row >= 0).sum()
            if not length:
                continue
            assert len(set(of_row[:length])) == 1, "a window has its row to itself"
            here = of_split[slots[:length]]
            assert (np.diff(here) == 1).all()
            (dialogue,) = set(examples.dialogue_of[here])
            assert (here[0] - examples.starts[dialogue]) % 15 == 0
            windows.setdefault(dialogue, []).append(length)
    assert {d: sorted(w, reverse=True) for d, w in windows.items()} == {
        0: [15, 15, 1], 1: [15], 2: [1], 3: [15, 1], 4: [4]
    }  # fmt: skip
    # All else is as without windows, whose rows hold whole dialogues.
    without = dataclasses.replace(batch, dialogue=None)
    expected = dataclasses.replace(plain.batch(chosen, n_blocks), dialogue=None)
    assert jax.tree.all(jax.tree.map(np.array_equal, without, expected))
