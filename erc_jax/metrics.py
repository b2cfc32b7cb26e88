"""Scores of a classification, all of them functions of its confusion matrix.

A confusion matrix [C, C] holds counts: rows are true classes, columns predicted ones. Counts of
batches, dialogues or seeds add up, and are divided once. Every definition equals scikit-learn's
with ``zero_division=0``; what is undefined (no labelled utterance at all) is 0, never NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from erc_jax.data.labels import UNLABELLED

# How the scores of ``scores`` that people compare are called.
SCORE_NAMES = {
    "accuracy": "accuracy",
    "weighted_f1": "weighted F1",
    "macro_f1": "macro F1",
    "micro_f1_no_neutral": "micro F1 without neutral",
    "macro_f1_no_neutral": "macro F1 without neutral",
    "mcc": "MCC",
}


def confusion(targets: np.ndarray, predictions: np.ndarray, n_classes: int) -> np.ndarray:
    """Counts each pair of a true and a predicted class.

    Args:
      targets: int [N], UNLABELLED where the truth is not known; these are left out.
      predictions: int [N].
      n_classes: C.

    Returns:
      int64 [C, C], rows true, columns predicted.

    Raises:
      ValueError: the lengths differ, or a class is not in [0, C).
    """
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    if targets.shape != predictions.shape or targets.ndim != 1:
        raise ValueError(f"expected two [N], found {targets.shape} and {predictions.shape}")
    known = targets != UNLABELLED
    pairs = np.stack([targets[known], predictions[known]]).astype(np.int64)
    if pairs.size and (pairs.min() < 0 or pairs.max() >= n_classes):
        raise ValueError(f"classes {pairs.min()} to {pairs.max()}, expected 0 to {n_classes - 1}")
    counts = np.bincount(pairs[0] * n_classes + pairs[1], minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def scores(confusion: np.ndarray, names: Sequence[str], neutral: str | None) -> dict[str, Any]:
    """Every score of every confusion matrix.

    Args:
      confusion: counts [..., C, C].
      names: the C classes.
      neutral: the class that the ``..._no_neutral`` scores leave out of their averages; None
        leaves those scores out.

    Returns:
      A nested dict whose leaves are float64 [...]: accuracy, weighted_f1, macro_f1 (over all C
      classes, also those that do not occur), micro_f1, micro_f1_no_neutral,
      macro_f1_no_neutral, mcc, and per_class {name: {precision, recall, f1, support}}.
    """
    counts = np.asarray(confusion, np.float64)
    if counts.shape[-2:] != (len(names), len(names)):
        raise ValueError(f"{len(names)} names for confusion matrices {counts.shape}")
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    support, predicted = counts.sum(-1), counts.sum(-2)
    total = support.sum(-1)
    f1 = _ratio(2 * hits, support + predicted)
    accuracy = _ratio(hits.sum(-1), total)
    result: dict[str, Any] = {
        "accuracy": accuracy,
        "weighted_f1": _ratio((f1 * support).sum(-1), total),
        "macro_f1": f1.mean(-1),
        "micro_f1": accuracy,  # equal, where every utterance has exactly one class
    }
    if neutral is not None:
        rest = np.arange(len(names)) != list(names).index(neutral)
        result["micro_f1_no_neutral"] = _ratio(
            2 * hits[..., rest].sum(-1), (support + predicted)[..., rest].sum(-1)
        )
        # With neutral as the only class nothing is left to average.
        result["macro_f1_no_neutral"] = _ratio(f1[..., rest].sum(-1), rest.sum())
    result["mcc"] = _ratio(
        hits.sum(-1) * total - (support * predicted).sum(-1),
        np.sqrt((total**2 - (support**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))),
    )
    columns = {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "f1": f1,
        "support": support,
    }
    result["per_class"] = {
        name: {key: values[..., i] for key, values in columns.items()}
        for i, name in enumerate(names)
    }
    return result


def block(confusion: np.ndarray, names: Sequence[str], neutral: str | None) -> dict[str, Any]:
    """The scores of one confusion matrix [C, C], with the matrix itself, ready for JSON."""
    return _with_counts(_map_scores(float, scores(confusion, names, neutral)), confusion, names)


def aggregate(
    confusions: np.ndarray,
    names: Sequence[str],
    neutral: str | None,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """The block of several seeds' runs on the same dialogues, with how far it can be trusted.

    Args:
      confusions: counts [K, M, C, C] of K seeds and M dialogues.
      names: the C classes.
      neutral: as for ``scores``.
      seed: of the bootstrap's random numbers.
      resamples: how many bootstrap samples are drawn.

    Returns:
      As ``block``: the scores are means over seeds, "confusion" and "support" are sums over
      seeds. In addition "std" and "interval" mirror every score. std is the sample standard
      deviation over seeds (ddof=1; 0.0 for one seed). interval is [low, high], the 95% percentile
      bootstrap of the mean over seeds: each resample draws M dialogues and K seeds with
      replacement, the same dialogues for all of its seeds, so that it covers both another test
      set and another initialisation.
    """
    confusions = np.asarray(confusions)
    n_seeds, n_dialogues = confusions.shape[:2]
    rng = np.random.default_rng(seed)
    dialogues_drawn = _times_drawn(rng, resamples, n_dialogues)
    seeds_drawn = _times_drawn(rng, resamples, n_seeds)

    by_seed = scores(confusions.sum(1), names, neutral)
    result = _map_scores(lambda leaf: float(leaf.mean()), by_seed)
    result["std"] = _map_scores(
        lambda leaf: float(leaf.std(ddof=1)) if n_seeds > 1 else 0.0, by_seed
    )
    result["interval"] = _map_scores(
        _interval, _resampled_means(confusions, dialogues_drawn, seeds_drawn, names, neutral)
    )
    return _with_counts(result, confusions.sum((0, 1)), names)


def agreement(target: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """How well ratings are met: concordance and Pearson correlation, and mean squared error.

    A correlation with what does not vary is 0.

    Args:
      target: float [N], N at least 1.
      predicted: float [N], on the same scale.
    """
    target, predicted = target.astype(np.float64), predicted.astype(np.float64)
    covariance = np.mean((target - target.mean()) * (predicted - predicted.mean()))
    spread = target.std() * predicted.std()
    total = target.var() + predicted.var() + (target.mean() - predicted.mean()) ** 2
    # Not by their deviations: the mean of equal numbers can be off by rounding.
    varies = np.ptp(target) > 0 and np.ptp(predicted) > 0
    return {
        "ccc": float(2 * covariance / total) if varies else 0.0,
        "pearson": float(covariance / spread) if varies else 0.0,
        "mse": float(np.mean((target - predicted) ** 2)),
    }


def zero_shot(confusion: np.ndarray, unseen: Sequence[int]) -> dict[str, float]:
    """Scores of emotions that training did not see (FMERL, table 2), of a whole split.

    Args:
      confusion: counts [C, C], rows true, columns predicted.
      unseen: the classes that were held out; the split has utterances of them.

    Returns:
      ``unseen_recall``; ``unseen_f1``, one against the rest on all utterances; both are means over
      several unseen classes. ``unseen_f1_subset``, the paper's: on the unseen utterances alone,
      where precision is 1 (weighted by support). ``seen_recall``, the mean over utterances of other
      emotions; ``harmonic_mean`` of both recalls; ``accuracy`` and ``weighted_f1`` on all classes.
    """
    counts = np.asarray(confusion, np.float64)
    support, predicted, hits = counts.sum(1), counts.sum(0), np.diagonal(counts)
    chosen = [c for c in unseen if support[c] > 0]
    seen = np.setdiff1d(np.arange(len(counts)), unseen)
    recall = _ratio(hits, support)
    f1 = _ratio(2 * hits, support + predicted)
    unseen_recall = float(recall[chosen].mean())
    seen_recall = float(_ratio(hits[seen].sum(), support[seen].sum()))
    shares = support[chosen] / support[chosen].sum()
    # Of the unseen utterances alone: what is predicted there.
    within = counts[chosen].sum(0)
    subset = _ratio(2 * hits[chosen], support[chosen] + within[chosen])
    return {
        "unseen_recall": unseen_recall,
        "unseen_f1": float(f1[chosen].mean()),
        "unseen_f1_subset": float((subset * shares).sum()),
        "seen_recall": seen_recall,
        "harmonic_mean": float(
            _ratio(np.array(2 * unseen_recall * seen_recall), np.array(unseen_recall + seen_recall))
        ),
        "accuracy": float(hits.sum() / counts.sum()),
        "weighted_f1": float((f1 * support).sum() / counts.sum()),
    }


def over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of numbers over seeds, with ``std`` mirroring them; of one seed, as they are.

    Args:
      runs: of each seed the same names, with numbers, words, counts as lists, or mappings of
        these. Words that differ among seeds are listed, the most frequent first; lists, and
        ``support``, are counts, which are summed.
    """
    if len(runs) == 1:
        return dict(runs[0])
    means: dict[str, Any] = {}
    spreads: dict[str, float] = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        if isinstance(values[0], Mapping):
            means[name] = over_seeds(values)
        elif isinstance(values[0], str):
            means[name] = ", ".join(word for word, _ in Counter(values).most_common())
        elif isinstance(values[0], list):
            means[name] = np.sum(values, axis=0).tolist()
        elif name == "support":
            means[name] = sum(values)
        else:
            means[name] = float(np.mean(values))
            spreads[name] = float(np.std(values, ddof=1))
    return {**means, "std": spreads} if spreads else means


