import numpy as np
import pytest

from erc_jax import metrics
from erc_jax.triplets import (
    PER_CLASS,
    SCORES,
    balanced_triplets,
    verification,
    verification_with_chance,
)

NAMES = ("neutral", "joy", "anger")


def clusters(seed=0, n=60, spread=0.1):
    """Vectors close to their class' corner, and labels, some of them missing."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=(0.7, 0.2, 0.1))
    vectors = (10 * np.eye(3)[labels] + spread * rng.normal(size=(n, 3))).astype(np.float32)
    labels[::7] = -1
    return vectors, labels


def scored(vectors, labels, **options):
    return verification(vectors, labels, NAMES, "neutral", **options)


def test_triplets_are_of_balanced_classes():
    _, labels = clusters(n=300)
    triplets = balanced_triplets(labels, np.random.default_rng(0), 900)
    anchor, positive, negative = labels[triplets.T]
    assert np.bincount(anchor).tolist() == [900] * 3
    assert (positive == anchor).all()
    assert (triplets[:, 0] != triplets[:, 1]).all()
    assert (negative != anchor).all()
    assert negative.min() >= 0
    pairs = np.bincount(3 * anchor + negative, minlength=9).reshape(3, 3)
    np.testing.assert_allclose(pairs[~np.eye(3, dtype=bool)], 450, atol=75)
    # All utterances with a label are drawn from.
    for column in triplets.T:
        assert len(np.unique(column)) > 0.95 * (labels >= 0).sum()


def test_a_small_case_by_hand():
    """Two of each class on a line: what is verified follows from the distances alone."""
    vectors = np.array([[0.0], [1.0], [1.5], [1.8]], np.float32)
    labels = np.array([1, 1, 2, 2])
    # Anchor 0: its own at 1, others at 1.5 and 1.8: right. Anchor 1: its own at 1, others at 0.5
    # and 0.8: wrong. Anchors 2 and 3: their own at 0.3, others at 0.5 or more: right.
    triplets = balanced_triplets(labels, np.random.default_rng(0), PER_CLASS)
    wrong = int((triplets[:, 0] == 1).sum())
    assert 400 < wrong < 600
    counts = np.array([[0, 0, 0], [0, PER_CLASS - wrong, wrong], [0, 0, PER_CLASS]])
    block = metrics.block(counts, NAMES, "neutral")
    assert scored(vectors, labels) == {name: block[name] for name in SCORES}


def by_the_definition(vectors, labels, seed, margin=1.0):
    """In the paper's words: the anchor's true label if the triplet loss is at most the margin."""
    targets, predictions = [], []
    for a, p, n in balanced_triplets(labels, np.random.default_rng(seed)):
        to_positive = np.sqrt(((vectors[a] - vectors[p]).astype(np.float64) ** 2).sum())
        to_negative = np.sqrt(((vectors[a] - vectors[n]).astype(np.float64) ** 2).sum())
        loss = max(to_positive - to_negative + margin, 0)
        targets.append(labels[a])
        predictions.append(labels[a] if loss <= margin else labels[n])
    counts = metrics.confusion(np.array(targets), np.array(predictions), 3)
    block = metrics.block(counts, NAMES, "neutral")
    return {name: block[name] for name in SCORES}


@pytest.mark.parametrize("seed", [0, 3])
def test_scores_are_those_of_the_definition(seed):
    vectors, labels = clusters(spread=6.0)
    found = scored(vectors, labels, seed=seed)
    assert found == by_the_definition(vectors, labels, seed)
    assert found == scored(vectors, labels, seed=seed)
    assert found != scored(vectors, labels, seed=7)
    assert 0.5 < found["macro_f1"] < 0.95


def test_ties_are_verified():
    """A loss of exactly the margin counts: at one point, all is right."""
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert scored(np.ones((6, 4), np.float32), labels)["mcc"] == 1.0


def test_perfect_separation_gives_1_and_chance_is_about_a_half():
    vectors, labels = clusters()
    found = verification_with_chance(
        vectors,
        np.random.default_rng(1).normal(size=(len(labels), 5)).astype(np.float32),
        labels,
        NAMES,
        "neutral",
    )
    chance = found.pop("chance")
    assert found == dict.fromkeys(SCORES, 1.0)
    assert set(chance) == {"untrained", "shuffled_labels"}
    for scores in chance.values():
        assert set(scores) == set(SCORES)
        # As many anchors of each class: macro F1 is about the accuracy.
        assert scores["macro_f1"] == pytest.approx(0.5, abs=0.12)


def test_chance_of_many_utterances_is_a_half():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 3000, p=(0.8, 0.15, 0.05))
    vectors = rng.normal(size=(3000, 8)).astype(np.float32)
    assert scored(vectors, labels)["macro_f1"] == pytest.approx(0.5, abs=0.03)


def test_classes_that_give_no_triplets():
    vectors = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    # A single utterance of a class can only be a negative.
    triplets = balanced_triplets(np.array([0, 0, 0, 0, 1]), np.random.default_rng(0), 10)
    assert triplets.shape == (10, 3)
    assert (triplets[:, 2] == 4).all()
    for labels in ([0, 0, 0, 0, 0], [-1, -1, -1, -1, -1], [0, 1, 2, -1, -1]):
        assert balanced_triplets(np.array(labels), np.random.default_rng(0)).shape == (0, 3)
        assert scored(vectors, np.array(labels)) == dict.fromkeys(SCORES, 0.0)


def test_without_a_neutral_class():
    vectors, labels = clusters()
    assert set(verification(vectors, labels, NAMES, None)) == {"macro_f1", "mcc"}
