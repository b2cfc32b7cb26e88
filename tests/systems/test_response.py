"""Emotion-aware replies: losses, gradients, padding, and whole runs on a small corpus."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import erc_jax
from erc_jax.config import base_config, load_config, response, save_config
from erc_jax.data.dialogue import Dialogue, load_dialogues
from erc_jax.encoders.seq2seq import Seq2Seq
from erc_jax.errors import UserError
from erc_jax.evaluate import evaluate_split
from erc_jax.experiment import prepare
from erc_jax.losses import smoothed_cross_entropy
from erc_jax.predictor import Predictor
from erc_jax.replies import tasks_of
from erc_jax.respond import Responder, changed, read_decoding
from erc_jax.sharding import make_mesh
from erc_jax.sweep import PAPER, sweep
from erc_jax.train import train
from tests.tiny import moved_parameters

# What is said in each mood, and what the other one answers.
MOODS = {
    "happy": ("we won the game", "how nice for you"),
    "sad": ("my dog is ill", "i am sorry to hear that"),
    "calm": ("the bus is here", "then let us go"),
}
TASKS = "R+E"


def write_corpus(folder, sizes=(24, 6, 6)):
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        with (folder / f"{split}.jsonl").open("w") as file:
            for number in range(size):
                utterances = []
                for mood in rng.choice(list(MOODS), 2):
                    said, answered = MOODS[mood]
                    text = f"{said} {rng.choice(['today', 'again', 'now'])}"
                    utterances += [
                        {"speaker": "A", "text": text, "emotion": mood},
                        {"speaker": "B", "text": answered, "emotion": "calm"},
                    ]
                record = {"id": f"{split}{number}", "utterances": utterances}
                file.write(json.dumps(record) + "\n")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("replies") / "own")


def config_of(place, **fields):
    config = base_config()
    config.data.name = "own"
    config.data.source = str(place)
    config = response(config, f"response,tasks={TASKS},size=tiny")
    scratch = config.response.scratch
    scratch.vocabulary, scratch.width, scratch.layers = 300, 16, 1
    scratch.heads, scratch.ffn = 2, 16
    config.response.max_tokens = 16
    config.response.beams = 2
    config.model.dropout = config.response.attention_dropout = 0.1
    config.response.min_length = 0
    config.train.batch_size = 16
    config.train.epochs = 3
    config.train.learning_rate = 1e-2
    config.train.warmup_steps = 2
    config.log_every = 2
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


@pytest.fixture(scope="module")
def experiment(place):
    return prepare(config_of(place))


@pytest.fixture(scope="module")
def params(experiment):
    return experiment.system.init(jax.random.key(0), None)


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    """A config, its finished workdir and what metrics.json holds."""
    config, workdir = config_of(place), tmp_path_factory.mktemp("replies") / "run"
    return config, workdir, train(config, workdir)


def batch_of(experiment, task, n_blocks=1, split="train"):
    examples = experiment.examples[split].of_task(task)
    return examples.batch(examples.batches(8, np.random.default_rng(0))[0], n_blocks)


def wider(batch):
    """The same texts in longer rows, as long as there are positions."""
    pad = lambda x, fill: np.pad(x, ((0, 0), (0, 0), (0, 1)), constant_values=fill)  # noqa: E731
    fills = {"source": 1, "target": 1}
    return dataclasses.replace(
        batch,
        **{
            name: pad(getattr(batch, name), fills.get(name, 0))
            for name in (
                *("source", "source_mask", "target", "target_mask"),
                *("source_tokens", "target_tokens"),
            )
        },
    )


# Losses and gradients


def test_smoothed_cross_entropy_is_that_of_smoothed_labels():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5)).astype(np.float32)
    target, mask = rng.integers(5, size=(2, 3)), rng.random((2, 3)) < 0.7
    smoothed = optax.smooth_labels(jax.nn.one_hot(target, 5), 0.1)
    expected = optax.softmax_cross_entropy(logits, smoothed)[mask].mean()
    found = smoothed_cross_entropy(logits, target, mask, 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert smoothed_cross_entropy(logits, target, np.zeros_like(mask), 0.1) == 0


@pytest.fixture(scope="module")
def moved(experiment):
    return moved_parameters(experiment.system.init, None)


@pytest.mark.parametrize("task", ["R", "E"])
def test_padding_and_blocks_change_no_loss(experiment, moved, task):
    """Dropout included, for masks belong to tokens."""
    key, loss = jax.random.key(1), jax.jit(experiment.system.loss)
    expected = loss(moved, batch_of(experiment, task), key)[0]
    for batch in (wider(batch_of(experiment, task)), batch_of(experiment, task, n_blocks=2)):
        np.testing.assert_allclose(loss(moved, batch, key)[0], expected, rtol=2e-6)
    other = loss(moved, batch_of(experiment, task), jax.random.key(2))[0]
    assert abs(other - expected) > 1e-4 * expected  # masks matter, far beyond rounding


@pytest.mark.parametrize("task", ["R", "E"])
def test_each_task_s_gradient_reaches_what_it_trains(experiment, params, task):
    """Both reach encoder and decoder; no head hears of another task."""
    gradient = jax.jit(jax.grad(lambda *x: experiment.system.loss(*x)[0]))(
        params, batch_of(experiment, task), jax.random.key(0)
    )
    largest = {
        jax.tree_util.keystr(path): float(jnp.abs(leaf).max())
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }
    for name, size in largest.items():
        is_head, is_bias = "head_E" in name, "final_logits_bias" in name
        # A key's bias moves all of a query's scores alike, which a softmax does not see.
        if "k_proj']['bias" in name:
            continue
        assert (size > 0) == ((not is_head or task == "E") and not is_bias), name


def test_tokens_of_long_replies_count_as_much_as_those_of_short_ones(experiment, params):
    """A model that knows nothing yet finds all tokens alike: losses are then as the lengths."""
    examples = experiment.examples["train"].of_task("R")
    lengths = np.array([len(target) for target in examples._targets])
    order = np.argsort(lengths, kind="stable")
    losses, means = [], []
    for items in (order[:8], order[-8:]):
        loss = experiment.system.loss(params, examples.batch(items), jax.random.key(0))[1]["R"]
        losses.append(float(loss))
        means.append(lengths[items].mean())
    assert means[1] > 1.2 * means[0]
    np.testing.assert_allclose(losses[1] / losses[0], means[1] / means[0], rtol=0.1)


def test_a_task_s_weight_multiplies_its_loss(place):
    experiment = prepare(config_of(place, weights__E=0.25))
    params = experiment.system.init(jax.random.key(0), None)
    loss, parts = experiment.system.loss(params, batch_of(experiment, "E"), jax.random.key(0))
    np.testing.assert_allclose(loss, 0.25 * parts["E"])


def test_likelihood_is_of_the_response_alone(experiment, params):
    """The mean over words and end; the beginning, which is always the same, counts not."""
    batch = batch_of(experiment, "R")
    nll = experiment.system.likelihood(params, batch)["nll"]
    lengths = batch.target_mask.sum(-1)
    np.testing.assert_array_equal(nll[..., 1][batch.real], lengths[batch.real] - 1)
    assert (nll[..., 0][batch.real] > 0).all()


# Whole runs


@pytest.mark.slow
def test_a_run_learns_and_says_what_it_was(run):
    _, workdir, content = run
    losses = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    replies = [line["loss_R"] for line in losses if "loss_R" in line]
    assert replies[-1] < 0.8 * replies[0]  # labels are smoothed: it does not go to 0
    facts = content["run"]
    assert facts["corpus"]["tasks"]["R"]["splits"] == {"train": 72, "validation": 18, "test": 18}
    assert facts["corpus"]["tasks"]["E"]["splits"] == {"train": 96, "validation": 24, "test": 24}
    assert facts["selected_on"] == "validation perplexity"
    for split in ("validation", "test"):
        block = content[split]
        assert 1 < block["perplexity"] < 100  # at random, it is that of 300 words
        assert block["bleu_signature"].startswith("nrefs:1")
        for name in ("bleu", "bleu_1", "bleu_4", "distinct_1", "distinct_2", "average_length"):
            assert np.isfinite(block[name])
        assert set(block["heads"]["E"]["per_class"]) == set(MOODS)
    best = facts["checkpoints"][0]
    assert best["best_score"] == pytest.approx(content["validation"]["perplexity"], rel=1e-6)


@pytest.mark.slow
def test_what_training_has_seen_is_left_out_beside(run):
    """So few texts are said that some dialogue of the test split is one of the training split."""
    config, workdir, content = run

    def texts(split):
        dialogues = load_dialogues(f"{config.data.source}/{split}.jsonl")
        return [tuple(u.text for u in dialogue.utterances) for dialogue in dialogues]

    seen = [dialogue in set(texts("train")) for dialogue in texts("test")]
    assert 0 < sum(seen) < len(seen)
    assert len(load_dialogues(workdir / "predictions_test.jsonl")) == 3 * len(seen)
    left = content["test"]["without_seen"]
    assert left["pairs"] == 3 * seen.count(False)
    assert left["perplexity"] != content["test"]["perplexity"]
    head = content["test"]["heads"]["E"]
    assert np.sum(head["confusion"]) == 4 * len(seen)
    assert head["without_seen"]["texts"] == 4 * seen.count(False)
    assert np.sum(head["without_seen"]["confusion"]) == 4 * seen.count(False)


@pytest.mark.slow
def test_nothing_is_left_of_a_split_that_training_has_seen(run, tmp_path):
    """Scores of no pairs would be no numbers."""
    config, workdir, _ = run
    shutil.copytree(config.data.source, tmp_path / "own")
    shutil.copy(tmp_path / "own" / "train.jsonl", tmp_path / "own" / "test.jsonl")
    shutil.copytree(workdir, tmp_path / "run")
    scored = evaluate_split(tmp_path / "run", "test", {"data.source": str(tmp_path / "own")})
    assert "without_seen" not in scored["test"]
    assert "without_seen" not in scored["test"]["heads"]["E"]


@pytest.mark.slow
def test_labels_of_another_corpus_are_not_scored(run, tmp_path):
    config, workdir, _ = run
    folder = shutil.copytree(config.data.source, tmp_path / "own")
    for file in folder.iterdir():
        file.write_text(file.read_text().replace('"calm"', '"quiet"'))
    with pytest.raises(UserError, match=r"the heads' classes are .*quiet.* here and .*calm"):
        evaluate_split(workdir, "test", {"data.source": str(folder)})


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(run, tmp_path, train_and_kill):
    config, finished, content = run
    workdir = tmp_path / "run"
    assert train_and_kill(config, workdir, saves=1) == [1, 2]
    assert train_and_kill(config, workdir, saves=2) == [2, 3, 4]
    again = train(config, workdir)
    for split in ("validation", "test"):
        assert again[split] == content[split]
    name = "predictions_test.jsonl"
    assert (workdir / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
def test_a_workdir_replies_as_was_written(run):
    _, workdir, content = run
    responder = Responder.from_pretrained(workdir)
    written = [json.loads(x) for x in (workdir / "predictions_test.jsonl").read_text().splitlines()]
    asked = [{"utterances": record["utterances"]} for record in written]
    answers = responder.respond(asked)
    assert [a["reply"] for a in answers] == [record["reply"] for record in written]
    assert answers[0]["utterances"][0]["text"] == written[0]["utterances"][0]["text"]
    alone = responder.respond(written[0]["utterances"][0]["text"])
    assert alone["reply"] == written[0]["reply"]
    assert alone["beams"][0]["text"] == alone["reply"]
    scores = [beam["score"] for beam in alone["beams"]]
    assert scores == sorted(scores, reverse=True)
    head = alone["heads"]["E"]
    assert head["label"] == max(head["probabilities"], key=head["probabilities"].get)
    assert sum(head["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    card = (workdir / "model_card.md").read_text()
    scored = evaluate_split(workdir, "test", {})
    # Nor does it change what training took.
    assert (scored["test"], scored["run"]) == (content["test"], content["run"])
    assert (workdir / "model_card.md").read_text() == card


@pytest.mark.slow
def test_it_learns_to_answer_what_was_said(place, tmp_path):
    config = config_of(place, response__tasks="R", train__epochs=12, train__learning_rate=3e-3)
    config.response.scratch.width, config.response.scratch.ffn = 64, 128
    train(config, tmp_path)
    said, answers = zip(*MOODS.values(), strict=True)
    replies = Responder.from_pretrained(tmp_path).respond([f"{text} today" for text in said])
    assert [reply["reply"] for reply in replies] == list(answers)


@pytest.mark.slow
def test_sampled_replies_follow_the_seed(run):
    responder = erc_jax.Responder.from_pretrained(
        run[1], decoding={"beams": 1, "sample": True, "temperature": 3.0}
    )
    text = "we won the game again"
    assert responder.respond(text, seed=1) == responder.respond(text, seed=1)
    assert len({responder.respond(text, seed=seed)["reply"] for seed in range(6)}) > 1
    # A call's batches, of 32, draw differently.
    replies = [answer["reply"] for answer in responder.respond([text] * 64, seed=1)]
    assert replies[:32] != replies[32:]
    assert replies[0] == responder.respond(text, seed=1)["reply"]


@pytest.mark.slow
def test_the_model_is_one_that_others_load_and_runs_start_from(run, place, tmp_path):
    _, workdir, content = run
    model = Seq2Seq.from_pretrained(str(workdir))
    config = config_of(place, encoder=str(workdir), train__epochs=1, train__learning_rate=0.0)
    experiment = prepare(config)
    assert experiment.encoder.sha256 == model.sha256
    params = experiment.system.init(jax.random.key(0), None)
    pairs = experiment.examples["test"].of_task("R")
    nll = Predictor(experiment.system, make_mesh(), 16).run(
        experiment.system.likelihood, params, pairs
    )["nll"]
    total, tokens = nll.sum(0)
    np.testing.assert_allclose(np.exp(total / tokens), content["test"]["perplexity"], rtol=1e-5)


@pytest.mark.slow
def test_seeds_differ_and_are_averaged(place, tmp_path):
    """Two runs, bounded by steps."""
    content = train(config_of(place, seeds=2, train__steps=5, train__epochs=50), tmp_path)
    assert [run["best_step"] for run in content["run"]["checkpoints"]] == [5, 5]
    each = [of_seed["test"]["perplexity"] for of_seed in content["seeds"]]
    assert each[0] != each[1]
    assert content["test"]["perplexity"] == pytest.approx(np.mean(each))
    assert content["test"]["std"]["perplexity"] == pytest.approx(np.std(each, ddof=1))
    for head, scores in content["test"].get("heads", {}).items():
        of_seeds = [of["test"]["heads"][head]["confusion"] for of in content["seeds"]]
        assert scores["confusion"] == np.sum(of_seeds, axis=0).tolist()
    assert (tmp_path / "model" / "config.json").is_file()
    assert Responder.from_pretrained(tmp_path).respond("the bus is here now")["reply"] is not None


@pytest.mark.slow
def test_an_interrupted_sweep_makes_no_run_twice(place, tmp_path, monkeypatch):
    """Three of the paper's rows; the second is interrupted."""
    made = []

    def quick(config, workdir):
        made.append(workdir.name)
        if len(made) == 2:
            raise KeyboardInterrupt
        scores = dict.fromkeys(
            ("perplexity", "bleu", "distinct_1", "distinct_2", "average_length"), 1.0
        )
        workdir.mkdir(parents=True, exist_ok=True)
        save_config(config, workdir)
        (workdir / "metrics.json").write_text(json.dumps({"test": scores}))
        (workdir / "model_card.md").touch()
        return {"test": scores}

    monkeypatch.setattr("erc_jax.sweep.train", quick)
    config = config_of(place, sweep="paper", weights__E6=0.7)  # weights are the sweep's
    with pytest.raises(KeyboardInterrupt):
        sweep(config, tmp_path)
    assert len(json.loads((tmp_path / "sweep.json").read_text())) == 1
    # Scored by --mode evaluate while it is not finished.
    (tmp_path / "R+E6").mkdir()
    (tmp_path / "R+E6" / "metrics.json").write_text(json.dumps({"validation": {}}))
    rows = sweep(config, tmp_path)
    assert [load_config(tmp_path / name).weights.E6 for name in made[-7:]] == [
        weights.get("E6", 1.0) for _, weights in PAPER[1:]
    ]
    assert len(rows) == len(PAPER) == len(json.loads((tmp_path / "sweep.json").read_text()))
    assert made[0] not in made[1:]
    assert [row["tasks"] for row in rows] == [tasks for tasks, _ in PAPER]
    save_config(config_of(place), tmp_path / "R")
    with pytest.raises(UserError, match="R holds a run of another config"):
        sweep(config, tmp_path)


