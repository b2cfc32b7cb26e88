"""One device, eight, and two processes of four: the same losses and scores, and what a stop costs.

In each of $ERC_JAX_KILL_TRIALS trials, 3 by default, a run is stopped and killed at random steps;
in every second one it is a run of two processes. Where there are more, two processes train with
split parameters, too, which takes minutes; else only two processes without them, and eight devices
with them.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from erc_jax.config import load_config, save_config
from erc_jax.errors import LOST_EXIT_CODE, MISTAKE_EXIT_CODE, STOPPED_EXIT_CODE, UserError
from erc_jax.experiment import prepare
from erc_jax.processes import StopRequest, join
from erc_jax.sharding import make_mesh, state_shardings
from erc_jax.train import Trainer, training_order
from tests.conftest import _flags
from tests.systems import test_response, test_sent_emo_context
from tests.systems.test_fmerl_runs import FIELDS as FMERL
from tests.tiny import EMOTION_ONLY, tiny_config

TRIALS = int(os.environ.get("ERC_JAX_KILL_TRIALS", "3"))
TIMEOUT = 600  # seconds, of processes that wait for each other
LONG = {"train.epochs": 20, "train.steps": 20, "log_every": 1, "train.learning_rate": 1e-3}


@pytest.fixture(scope="module")
def configs(place):
    """Each system's config, of 20 steps, as JSON: NAME, and NAME-split with split parameters."""
    replies = test_response.write_corpus(place / "replies")
    made = {
        "emotion": tiny_config(place, model__dropout=0.2, **EMOTION_ONLY),  # the quickest to start
        "mtl_erc_es": tiny_config(place, model__dropout=0.2),
        "sent_emo_context": tiny_config(place, **test_sent_emo_context.FIELDS),
        "fmerl": tiny_config(
            place, **FMERL, fmerl__description_encoder=str(place / "encoder"), tasks__shift=False
        ),
        "response": test_response.config_of(replies),
    }
    for suffix, rules in (("", ()), ("-split", (".=largest",))):
        for name, config in made.items():
            config.update_from_flattened_dict(LONG | {"mesh.rules": rules})
            save_config(config, place / "configs" / f"{name}{suffix}")
    return place / "configs"


def start(config, workdir, *, devices, how=()):
    environment = {**os.environ, "XLA_FLAGS": _flags(devices)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pod", str(config), str(workdir), *how],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # Who waits for its lines must not wait for ever.
    timer = threading.Timer(TIMEOUT, process.kill)
    timer.daemon = True
    timer.start()
    return process


def start_two(*configs_and_workdir, slow_disk=False):
    """Two processes of four devices; with two configs, each has its own."""
    *configs, workdir = configs_and_workdir
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    return [
        start(
            configs[-number],
            workdir,
            devices=4,
            how=[f"127.0.0.1:{port},2,{number}", str(slow_disk)],
        )
        for number in (0, 1)
    ]


def finish(processes):
    """Exit codes and outputs; nobody is left behind."""
    try:
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def log_of(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def scores_of(workdir):
    content = json.loads((workdir / "metrics.json").read_text())
    return {split: content[split] for split in ("validation", "test")}


SYSTEMS = ("mtl_erc_es", "sent_emo_context", "fmerl", "response")
KINDS = {  # of runs that have to be like those on one device: where they are, and their suffix
    "8 devices": ("8 devices", ""),
    "8 devices, split": ("8 devices", "-split"),
    "2 processes": ("2 processes", ""),
}
if FULL := TRIALS > 3:
    KINDS["2 processes, split"] = ("2 processes", "-split")


@pytest.fixture(scope="module")
def runs(configs, tmp_path_factory):
    """Folders of the systems' runs on one device, on eight, and on two processes of four."""
    out = tmp_path_factory.mktemp("runs")

    def joined(names):
        return ",".join(str(configs / name) for name in names)

    both = [f"{name}{suffix}" for name in SYSTEMS for suffix in ("", "-split")]
    of_two = ["emotion", *(both if FULL else SYSTEMS)]
    for kind, processes in (
        ("1 device", lambda to: [start(joined(["emotion", *SYSTEMS]), to, devices=1)]),
        ("8 devices", lambda to: [start(joined(both), to, devices=8)]),
        ("2 processes", lambda to: start_two(joined(of_two), to)),
    ):
        codes, outputs = finish(processes(out / kind))
        assert not any(codes), outputs
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_same_losses_and_scores(runs, system, kind):
    folder, suffix = KINDS[kind]
    alone, here = runs / "1 device" / system, runs / folder / f"{system}{suffix}"
    expected, losses = log_of(alone), log_of(here)
    assert list(losses) == list(range(1, 21))
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), rtol=1e-5)
    # Every utterance is counted once, however unevenly they fall on the devices.
    same = json.dumps(scores_of(here)) == json.dumps(scores_of(alone))
    assert same or _close(scores_of(here), scores_of(alone))
    names = {path.name for path in alone.iterdir() if "tfevents" not in path.name}
    assert {path.name for path in here.iterdir() if "tfevents" not in path.name} == names


