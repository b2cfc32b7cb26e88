import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax import losses
from erc_jax.losses import (
    batch_class_weights,
    contrast,
    cross_entropy,
    masked_squared_error,
    triplet_loss,
)


def test_examples_of_the_docstrings():
    result = doctest.testmod(losses)
    assert result.attempted > 0
    assert result.failed == 0


def test_mean_over_what_is_labelled():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 7, 5)).astype(np.float32)
    labels = rng.integers(-1, 5, (3, 7))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = [-log_p[i, j, labels[i, j]] for i, j in zip(*np.nonzero(labels >= 0), strict=True)]
    assert float(cross_entropy(logits, labels)) == pytest.approx(np.mean(each), rel=1e-6)


def test_over_the_batch_and_not_per_dialogue():
    logits = jnp.array([[[9.0, 0.0]] * 4, [[0.0, 9.0]] * 4])
    labels = jnp.array([[0, 0, 0, 0], [0, -1, -1, -1]])
    assert float(cross_entropy(logits, labels)) == pytest.approx(9 / 5, abs=1e-3)


def test_what_is_not_labelled_changes_nothing():
    logits = jax.random.normal(jax.random.key(0), (6, 4))
    labels = jnp.array([0, -1, 3, -1, 2, 2])
    other = jnp.where((labels >= 0)[:, None], logits, 1e6)
    assert cross_entropy(logits, labels) == cross_entropy(other, labels)
    gradient = jax.grad(cross_entropy)(other, labels)
    assert not gradient[labels < 0].any()
    assert np.allclose(gradient, jax.grad(cross_entropy)(logits, labels), atol=1e-7)


def test_nothing_labelled():
    value, gradient = jax.value_and_grad(cross_entropy)(jnp.ones((4, 3)), jnp.full(4, -1))
    assert value == 0
    assert np.array_equal(gradient, np.zeros((4, 3)))


def test_bfloat16_logits_give_a_float32_loss():
    logits = jnp.array([[300.0, 0.0], [0.0, 1.0]], jnp.bfloat16)
    loss = cross_entropy(logits, jnp.array([1, 1]))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx((300 + np.log(1 + np.exp(-1))) / 2, rel=1e-4)


def test_batch_weights_are_scikit_learn_s():
    compute = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    labels = np.random.default_rng(0).choice(5, (3, 9), p=(0.5, 0.0, 0.3, 0.2, 0.0))
    labels[0, :4] = -1
    weights = batch_class_weights(labels, 5)
    present = np.unique(labels[labels >= 0])
    expected = np.zeros(5)
    expected[present] = compute("balanced", classes=present, y=labels[labels >= 0])
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    # With them every class that is there counts alike.
    logits = np.random.default_rng(1).normal(size=(3, 9, 5)).astype(np.float32)
    of_classes = [cross_entropy(logits, np.where(labels == c, labels, -1)) for c in present]
    assert float(cross_entropy(logits, labels, weights)) == pytest.approx(
        np.mean(of_classes), rel=1e-5
    )


@pytest.mark.parametrize("labels", [[-1, -1, -1], [2, 2, -1]])
def test_batch_weights_of_one_class_or_none(labels):
    weights = batch_class_weights(np.array(labels), 3)
    assert weights.tolist() == [0, 0, float(2 in labels)]
    loss, gradient = jax.value_and_grad(cross_entropy)(jnp.ones((3, 3)), np.array(labels), weights)
    assert float(loss) == pytest.approx(np.log(3) if 2 in labels else 0)
    assert np.isfinite(gradient).all()


