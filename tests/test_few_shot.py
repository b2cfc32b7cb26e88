from typing import Any

import numpy as np
import pytest

from erc_jax.errors import UserError
from erc_jax.few_shot import _Task, episodes


def utterances(n_dialogues=40, length=10, classes=4, apart=0.0, seed=0):
    """Vectors [N, 8], labels [N], dialogues [N]; classes lie at ``apart`` on an axis each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n_dialogues * length)
    vectors = rng.normal(size=(len(labels), 8)) + apart * np.eye(classes, 8)[labels]
    return vectors.astype(np.float32), labels, np.repeat(np.arange(n_dialogues), length)


def test_separable_classes_are_told_apart():
    vectors, labels, dialogues = utterances(apart=30)
    result = episodes(vectors, labels, ways=4, shots=2, episodes=50, groups=dialogues)
    assert result["accuracy"] == 1
    assert result["interval"] == result["interval_dialogues"] == [1, 1]
    assert result["chance"] == 0.25
    assert (result["ways"], result["shots"], result["queries"]) == (4, 2, 15)
    assert result["classes"] == {str(c): int((labels == c).sum()) for c in range(4)}


def test_noise_is_at_chance():
    # So much noise that the episodes hardly meet the same utterance twice.
    vectors, labels, _ = utterances(n_dialogues=2000)
    result = episodes(vectors, labels, ways=4, shots=5, episodes=200)
    low, high = result["interval"]
    assert low < 0.25 < high
    assert high - low < 0.03
    assert "interval_dialogues" not in result


def test_accuracy_is_balanced():
    # All vectors are equal, so that every query gets the episode's first class: one recall is 1.
    labels = np.array([0] * 100 + [1] * 4)
    result = episodes(np.ones((104, 3), np.float32), labels, ways=2, shots=3, episodes=20)
    assert result["accuracy"] == 0.5
    assert result["interval"] == [0.5, 0.5]


def test_same_seed_same_numbers():
    vectors, labels, dialogues = utterances(apart=1)

    def with_seed(seed):
        return episodes(vectors, labels, ways=3, shots=1, episodes=30, seed=seed, groups=dialogues)

    assert with_seed(3) == with_seed(3)
    assert with_seed(3)["accuracy"] != with_seed(4)["accuracy"]


def test_support_and_queries_share_no_dialogue():
    vectors, labels, dialogues = utterances()
    task = _Task(vectors, dialogues, ways=3, shots=4, queries=6)
    members = {c: np.flatnonzero(labels == c) for c in range(4)}
    rng = np.random.default_rng(0)
    for _ in range(50):
        support, queries = task.draw(rng, members)
        assert [len(s) for s in support] == [4, 4, 4]
        assert all(0 < len(q) <= 6 for q in queries)
        for of_support, of_queries in zip(support, queries, strict=True):
            assert len(set(labels[[*of_support, *of_queries]])) == 1
            assert len({*of_support, *of_queries}) == len(of_support) + len(of_queries)
        shared = np.intersect1d(
            dialogues[np.concatenate(support)], dialogues[np.concatenate(queries)]
        )
        assert not shared.size


def test_dialogues_that_give_themselves_away_do_not_help():
    # Utterances say nothing of their label but through their dialogue, which has a single one.
    n_dialogues, length = 200, 10
    rng = np.random.default_rng(0)
    dialogues = np.repeat(np.arange(n_dialogues), length)
    labels = np.repeat(np.arange(n_dialogues) % 2, length)
    vectors = 30 * rng.normal(size=(n_dialogues, 8))[dialogues] + rng.normal(size=(2000, 8))
    kept_apart = episodes(vectors, labels, ways=2, shots=50, episodes=100, groups=dialogues)
    mixed = episodes(vectors, labels, ways=2, shots=50, episodes=100)
    low, high = kept_apart["interval_dialogues"]
    assert low < 0.5 < high
    assert mixed["accuracy"] > kept_apart["accuracy"] + 0.05


def test_unlabelled_utterances_take_no_part():
    vectors, labels, dialogues = utterances(apart=1)
    settings: dict[str, Any] = {"ways": 4, "shots": 2, "episodes": 20}
    result = episodes(vectors, labels, groups=dialogues, **settings)
    more = (
        np.concatenate([np.full((5, 8), np.nan, np.float32), vectors]),
        np.concatenate([np.full(5, -1), labels]),
    )
    groups = np.concatenate([np.full(5, 999), dialogues])
    assert episodes(*more, groups=groups, **settings) == result


@pytest.mark.slow
def test_interval_over_dialogues_covers_other_dialogues(monkeypatch):
    """Its standard error is the standard deviation over corpora; that over episodes is far off."""
    monkeypatch.setattr("erc_jax.few_shot._RESAMPLES", 60)  # more would take longer, 25 times
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 16))
    accuracies, errors, naive = [], [], []
    for seed in range(25):
        dialogues = np.repeat(np.arange(60), 12)
        labels = rng.integers(4, size=len(dialogues))
        usual = rng.random(len(labels)) < 0.4  # of its dialogue
        labels = np.where(usual, rng.integers(4, size=60)[dialogues], labels)
        vectors = 0.5 * centres[labels] + rng.normal(size=(60, 16))[dialogues]
        vectors += rng.normal(size=vectors.shape)
        result = episodes(
            vectors, labels, ways=4, shots=5, episodes=300, seed=seed, groups=dialogues
        )
        accuracies.append(result["accuracy"])
        errors.append(np.diff(result["interval_dialogues"]) / 3.92)
        naive.append(np.diff(result["interval"]) / 3.92)
    true = np.std(accuracies, ddof=1)  # itself known to about 15%
    assert 0.65 < np.mean(errors) / true < 1.5
    assert np.mean(naive) / true < 0.5


def test_too_few_classes():
    vectors, labels, _ = utterances()
    labels[labels == 2] = -1
    labels[np.flatnonzero(labels == 3)[5:]] = -1
    names = ["calm", "joy", "fear", "awe"]
    with pytest.raises(UserError, match=r"at least 6 examples; 2 have them.*joy \d+, awe 5"):
        episodes(vectors, labels, ways=3, shots=5, names=names)
    result = episodes(vectors, labels, ways=3, shots=4, episodes=5, names=names)
    assert list(result["classes"]) == ["calm", "joy", "awe"]
    with pytest.raises(UserError, match="no labelled utterance"):
        episodes(vectors, np.full(len(labels), -1), ways=2, shots=1)


def test_too_few_dialogues():
    vectors, labels, dialogues = utterances(n_dialogues=40)
    # All examples of one class lie in a single dialogue.
    labels[(labels == 3) & (dialogues != 7)] = 0
    labels[dialogues == 7] = 3
    with pytest.raises(UserError, match="one of them in another dialogue"):
        episodes(vectors, labels, ways=4, shots=2, groups=dialogues)
    # Two dialogues, and a support that nearly always takes utterances of both.
    labels, dialogues = np.arange(80) % 4, np.arange(80) // 40
    with pytest.raises(UserError, match=r"2 dialogues in all"):
        episodes(vectors[:80], labels, ways=4, shots=8, groups=dialogues)


@pytest.mark.parametrize(
    "wrong", [{"shots": 0}, {"ways": 1}, {"queries": 0}, {"episodes": 1}], ids=str
)
def test_numbers_out_of_range(wrong):
    vectors, labels, _ = utterances()
    (name,) = wrong
    with pytest.raises(UserError, match=f"{name} is"):
        episodes(vectors, labels, **({"ways": 2, "shots": 1} | wrong))


def test_vectors_that_are_not_finite():
    vectors, labels, _ = utterances()
    vectors[3, 1] = np.nan
    vectors[5, 0] = np.inf
    with pytest.raises(UserError, match="2 of 400 labelled utterances"):
        episodes(vectors, labels, ways=2, shots=1)


def test_shapes_that_do_not_fit():
    vectors, labels, dialogues = utterances()
    with pytest.raises(ValueError, match="expected"):
        episodes(vectors, labels[1:], ways=2, shots=1)
    with pytest.raises(ValueError, match="groups"):
        episodes(vectors, labels, ways=2, shots=1, groups=dialogues[1:])
