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
from erc_jax.steps import JointStep
from erc_jax.train import train
from tests.systems import test_sent_emo_context
from tests.systems.test_fmerl_runs import FIELDS as FMERL
from tests.tiny import EMOTION_ONLY, tiny_config

SEEDS = 3
FIELDS = {
    **EMOTION_ONLY,
    **{"seeds": SEEDS, "log_every": 1, "model__dropout": 0.2},
    **{"train__epochs": 6, "train__patience": 1},
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
@pytest.mark.parametrize("seed", range(SEEDS))
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
        for seed in range(SEEDS)
    }
    assert len(epochs) > 1


@pytest.mark.slow
def test_computed_as_one_a_seed_that_has_stopped_is_no_reason_to_compile_again(runs):
    """The first of three that stops is computed on; no program is made for the two others."""
    assert AsOne.compiled_for[0] == 3
    assert 2 not in AsOne.compiled_for


@pytest.mark.slow
def test_metrics_are_those_of_seeds_in_turn(runs):
    here, alone = (
        json.loads((runs / name / "metrics.json").read_text()) for name in ("unrolled", "apart")
    )
    assert here["test"] == alone["test"]
    assert here["seeds"] == alone["seeds"]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "in_a_row"), [("unrolled", 1), ("side by side", 2)])
def test_seeds_that_were_killed_go_on(runs, place, tmp_path, train_and_kill, way, in_a_row):
    """Killed while their checkpoints are of different steps."""
    config = config_of(place, seeds_together=SEEDS, mesh__seeds=in_a_row)
    train_and_kill(config, tmp_path, saves=4)
    train(config, tmp_path)
    for seed in range(SEEDS):
        here, there = (lines_of(folder / "seeds" / str(seed)) for folder in (tmp_path, runs / way))
        for line in (*here, *there):
            line.pop("utterances_per_second", None)
        assert here == there


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
def test_seeds_of_other_systems_too(place, tmp_path, system):
    fields = OTHERS[system] | {"seeds": 2, "log_every": 1}
    for name, how in (
        ("apart", {"seeds_together": 1}),
        ("unrolled", {"seeds_together": 2, "mesh__seeds": 1}),
        ("side by side", {"seeds_together": 2, "mesh__seeds": 2}),
    ):
        config = tiny_config(place, **fields | how)
        if system == "fmerl":
            config.fmerl.description_encoder = str(place / "encoder")
        train(config, tmp_path / name)
    for seed in (0, 1):
        alone, *together = (
            lines_of(tmp_path / name / "seeds" / str(seed))
            for name in ("apart", "unrolled", "side by side")
        )
        for here in together:
            assert [line["step"] for line in here] == [line["step"] for line in alone]
            losses = [[line["loss"] for line in lines if "loss" in line] for lines in (here, alone)]
            np.testing.assert_allclose(*losses, rtol=1e-5)
