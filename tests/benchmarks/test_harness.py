import json
import os
import time

import pytest

from erc_jax.benchmarks import harness
from erc_jax.errors import UserError


def cases(seconds):
    """What a worker runs; called in its process."""

    def fail(step):
        raise RuntimeError("the case is broken")

    return {
        "sleep": lambda step: time.sleep(seconds),
        "slower": lambda step: time.sleep(seconds * (1 + step)),
        "fail": fail,
    }


@pytest.fixture
def make_worker(monkeypatch):
    # The worker's process imports this file by name.
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    return lambda: harness.Worker("test_harness:cases", {"seconds": 0.02}, threads=1)


def test_a_worker_times_its_steps(make_worker):
    with make_worker() as worker:
        assert 0.02 <= worker.seconds("sleep") < 2
        assert 0.08 <= worker.seconds("slower", 3) < 2


def test_a_broken_worker_is_reported(make_worker, capfd):
    with make_worker() as worker, pytest.raises(UserError, match="worker ended early"):
        worker.seconds("fail")
    assert "the case is broken" in capfd.readouterr().err


def test_pairs_alternate_and_do_not_count_the_warm_up(monkeypatch):
    monkeypatch.setattr(harness, "PAUSE_SECONDS", 0)
    calls = []

    def side(name, seconds):
        def run(step):
            calls.append((name, step))
            return seconds

        return run

    paired = harness.pairs(side("ours", 2.0), side("peer", 3.0), number=3, warm_up=1)
    assert paired.ratio == 1.5
    assert "".join(name[0] + str(step) for name, step in calls) == "o0p0" + "o0p0p1o1o2p2"


def report(peer_seconds):
    product = harness.Paired([2.0, 2.0], [1.0, 1.0])
    peak = 2 * harness.PRODUCT_SIZE**3  # FLOP/s at one second
    return harness.report(
        "title",
        "utterances",
        {"train": harness.Paired([2.0, 2.0], [peer_seconds] * 2)},
        {"train": harness.Work([10, 10], [peak, peak])},
        product,
        threads=2,
    )


def test_report(capsys, tmp_path):
    record = report(peer_seconds=1.5)
    case = record["cases"]["train"]
    assert case["ratio"] == 0.75
    assert case["ours"] == {"milliseconds": 2000, "utterances_per_second": 5, "of_peak": 0.5}
    assert case["torch"]["of_peak"] == 0.667
    assert record["counts"]
    out = capsys.readouterr().out
    assert "does not count" not in out
    assert "train, ours   2000.0 ms" in out
    harness.write_json(str(tmp_path / "figures.json"), record)
    assert json.loads((tmp_path / "figures.json").read_text()) == record


def test_a_slow_peer_does_not_count(capsys):
    assert not report(peer_seconds=2.1)["counts"]
    assert "The comparison does not count" in capsys.readouterr().out
