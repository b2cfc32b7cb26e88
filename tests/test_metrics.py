import json
import time

import numpy as np
import pytest

from erc_jax import metrics
from erc_jax.data.labels import UNLABELLED

NAMES = ("neutral", "joy", "anger", "fear", "sadness")


def sklearn_block(targets, predictions, names, neutral):
    """What scikit-learn says of the labelled utterances, in the layout of ``metrics.block``."""
    from sklearn import metrics as sk

    labels = list(range(len(names)))
    known = targets != UNLABELLED
    targets, predictions = targets[known], predictions[known]

    def f1(average, labels):
        return sk.f1_score(targets, predictions, labels=labels, average=average, zero_division=0)

    result = {
        "accuracy": sk.accuracy_score(targets, predictions),
        "weighted_f1": f1("weighted", labels),
        "macro_f1": f1("macro", labels),
        "micro_f1": f1("micro", labels),
        "mcc": sk.matthews_corrcoef(targets, predictions),
        "confusion": sk.confusion_matrix(targets, predictions, labels=labels).tolist(),
    }
    if neutral is not None:
        rest = [label for label in labels if names[label] != neutral]
        result["micro_f1_no_neutral"] = f1("micro", rest)
        result["macro_f1_no_neutral"] = f1("macro", rest)
    columns = sk.precision_recall_fscore_support(
        targets, predictions, labels=labels, zero_division=0
    )
    result["per_class"] = {
        name: dict(zip(("precision", "recall", "f1", "support"), map(float, row), strict=True))
        for name, row in zip(names, zip(*columns, strict=True), strict=True)
    }
    return result


def flat(tree, path=()):
    if isinstance(tree, dict):
        return {k: v for key in tree for k, v in flat(tree[key], (*path, key)).items()}
    return {path: tree}


def assert_close(found, expected):
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=0, atol=1e-12, err_msg=str(path))


def drawn(seed, n, true_classes, predicted_classes, masked=0.0):
    rng = np.random.default_rng(seed)
    targets = rng.choice(true_classes, n)
    targets[rng.random(n) < masked] = UNLABELLED
    agree = (rng.random(n) < 0.5) & np.isin(targets, predicted_classes)
    return targets, np.where(agree, targets, rng.choice(predicted_classes, n))


CASES = {
    "all classes": ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], 0.0),
    "masked": ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], 0.4),
    "never predicted": ([0, 1, 2, 3, 4], [0, 1], 0.1),
    "predicted but absent": ([0, 1], [0, 1, 2, 3, 4], 0.1),
    "absent from both": ([1, 2], [1, 4], 0.0),
    "only neutral is true": ([0], [0, 1, 2], 0.0),
    "only neutral is predicted": ([0, 1, 2], [0], 0.0),
    "one class only": ([3], [3], 0.0),
    "neutral only": ([0], [0], 0.0),
    "always wrong": ([1], [2], 0.0),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("neutral", ["neutral", "anger", None])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_block_is_what_sklearn_says(case, neutral):
    pytest.importorskip("sklearn")
    for seed, n in enumerate((300, 20, 1)):
        targets, predictions = drawn(seed, n, *case)
        if (targets == UNLABELLED).all():
            continue
        counts = metrics.confusion(targets, predictions, len(NAMES))
        assert counts.dtype == np.int64
        found = metrics.block(counts, NAMES, neutral)
        assert_close(found, sklearn_block(targets, predictions, NAMES, neutral))


def test_scores_are_vectorised_over_leading_axes():
    counts = np.random.default_rng(0).integers(0, 9, (2, 3, 5, 5))
    together = metrics.scores(counts, NAMES, "neutral")
    for i, j in np.ndindex(2, 3):
        alone = flat(metrics.scores(counts[i, j], NAMES, "neutral"))
        for path, leaf in flat(together).items():
            assert (leaf.shape, leaf.dtype) == ((2, 3), np.float64)
            assert leaf[i, j] == alone[path]