LOWER_IS_BETTER = ("perplexity",)


def selection_score(block: Mapping[str, Any], metric: str) -> float:
    """What a checkpoint is chosen by: a score that is the better the higher it is.

    Args:
      block: scores of a split.
      metric: the name of one, such as "weighted_f1" or "heads.E6.macro_f1".

    Raises:
      KeyError: there is no such score.
    """
    value: Any = block
    for name in metric.split("."):
        value = value[name]
    return shown_score(float(value), metric)


def best_of(blocks: Sequence[Mapping[str, Any]], metric: str) -> int:
    """Which of several runs predicts: the place of the best selection score, the first of equals.

    Args:
      blocks: scores of each run's selection split.
      metric: as of ``selection_score``.
    """
    return int(np.argmax([selection_score(block, metric) for block in blocks]))


def shown_score(score: float, metric: str) -> float:
    """What people read for a selection score: a perplexity, whose inverse is chosen by."""
    return 1.0 / score if metric in LOWER_IS_BETTER else score


def paired_difference(
    ours: np.ndarray,
    theirs: np.ndarray,
    names: Sequence[str],
    neutral: str | None,
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> dict[str, Any]:
    """By how much one system's scores are above another's on the same dialogues.

    Args:
      ours: counts [K, M, C, C] of K seeds and M dialogues.
      theirs: counts [L, M, C, C] of L seeds and the same dialogues.
      names: the C classes.
      neutral: as for ``scores``.
      seed: of the bootstrap's random numbers.
      resamples: how many bootstrap samples are drawn.

    Returns:
      As ``block`` without counts; in place of every score {"difference": of the means over seeds,
      "interval": [low, high]}, the 95% percentile bootstrap, whose resamples draw the same
      dialogues for both, and each one's seeds.
    """
    rng = np.random.default_rng(seed)
    drawn = _times_drawn(rng, resamples, ours.shape[1])
    means, resampled = [], []
    for counts in (np.asarray(ours), np.asarray(theirs)):
        seeds_drawn = _times_drawn(rng, resamples, len(counts))
        means.append(_map_scores(np.mean, scores(counts.sum(1), names, neutral)))
        resampled.append(_resampled_means(counts, drawn, seeds_drawn, names, neutral))

    def of(mean_a: Any, mean_b: Any, a: Any, b: Any) -> Any:
        if isinstance(mean_a, dict):
            return {key: of(mean_a[key], mean_b[key], a[key], b[key]) for key in mean_a}
        return {"difference": float(mean_a - mean_b), "interval": _interval(a - b)}

    return of(*means, *resampled)


def _resampled_means(
    confusions: np.ndarray,
    dialogues_drawn: np.ndarray,
    seeds_drawn: np.ndarray,
    names: Sequence[str],
    neutral: str | None,
) -> dict[str, Any]:
    """Mean over the seeds of every score, float64 [R], in each of R resamples.

    Args:
      confusions: counts [K, M, C, C].
      dialogues_drawn: how often each dialogue is drawn, [R, M].
      seeds_drawn: how often each seed is drawn, [R, K].
      names: as for ``scores``.
      neutral: as for ``scores``.
    """
    n_seeds, n_dialogues, n_classes, _ = confusions.shape
    # [R, M] @ [M, K*C*C]: one matrix product sums the counts of all resamples, exactly in float64.
    by_dialogue = confusions.swapaxes(0, 1).reshape(n_dialogues, n_seeds * n_classes**2)
    resampled = dialogues_drawn @ by_dialogue.astype(np.float64)
    resampled = resampled.reshape(-1, n_seeds, n_classes, n_classes)
    weights = seeds_drawn / n_seeds
    return _map_scores(lambda leaf: (leaf * weights).sum(-1), scores(resampled, names, neutral))


def _interval(samples: np.ndarray) -> list[float]:
    """The middle 95% of the samples."""
    return np.percentile(samples, [2.5, 97.5]).tolist()


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Their quotient in float64, 0 where the denominator is 0."""
    zeros = np.zeros(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)))
    return np.divide(numerator, denominator, out=zeros, where=denominator != 0)


def _map_scores(function: Callable[[np.ndarray], Any], tree: dict[str, Any]) -> dict[str, Any]:
    """Applies a function to every score; "support" is a count, not a score, and is left out."""
    return {
        key: _map_scores(function, value) if isinstance(value, dict) else function(value)
        for key, value in tree.items()
        if key != "support"
    }


def _with_counts(
    result: dict[str, Any], confusion: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    counts = np.asarray(confusion, np.int64)
    for name, support in zip(names, counts.sum(-1).tolist(), strict=True):
        result["per_class"][name]["support"] = support
    return {**result, "confusion": counts.tolist()}


def _times_drawn(rng: np.random.Generator, resamples: int, n: int) -> np.ndarray:
    """How often each of n items is drawn in n draws with replacement, float64 [resamples, n]."""
    if n == 0:
        return np.zeros((resamples, 0))
    draws = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(draws.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)
