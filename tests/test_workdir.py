"""Which run of a workdir predicts."""

import pytest

from erc_jax.config import base_config
from erc_jax.errors import UserError
from erc_jax.workdir import best_run
from tests.fabricated import change, dialogues, make_run


@pytest.fixture
def config():
    config = base_config()
    config.seeds = 2
    return config


@pytest.fixture
def workdir(tmp_path):
    return make_run(tmp_path / "run", {0: dialogues(1, 0.5), 1: dialogues(2, 0.9)})


def test_the_best_of_several_seeds(config, workdir):
    assert best_run(config, workdir) == workdir / "seeds" / "1"


def test_a_single_seed_need_not_be_finished(config, tmp_path):
    config.seeds = 1
    assert best_run(config, tmp_path) == tmp_path


def test_scores_that_are_not_there(config, workdir):
    change(workdir / "metrics.json", lambda content: content.pop("seeds"))
    with pytest.raises(UserError, match=r"metrics\.json: damaged \(KeyError: 'seeds'\)"):
        best_run(config, workdir)
    (workdir / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"metrics\.json is missing: the run is not finished"):
        best_run(config, workdir)
