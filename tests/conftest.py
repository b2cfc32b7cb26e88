"""What all tests share: two fake CPU devices, no network, a cache of their own.

JAX reads the environment when it is imported, so it is set here, before any test module is.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DEVICES_FLAG = "--xla_force_host_platform_device_count"
# Much of the tests' time is compilation, which takes half as long without LLVM's optimizations, and
# half of that with XLA's older emitters. CI gives the first flag another value for the comparisons
# with PyTorch: these are of what users run.
OPTIMIZATION_FLAG = "--xla_backend_optimization_level"
FAST_COMPILATION = f"{OPTIMIZATION_FLAG}=0 --xla_cpu_use_fusion_emitters=false"


def _flags(n_devices: int) -> str:
    """XLA_FLAGS with this number of devices in place of another."""
    others = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(DEVICES_FLAG)]
    return " ".join([*others, f"{DEVICES_FLAG}={n_devices}"])


os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
if OPTIMIZATION_FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILATION}".strip()
if DEVICES_FLAG not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] = _flags(2)
# Each worker of pytest-xdist imports this file and so has a cache of its own; but what one of them
# compiles, or a process that a test starts, the others find compiled.
CACHE = os.environ["ERC_JAX_CACHE"] = tempfile.mkdtemp(prefix="erc_jax-tests-")
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(CACHE, "xla")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


# Several workers take files in this order: the longest come first, or one worker would end with
# one of them alone.
LONGEST = (
    "test_processes.py",
    "test_seeds.py",
    "systems/test_sent_emo_context.py",
    "test_docs.py",
    "test_train.py",
    "systems/test_response.py",
    "test_export.py",
    "systems/test_fmerl_runs.py",
    "systems/test_fine_tuning.py",
    "test_steps.py",
    "test_quickstart.py",
    "benchmarks/test_scale.py",
    "test_predict.py",
)


def pytest_collection_modifyitems(items):
    places = {TESTS / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def one_device_env() -> dict[str, str]:
    """The environment of a child process that sees one device, as most users do."""
    return {**os.environ, "XLA_FLAGS": _flags(1)}


@pytest.fixture(scope="session")
def labels():
    """Four emotions of all three polarities."""
    from erc_jax.data.labels import LabelSpace

    polarity = {"anger": "negative", "joy": "positive", "neutral": "neutral", "fear": "negative"}
    return LabelSpace(tuple(polarity), "neutral", polarity)


@pytest.fixture(scope="session")
def random_dialogues(labels):
    """A function that makes dialogues of given lengths, random speakers and emotions."""
    import numpy as np

    from erc_jax.data.dialogue import Dialogue, Utterance

    def make(lengths, n_speakers=3, seed=0, unlabelled=0.0):
        rng = np.random.default_rng(seed)
        return [
            Dialogue(
                f"d{number}",
                tuple(
                    Utterance(
                        speaker=f"s{rng.integers(n_speakers)}",
                        text=f"{number}.{position}",
                        emotion=None if rng.random() < unlabelled else rng.choice(labels.emotions),
                    )
                    for position in range(length)
                ),
            )
            for number, length in enumerate(lengths)
        ]

    return make


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of a module's tiny corpus and encoder."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def seeds(request, place):
    """The workdir of two seeds of the module's FIELDS, and what ``train`` returned."""
    from erc_jax.train import train
    from tests.tiny import tiny_config

    config = tiny_config(place, **request.module.FIELDS, seeds=2)
    return place / "runs", train(config, place / "runs")


@pytest.fixture(scope="module")
def run(seeds):
    """The finished run of one of them: config, workdir and metrics. Not to be changed."""
    from erc_jax.config import load_config

    workdir = seeds[0] / "seeds" / "0"
    return load_config(workdir), workdir, json.loads((workdir / "metrics.json").read_text())


@pytest.fixture
def copied(run, tmp_path):
    """A copy, to be changed, of a module's ``run``: config, workdir and what ``train`` returned."""
    config, workdir, content = run
    shutil.copytree(workdir, tmp_path / "run")
    return config, tmp_path / "run", content


@pytest.fixture
def train_and_kill(monkeypatch):
    """A function that trains, saving after every step, and is killed after so many saves.

    It returns the steps of all saves that were begun; the last of them was not made.
    """
    from erc_jax import seed_run, train
    from erc_jax.checkpoint import Checkpointer

    def run(config, workdir, saves):
        steps = []
        save = Checkpointer.save

        def save_or_die(self, step, *rest):
            steps.append(step)
            if len(steps) > saves:
                raise KeyboardInterrupt
            save(self, step, *rest)
            self.wait()

        with monkeypatch.context() as patched:
            patched.setattr(Checkpointer, "save", save_or_die)
            patched.setattr(seed_run, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
            with pytest.raises(KeyboardInterrupt):
                train.train(config, workdir)
        return steps

    return run


@pytest.fixture
def server(request, monkeypatch):
    """A chat model's server that answers as the module's ``correct`` says; no key is set."""
    from tests.chat_server import serving

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(request.module.correct) as server:
        yield server


@pytest.fixture
def command(monkeypatch):
    """Runs a command line in this process; returns its exit message, or None if it went well."""
    from absl import flags

    from erc_jax import main as command_line

    def run(*arguments, main=command_line.main):
        argv = ["erc-jax", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)  # config_flags looks there
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)  # of the command before
        flags.FLAGS.unparse_flags()
        try:
            main(command_line.parse_flags(argv))
        except SystemExit as error:
            return str(error.code)  # a text: Python prints it, and exits with 1
        return None

    monkeypatch.setattr(command_line, "_keep_compiled_programs", lambda: None)
    return run
