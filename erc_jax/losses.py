"""Losses, each a masked sum divided once by the count of what was summed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from erc_jax.data.packing import Array


def cross_entropy(
    logits: jax.Array, labels: Array, class_weights: Array | None = None
) -> jax.Array:
    """Mean cross-entropy over the labelled utterances of a whole batch (Mtl-ERC-ES, equation 17).

    >>> round(float(cross_entropy(jnp.zeros((3, 4)), jnp.array([0, 2, -1]))), 4)  # log 4
    1.3863

    Args:
      logits: float [..., C].
      labels: int [...], a class, or negative where there is no label.
      class_weights: float [C], how much an utterance of each class counts; None is all alike.

    Returns:
      float32 []; 0 where nothing is labelled.
    """
    weights = (labels >= 0).astype(jnp.float32)
    classes = jnp.maximum(labels, 0)
    if class_weights is not None:
        weights *= jnp.asarray(class_weights, jnp.float32)[classes]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), classes)
    total = jnp.sum(weights)
    return jnp.sum(losses * weights) / jnp.where(total > 0, total, 1.0)


def smoothed_cross_entropy(
    logits: jax.Array, target: Array, mask: Array, smoothing: float
) -> jax.Array:
    """Label-smoothed cross-entropy, the mean over real tokens; 0 where there is none.

    With smoothing s a token's loss is (1 - s) · -log p(target) + s · mean over the vocabulary of
    -log p (Szegedy et al., 2016), as in fairseq up to its s/(V - 1).

    Args:
      logits: float32 [..., V].
      target: int32 [...].
      mask: bool [...].
      smoothing: s, in [0, 1).

    Returns:
      float32 [].
    """
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    of_target = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    losses = log_sum - (1 - smoothing) * of_target
    if smoothing:
        losses = losses - smoothing * logits.mean(-1)
    return jnp.sum(losses * mask) / jnp.maximum(mask.sum(), 1)


def batch_class_weights(labels: Array, n_classes: int) -> jax.Array:
    """Weights float32 [C] by the inverse frequency of classes in a batch; absent ones weigh 0.

    >>> batch_class_weights(jnp.array([0, 0, 0, 1, -1]), 3).tolist()  # 4 / (2 * count)
    [0.6666666865348816, 2.0, 0.0]

    Args:
      labels: int [...], a class, or negative where there is no label.
      n_classes: C.
    """
    counts = jnp.sum(jax.nn.one_hot(labels.reshape(-1), n_classes), axis=0)
    present = counts > 0
    share = jnp.sum(counts) / jnp.maximum(jnp.sum(present), 1)
    return jnp.where(present, share / jnp.where(present, counts, 1.0), 0.0)


def triplet_loss(
    vectors: jax.Array, labels: Array, margin: float = 1.0, strategy: str = "all"
) -> jax.Array:
    """Mean of max(d(a, p) - d(a, n) + margin, 0) over triplets (SentEmoContext, section 3).

    a and p are two labelled utterances of one class, n is one of another; d is the Euclidean
    distance.

    >>> float(triplet_loss(jnp.array([[0.0], [2.0], [3.0]]), jnp.array([0, 0, 1])))
    1.0

    Args:
      vectors: float [N, D].
      labels: int [N], a class, or negative where there is no label.
      margin: by how much the other class should be farther away.
      strategy: which triplets: "all"; "batch_hard": for each a, the farthest p with the nearest n;
        "semi_hard": for each pair of a and p, the nearest n that is farther away than p, or the
        farthest n if none is.

    Returns:
      float32 []; 0 where there is no triplet.

    Raises:
      ValueError: there is no such strategy.
    """
    known = labels >= 0
    same = (labels[:, None] == labels[None, :]) & known[:, None] & known[None, :]
    positive = same & ~jnp.eye(len(labels), dtype=bool)
    negative = ~same & known[:, None] & known[None, :]
    distance = _distances(vectors.astype(jnp.float32))
    far = jnp.max(distance) + 1.0  # farther than anything, and finite
    if strategy == "all":
        # [a, p, n]
        valid = positive[:, :, None] & negative[:, None, :]
        losses = jax.nn.relu(distance[:, :, None] - distance[:, None, :] + margin)
    elif strategy == "batch_hard":
        valid = positive.any(1) & negative.any(1)
        farthest = jnp.max(jnp.where(positive, distance, 0.0), axis=1)
        nearest = jnp.min(jnp.where(negative, distance, far), axis=1)
        losses = jax.nn.relu(farthest - nearest + margin)
    elif strategy == "semi_hard":
        # [a, p]
        valid = positive & negative.any(1)[:, None]
        farther = negative[:, None, :] & (distance[:, None, :] > distance[:, :, None])
        nearest = jnp.min(jnp.where(farther, distance[:, None, :], far), axis=2)
        farthest = jnp.max(jnp.where(negative, distance, 0.0), axis=1)
        other = jnp.where(farther.any(2), nearest, farthest[:, None])
        losses = jax.nn.relu(distance - other + margin)
    else:
        raise ValueError(f"strategy is {strategy!r}; expected 'all', 'batch_hard' or 'semi_hard'")
    return jnp.sum(losses, where=valid) / jnp.maximum(jnp.sum(valid), 1)


def _distances(x: jax.Array) -> jax.Array:
    """Euclidean distances float32 [N, N]; the gradient at 0 is 0, not infinite."""
    squared = jnp.sum(x * x, axis=1)
    gram = squared[:, None] + squared[None, :] - 2.0 * x @ x.T
    # Rounding leaves small numbers, positive or negative, where two vectors are one.
    apart = gram > 1e-6 * (squared[:, None] + squared[None, :])
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, gram, 1.0)), 0.0)


def contrast(
    cosines: jax.Array, labels: Array, temperature: float, *, in_batch: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The two parts of the triple loss (FMERL, equations 5 and 7).

    Means over labelled utterances; emotions that no utterance of the batch has take no part.

    >>> l1, l2 = contrast(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([0, 1]), 1.0)
    >>> round(float(l1), 4), float(l2)  # (log(1 + 1/e) + log(1 + e)) / 2; (1 + 2) / 2
    (0.8133, 1.5)

    Args:
      cosines: float [..., C], of utterances' vectors with emotions'.
      labels: int [...], a class, or negative where there is no label.
      temperature: that the cosines are divided by in the first part.
      in_batch: the softmax of the first part is over all utterances of the batch, each with its
        emotion; else over the batch's distinct emotions.

    Returns:
      float32 [] each: L1, cross-entropy of the own emotion; L2, sum of 1 + cosine over the others.
    """
    known = (labels >= 0).astype(jnp.float32)
    own = jax.nn.one_hot(labels, cosines.shape[-1])
    counts = own.reshape(-1, own.shape[-1]).sum(0)
    total = jnp.maximum(known.sum(), 1.0)
    scores = cosines.astype(jnp.float32) / temperature
    # exp(score) counts as often as it is there.
    weights = counts if in_batch else (counts > 0).astype(jnp.float32)
    weights = jnp.where(counts.sum() > 0, weights, 1.0)  # the logarithm of 0 has no gradient
    l1 = jax.nn.logsumexp(scores, axis=-1, b=weights) - (scores * own).sum(-1)
    l2 = ((1.0 + cosines) * (counts > 0) * (1.0 - own)).sum(-1)
    return (l1 * known).sum() / total, (l2 * known).sum() / total


def masked_squared_error(predicted: jax.Array, target: Array) -> jax.Array:
    """Mean squared error over rated utterances (FMERL, equation 3); 0 where none is.

    >>> float(masked_squared_error(jnp.array([0.5, 0.9]), jnp.array([0.0, -1.0])))
    0.25

    Args:
      predicted: float [...], in [0, 1].
      target: float [...], in [0, 1], or negative where there is no rating.

    Returns:
      float32 [].
    """
    rated = target >= 0
    squares = jnp.where(rated, (predicted.astype(jnp.float32) - target) ** 2, 0.0)
    return squares.sum() / jnp.maximum(rated.sum(), 1)
