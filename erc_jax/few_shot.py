"""Few-shot classification: how well a handful of examples tells new labels apart, untrained.

An N-way K-shot episode draws N classes and K labelled utterances of each (the support), takes
their means as the classes' centroids, and gives other utterances (the queries) the class of the
nearest one: prototypical networks (Snell et al., 2017) without any training on these labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from erc_jax.errors import UserError

# Class to the utterances int [n] that it is drawn from.
Members = dict[int, np.ndarray]

_REDRAWS = 100  # in a row, of an episode in which a class is left without a query
_RESAMPLES = 200  # of the dialogues
_EPISODES_EACH = 20  # of every such resample
_Z = 1.96  # standard deviations on each side that hold 95% of a normal distribution


def episodes(
    vectors: np.ndarray,
    labels: np.ndarray,
    *,
    ways: int,
    shots: int,
    queries: int = 15,
    episodes: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Accuracy of N-way K-shot classification by the nearest centroid, Euclidean.

    The accuracy of an episode is balanced: the mean of its classes' recalls, so that rare classes,
    which may have fewer queries, count like others. Chance is 1 / ways.

    Two questions have two intervals, both mean ± 1.96 standard errors. ``interval`` asks which
    episodes happened to be drawn: its standard error is s / sqrt(episodes), with s the standard
    deviation over episodes, and more episodes narrow it at will. But all of them draw on the same
    utterances. ``interval_dialogues`` asks what other conversations would have given, and is the
    one to hold against chance or another system: dialogues are resampled with replacement, each
    resample has its own episodes, and the variance that these have within a resample, which is
    noise of the estimate, is taken off the variance between resamples (one-way analysis of
    variance). Copies of a dialogue count as the same one.

    Args:
      vectors: float [N, D] of utterances.
      labels: int [N]; negative for utterances that take no part.
      ways: classes of an episode; of more that are fit, it draws its own.
      shots: support utterances of each class.
      queries: at most so many of each class.
      episodes: how many are drawn, at least 2.
      seed: of the random numbers.
      groups: int [N], the dialogue of each utterance. Support and queries of an episode then have
        no dialogue in common, whatever their classes: vectors in context resemble their
        neighbours. An episode that so leaves a class without a query is drawn again.
      names: of the classes, in the result and in messages; their numbers by default.

    Returns:
      "accuracy", "interval" [low, high], with groups "interval_dialogues" [low, high] (None where
      so few dialogues hold a class that most resamples lack it), "chance", "ways", "shots",
      "queries", "episodes", "redrawn" (how often an episode was drawn again), and "classes":
      {name: examples} of those that are drawn from.

    Raises:
      UserError: a number is out of range, a vector is not finite, fewer than ``ways`` classes have
        shots + 1 examples (with groups: so many that one is in another dialogue than ``shots``
        others), or their dialogues cannot be kept apart.
      ValueError: the shapes do not fit.
    """
    vectors, labels = np.asarray(vectors), np.asarray(labels)
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        raise ValueError(f"expected [N, D] and [N], found {vectors.shape} and {labels.shape}")
    if groups is not None and np.shape(groups) != labels.shape:
        raise ValueError(f"{labels.shape} labels, but groups {np.shape(groups)}")
    for name, value, least in (
        ("ways", ways, 2),
        ("shots", shots, 1),
        ("queries", queries, 1),
        ("episodes", episodes, 2),
    ):
        if value < least:
            raise UserError(f"few-shot episodes: {name} is {value}, expected at least {least}")
    labelled = labels >= 0
    vectors, labels = vectors[labelled], labels[labelled]
    if not_finite := int((~np.isfinite(vectors)).any(axis=1).sum()):
        raise UserError(
            f"few-shot episodes: {not_finite} of {len(vectors)} labelled utterances have vectors "
            "with NaN or infinite numbers; was the encoder's training stable?"
        )
    # Without dialogues each utterance is its own: support and queries just differ.
    dialogues = np.arange(len(labels)) if groups is None else np.asarray(groups)[labelled]
    dialogues = np.unique(dialogues, return_inverse=True)[1]
    task = _Task(vectors, dialogues, ways, shots, queries)
    members = {int(c): np.flatnonzero(labels == c) for c in np.unique(labels)}
    title = {c: str(c) if names is None else names[c] for c in members}
    fit = task.fit(members)
    if len(fit) < ways:
        where = "" if groups is None else ", one of them in another dialogue than the rest"
        found = ", ".join(f"{title[c]} {len(of_class):,}" for c, of_class in members.items())
        raise UserError(
            f"few-shot episodes: {ways} ways with {shots} shots need {ways} classes of at least "
            f"{shots + 1} examples{where}; {len(fit)} have them. Found: "
            f"{found or 'no labelled utterance'}. Ask for fewer ways or shots, or label more"
        )

    rng = np.random.default_rng(seed)
    accuracies, redrawn = task.accuracies(rng, fit, episodes)
    if len(accuracies) < episodes:
        raise UserError(
            f"few-shot episodes: {_REDRAWS} times the support left some class without a query in "
            f"another dialogue ({dialogues.max() + 1} dialogues in all); ask for fewer ways or "
            "shots, or label more dialogues"
        )
    mean = float(accuracies.mean())
    error = float(accuracies.std(ddof=1)) / episodes**0.5
    result: dict[str, Any] = {"accuracy": mean, "interval": _interval(mean, error)}
    if groups is not None:
        spread = _spread_over_dialogues(rng, task, fit)
        both = None if spread is None else _interval(mean, (spread**2 + error**2) ** 0.5)
        result["interval_dialogues"] = both
    return result | {
        "chance": 1 / ways,
        "ways": ways,
        "shots": shots,
        "queries": queries,
        "episodes": episodes,
        "redrawn": redrawn,
        "classes": {title[c]: len(of_class) for c, of_class in fit.items()},
    }