def test_order_and_masked_utterances_do_not_matter():
    targets, predictions = drawn(0, 200, range(5), range(5), masked=0.3)
    counts = metrics.confusion(targets, predictions, 5)
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_array_equal(metrics.confusion(targets[order], predictions[order], 5), counts)
    noise = np.where(targets == UNLABELLED, UNLABELLED, predictions)
    np.testing.assert_array_equal(metrics.confusion(targets, noise, 5), counts)


def test_without_labels_everything_is_zero():
    nothing = metrics.confusion(np.full(3, UNLABELLED), np.array([0, 1, 2]), 5)
    for found in (
        metrics.block(nothing, NAMES, "neutral"),
        metrics.aggregate(np.zeros((2, 4, 5, 5), int), NAMES, "neutral"),
        metrics.aggregate(np.zeros((2, 0, 5, 5), int), NAMES, "neutral"),
    ):
        assert all(np.all(np.asarray(leaf) == 0.0) for leaf in flat(found).values())
    alone = metrics.block(np.array([[3]]), ["neutral"], "neutral")
    assert (alone["accuracy"], alone["macro_f1_no_neutral"], alone["mcc"]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("targets", "predictions"), [([0, 5], [0, 1]), ([0, 1], [0, -1]), ([-2], [0]), ([0, 1], [0])]
)
def test_impossible_classes_and_lengths_are_refused(targets, predictions):
    with pytest.raises(ValueError, match="expected"):
        metrics.confusion(np.array(targets), np.array(predictions), 5)


def test_blocks_are_json():
    counts = np.random.default_rng(0).integers(0, 9, (2, 3, 5, 5))
    found = metrics.block(counts[0, 0], NAMES, "neutral")
    assert json.loads(json.dumps(found)) == found
    assert type(found["accuracy"]) is float
    assert type(found["per_class"]["joy"]["support"]) is int
    found = metrics.aggregate(counts, NAMES, None, resamples=10)
    assert json.loads(json.dumps(found)) == found
    assert type(found["per_class"]["joy"]["support"]) is int


def test_aggregate_of_one_seed_is_its_block():
    counts = np.random.default_rng(0).integers(0, 9, (1, 30, 5, 5))
    found = metrics.aggregate(counts, NAMES, "neutral", resamples=50)
    std, interval = found.pop("std"), found.pop("interval")
    assert found == metrics.block(counts.sum((0, 1)), NAMES, "neutral")
    assert set(flat(std).values()) == {0.0}
    scalars = {path for path in flat(found) if path[-1] not in ("support", "confusion")}
    assert flat(std).keys() == flat(interval).keys() == scalars


def test_aggregate_of_three_seeds_by_hand():
    # Two dialogues of two utterances each; accuracies 1, 0.75 and 0.5.
    counts = np.array(
        [
            [[[1, 0], [0, 1]], [[2, 0], [0, 0]]],
            [[[1, 0], [1, 0]], [[2, 0], [0, 0]]],
            [[[0, 1], [1, 0]], [[2, 0], [0, 0]]],
        ]
    )
    found = metrics.aggregate(counts, ["a", "b"], None, resamples=4000)
    assert found["confusion"] == [[8, 1], [2, 1]]
    assert [found["per_class"][name]["support"] for name in "ab"] == [9, 3]
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["std"]["accuracy"] == pytest.approx(0.25)
    # Recall of b, seed by seed: 1, 0, 0.
    assert found["per_class"]["b"]["recall"] == pytest.approx(1 / 3)
    assert found["std"]["per_class"]["b"]["recall"] == pytest.approx(np.sqrt(1 / 3))
    # Twice the first dialogue (1 in 4) leaves the seeds' accuracies at 1, 0.5, 0. Their mean is
    # then 0 for one of 27 draws of seeds (0.9% in all) and 1/6 for three more (3.7% in all): the
    # 2.5% quantile is 1/6. Twice the second dialogue (1 in 4) is 1 whatever the seeds.
    low, high = found["interval"]["accuracy"]
    assert (low, high) == (pytest.approx(1 / 6), 1.0)


