"""Losses, each a masked sum divided once by the count of what was summed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from erc_jax.data.packing import Array


def cross_entropy(logits: jax.Array, labels: Array) -> jax.Array:
    """Mean cross-entropy over the labelled utterances of a whole batch (Mtl-ERC-ES, equation 17).

    >>> round(float(cross_entropy(jnp.zeros((3, 4)), jnp.array([0, 2, -1]))), 4)  # log 4
    1.3863

    Args:
      logits: float [..., C].
      labels: int [...], a class, or negative where there is no label.

    Returns:
      float32 []; 0 where nothing is labelled.
    """
    labelled = labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), jnp.maximum(labels, 0)
    )
    return jnp.sum(losses, where=labelled) / jnp.maximum(jnp.sum(labelled), 1)
