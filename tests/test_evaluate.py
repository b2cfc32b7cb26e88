import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from erc_jax import evaluate
from erc_jax.config import base_config, save_config
from erc_jax.data.batching import make_examples
from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.errors import UserError
from erc_jax.evaluate import evaluate_split
from erc_jax.experiment import Experiment
from erc_jax.predictor import Predictor, label_dialogues
from erc_jax.scoring import count, metrics_file, result_of, seen_in_training, split_scores
from erc_jax.sharding import make_mesh
from erc_jax.systems import Task, make_system

LENGTHS = [5, 1, 9, 3, 1, 7, 2, 12, 4]
N = sum(LENGTHS)
TASKS = (
    Task("emotion", ("anger", "joy", "neutral"), "neutral"),
    Task("sentiment", ("bad", "good")),
)


class Echo:
    """A system whose prediction tells which utterance it is of."""

    dtype = "float32"

    def predict(self, params, batch):
        assert not batch.labels, "labels are nothing to predict from"
        return {"emotion": batch.features * params, "sentiment": batch.features[..., :2]}


@pytest.fixture
def examples(random_dialogues):
    rng = np.random.default_rng(0)
    return make_examples(
        random_dialogues(LENGTHS),
        rng.random((N, 3), np.float32),
        {
            "emotion": rng.integers(-1, 3, N).astype(np.int32),
            "sentiment": rng.integers(-1, 2, N).astype(np.int32),
        },
    )


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
@pytest.mark.parametrize("n_devices", [1, 2])
def test_predictions_come_in_the_order_of_the_dialogues(examples, batch_size, n_devices):
    predictor = Predictor(Echo(), make_mesh(jax.devices()[:n_devices]), batch_size)
    outputs = predictor(np.float32(2), examples)
    assert np.array_equal(outputs["emotion"], 2 * examples.features)
    assert np.array_equal(outputs["sentiment"], examples.features[:, :2])
    assert outputs["emotion"].dtype == np.float32


def test_predictions_do_not_depend_on_the_batches(labels, random_dialogues):
    config = base_config()
    config.tasks.shift = False
    system = make_system(config, labels)
    dialogues = random_dialogues([3, 6, 1, 8, 2])
    features = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    examples = make_examples(dialogues, features, system.targets(dialogues))
    params = jax.jit(system.init)(jax.random.key(0), examples.batch(np.arange(5)))
    whole, parts = (
        Predictor(system, make_mesh(jax.devices()[:1]), size)(params, examples) for size in (5, 2)
    )
    for task in whole:
        np.testing.assert_allclose(parts[task], whole[task], rtol=1e-5)
        np.testing.assert_allclose(whole[task].sum(-1), 1, rtol=1e-5)


def predicted(examples, seed=1):
    rng = np.random.default_rng(seed)
    return {task.name: rng.random((N, len(task.classes))) for task in TASKS}


def test_counts_equal_scikit_learn_s(examples):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    probabilities = predicted(examples)
    counts = count(TASKS, probabilities, examples)
    for task in TASKS:
        target, best = examples.labels[task.name], probabilities[task.name].argmax(-1)
        classes = range(len(task.classes))
        assert counts[task.name].shape == (len(LENGTHS), len(classes), len(classes))
        assert counts[task.name].dtype == np.int64
        for dialogue, found in enumerate(counts[task.name]):
            here = (examples.dialogue_of == dialogue) & (target >= 0)
            if not here.any():
                assert not found.any()
                continue
            expected = sklearn_metrics.confusion_matrix(target[here], best[here], labels=classes)
            assert np.array_equal(found, expected)
        assert counts[task.name].sum() == (target >= 0).sum() < N


def test_scores_of_one_run(examples):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    probabilities = predicted(examples)
    block = split_scores(TASKS, [result_of(TASKS, probabilities, examples)])
    labelled = examples.labels["emotion"] >= 0
    target = examples.labels["emotion"][labelled]
    best = probabilities["emotion"].argmax(-1)[labelled]
    for name, expected in {
        "accuracy": sklearn_metrics.accuracy_score(target, best),
        "weighted_f1": sklearn_metrics.f1_score(target, best, average="weighted"),
        "macro_f1_no_neutral": sklearn_metrics.f1_score(
            target, best, labels=[0, 1], average="macro"
        ),
        "mcc": sklearn_metrics.matthews_corrcoef(target, best),
    }.items():
        assert block[name] == pytest.approx(expected, abs=1e-12)
    assert list(block["per_class"]) == ["anger", "joy", "neutral"]
    assert set(block) - {"sentiment"} == set(block["sentiment"]) | {
        "micro_f1_no_neutral",
        "macro_f1_no_neutral",
    }
    assert list(block["sentiment"]["per_class"]) == ["bad", "good"]
    json.dumps(block)