def test_bootstrap_is_that_of_a_plain_loop():
    counts = np.random.default_rng(3).integers(0, 4, (3, 12, 5, 5))
    found = metrics.aggregate(counts, NAMES, "neutral", resamples=2000)
    rng = np.random.default_rng(99)
    means = []
    for _ in range(2000):
        dialogues, seeds = rng.integers(12, size=12), rng.integers(3, size=3)
        drawn_counts = counts[seeds][:, dialogues].sum(1)
        means.append(metrics.scores(drawn_counts, NAMES, "neutral")["macro_f1"].mean())
    # Other random numbers: the ends agree up to Monte Carlo error.
    width = np.ptp(np.percentile(means, [2.5, 97.5]))
    np.testing.assert_allclose(
        found["interval"]["macro_f1"], np.percentile(means, [2.5, 97.5]), atol=0.1 * width
    )


def test_bootstrap_repeats_and_holds_the_mean():
    targets, predictions = drawn(0, 3 * 60 * 10, range(5), range(5))
    counts = np.stack(
        [
            metrics.confusion(t, p, 5)
            for t, p in zip(targets.reshape(180, 10), predictions.reshape(180, 10), strict=True)
        ]
    ).reshape(3, 60, 5, 5)
    found = metrics.aggregate(counts, NAMES, "neutral")
    assert found == metrics.aggregate(counts, NAMES, "neutral")
    assert found["interval"] != metrics.aggregate(counts, NAMES, "neutral", seed=1)["interval"]
    for path, (low, high) in flat(found["interval"]).items():
        assert low < flat(found)[path] < high, path


def test_bootstrap_is_fast():
    counts = np.random.default_rng(0).integers(0, 3, (10, 1000, 7, 7))
    start = time.process_time()
    metrics.aggregate(counts, [str(i) for i in range(7)], "0")
    assert time.process_time() - start < 3.0


def test_paired_difference_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    ours = rng.integers(0, 5, (2, 7, 3, 3))
    theirs = rng.integers(0, 5, (3, 7, 3, 3))
    names = NAMES[:3]
    found = metrics.paired_difference(ours, theirs, names, "neutral", resamples=50, seed=4)

    def mean(counts):
        runs = [metrics.block(of_seed, names, "neutral") for of_seed in counts]
        return np.mean([run["weighted_f1"] for run in runs])

    assert found["weighted_f1"]["difference"] == pytest.approx(
        mean(ours.sum(1)) - mean(theirs.sum(1))
    )
    rng = np.random.default_rng(4)
    dialogues = rng.integers(7, size=(50, 7))
    ours_seeds = rng.integers(2, size=(50, 2))
    their_seeds = rng.integers(3, size=(50, 3))
    differences = [
        mean(ours[a][:, d].sum(1)) - mean(theirs[b][:, d].sum(1))
        for d, a, b in zip(dialogues, ours_seeds, their_seeds, strict=True)
    ]
    assert found["weighted_f1"]["interval"] == pytest.approx(
        np.percentile(differences, [2.5, 97.5]).tolist()
    )
    assert set(found["per_class"]["joy"]["f1"]) == {"difference", "interval"}


def test_paired_difference_knows_a_better_system():
    """Dialogues differ far more than the systems do: only pairing tells them apart."""
    rng = np.random.default_rng(0)
    n = rng.integers(4, 40, 60)
    hits = rng.binomial(n, rng.uniform(0.1, 0.9, 60))
    theirs = np.array([[[[h, m - h], [m - h, h]] for h, m in zip(hits, n, strict=True)]])
    ours = theirs.copy()
    ours[0, ::3] += np.array([[1, -1], [-1, 1]]) * (hits < n)[::3, None, None]
    found = metrics.paired_difference(ours, theirs, ("a", "b"), None)["accuracy"]
    low, high = found["interval"]
    assert 0 < low < found["difference"] < high
    same = metrics.paired_difference(theirs, theirs, ("a", "b"), None)["accuracy"]
    assert same == {"difference": 0.0, "interval": [0.0, 0.0]}


