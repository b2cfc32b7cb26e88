"""Triplet verification: the test metric of SentEmoContext's paper, which does not classify.

Gendron and Guibon count, for each test triplet of an anchor, a positive and a negative, the
anchor's *true* label as predicted if the triplet loss is at most the margin, and the negative's
label otherwise. That needs the gold labels and is right half of the time by chance, so its scores
stand apart from those of classification.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from erc_jax import metrics

PER_CLASS = 1000  # anchors drawn of each class
SCORES = ("macro_f1_no_neutral", "micro_f1_no_neutral", "macro_f1", "mcc")


def balanced_triplets(
    labels: np.ndarray, rng: np.random.Generator, per_class: int = PER_CLASS
) -> np.ndarray:
    """Triplets int64 [n, 3] of anchor, positive and negative: as many anchors of every class.

    The positive is another utterance of the anchor's class, the negative one of another class, each
    of these classes as likely. A class with a single utterance gives no anchors.

    Args:
      labels: int [N], negative where there is none.
      rng: draws them.
      per_class: anchors of each class.
    """
    members = {c: np.flatnonzero(labels == c) for c in np.unique(labels[labels >= 0])}
    triplets = []
    for of_class, utterances in members.items():
        others = [c for c in members if c != of_class]
        if len(utterances) < 2 or not others:
            continue
        anchor = rng.integers(len(utterances), size=per_class)
        # Any place but the anchor's.
        positive = (anchor + rng.integers(1, len(utterances), size=per_class)) % len(utterances)
        negative_class = rng.choice(others, size=per_class)
        negative = [members[c][rng.integers(len(members[c]))] for c in negative_class]
        triplets.append(np.stack([utterances[anchor], utterances[positive], negative], axis=1))
    return np.concatenate(triplets) if triplets else np.zeros((0, 3), np.int64)


def verification(
    vectors: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    neutral: str | None,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """The metric on balanced triplets; with margin 1 a loss of at most 1 is d(a, p) <= d(a, n).

    Args:
      vectors: float [N, D], of the learned space.
      labels: int [N], negative where there is none.
      names: of the classes.
      neutral: the class that ``..._no_neutral`` leave out, if there is one.
      seed: draws the triplets.

    Returns:
      ``macro_f1_no_neutral``, ``micro_f1_no_neutral``, ``macro_f1`` and ``mcc``.
    """
    anchor, positive, negative = balanced_triplets(labels, np.random.default_rng(seed)).T

    def distance(other: np.ndarray) -> np.ndarray:
        return np.linalg.norm(vectors[anchor].astype(np.float64) - vectors[other], axis=1)

    verified = distance(positive) <= distance(negative)
    predicted = np.where(verified, labels[anchor], labels[negative])
    confusion = metrics.confusion(labels[anchor], predicted, len(names))
    block = metrics.block(confusion, names, neutral)
    return {name: block[name] for name in SCORES if name in block}


def verification_with_chance(
    vectors: np.ndarray,
    untrained: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    neutral: str | None,
) -> dict[str, Any]:
    """The metric, and under ``chance`` what it gives without having learned emotions.

    Args:
      vectors: float [N, D], of the trained model.
      untrained: float [N, E], of such a model with random weights.
      labels: int [N], negative where there is none.
      names: of the classes.
      neutral: as for ``verification``.

    Returns:
      The scores, and ``chance``: those of the ``untrained`` model, and of the trained one with
      ``shuffled_labels``.
    """
    shuffled = labels.copy()
    known = np.flatnonzero(labels >= 0)
    shuffled[known] = labels[np.random.default_rng(1).permutation(known)]
    return {
        **verification(vectors, labels, names, neutral),
        "chance": {
            "untrained": verification(untrained, labels, names, neutral),
            "shuffled_labels": verification(vectors, shuffled, names, neutral),
        },
    }
