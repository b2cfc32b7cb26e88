import jax
import numpy as np
import pytest

from erc_jax.data.anchors import AnchorExamples
from erc_jax.data.batching import alike_in_training, make_examples, training_order
from erc_jax.data.labels import UNLABELLED

LENGTHS = [5, 1, 9, 3, 1, 7, 2, 12]
N = sum(LENGTHS)
COUNTS = {0: 24, 1: 8, 2: 2}  # the labelled utterances; six are not


@pytest.fixture(scope="module")
def examples(random_dialogues):
    """A split in which every number tells which utterance it belongs to."""
    labels = np.repeat([*COUNTS, UNLABELLED], [*COUNTS.values(), N - sum(COUNTS.values())])
    number = np.arange(N)
    return make_examples(
        random_dialogues(LENGTHS),
        np.stack([number + 1, -number - 1], axis=-1).astype(np.float32),
        {
            "emotion": np.random.default_rng(0).permutation(labels).astype(np.int32),
            "number": number.astype(np.int32),
        },
    )


def drawn(anchors, epochs, batch_size=8):
    """Utterance numbers of so many epochs."""
    return np.concatenate(
        [b for epoch in range(epochs) for b in training_order(anchors, batch_size, 0, epoch)]
    )


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_classes_are_drawn_by_their_frequency_to_a_power(examples, balance):
    anchors = AnchorExamples(examples, "emotion", balance)
    items = drawn(anchors, 300)
    weights = np.array(list(COUNTS.values())) ** (1 - balance)
    shares = np.bincount(examples.labels["emotion"][items], minlength=3) / len(items)
    # 10,200 draws: a share's standard deviation is at most 0.005.
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.02)
    # Within a class all are as likely, and nothing without a label is ever drawn.
    for of_class, count in COUNTS.items():
        members = np.flatnonzero(examples.labels["emotion"] == of_class)
        times = np.bincount(items, minlength=N)[members]
        np.testing.assert_allclose(times / times.sum(), 1 / count, rtol=0.3)


@pytest.mark.parametrize("batch_size", [1, 5, 8, 100])
def test_an_epoch_is_as_many_anchors_as_labelled_utterances(examples, batch_size):
    anchors = AnchorExamples(examples, "emotion", 1.0)
    assert anchors.n_items == sum(COUNTS.values()) < anchors.n_utterances == N
    batches = training_order(anchors, batch_size, 0, 0)
    assert sum(map(len, batches)) == anchors.n_items
    assert len(batches) == -(-anchors.n_items // batch_size)  # what the loop counts on
    assert max(map(len, batches)) <= batch_size


def test_draws_are_a_function_of_seed_and_epoch(examples):
    anchors = AnchorExamples(examples, "emotion", 1.0)

    def order(seed, epoch):
        return [tuple(batch) for batch in training_order(anchors, 8, seed, epoch)]

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("n_blocks", [1, 2, 8])
def test_a_batch_has_the_anchors_in_their_whole_dialogues(examples, n_blocks, alike):
    anchors = AnchorExamples(examples, "emotion", 1.0)
    if alike:
        anchors = alike_in_training(anchors, 8, n_blocks)
    for items in training_order(anchors, 8, 0, 0):
        batch = anchors.batch(items, n_blocks)
        assert {len(leaf) for leaf in jax.tree.leaves(batch)} == {n_blocks}
        # Whole dialogues, each once, whoever was drawn twice.
        dialogues = set(examples.dialogue_of[items])
        numbers = batch.utterances.features[batch.real][:, 0] - 1
        expected = np.flatnonzero(np.isin(examples.dialogue_of, list(dialogues)))
        assert sorted(numbers) == expected.tolist()
        assert np.array_equal(numbers, anchors.rows(items)[batch.ids[batch.real]])
        # The anchors are those that were drawn, with their own labels.
        there = batch.labels["number"] != UNLABELLED
        rows = np.take_along_axis(batch.utterances.features[..., 0], batch.anchors, axis=1) - 1
        found = rows[there].astype(int)
        assert sorted(found) == sorted(set(items))
        assert np.array_equal(batch.labels["number"][there], found)
        assert np.array_equal(batch.labels["emotion"][there], examples.labels["emotion"][found])
        assert (batch.labels["emotion"][~there] == UNLABELLED).all()
        assert not batch.anchors[~there].any()
        assert not batch.utterances.labels


@pytest.mark.parametrize("n_blocks", [1, 2, 8])
def test_an_epoch_has_one_shape(random_dialogues, n_blocks):
    lengths = np.random.default_rng(0).integers(2, 25, 200)
    emotions = np.random.default_rng(1).integers(0, 3, sum(lengths)).astype(np.int32)
    features = np.zeros((sum(lengths), 2), np.float32)
    split = make_examples(random_dialogues(list(lengths)), features, {"emotion": emotions})
    anchors = alike_in_training(AnchorExamples(split, "emotion", 0.5), 60, n_blocks)
    shapes = {
        tuple(leaf.shape for leaf in jax.tree.leaves(anchors.batch(items, n_blocks)))
        for items in training_order(anchors, 60, seed=0, epoch=0)
    }
    assert len(shapes) == 1


def test_what_is_drawn_twice_changes_no_shape(examples):
    anchors = AnchorExamples(examples, "emotion", 1.0)
    distinct = np.flatnonzero(examples.dialogue_of == 7)[:9]
    twice = np.array([*distinct[:4], *distinct[:4], distinct[0]])
    one, other = anchors.batch(distinct), anchors.batch(twice)
    assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, other)
    assert (other.labels["number"] != UNLABELLED).sum() == 4