def test_over_seeds():
    runs = [
        {"way": way, "n": n, "of": {"f1": n / 2, "chance": {"f1": 0.5}}}
        for way, n in (("knn", 1), ("head", 2), ("head", 6))
    ]
    assert metrics.over_seeds(runs) == {
        "way": "head, knn",
        "n": 3.0,
        "of": {"f1": 1.5, "chance": {"f1": 0.5, "std": {"f1": 0.0}}, "std": {"f1": 7**0.5 / 2}},
        "std": {"n": pytest.approx(7**0.5)},
    }
    assert metrics.over_seeds(runs[:1]) == runs[0]
    assert metrics.over_seeds([{"way": "knn"}] * 2) == {"way": "knn"}
    assert metrics.over_seeds([{}, {}]) == {}


def test_over_seeds_of_a_block_counts_as_aggregate_does():
    """Utterances of a class are those of all seeds, as in the confusion matrix."""
    counts = np.array([[[3, 1], [2, 2]], [[4, 0], [1, 3]]])
    names = ("joy", "fear")
    found = metrics.over_seeds([metrics.block(of_seed, names, None) for of_seed in counts])
    aggregated = metrics.aggregate(counts[:, None], names, None, resamples=1)
    assert found["confusion"] == aggregated["confusion"] == [[7, 1], [3, 5]]
    for name in names:
        of_class = dict(found["per_class"][name])
        spreads = of_class.pop("std")
        assert of_class == pytest.approx(aggregated["per_class"][name])
        assert spreads == pytest.approx(aggregated["std"]["per_class"][name])


def test_agreement_by_hand():
    target, predicted = np.array([1.0, 2.0, 3.0, 6.0]), np.array([2.0, 2.0, 4.0, 4.0])
    # Means 3 and 3; variances 14 / 4 and 4 / 4; covariance (2 + 1 + 0 + 3) / 4.
    expected = {"ccc": 2 * 1.5 / (3.5 + 1.0), "pearson": 1.5 / 3.5**0.5, "mse": 1.5}
    assert metrics.agreement(target, predicted) == pytest.approx(expected)
    # What is off by 2 correlates as before, but agrees less.
    expected |= {"ccc": 2 * 1.5 / (3.5 + 1.0 + 4.0), "mse": 1.5 + 4.0}
    assert metrics.agreement(target, predicted + 2) == pytest.approx(expected)


def test_agreement_is_that_of_numpy():
    rng = np.random.default_rng(0)
    target = rng.uniform(1, 5, 200)
    predicted = (0.3 * target + rng.normal(2, 0.5, 200)).astype(np.float32)
    found = metrics.agreement(target, predicted)
    (var_t, cov), (_, var_p) = np.cov(target, predicted, bias=True)
    assert found["pearson"] == pytest.approx(np.corrcoef(target, predicted)[0, 1])
    gap = target.mean() - predicted.mean(dtype=np.float64)
    assert found["ccc"] == pytest.approx(2 * cov / (var_t + var_p + gap**2))
    assert found["mse"] == pytest.approx(var_t + var_p - 2 * cov + gap**2)
    assert json.loads(json.dumps(found)) == found
    assert metrics.agreement(target, target) == pytest.approx(
        {"ccc": 1.0, "pearson": 1.0, "mse": 0.0}
    )
    assert metrics.agreement(target, 6 - target)["pearson"] == pytest.approx(-1.0)