def triplets_by_hand(vectors, labels, margin, strategy):
    """The definition, in loops."""
    n = len(labels)
    distance = [[np.linalg.norm(a - b) for b in vectors] for a in vectors]
    known = [i for i in range(n) if labels[i] >= 0]
    terms = []
    for a in known:
        positives = [p for p in known if p != a and labels[p] == labels[a]]
        negatives = [n for n in known if labels[n] != labels[a]]
        if not positives or not negatives:
            continue
        far = max(distance[a][n] for n in negatives)
        if strategy == "batch_hard":
            pairs = [
                (max(distance[a][p] for p in positives), min(distance[a][n] for n in negatives))
            ]
        elif strategy == "all":
            pairs = [(distance[a][p], distance[a][n]) for p in positives for n in negatives]
        else:
            pairs = []
            for p in positives:
                farther = [distance[a][n] for n in negatives if distance[a][n] > distance[a][p]]
                pairs.append((distance[a][p], min(farther, default=far)))
        terms += [max(near - other + margin, 0.0) for near, other in pairs]
    return np.mean(terms) if terms else 0.0


@pytest.mark.parametrize("strategy", ["all", "batch_hard", "semi_hard"])
@pytest.mark.parametrize("margin", [0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_triplets_are_those_of_the_definition(strategy, margin, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(12, 3)).astype(np.float32)
    labels = rng.integers(-1, 4, 12)
    found = triplet_loss(jnp.asarray(vectors), labels, margin, strategy)
    assert found == pytest.approx(triplets_by_hand(vectors, labels, margin, strategy), abs=1e-5)


@pytest.mark.parametrize("strategy", ["all", "batch_hard", "semi_hard"])
def test_triplets_at_the_edges(strategy):
    def gradient(vectors, labels):
        return jax.grad(lambda x: triplet_loss(x, np.array(labels), strategy=strategy))(vectors)

    # Nothing labelled, one class only, no two of a class: nothing to learn, and no NaN.
    vectors = jax.random.normal(jax.random.key(0), (4, 3))
    for labels in ([-1, -1, -1, -1], [2, 2, 2, 2], [0, 1, 2, 3], [0, -1, -1, 1]):
        assert triplet_loss(vectors, np.array(labels), strategy=strategy) == 0.0
        assert not gradient(vectors, labels).any()
    # The same utterance twice, and all at one point.
    for same in (vectors.at[1].set(vectors[0]), jnp.ones((4, 3))):
        assert np.isfinite(gradient(same, [0, 0, 1, 1])).all()
    assert triplet_loss(jnp.ones((4, 3)), np.array([0, 0, 1, 1]), strategy=strategy) == 1.0
    # What carries no label is not there.
    padded = jnp.concatenate([vectors, 9 * jnp.ones((3, 3))])
    np.testing.assert_allclose(
        triplet_loss(padded, np.array([0, 0, 1, 1, -1, -1, -1]), strategy=strategy),
        triplet_loss(vectors, np.array([0, 0, 1, 1]), strategy=strategy),
        atol=1e-6,
    )


def test_an_unknown_strategy():
    with pytest.raises(ValueError, match="strategy is 'hard'; expected 'all'"):
        triplet_loss(jnp.ones((2, 2)), np.array([0, 1]), strategy="hard")


def contrast_by_hand(cosines, labels, temperature, in_batch):
    """The definition, in loops; in the batch, the N x N matrix of utterances and descriptions."""
    known = [i for i in range(len(labels)) if labels[i] >= 0]
    there = sorted({labels[i] for i in known})
    columns = [labels[j] for j in known] if in_batch else there
    matrix = np.exp(np.array([[cosines[i, c] for c in columns] for i in known]) / temperature)
    own = range(len(known)) if in_batch else [there.index(labels[i]) for i in known]
    l1 = [-np.log(matrix[row, column] / matrix[row].sum()) for row, column in enumerate(own)]
    l2 = [sum(1 + cosines[i, c] for c in there if c != labels[i]) for i in known]
    return np.mean(l1), np.mean(l2)


def drawn_cosines(seed, shape=(2, 9), n_classes=6):
    """Cosines and labels, of which some are missing; the last class is nowhere."""
    rng = np.random.default_rng(seed)
    cosines = rng.uniform(-1, 1, (*shape, n_classes)).astype(np.float32)
    return cosines, rng.integers(-1, n_classes - 1, shape)


@pytest.mark.parametrize("in_batch", [False, True], ids=["classes", "in_batch"])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_contrast_is_that_of_the_definition(in_batch, temperature, seed):
    cosines, labels = drawn_cosines(seed)
    found = contrast(jnp.asarray(cosines), labels, temperature, in_batch=in_batch)
    flat = cosines.reshape(-1, 6).astype(np.float64), labels.reshape(-1)
    assert [float(x) for x in found] == pytest.approx(
        contrast_by_hand(*flat, temperature, in_batch), rel=1e-5
    )
    # The other reading is another number: some emotion is there twice.
    other, _ = contrast(jnp.asarray(cosines), labels, temperature, in_batch=not in_batch)
    assert abs(float(other - found[0])) > 0.1


@pytest.mark.parametrize("in_batch", [False, True], ids=["classes", "in_batch"])
def test_contrast_of_what_is_not_there(in_batch):
    """Utterances without a label, and emotions without an utterance, count nowhere."""

    def total(cosines, labels):
        return sum(contrast(cosines, labels, 0.5, in_batch=in_batch))

    cosines, labels = drawn_cosines(0)
    assert (labels < 0).any()
    value, gradient = jax.value_and_grad(total)(jnp.asarray(cosines), labels)
    assert not gradient[labels < 0].any()
    assert not gradient[..., 5].any()
    seen = np.unique(labels[labels >= 0])
    assert (np.abs(gradient[labels >= 0][:, seen]) > 1e-4).all()
    changed = np.where((labels < 0)[..., None] | (np.arange(6) == 5), 0.9, cosines)
    assert float(total(jnp.asarray(changed), labels)) == float(value)
    # Nor do they stand for another: the same numbers without them.
    labelled = cosines[labels >= 0][:, :5], labels[labels >= 0]
    assert float(total(*map(jnp.asarray, labelled))) == pytest.approx(float(value), rel=1e-6)


@pytest.mark.parametrize("in_batch", [False, True], ids=["classes", "in_batch"])
@pytest.mark.parametrize("labels", [[-1, -1, -1], [2, 2, 2], [-1, 1, -1]])
@pytest.mark.parametrize("temperature", [1.0, 1e-3])
def test_contrast_without_anything_to_tell_apart(in_batch, labels, temperature):
    """No label at all, or one emotion only: finite, and nothing is learned where there is none."""
    cosines, labels = jnp.asarray(drawn_cosines(0, (3,), 4)[0]), np.array(labels)
    for part in (0, 1):
        value, gradient = jax.value_and_grad(
            lambda x, part=part: contrast(x, labels, temperature, in_batch=in_batch)[part]
        )(cosines)
        expected = 0.0
        if in_batch and part == 0 and (labels == 2).all():
            expected = np.log(3)  # two others of the same emotion are negatives, too
        assert float(value) == pytest.approx(expected, rel=1e-4, abs=1e-3)
        np.testing.assert_allclose(gradient, 0, atol=1e-3)


def test_squared_errors_of_what_is_rated():
    predicted = jnp.array([[0.2, 0.9, 0.4], [0.0, 1.0, 0.5]])
    target = np.array([[0.5, -1.0, 0.1], [1.0, -1.0, 0.0]], np.float32)
    value, gradient = jax.value_and_grad(masked_squared_error)(predicted, target)
    errors = np.array([[-0.3, 0.0, 0.3], [-1.0, 0.0, 0.5]])
    assert float(value) == pytest.approx((errors**2).sum() / 4)
    np.testing.assert_allclose(gradient, 2 * errors / 4, atol=1e-6)
    # A rating of 0, the lowest, is one.
    assert float(masked_squared_error(jnp.array([0.5]), np.zeros(1))) == 0.25
    value, gradient = jax.value_and_grad(masked_squared_error)(predicted, np.full((2, 3), -1.0))
    assert float(value) == 0.0
    assert not gradient.any()