def _close(here, there):
    """Whether numbers that are no counts differ by summation order alone."""
    if isinstance(here, dict):
        return here.keys() == there.keys() and all(_close(here[k], there[k]) for k in here)
    if isinstance(here, list):
        return len(here) == len(there) and all(map(_close, here, there))
    return here == there or (isinstance(here, float) and abs(here - there) <= 1e-4 * abs(there))


def ended(config, workdir, begin, rng):
    """Runs to the end, stopped twice at random; returns the exit codes of all starts."""
    signals = [signal.SIGTERM, signal.SIGKILL]
    rng.shuffle(signals)
    codes = []
    while True:
        processes = begin(config, workdir)
        said = ""
        if signals:
            told, lines = processes[0], rng.randrange(1, 8)
            for line in told.stdout:
                said += line
                lines -= line.startswith("epoch")
                if not lines:
                    break
            of = signals.pop()
            # Any one is told to stop; a machine that is taken away takes its processes with it.
            stopping = [rng.choice(processes)] if of is signal.SIGTERM else processes
            for process in stopping:
                process.send_signal(of)
        found, outputs = finish(processes)
        assert all(code in (0, STOPPED_EXIT_CODE, -signal.SIGKILL) for code in found), outputs
        assert len(set(found)) == 1, (found, outputs)
        if codes and codes[-1] == STOPPED_EXIT_CODE:
            assert "Going on from step" in said + outputs[0]
        codes.append(found[0])
        if found[0] == 0:
            return codes


def assert_ended_like(here, there):
    """Two runs on the same devices, the first of which was stopped on its way."""
    assert scores_of(here) == scores_of(there)
    assert log_of(here) == log_of(there)
    for name in ("predictions_validation.jsonl", "predictions_test.jsonl"):
        assert (here / name).read_bytes() == (there / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(TRIALS))
def test_stopped_runs_end_like_one_that_was_not(runs, configs, tmp_path, trial):
    kind = ("1 device", "2 processes")[trial % 2]
    rng = random.Random(f"{kind} {trial}")
    system = "emotion"
    begin = start_two if kind == "2 processes" else lambda *of: [start(*of, devices=1)]
    codes = ended(configs / system, tmp_path, begin, rng)
    assert STOPPED_EXIT_CODE in codes or len(codes) > 1
    assert_ended_like(tmp_path / system, runs / kind / system)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(runs, configs, tmp_path):
    """A run of two processes is stopped; one device ends it, as if it had been its own."""
    processes = start_two(configs / "emotion", tmp_path)
    for line in processes[0].stdout:
        if line.startswith("epoch 2"):
            break
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = finish(processes)
    assert codes == [STOPPED_EXIT_CODE] * 2, outputs
    codes, outputs = finish([start(configs / "emotion", tmp_path, devices=1)])
    assert codes == [0], outputs
    assert "Going on from step" in outputs[0]
    losses, expected = log_of(tmp_path / "emotion"), log_of(runs / "1 device" / "emotion")
    assert losses.keys() == expected.keys()
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(configs, tmp_path):
    processes = start_two(configs / "emotion", tmp_path)
    for line in processes[0].stdout:
        if line.startswith("epoch"):
            break
    processes[1].kill()
    codes, outputs = finish(processes)
    # Whoever notices first: ours, with its own message, or the runtime, which aborts.
    assert codes[0] in (LOST_EXIT_CODE, -signal.SIGABRT)
    told = ("the processes lost each other", "another task died")
    assert any(message in outputs[0] for message in told), outputs[0]


@pytest.mark.slow
def test_a_mistake_that_one_process_makes(configs, tmp_path):
    """It says so itself, at once; the other one ends, too."""
    config = load_config(configs / "emotion")
    config.data.source = str(tmp_path / "nowhere")
    save_config(config, tmp_path / "mistaken")
    processes = start_two(configs / "emotion", tmp_path / "mistaken", tmp_path)
    codes, outputs = finish(processes)
    assert codes[1] == MISTAKE_EXIT_CODE
    assert "Error: " in outputs[1]
    assert "nowhere" in outputs[1]
    assert codes[0] in (LOST_EXIT_CODE, -signal.SIGABRT)


