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