@dataclasses.dataclass(frozen=True)
class _Task:
    """What episodes are made of, and how large they are; see ``episodes``."""

    vectors: np.ndarray  # [N, D]
    dialogues: np.ndarray  # int [N], from 0
    ways: int
    shots: int
    queries: int

    def fit(self, members: Members) -> Members:
        """The classes that have ``shots`` examples and one more in another dialogue."""
        return {
            c: of_class
            for c, of_class in members.items()
            if len(of_class)
            and len(of_class) - _counts(self.dialogues[of_class]).min() >= self.shots
        }

    def accuracies(
        self, rng: np.random.Generator, members: Members, episodes: int
    ) -> tuple[np.ndarray, int]:
        """Balanced accuracy float [episodes] of each, and how often one was drawn again.

        Fewer if one cannot be drawn.

        Args:
          rng: draws them.
          members: at least ``ways`` classes, all of them fit.
          episodes: how many.
        """
        accuracies: list[float] = []
        redrawn = in_a_row = 0
        while len(accuracies) < episodes and in_a_row < _REDRAWS:
            support, queries = self.draw(rng, members)
            if all(len(of_class) for of_class in queries):
                accuracies.append(self._score(support, queries))
                in_a_row = 0
            else:
                in_a_row += 1
                redrawn += 1
        return np.array(accuracies), redrawn

    def draw(
        self, rng: np.random.Generator, members: Members
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Utterances of an episode, per class: the support int [shots], and at most ``queries``.

        A class may be left without queries.
        """
        classes = rng.choice(list(members), self.ways, replace=False)
        support = [rng.choice(members[c], self.shots, replace=False) for c in classes]
        taken = np.zeros(self.dialogues.max() + 1, bool)
        taken[self.dialogues[np.concatenate(support)]] = True
        queries = []
        for c in classes:
            free = members[c][~taken[self.dialogues[members[c]]]]
            queries.append(rng.choice(free, min(self.queries, len(free)), replace=False))
        return support, queries

    def _score(self, support: list[np.ndarray], queries: list[np.ndarray]) -> float:
        centroids = self.vectors[np.stack(support)].mean(axis=1)  # [ways, D]
        recalls = []
        for c, of_class in enumerate(queries):
            distances = np.linalg.norm(self.vectors[of_class][:, None] - centroids, axis=-1)
            recalls.append((distances.argmin(axis=-1) == c).mean())
        return float(np.mean(recalls))


def _spread_over_dialogues(rng: np.random.Generator, task: _Task, members: Members) -> float | None:
    """Standard deviation of the accuracy over resamples of the dialogues, without their own noise.

    None if most resamples have no episodes.
    """
    n = int(task.dialogues.max()) + 1
    resamples = []
    for _ in range(2 * _RESAMPLES):
        times = np.bincount(rng.integers(n, size=n), minlength=n)
        fit = task.fit({c: np.repeat(m, times[task.dialogues[m]]) for c, m in members.items()})
        if len(fit) >= task.ways:
            accuracies, _ = task.accuracies(rng, fit, _EPISODES_EACH)
            if len(accuracies) == _EPISODES_EACH:
                resamples.append(accuracies)
        if len(resamples) == _RESAMPLES:
            break
    else:
        return None
    table = np.array(resamples)  # [R, episodes]
    between = table.mean(axis=1).var(ddof=1)
    within = table.var(axis=1, ddof=1).mean() / _EPISODES_EACH
    return float(max(between - within, 0.0)) ** 0.5


def _counts(items: np.ndarray) -> np.ndarray:
    """How often each distinct item occurs."""
    return np.unique(items, return_counts=True)[1]


def _interval(mean: float, error: float) -> list[float]:
    """95% of a normal distribution, within what an accuracy can be."""
    return [max(mean - _Z * error, 0.0), min(mean + _Z * error, 1.0)]
