import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax import losses
from erc_jax.losses import cross_entropy


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
