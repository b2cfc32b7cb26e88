import json
import sys

import pytest

from erc_jax.benchmarks import __main__ as benchmarks
from erc_jax.benchmarks import harness, predict
from erc_jax.errors import UserError


def test_percentiles():
    assert [harness.percentile([3.0, 1.0, 2.0], p) for p in (0, 33, 34, 50, 95)] == [1, 1, 2, 2, 3]
    assert harness.percentile(list(range(1, 101)), 95) == 95


def test_a_command_that_fails_is_told(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such run')"]
    with pytest.raises(UserError, match="the command failed: no such run"):
        predict._seconds(command, str(tmp_path), 1)


@pytest.mark.slow
def test_what_is_measured(place, tmp_path, capsys):
    from tests.test_predict import untrained
    from tests.tiny import EMOTION_ONLY

    workdir = untrained(place, place / "run", **EMOTION_ONLY)
    file = tmp_path / "figures.json"
    arguments = ["--workdir", str(workdir), "--turns", "3", "--predictions", "20", "--starts", "1"]
    benchmarks.main(["predict", *arguments, "--json", str(file)])
    figures = json.loads(file.read_text())
    assert 0 < figures["predict_ms"]["p50"] <= figures["predict_ms"]["p95"]
    assert set(figures["start_seconds"]) == {"nothing compiled", "programs compiled before"}
    out = capsys.readouterr().out
    assert "conversations of 3 turns" in out
    assert "--mode predict, nothing compiled, median of 1" in out
