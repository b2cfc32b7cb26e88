import json
import os
import time

import pytest

from erc_jax.benchmarks import harness
from erc_jax.errors import UserError


def cases(seconds, device="cpu", dtype="float32"):
    """What a worker runs; called in its process."""

    def fail(step):
        raise RuntimeError("the case is broken")

    return {
        "sleep": lambda step: time.sleep(seconds),
        "slower": lambda step: time.sleep(seconds * (1 + step)),
        "fail": fail,
        "product": lambda step: time.sleep(seconds),
        "facts": lambda step: {"device": device, "size": 100, "dtype": dtype},
    }


def slow_cases(seconds):
    return cases(3 * seconds)


@pytest.fixture
def make_worker(monkeypatch):
    # The worker's process imports this file by name.
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    return lambda: harness.Worker("test_harness:cases", {"seconds": 0.02}, threads=1)


def test_a_worker_times_its_steps(make_worker):
    with make_worker() as worker:
        assert 0.02 <= worker.seconds("sleep") < 2
        assert 0.08 <= worker.seconds("slower", 3) < 2
        assert worker.value("facts")["size"] == 100


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


def test_ours_alone(monkeypatch):
    monkeypatch.setattr(harness, "PAUSE_SECONDS", 0)
    assert harness.pairs(lambda step: step + 1.0, None, 3, 1) == harness.Paired([1.0, 2.0, 3.0], ())


def test_two_sides_take_turns_and_find_the_peak(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: name == "torch")
    options = {"seconds": 0.02}
    names = ("test_harness:cases", "test_harness:slow_cases")
    with harness.two_sides(*names, options, threads=1) as sides:
        assert sides.measure("sleep", 3, warm_up=1).ratio > 1.5
        peak = sides.peak(3)
    assert (peak.device, peak.size, peak.dtype) == ("cpu", 100, "float32")
    assert 2 * 100**3 / 2 < peak.flops <= 2 * 100**3 / 0.02


@pytest.mark.parametrize("why", ["torch is missing", "an accelerator", "bfloat16"])
def test_without_a_peer(why, monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    torch = None if why == "torch is missing" else "torch"
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: torch)
    dtype = "bfloat16" if why == "bfloat16" else "float32"
    options = {"seconds": 0.0, "device": "NVIDIA H200" if why == "an accelerator" else "cpu"}
    names = ["test_harness:cases"] * 2
    with harness.two_sides(*names, options, threads=1, dtype=dtype) as sides:
        assert sides.ours.value("facts")["dtype"] == dtype
        assert sides.peer is None
        assert sides.measure("sleep", 2, warm_up=0).peer == ()


def report(peer_seconds, padded=None, **options):
    flops = 1e12
    return harness.report(
        "title",
        "utterances",
        {"train": harness.Paired([2.0, 2.0], [peer_seconds] * 2 if peer_seconds else [])},
        {"train": harness.Work([10, 10], [flops, flops], padded)},
        harness.Peak("cpu", 100, "float32", flops),
        threads=2,
        **options,
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


def test_a_peer_that_cannot_be_fast_is_not_judged(capsys):
    assert report(peer_seconds=2.1, judged=False)["counts"] is None
    assert "does not count" not in capsys.readouterr().out


def test_padding_counts_as_work_of_the_peer(capsys):
    record = report(peer_seconds=2.1, padded=[1.5e12, 1.5e12])
    assert record["counts"]
    assert record["torch_busy"] == 0.714
    assert record["cases"]["train"]["torch"]["of_peak"] == 0.476  # what it gets done
    assert "torch computes 1500.0 GFLOP a step, at 71% of the peak" in capsys.readouterr().out


def test_report_of_ours_alone(capsys):
    record = report(peer_seconds=None)
    assert record["counts"] is None
    assert list(record["cases"]["train"]) == ["ratio", "gflop_per_step", "ours"]
    out = capsys.readouterr().out
    assert "train, ours" in out
    assert "train, torch" not in out
