"""Several seeds in one program are several runs: the same losses, stops, scores and files.

They are computed one after another ("unrolled"), as one ("vmapped"), or at the same time by
different devices ("side by side"), of which there are two here, for three seeds.
"""

import json

import numpy as np
import pytest

from erc_jax import train as module
from erc_jax.data.anchors import AnchorExamples
from erc_jax.data.batching import make_examples
from erc_jax.errors import UserError
from erc_jax.experiment import prepare
from erc_jax.steps import JointStep
from erc_jax.train import Trainer, train
from tests.systems import test_sent_emo_context
from tests.systems.test_fmerl_runs import FIELDS as FMERL
from tests.tiny import EMOTION_ONLY, tiny_config

SEEDS = 3
NUMBERS = (2, 3, 4)  # of seeds that stop at three different epochs
FIELDS = {
    **EMOTION_ONLY,
    **{"seed": NUMBERS[0], "seeds": SEEDS, "log_every": 1, "model__dropout": 0.2},
    **{"train__epochs": 8, "train__patience": 1},
}


def config_of(place, **fields):
    return tiny_config(place, **FIELDS | fields)


class AsOne(JointStep):
    """Computes all rows as one, as on an accelerator."""

    compiled_for: list[int] = []  # numbers of rows

    def __init__(self, *rest, vectorized, **named):
        super().__init__(*rest, vectorized=True, **named)

    def _jit(self, n_rows):
        self.compiled_for.append(n_rows)
        return super()._jit(n_rows)


@pytest.fixture(scope="module")
def runs(place):
    """Folders of the same runs: apart, in one program, and as one computation."""
    train(config_of(place, seeds_together=1), place / "apart")
    train(config_of(place, seeds_together=SEEDS), place / "unrolled")
    train(config_of(place, seeds_together=SEEDS, mesh__seeds=2), place / "side by side")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "JointStep", AsOne)
        train(config_of(place, seeds_together=SEEDS), place / "vmapped")
    return place


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["unrolled", "vmapped", "side by side"])
@pytest.mark.parametrize("seed", NUMBERS)
def test_each_seed_is_the_run_that_it_would_be_alone(runs, way, seed):
    alone, here = (lines_of(runs / name / "seeds" / str(seed)) for name in ("apart", way))
    assert [line["step"] for line in here] == [line["step"] for line in alone]  # stops alike, too
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (here, alone)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    scores = [
        [line["validation"]["weighted_f1"] for line in lines if "validation" in line]
        for lines in (here, alone)
    ]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_the_seeds_stop_at_different_epochs(runs):
    """Else the tests above say nothing about early stopping."""
    epochs = {
        max(line.get("epoch", 0) for line in lines_of(runs / "unrolled" / "seeds" / str(seed)))
        for seed in NUMBERS
    }
    assert len(epochs) == SEEDS
    assert max(epochs) < FIELDS["train__epochs"]


@pytest.mark.slow
def test_computed_as_one_a_seed_that_has_stopped_is_no_reason_to_compile_again(runs):
    """The first of three that stops is computed on; the last one goes on alone."""
    assert AsOne.compiled_for[:2] == [3, 1]


@pytest.mark.slow
def test_metrics_are_those_of_seeds_in_turn(runs):
    here, alone = (
        json.loads((runs / name / "metrics.json").read_text()) for name in ("unrolled", "apart")
    )
    assert here["test"] == alone["test"]
    assert here["seeds"] == alone["seeds"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "in_a_row"), [("unrolled", 1), ("side by side", 2), ("vmapped", 1)]
)
def test_seeds_that_were_killed_go_on(
    runs, place, tmp_path, train_and_kill, monkeypatch, way, in_a_row
):
    """Killed while their checkpoints are of different steps.

    Then seeds end at other times than they did, and a program of another number of seeds may round
    otherwise.
    """
    if way == "vmapped":
        monkeypatch.setattr(module, "JointStep", AsOne)
    config = config_of(place, seeds_together=SEEDS, mesh__seeds=in_a_row)
    train_and_kill(config, tmp_path, saves=4)
    train(config, tmp_path)
    for seed in NUMBERS:
        here, there = (lines_of(folder / "seeds" / str(seed)) for folder in (tmp_path, runs / way))
        assert [line["step"] for line in here] == [line["step"] for line in there]
        for line in (*here, *there):
            line.pop("utterances_per_second", None)
        # Three epochs of two steps, while all seeds are in the program, are the same to the bit.
        found, expected = ([x for x in lines if x["step"] <= 6] for lines in (here, there))
        assert len(found) > 6
        assert found == expected
        losses, scores = (
            [[line[name] for line in lines if name in line] for lines in (here, there)]
            for name in ("loss", "validation")
        )
        np.testing.assert_allclose(*losses, rtol=1e-6)
        assert scores[0] == scores[1]