def test_scores_of_several_runs(examples):
    runs = [result_of(TASKS, predicted(examples, seed), examples) for seed in range(3)]
    block = split_scores(TASKS, runs)
    singles = [split_scores(TASKS, [run]) for run in runs]
    for of_task, of_singles in (
        (block, singles),
        (block["sentiment"], [single["sentiment"] for single in singles]),
    ):
        values = [single["weighted_f1"] for single in of_singles]
        assert of_task["weighted_f1"] == pytest.approx(np.mean(values))
        assert of_task["std"]["weighted_f1"] == pytest.approx(np.std(values, ddof=1))
        low, high = of_task["interval"]["weighted_f1"]
        assert low < of_task["weighted_f1"] < high
        summed = np.sum([single["confusion"] for single in of_singles], axis=0)
        assert of_task["confusion"] == summed.tolist()


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_scores_without_what_was_seen_in_training(examples, n_seeds):
    """They are those of the other dialogues alone."""
    seen = np.zeros(len(LENGTHS), bool)
    seen[[2, 5]] = True
    runs = [result_of(TASKS, predicted(examples, seed), examples) for seed in range(n_seeds)]
    marked = [dataclasses.replace(run, seen=seen) for run in runs]
    others = [
        dataclasses.replace(
            run, confusions={task: counts[~seen] for task, counts in run.confusions.items()}
        )
        for run in runs
    ]
    block, plain = split_scores(TASKS, marked), split_scores(TASKS, runs)
    without = block.pop("without_seen")
    assert block == plain
    assert without.pop("dialogues") == len(LENGTHS) - 2
    expected = split_scores(TASKS, others)
    del expected["sentiment"]
    assert without == expected
    assert without["confusion"] != block["confusion"]
    # Nothing was seen: there is nothing to leave out.
    nothing = [dataclasses.replace(run, seen=np.zeros(len(LENGTHS), bool)) for run in runs]
    assert split_scores(TASKS, nothing) == plain


def test_dialogues_that_were_seen_in_training():
    def dialogue(number, *texts, speaker="A"):
        return Dialogue(number, tuple(Utterance(speaker, text) for text in texts))

    train = [dialogue("1", "hi", "oh"), dialogue("2", "no")]
    test = [
        dialogue("3", "hi", "oh", speaker="B"),
        dialogue("4", "hi", "Oh"),
        dialogue("5", "hi"),
        dialogue("6", "oh", "hi"),
        dialogue("7", "no"),
    ]
    corpus = SimpleNamespace(splits={"train": train, "test": test, "validation": []})
    assert seen_in_training(corpus, "test").tolist() == [True, False, False, False, True]
    assert not seen_in_training(corpus, "train").any()
    assert seen_in_training(corpus, "validation").shape == (0,)


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_what_a_system_says_besides_stands_in_the_block(examples, n_seeds):
    runs = [
        dataclasses.replace(
            result_of(TASKS, predicted(examples, seed), examples),
            further={"classifier": "knn", "verified": {"mcc": seed / 4}},
        )
        for seed in range(n_seeds)
    ]
    plain = split_scores(TASKS, [dataclasses.replace(run, further={}) for run in runs])
    block = split_scores(TASKS, runs)
    verified = block.pop("verified")
    assert block.pop("classifier") == "knn"
    assert block == plain
    assert verified == ({"mcc": 0.0} if n_seeds == 1 else {"mcc": 0.25, "std": {"mcc": 0.25}})


@pytest.mark.parametrize("n_devices", [1, 2])
def test_a_function_over_a_split_comes_in_the_order_of_the_utterances(examples, n_devices):
    def embed(params, batch):
        assert not batch.labels
        return {"vectors": batch.features * params}

    predictor = Predictor(Echo(), make_mesh(jax.devices()[:n_devices]), 4)
    found = predictor.run(embed, np.float32(3), examples)
    assert np.array_equal(found["vectors"], 3 * examples.features)


def test_a_split_is_one_program(random_dialogues):
    lengths = np.random.default_rng(1).integers(1, 25, 60)
    features = np.ones((sum(lengths), 3), np.float32)
    split = make_examples(random_dialogues(lengths), features, {})
    traced = []

    def embed(params, batch):
        traced.append(batch.dialogue.index.shape)
        return {"vectors": batch.features}

    Predictor(Echo(), make_mesh(jax.devices()[:1]), 8).run(embed, np.float32(3), split)
    own = {
        jax.tree.map(np.shape, split.batch(items)).dialogue.index
        for items in split.batches(8, np.random.default_rng(0))
    }
    assert len(traced) == 1 < len(own)