# What is refused


@pytest.mark.parametrize(
    ("tasks", "message"),
    [("R+E7", "'E7' is no task: known are R, E"), ("R+E+R", "names one twice"), ("", "no task")],
)
def test_unknown_tasks(tasks, message):
    config = response(base_config(), "response")
    config.response.tasks = tasks
    with pytest.raises(UserError, match=message):
        tasks_of(config)


def test_a_head_without_data(place):
    with pytest.raises(UserError, match="has no folder tec; for these tasks it is a folder with"):
        prepare(config_of(place, response__tasks="R+E6"))


def test_labels_that_are_not_there(tmp_path):
    folder = tmp_path / "own"
    write_corpus(folder)
    for file in folder.iterdir():
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            for utterance in line["utterances"]:
                del utterance["emotion"]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="task E: own has no labels to learn; leave the task out"):
        prepare(config_of(folder))
    experiment = prepare(config_of(folder, response__tasks="R"))  # replies need none
    assert experiment.examples["train"].n_items == 72
    recognition = base_config()
    recognition.data.name, recognition.data.source = "own", str(folder)
    with pytest.raises(UserError, match="own: 0 different emotions in the training split"):
        prepare(recognition)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.select_metric", "weighted_f1", "expected one of perplexity, heads.E.accuracy"),
        ("init_from", "runs/x", "init_from is for runs that name emotions"),
        ("encoder", "all-MiniLM-L6-v2", "expected 'bart'"),
        ("response.beams", 0, "response.beams is 0"),
        ("response.scratch.vocabulary", 299, "expected at least 300"),
        ("train.class_weights", "balanced", "class_weights is not for runs of response"),
        ("data.keep_unlabelled", True, "keep_unlabelled is not for runs of response"),
    ],
)
def test_fields_that_do_not_fit(place, field, value, message):
    config = config_of(place)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        prepare(config)