@pytest.mark.slow
def test_seeds_of_two_processes_save_at_the_same_time(configs, tmp_path):
    """What is saved takes longer than the next seed's turn takes to come."""
    config = load_config(configs / "emotion")
    many = {"seeds": 2, "seeds_together": 2, "train.steps": 4, "train.epochs": 2}
    config.update_from_flattened_dict(many)
    save_config(config, tmp_path / "seeds")
    codes, outputs = finish(start_two(tmp_path / "seeds", tmp_path / "runs", slow_disk=True))
    assert codes == [0, 0], outputs


# In this process


def test_rules_split_the_state_and_not_the_computation(tmp_path):
    """Each part is brought together once; computing with parts exchanges many small arrays."""
    config = test_response.config_of(test_response.write_corpus(tmp_path))
    config.mesh.rules = (".=largest",)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("erc_jax.sharding.LEAST_SPLIT", 1)
        trainer = Trainer(config, prepare(config))
    split = ["data" in leaf.spec for leaf in jax.tree.leaves(trainer.shardings.params)]
    assert sum(split) > len(split) / 2
    state = trainer.new_state(trainer.fresh_params(jax.random.key(0)))
    items = training_order(trainer.examples, config.train.batch_size, 0, 0)[0]
    seeds, stepping = np.zeros((1, 1), np.uint32), np.ones((1, 1), bool)
    batch = trainer._joint_batch([items], (1, 1))
    step = trainer.joint_step._jitted(1).lower([state], batch, seeds, stepping, (0,))
    exchanges = re.findall(r" (all-[a-z]+|collective-[a-z]+)\(", step.compile().as_text())
    assert set(exchanges) == {"all-gather", "all-reduce"}
    assert exchanges.count("all-gather") <= sum(split)
    assert exchanges.count("all-reduce") <= 5  # gradients together, and sums


def test_one_process_alone_is_stopped_by_sigterm():
    """Where a cluster is asked for, too: there is nobody whom it would tell."""
    alone = "from erc_jax.processes import join; import os, signal, time; "
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    alone += f"join('127.0.0.1:{port},1,0'); os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", alone], timeout=TIMEOUT, check=False)
    assert done.returncode == -signal.SIGTERM


def test_a_first_process_that_is_not_there(monkeypatch):
    monkeypatch.setattr("erc_jax.processes.JOIN_SECONDS", 0)
    with pytest.raises(UserError, match=r"the first process, at 127\.0\.0\.1:9, cannot be reached"):
        join("127.0.0.1:9,2,1")


def test_sigterm_is_heard_only_while_training():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.has_come()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.has_come()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "how", ["here", "127.0.0.1:99", "127.0.0.1,2,0", "127.0.0.1:99,two,0", "127.0.0.1:99,2,2"]
)
def test_addresses_that_are_none(how):
    with pytest.raises(UserError, match="--distributed="):
        join(how)


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


STATE = {"params": {"a": {"kernel": leaf(128, 64), "bias": leaf(64)}, "table": leaf(9, 512)}}


def specs(*rules):
    shardings = state_shardings(STATE, make_mesh(), rules)
    assert jax.tree.structure(shardings) == jax.tree.structure(STATE)
    params = shardings["params"]
    return params["a"]["kernel"].spec, params["a"]["bias"].spec, params["table"].spec


def test_rules_say_what_is_split():
    whole, rows, columns = PartitionSpec(), PartitionSpec("data", None), PartitionSpec(None, "data")
    assert specs() == (whole, whole, whole)
    assert specs(".=largest") == (rows, whole, columns)  # a bias is too small to be worth it
    assert specs("kernel=1", "table=whole", ".=largest") == (columns, whole, whole)
    assert specs("a/kernel=0") == (rows, whole, whole)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("kernel", "is no rule; expected PATTERN=AXIS"),
        ("kernel=first", "is no rule"),
        ("(=0", "is no regular expression"),
        ("table=0", r"axis 0 of params/table, of shape \[9, 512\], cannot be split over 2"),
        ("bias=1", "axis 1 of params/a/bias"),
    ],
)
def test_rules_that_are_none(rule, message):
    with pytest.raises(UserError, match=message):
        specs(rule)