def test_the_file_of_scores(tmp_path, examples):
    def counts(seed):
        return result_of(TASKS, predicted(examples, seed), examples)

    first = {"validation": [counts(0), counts(1)], "test": [counts(2), counts(3)]}
    content = metrics_file(tmp_path, TASKS, first, {"seeds": [7, 8], "commit": "a"})
    assert json.loads((tmp_path / "metrics.json").read_text()) == content
    assert set(content) == {"validation", "test", "run", "seeds"}
    assert [run["seed"] for run in content["seeds"]] == [7, 8]
    assert content["seeds"][1]["test"] == split_scores(TASKS, [counts(3)])

    # Scoring a split again leaves the others.
    again = metrics_file(
        tmp_path, TASKS, {"test": [counts(4), counts(5)]}, {"seeds": [7, 8], "commit": "b"}
    )
    assert again["validation"] == content["validation"]
    assert again["test"] != content["test"]
    assert again["run"]["commit"] == "b"
    assert again["seeds"][0]["validation"] == content["seeds"][0]["validation"]
    assert again["seeds"][0]["test"] == split_scores(TASKS, [counts(4)])

    (tmp_path / "metrics.json").unlink()
    alone = metrics_file(tmp_path, TASKS, {"test": [counts(0)]}, {"seeds": [7]})
    assert set(alone) == {"test", "run"}
    assert alone["test"] == split_scores(TASKS, [counts(0)])


def test_labelled_conversations_keep_what_they_came_with(labels):
    system = make_system(base_config(), labels)
    dialogues = [
        Dialogue("a", (Utterance("Ann", "Hi", "joy"), Utterance("Bob", "Oh")), {"scene": 3}),
        Dialogue(
            "b",
            (
                Utterance(
                    "Ann",
                    "No",
                    "fear",
                    "neutral",
                    {"valence": 1.0, "arousal": 2.0, "dominance": 3.0},
                    {"time": "0:12"},
                ),
            ),
        ),
    ]
    probabilities = {
        "emotion": np.eye(4, dtype=np.float32)[[0, 1, 2]],
        "sentiment": np.eye(3, dtype=np.float32)[[0, 1, 2]],
        "shift_global": np.eye(5, dtype=np.float32)[[0, 1, 2]],
        "shift_speaker": np.eye(5, dtype=np.float32)[[0, 1, 2]],
    }
    first, second = label_dialogues(system, dialogues, probabilities)
    assert {k: v for k, v in first.items() if k != "utterances"} == {"id": "a", "scene": 3}
    hi, oh = first["utterances"]
    assert (hi["speaker"], hi["text"], hi["emotion"]) == ("Ann", "Hi", "anger")
    assert hi["gold"] == {"emotion": "joy"}
    assert oh["emotion"] == "joy"
    assert oh["shift"] == {"global": "negative", "speaker": None}
    assert "gold" not in oh
    (no,) = second["utterances"]
    assert no["gold"] == {"emotion": "fear", "sentiment": "neutral"}
    assert (no["emotion"], no["sentiment"], no["time"]) == ("neutral", "positive", "0:12")
    assert no["vad"]["arousal"] == 2.0
    assert no["shift"] == {"global": None, "speaker": None}

    # A file that was labelled before keeps what was given first, and no prediction becomes gold.
    again = [Dialogue.from_json(record) for record in (first, second)]
    assert label_dialogues(system, again, probabilities) == [first, second]
    # What is written can be read again.
    assert Dialogue.from_json(json.loads(json.dumps(second))).utterances[0].emotion == "neutral"


def test_a_corpus_of_other_labels_is_refused(tmp_path, monkeypatch):
    """The same number of classes in another order would be scored, and wrongly."""

    def part(*emotions):
        return Experiment(
            corpus=SimpleNamespace(sha256="y"),
            encoder=None,
            description_encoder=None,
            system=SimpleNamespace(tasks=(Task("emotion", emotions),)),
            examples={},
        )

    save_config(base_config(), tmp_path)
    meta = {"encoder": {"sha256": "x"}, "corpus": {"sha256": "y"}}
    monkeypatch.setattr(evaluate, "best_meta", lambda workdir: meta)
    monkeypatch.setattr(evaluate, "load_run", lambda *args: part("calm", "cross"))
    monkeypatch.setattr(evaluate, "prepare", lambda *args, **kwargs: part("bored", "calm"))
    with pytest.raises(UserError, match=r"emotion bored, calm there, emotion calm, cross in the"):
        evaluate_split(tmp_path, "test", {})