@pytest.fixture
def examples(labels, random_dialogues):
    dialogues = random_dialogues([3, 9, 4, 1, 7, 12, 2, 5])
    n = sum(len(dialogue.utterances) for dialogue in dialogues)
    features = np.random.default_rng(0).normal(size=(n, 6)).astype(np.float32)
    emotions = np.concatenate([labels.emotion_ids(dialogue) for dialogue in dialogues])
    return make_examples(dialogues, features, {"emotion": emotions})


@pytest.mark.parametrize("n_blocks", [1, 2])
@pytest.mark.parametrize("drawn", [False, True])
def test_a_joint_batch_holds_each_seed_s_own(examples, n_blocks, drawn):
    split = AnchorExamples(examples, "emotion", 1.0) if drawn else examples
    of_seeds = [np.array([0, 5]), np.array([1, 2, 3])]
    joint = split.joint_batch(of_seeds, n_blocks)
    for number, items in enumerate(of_seeds):
        alone = split.batch(items, n_blocks)
        assert joint.real[number].sum() == alone.real.sum()
        utterances, own = (getattr(batch, "utterances", batch) for batch in (joint, alone))
        for name in ("ids", "features"):
            held = getattr(utterances, name)[number][joint.real[number]]
            np.testing.assert_array_equal(held, getattr(own, name)[alone.real])
        told = (joint.labels["emotion"][number], alone.labels["emotion"])
        np.testing.assert_array_equal(*(of[of >= 0] for of in told))


def test_what_training_draws_from_has_a_usual_shape(place):
    config = config_of(place)
    trainer = Trainer(config, prepare(config))
    batch = trainer._joint_batch([np.arange(2)], (1, 1))
    assert batch.real.shape[-1] == trainer.examples.usual.places > 0


def test_seeds_side_by_side_need_devices(place, tmp_path):
    with pytest.raises(UserError, match=r"mesh\.seeds is 3, but 3 seeds .* on 2 devices"):
        train(config_of(place, seeds_together=SEEDS, mesh__seeds=3), tmp_path)
    with pytest.raises(UserError, match=r"mesh\.seeds is 2, but 1 seeds are"):
        train(config_of(place, seeds_together=1, mesh__seeds=2), tmp_path)


# SentEmoContext's epochs have different objectives, and its batches are drawn.
OTHERS = {
    "sent_emo_context": test_sent_emo_context.FIELDS,
    "fmerl": FMERL | {"train__epochs": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("system", OTHERS)
def test_seeds_of_other_systems_too(place, tmp_path, monkeypatch, system):
    fields = OTHERS[system] | {"seeds": 2, "log_every": 1}
    ways = {
        "apart": {"seeds_together": 1},
        "unrolled": {"seeds_together": 2, "mesh__seeds": 1},
        "side by side": {"seeds_together": 2, "mesh__seeds": 2},
        "vmapped": {"seeds_together": 2, "mesh__seeds": 1},
    }
    for name, how in ways.items():
        if name == "vmapped":
            monkeypatch.setattr(module, "JointStep", AsOne)
        config = tiny_config(place, **fields | how)
        if system == "fmerl":
            config.fmerl.description_encoder = str(place / "encoder")
        train(config, tmp_path / name)
    for seed in (0, 1):
        alone, *together = (lines_of(tmp_path / name / "seeds" / str(seed)) for name in ways)
        for here in together:
            assert [line["step"] for line in here] == [line["step"] for line in alone]
            losses = [[line["loss"] for line in lines if "loss" in line] for lines in (here, alone)]
            np.testing.assert_allclose(*losses, rtol=1e-5)
