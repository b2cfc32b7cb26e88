"""The scale benchmark runs, and seeds and devices change no number in it."""

import argparse

import pytest

from erc_jax.benchmarks import scale


@pytest.mark.slow
def test_all_ways_are_timed_and_devices_agree(capsys, monkeypatch):
    monkeypatch.setattr(scale, "DEVICES", (2,))
    monkeypatch.setattr(scale, "STEPS", 2)
    parser = argparse.ArgumentParser()
    scale.add_arguments(parser)
    parser.set_defaults(threads=1, pairs=1, batches=1, dtype="float32")
    parser.add_argument("--threads", type=int)
    record = scale.run(parser.parse_args(["--width", "8", "--seeds", "2", "--threads", "2"]))
    assert set(record["seeds"]) == {"2 unrolled", "2 vmapped", "2 side by side"}
    assert all(of["ms"] > 0 and of["cost"] > 0 for of in record["seeds"].values())
    assert set(record["devices"]) == {2}
    assert max(record["devices"].values()) < 1e-5
    assert "2 seeds, side by side" in capsys.readouterr().out
