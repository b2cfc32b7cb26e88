import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax import losses
from erc_jax.losses import batch_class_weights, cross_entropy, triplet_loss


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
