"""Whole runs, on a corpus of a few words and a random encoder: what they leave and how they end."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl
from safetensors.numpy import load_file, save_file

from erc_jax import steps
from erc_jax import train as train_module
from erc_jax.config import find_config, flatten, load_config, read_config
from erc_jax.errors import Stopped, UserError
from erc_jax.evaluate import evaluate_split
from erc_jax.model_card import model_card
from erc_jax.predict import Recognizer
from erc_jax.train import train
from erc_jax.workdir import load_run
from tests.tiny import EMOTION_ONLY, SCORES, tiny_config, write_corpus

SPLITS = ("validation", "test")


@pytest.fixture(scope="module")
def run(place):
    """A finished run of one task, its config and what ``train`` returned. Not to be changed."""
    config = tiny_config(place, **EMOTION_ONLY)
    return config, place / "run", train(config, place / "run")


def read(workdir: Path) -> dict:
    return json.loads((workdir / "metrics.json").read_text())


def without_run(content: dict) -> dict:
    return {key: value for key, value in content.items() if key != "run"}


def log_of(workdir: Path) -> list[dict]:
    """The records of metrics.jsonl but for their rates."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "utterances_per_second"}
        for line in lines
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_run_leaves_what_is_documented(run):
    config, workdir, content = run
    assert read(workdir) == json.loads(json.dumps(content))
    found = {path.name.partition(".out.")[0] for path in workdir.iterdir()}
    assert found == {
        *("config.json", "metrics.jsonl", "events", "checkpoints", "metrics.json", "model_card.md"),
        *("predictions_validation.jsonl", "predictions_test.jsonl", "early_validation.jsonl"),
    }
    assert dict(flatten(load_config(workdir))) == dict(flatten(config))


def test_metrics_json_has_these_keys(run):
    content = run[2]
    assert set(content) == {"validation", "test", "run"}
    for split in SPLITS:
        assert set(content[split]) == SCORES
        assert set(content[split]["per_class"]) == {"calm", "happy", "sad"}
        for scores in content[split]["per_class"].values():
            assert set(scores) == {"precision", "recall", "f1", "support"}
        assert np.sum(content[split]["confusion"]) == 32


def test_the_run_block_says_what_was_scored(run):
    config, _, content = run
    block = content["run"]
    assert block["corpus"]["name"] == "own"
    assert len(block["corpus"]["sha256"]) == 64
    of_train = block["corpus"]["splits"]["train"]
    assert (of_train["dialogues"], of_train["utterances"]) == (8, 32)
    assert list(of_train["emotions"]) == ["calm", "happy", "sad"]
    assert sum(of_train["emotions"].values()) == 32
    assert block["corpus"]["neutral"] == "calm"
    assert set(block["corpus"]["splits"]) == {"train", "validation", "test"}
    assert block["encoder"]["name"] == config.encoder
    assert len(block["encoder"]["sha256"]) == 64
    assert block["seeds"] == [0]
    assert block["selected_on"] == "validation weighted_f1"
    assert {"python", "erc-jax", "jax", "flax"} <= set(block["versions"])
    assert all(block["versions"].values())


def test_the_model_card_is_of_the_run(run):
    _, workdir, content = run
    text = (workdir / "model_card.md").read_text()
    assert text == model_card(workdir)
    parameters = content["run"]["parameters"]
    assert f"{parameters['trained']:,}" in text
    # The tiny encoder: what its file holds.
    assert parameters["frozen"] == 6_608


def test_the_run_learns(run):
    losses = [r["loss"] for r in log_of(run[1]) if "loss" in r]
    assert losses[-1] < losses[0] - 0.3
    assert run[2]["test"]["accuracy"] > 0.6