@pytest.mark.slow
def test_the_modes_refuse_each_other_s_runs(run, tmp_path):
    _, workdir, _ = run
    with pytest.raises(UserError, match=r"replies to utterances.*--mode respond"):
        erc_jax.Recognizer.from_pretrained(workdir)
    with pytest.raises(UserError, match="not a workdir"):
        Responder.from_pretrained(tmp_path)
    responder = Responder.from_pretrained(workdir)
    with pytest.raises(UserError, match="utterance 1: the text is empty"):
        responder.respond(" ")
    talk = {"id": "d", "utterances": [{"speaker": "A", "text": text} for text in ("Hi.", "", " ")]}
    for given, message in (
        (talk, "dialogue d, utterance 3: the text is empty"),
        (Dialogue("e", ()), "dialogue e, utterance 0: the text is empty"),
        (5, "5 is neither a text nor a conversation"),
    ):
        with pytest.raises(UserError, match=message):
            responder.respond(given)
    enormous = responder.respond("we won " * 5000)  # cut off at max_tokens
    assert enormous["reply"] is not None


def test_decoding_s_fields():
    decoding = changed(config_decoding(), {"beams": 1, "sample": True, "top_p": 0.5})
    assert (decoding.beams, decoding.sample, decoding.top_p) == (1, True, 0.5)
    assert read_decoding(["beams=1", "sample=true"]) == {"beams": 1, "sample": True}
    for fields, message in (
        ({"beam": 1}, "no field 'beam'"),
        ({"beams": 1.5}, "beams is 1.5"),
        ({"beams": True}, "beams is True"),
        ({"temperature": True}, "temperature is True"),
        ({"top_p": 0.0}, "top_p is 0.0"),
    ):
        with pytest.raises(UserError, match=message):
            changed(config_decoding(), fields)
    with pytest.raises(UserError, match="expected a field and its value"):
        read_decoding(["beams"])


def config_decoding():
    from erc_jax.decoding import Decoding

    return Decoding()