@pytest.mark.parametrize("constant", [0.1, 3.0])
def test_agreement_with_what_does_not_vary(constant):
    """0.1 has a mean that is not exactly 0.1: rounding must not pass for a correlation."""
    varied = np.array([0.1, 0.2, 0.4])
    same = np.full(3, constant)
    for pair in ((varied, same), (same, varied)):
        error = np.mean((varied - constant) ** 2)
        assert metrics.agreement(*pair) == {"ccc": 0.0, "pearson": 0.0, "mse": error}
    assert metrics.agreement(same, same) == {"ccc": 0.0, "pearson": 0.0, "mse": 0.0}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("unseen", [(3,), (1, 4)])
@pytest.mark.parametrize("predicted", [(0, 1, 2, 3, 4), (0, 2), (3,)], ids=["all", "seen", "fear"])
def test_zero_shot_is_what_sklearn_says(unseen, predicted):
    sk = pytest.importorskip("sklearn.metrics")
    targets, predictions = drawn(0, 400, range(5), predicted)
    found = metrics.zero_shot(metrics.confusion(targets, predictions, 5), unseen)
    rest = [c for c in range(5) if c not in unseen]
    hidden = np.isin(targets, unseen)
    kwargs = {"labels": list(unseen), "zero_division": 0}
    recall = sk.recall_score(targets, predictions, average="macro", **kwargs)
    of_seen = sk.accuracy_score(targets[~hidden], predictions[~hidden])
    expected = {
        "unseen_recall": recall,
        "unseen_f1": sk.f1_score(targets, predictions, average="macro", **kwargs),
        "unseen_f1_subset": sk.f1_score(
            targets[hidden], predictions[hidden], average="weighted", **kwargs
        ),
        "seen_recall": of_seen,
        "harmonic_mean": 2 * recall * of_seen / (recall + of_seen) if recall + of_seen else 0.0,
        "accuracy": sk.accuracy_score(targets, predictions),
        "weighted_f1": sk.f1_score(targets, predictions, average="weighted", zero_division=0),
    }
    assert found == pytest.approx(expected)
    assert of_seen == pytest.approx(
        sk.recall_score(targets, predictions, labels=rest, average="micro")
    )
    assert json.loads(json.dumps(found)) == found


def test_zero_shot_by_hand():
    """Three classes, the last unseen: 3 of its 4 are hit, one other utterance is taken for it."""
    found = metrics.zero_shot(np.array([[5, 0, 1], [2, 2, 0], [1, 0, 3]]), [2])
    assert found == pytest.approx(
        {
            "unseen_recall": 3 / 4,
            "unseen_f1": 2 * 3 / (4 + 4),
            "unseen_f1_subset": 2 * 3 / (4 + 3),
            "seen_recall": 7 / 10,
            "harmonic_mean": 2 * 0.75 * 0.7 / (0.75 + 0.7),
            "accuracy": 10 / 14,
            "weighted_f1": (6 * 10 / 14 + 4 * 4 / 6 + 4 * 6 / 8) / 14,
        }
    )


@pytest.mark.parametrize("hits", range(5))
def test_the_papers_unseen_f1_says_no_more_than_recall(hits):
    """2a / (1 + a) of the unseen accuracy a, whatever is answered on other utterances."""
    a = hits / 4
    for others in ([[9, 0], [0, 0]], [[0, 9], [0, 0]]):
        counts = np.array(others)
        counts[1] = 4 - hits, hits
        found = metrics.zero_shot(counts, [1])
        assert found["unseen_recall"] == a
        assert found["unseen_f1_subset"] == pytest.approx(2 * a / (1 + a))
    assert found["seen_recall"] == found["harmonic_mean"] == 0.0


def test_zero_shot_of_a_class_that_is_not_there():
    """Of two that were held out, the split has one: the other has no share in the means."""
    counts = np.array([[5, 1, 0], [1, 3, 2], [0, 0, 0]])
    found = metrics.zero_shot(counts, [1, 2])
    assert found["unseen_recall"] == 0.5
    assert found["unseen_f1"] == pytest.approx(2 * 3 / (6 + 4))
    assert found["unseen_f1_subset"] == pytest.approx(2 * 3 / (6 + 3))