def test_the_log_has_steps_and_epochs(run):
    _, workdir, content = run
    records = log_of(workdir)
    # 2 steps an epoch, a line every 3 steps and at each epoch's end
    assert [r["step"] for r in records if "loss" in r] == [2, 3, 4, 6, 8]
    epochs = [r for r in records if "epoch" in r]
    assert [(r["step"], r["epoch"]) for r in epochs] == [(2, 1), (4, 2), (6, 3), (8, 4)]
    best = max(epochs, key=lambda r: (r["validation"]["weighted_f1"], -r["epoch"]))
    (chosen,) = content["run"]["checkpoints"]
    assert (chosen["best_epoch"], chosen["best_step"]) == (best["epoch"], best["step"])
    assert best["validation"] == read(workdir)["validation"]


def test_the_finished_command_again_changes_nothing_but_the_run_block(copied, capsys):
    config, workdir, content = copied
    before = files_of(workdir)
    again = train(config, workdir)
    after = files_of(workdir)
    assert without_run(again) == without_run(content)
    assert {
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    } <= {"metrics.json", "model_card.md"}  # the card is of the run block
    assert "step 8" in capsys.readouterr().out


def test_sigterm_in_the_last_validation_is_heard(copied, monkeypatch):
    """Scoring may take longer than the machine is still there; the next start does it."""
    config, workdir, content = copied
    shutil.rmtree(workdir)
    validate = train_module.Trainer.validate

    def told(self, step, *rest):
        if step == self.steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(self, step, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(train_module.Trainer, "validate", told)
        with pytest.raises(Stopped, match="Stopped after step 8 of 8"):
            train(config, workdir)
    assert not (workdir / "metrics.json").exists()
    assert without_run(train(config, workdir)) == without_run(content)


def test_a_killed_run_goes_on_to_the_same_end(copied, train_and_kill):
    """Killed after each step up to 3, within an epoch and after it; half a line is in its log."""
    config, workdir, content = copied
    shutil.rmtree(workdir)
    for step in (1, 2, 3):
        assert train_and_kill(config, workdir, saves=1) == [step, step + 1]
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "lo')
    assert without_run(train(config, workdir)) == without_run(content)
    epochs = [record for record in log_of(workdir) if "epoch" in record]
    assert [record["step"] for record in epochs] == [2, 4, 6, 8]


def test_a_corrupt_newest_checkpoint_is_said_and_made_good(copied, caplog):
    config, workdir, content = copied
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    flip_a_bit(newest)
    log = log_of(workdir)
    assert without_run(train(config, workdir)) == without_run(content)
    assert f"checkpoint {newest.name} is damaged" in caplog.text
    assert log_of(workdir) == log


@pytest.mark.parametrize("what", ["corpus", "encoder"])
def test_other_data_under_the_same_config_is_refused(copied, what):
    config, workdir, _ = copied
    folder = Path(config.data.source if what == "corpus" else config.encoder)
    kept = folder.with_name(f"{what}_kept")
    shutil.copytree(folder, kept)
    try:
        if what == "corpus":
            shutil.rmtree(folder)
            write_corpus(folder, seed=1)
        else:
            scale_weights(folder, 2.0)
        with pytest.raises(UserError, match=f"a run on another {what}: SHA-256"):
            train(config, workdir)
    finally:
        shutil.rmtree(folder)
        kept.rename(folder)


def scale_weights(encoder: Path, factor: float) -> None:
    file = encoder / "model.safetensors"
    save_file({k: np.float32(factor) * v for k, v in load_file(file).items()}, file)


def test_a_split_is_scored_again_with_the_same_result(copied, tmp_path, capsys):
    _, workdir, content = copied
    predictions = (workdir / "predictions_test.jsonl").read_bytes()
    block = evaluate_split(workdir, "test", {})
    assert set(block) == {"test", "run"}
    assert block["test"] == content["test"]
    assert without_run(read(workdir)) == without_run(content)
    assert (workdir / "predictions_test.jsonl").read_bytes() == predictions

    assert "SHA-256" not in capsys.readouterr().out
    other = write_corpus(tmp_path / "other", seed=1)
    evaluate_split(workdir, "train", {"data.source": str(other)})
    assert re.search(r"Note: this is not the own .*SHA-256 \w{8} here", capsys.readouterr().out)
    evaluate_split(workdir, "train", {})
    assert set(read(workdir)) == {"train", "validation", "test", "run"}
    assert {split: read(workdir)[split] for split in SPLITS} == without_run(content)
    assert set(read(workdir)["run"]) >= {"corpus", "encoder", "seeds", "selected_on", "versions"}


def test_patience_ends_a_run_and_any_split_and_score_may_choose(place, tmp_path):
    config = tiny_config(
        place,
        **EMOTION_ONLY,
        train__learning_rate=0.0,  # no epoch is better than the first
        train__epochs=50,
        train__patience=2,
        train__select_on="test",
        train__select_metric="mcc",
    )
    content = train(config, tmp_path / "run")
    (chosen,) = content["run"]["checkpoints"]
    assert (chosen["best_epoch"], chosen["epoch"]) == (1, 3)
    assert content["run"]["selected_on"] == "test mcc"
    assert chosen["best_score"] == content["test"]["mcc"]
    assert [r["epoch"] for r in log_of(tmp_path / "run") if "test" in r] == [1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train__select_metric": "f1"}, r"select_metric is 'f1'; expected one of accuracy, .*mcc"),
        ({"train__select_metric": "per_class"}, "select_metric is 'per_class'"),
        (
            {"train__select_metric": "micro_f1_no_neutral", "data__neutral": None},
            "select_metric is 'micro_f1_no_neutral'; expected one of accuracy, weighted_f1, ",
        ),
        ({"train__select_on": "tset"}, "train.select_on is 'tset'"),
        ({"train__epochs": 0}, "train.epochs is 0"),
        ({"train__batch_size": 0}, "train.batch_size is 0"),
        ({"train__decay": "step"}, "train.decay is 'step'"),
        ({"init_from": "runs/nowhere"}, "runs/nowhere: not a workdir"),
        ({"data__sentiment": "column"}, "no utterance of the training split has a label of sent"),
        ({"system": "mtl_erc"}, "system is 'mtl_erc'.*mtl_erc_es"),
        ({"data__name": "mled"}, "data.name is 'mled'.*meld"),
        ({"data__neutral": "clam"}, "data.neutral is 'clam'"),
        ({"data__polarity__positive": ("happy", "sad")}, "names an emotion twice"),
    ],
)
def test_what_cannot_work_is_said_at_the_start(place, tmp_path, monkeypatch, fields, message):
    """Before the encoder is so much as loaded; nothing is left behind."""
    config = tiny_config(place, **fields)
    monkeypatch.setattr("erc_jax.experiment.SentenceEncoder", None)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train__learning_rate": 3e38}, r"the loss of step 2 is not finite \(loss (nan|inf)"),
        # The only step of the epoch still has a finite loss; what it leaves is not.
        (
            {"train__learning_rate": 3e38, "train__batch_size": 8},
            "after step 1 the predictions are not finite",
        ),
    ],
)
def test_a_run_that_diverges_stops_before_it_saves(place, tmp_path, fields, message):
    config = tiny_config(place, **EMOTION_ONLY, **fields)
    with pytest.raises(UserError, match=f"{message}.*lower train.learning_rate .now 3e.38"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_features_that_are_not_numbers_name_their_dialogue(tmp_path):
    config = tiny_config(tmp_path, **EMOTION_ONLY)
    scale_weights(Path(config.encoder), np.nan)
    with pytest.raises(UserError, match="dialogue train0, utterance 1: the encoder gave NaN"):
        train(config, tmp_path / "run")


def test_seeds_are_workdirs_of_their_own_and_the_best_predicts(place, run, tmp_path, monkeypatch):
    config, workdir = tiny_config(place, **EMOTION_ONLY, seeds=2), tmp_path / "runs"
    fit = train_module.Trainer.fit_all

    def killed(self, places):
        if places[0].seed == 1:
            raise KeyboardInterrupt
        return fit(self, places)

    with monkeypatch.context() as patched:
        patched.setattr(train_module.Trainer, "fit_all", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, workdir)
    with pytest.raises(UserError, match="the run is not finished"):
        Recognizer.from_pretrained(workdir)
    first = files_of(workdir / "seeds" / "0")
    content = train(config, workdir)
    # Seed 0 was done already, and is the run of that seed alone.
    again = files_of(workdir / "seeds" / "0")
    for name in ("metrics.json", "model_card.md"):  # these have times in them
        assert first.pop(name)
        assert again.pop(name)
    assert again == first
    assert without_run(read(workdir / "seeds" / "0")) == without_run(run[2])

    assert set(content) == {"validation", "test", "run", "seeds"}
    assert content["run"]["seeds"] == [0, 1]
    assert [of_seed["seed"] for of_seed in content["seeds"]] == [0, 1]
    for split in SPLITS:
        block, of_seeds = content[split], [of_seed[split] for of_seed in content["seeds"]]
        assert set(block) == {*SCORES, "std", "interval"}
        f1 = [scores["weighted_f1"] for scores in of_seeds]
        assert block["weighted_f1"] == pytest.approx(np.mean(f1))
        assert block["std"]["weighted_f1"] == pytest.approx(np.std(f1, ddof=1))
        low, high = block["interval"]["weighted_f1"]
        assert low <= block["weighted_f1"] <= high
        total = np.sum([scores["confusion"] for scores in of_seeds], axis=0)
        assert block["confusion"] == total.tolist()

    scores = [of_seed["validation"]["weighted_f1"] for of_seed in content["seeds"]]
    assert scores[0] != scores[1]
    best = workdir / "seeds" / str(np.argmax(scores))
    for split in SPLITS:
        name = f"predictions_{split}.jsonl"
        assert (workdir / name).read_bytes() == (best / name).read_bytes()
    question = {"utterances": [{"speaker": "A", "text": "we won"}]}
    answers = [Recognizer.from_pretrained(w).predict(question) for w in (workdir, best)]
    assert answers[0] == answers[1]

    for seed in (0, 1):
        alone = load_config(workdir / "seeds" / str(seed))
        assert (alone.seed, alone.seeds) == (seed, 1)
        block = evaluate_split(workdir / "seeds" / str(seed), "test", {})
        assert block["test"] == content["seeds"][seed]["test"]
    assert evaluate_split(workdir, "test", {})["test"] == content["test"]
    evaluate_split(workdir, "train", {})
    name = "predictions_train.jsonl"
    assert (workdir / name).read_bytes() == (best / name).read_bytes()
    after = without_run(read(workdir))
    assert after.pop("train")
    assert all(of_seed.pop("train") for of_seed in after["seeds"])
    assert after == without_run(json.loads(json.dumps(content)))


def test_a_full_disk_at_the_end_is_told(copied, monkeypatch):
    config, workdir, content = copied

    def full(self, raw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="cannot be written \\(No space left on device\\)"):
        train(config, workdir)
    assert read(workdir) == json.loads(json.dumps(content))


def test_what_an_optimizer_cannot_do(place, tmp_path):
    config = tiny_config(place, **EMOTION_ONLY, train__accumulate=100)
    with pytest.raises(UserError, match=r"accumulate is 100, but there are 8 steps in all"):
        train(config, tmp_path / "run")


def test_weight_decay_spares_biases_and_scales():
    params = {"lstm": {"forward_bias": 0, "forward_hidden_kernel": 0}, "norm": {"scale": 0}}
    assert steps.decayed(params) == {
        "lstm": {"forward_bias": False, "forward_hidden_kernel": True},
        "norm": {"scale": False},
    }


def test_warm_up_takes_a_quarter_of_a_short_run_at_most(place):
    def rate_after(updates, **fields):
        config = tiny_config(place, train__learning_rate=1.0, **fields)
        optimizer = steps.make_optimizer(config.train, updates)
        state = optimizer.init({"x": jax.numpy.ones(())})
        rates = []
        for _ in range(updates):
            step, state = optimizer.update({"x": jax.numpy.ones(())}, state, {"x": 1.0})
            rates.append(round(-float(step["x"]), 3))
        return rates

    assert rate_after(8, train__warmup_steps=100, train__decay="linear")[:4] == [0, 0.5, 1, 0.833]
    assert rate_after(16, train__warmup_steps=2)[:4] == [0, 0.5, 1, 1]


def test_a_run_starts_from_another_ones_weights(place, run, tmp_path, capsys):
    """Labels of its own: the head starts fresh, and all else is what the other run ended with."""
    said = {"calm": "a b c", "glad": "we won", "low": "oh my", "wild": "z z"}
    source = write_corpus(tmp_path / "corpus", said=said)
    polarity = {"negative": ("low",), "neutral": ("calm",), "positive": ("glad", "wild")}
    config = tiny_config(
        place,
        **EMOTION_ONLY,
        data__source=str(source),
        init_from=str(run[1]),
        train__learning_rate=0.0,
        train__epochs=1,
        **{f"data__polarity__{k}": v for k, v in polarity.items()},
    )
    train(config, tmp_path / "run")
    assert (
        f"Weights taken from {run[1]}; these start fresh: head_emotion" in capsys.readouterr().out
    )
    before, after = load_run(run[1]).params, load_run(tmp_path / "run").params
    for module in before.keys() - {"head_emotion"}:
        jax.tree.map(np.testing.assert_array_equal, before[module], after[module])
    assert after["head_emotion"]["kernel"].shape[-1] == 4


def test_own_conversations_without_polarity(place, tmp_path, capsys):
    """configs/own.py as it is shipped, with nothing but a folder of labelled conversations."""
    tiny = tiny_config(place)
    config = read_config(find_config("own"))
    config.data.source, config.encoder = tiny.data.source, tiny.encoder
    config.train.epochs = 1
    content = train(config, tmp_path / "run")
    assert "sentiment and shift are left out" in capsys.readouterr().out
    without_neutral = SCORES - {"micro_f1_no_neutral", "macro_f1_no_neutral"}
    assert all(set(content[split]) == without_neutral for split in SPLITS)
    record = Recognizer.from_pretrained(tmp_path / "run").predict(
        {"utterances": [{"speaker": "A", "text": "we won"}]}
    )
    assert set(record["utterances"][0]) == {"speaker", "text", "emotion", "probabilities"}


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "erc_jax.main", *map(str, arguments)]


@pytest.mark.slow
def test_own_conversations_from_the_shell_leave_nothing_elsewhere(tmp_path, one_device_env):
    """Train with polarity, evaluate, predict; files appear in workdir, cache and output only."""
    tiny_config(tmp_path)
    for name in ("home", "here", "scratch"):
        (tmp_path / name).mkdir()
    environment = one_device_env | {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "scratch"),
        "ERC_JAX_CACHE": str(tmp_path / "cache"),
    }

    def run(*arguments) -> str:
        done = subprocess.run(
            command("--workdir", "../run", *arguments),
            cwd=tmp_path / "here",
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    own = ("--config", "own", "--config.data.source=../corpus", "--config.encoder=../encoder")
    fields = ("--config.train.epochs=2", "--config.data.neutral=calm", "--config.log_every=1")
    polarity = ("negative=('sad',)", "neutral=calm", "positive=('happy',)")
    printed = run(*own, *fields, *(f"--config.data.polarity.{names}" for names in polarity))
    for word in ("loss ", "validation weighted_f1 ", "utterances/s", " left\n", "shift"):
        assert word in printed
    assert "left out" not in printed
    before = read(tmp_path / "run")
    assert {"sentiment", "shift_global", "shift_speaker"} <= before["test"].keys()

    assert "validation" in run("--mode", "evaluate", "--split", "validation")
    assert without_run(read(tmp_path / "run")) == without_run(before)
    printed = run("--mode", "evaluate", "--input", "../corpus/test.jsonl")
    assert f"{before['test']['weighted_f1']:.4f}" in printed
    run("--mode", "predict", "--input", "../corpus/test.jsonl", "--output", "../labelled.jsonl")

    assert {path.name for path in tmp_path.iterdir()} == {
        *("encoder", "corpus", "home", "here", "scratch", "run", "cache", "labelled.jsonl")
    }
    # tfds leaves an empty folder in the scratch space.
    elsewhere = [
        path for name in ("home", "here", "scratch") for path in (tmp_path / name).rglob("*")
    ]
    assert [path for path in elsewhere if path.is_file()] == []


def epochs_logged(workdir: Path) -> int:
    log = workdir / "metrics.jsonl"
    return log.read_text().count('"epoch"') if log.exists() else 0


def kill_after(arguments: list[str], environment: dict, workdir: Path, epochs: int) -> None:
    """Starts a command and kills it, with no chance to tidy up, at some moment after an epoch."""
    child = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 300
        while epochs_logged(workdir) < epochs:
            assert child.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < give_up
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
    finally:
        child.kill()
        child.wait()


@pytest.mark.slow
def test_kill_9_and_a_corrupt_checkpoint_change_nothing(tmp_path, one_device_env):
    """On the sample, two seeds: killed in the first and in the second, then damaged."""
    tiny_config(tmp_path)

    def to(name: str) -> list[str]:
        return command(
            *("--workdir", tmp_path / name, "--config", "quickstart", "--config.seeds=2"),
            *("--noconfig.tasks.sentiment", "--noconfig.tasks.shift", "--config.log_every=7"),
            *("--config.train.epochs=8", "--config.train.patience=0"),
            f"--config.encoder={tmp_path / 'encoder'}",
        )

    subprocess.run(to("whole"), env=one_device_env, check=True)
    expected = without_run(read(tmp_path / "whole"))

    killed = tmp_path / "killed"
    for seed, epochs in (("0", 3), ("1", 1)):
        kill_after(to("killed"), one_device_env, killed / "seeds" / seed, epochs)
        assert not (killed / "metrics.json").exists()
    subprocess.run(to("killed"), env=one_device_env, check=True)
    assert without_run(read(killed)) == expected
    for seed in ("0", "1"):
        of_seed = Path("seeds") / seed
        assert log_of(killed / of_seed) == log_of(tmp_path / "whole" / of_seed)

    checkpoints = killed / "seeds" / "1" / "checkpoints"
    newest = max(checkpoints.iterdir(), key=lambda path: int(path.name))
    flip_a_bit(newest)
    done = subprocess.run(to("killed"), env=one_device_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"checkpoint {newest.name} is damaged" in done.stderr
    assert without_run(read(killed)) == expected


def flip_a_bit(checkpoint: Path) -> None:
    """In the middle of its largest file."""
    largest = max((checkpoint / "state").rglob("*"), key=lambda path: path.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 1
    largest.write_bytes(raw)


@pytest.mark.slow
def test_steps_wait_for_no_value(place, tmp_path, monkeypatch, capsys):
    """Values come back from the devices with a line of progress or a validation, in no other step.

    Beside that, ``profile`` writes a trace, and where a device's peak is known the log has its MFU.
    """
    events = []
    value, step = ArrayImpl._value, train_module.JointStep.__call__
    monkeypatch.setattr(
        ArrayImpl, "_value", property(lambda self: (events.append("fetch"), value.fget(self))[1])
    )
    monkeypatch.setattr(
        train_module.JointStep,
        "__call__",
        lambda self, *of: (events.append("step"), step(self, *of))[1],
    )
    monkeypatch.setattr(train_module, "peak_flops", lambda device: 1e9)
    # Saving fetches the losses, too, and on a busy machine it may be due.
    monkeypatch.setattr("erc_jax.seed_run.SECONDS_BETWEEN_CHECKPOINTS", 1e9)
    fields = {"log_every": 4, "train__batch_size": 1, "train__epochs": 3, "profile": True}
    train(tiny_config(place, **EMOTION_ONLY, **fields), tmp_path)
    after_steps = " ".join(events).split("step")[1:]
    assert len(after_steps) == 24
    fetching = [number for number, after in enumerate(after_steps, start=1) if "fetch" in after]
    assert fetching == [4, 8, 12, 16, 20, 24], events
    assert any((tmp_path / "profile").rglob("*.xplane.pb"))
    assert "MFU" in capsys.readouterr().out
