import contextlib
import json
import resource

import pytest

from erc_jax import progress
from erc_jax.errors import UserError
from erc_jax.progress import Counter, RunLog, TrainingProgress, duration


class Clock:
    """Stands in for time.monotonic."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def scalars(workdir):
    """Tag to its (step, value) pairs, as TensorBoard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(workdir)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_durations_are_for_people():
    assert [duration(s) for s in (0.4, 59.4, 59.6, 3599, 3600, 12_000)] == [
        *("0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "3 h 20 min")
    ]


def test_the_line_has_loss_score_rate_and_time_left(clock, capsys):
    lines = TrainingProgress(steps=50, steps_per_epoch=5, start_step=0)
    lines.saw(50)
    clock.now += 10
    assert lines.line(2, 1.5) == {"utterances_per_second": 5.0}
    assert capsys.readouterr().out == (
        "epoch 1/10  step 2/50  loss 1.5000  5 utterances/s  at most 4 min 0 s left\n"
    )
    clock.now += 90  # validation, which is not in the rate
    lines.validated("validation mcc", 0.25, 0.5, 3)
    lines.restart()
    lines.saw(30)
    clock.now += 2
    assert lines.line(10, 0.75) == {"utterances_per_second": 15.0}
    assert capsys.readouterr().out == (
        "epoch 2/10  step 10/50  loss 0.7500  validation mcc 0.2500 (best 0.5000, epoch 3)  "
        "15 utterances/s  at most 6 min 48 s left\n"
    )


def test_how_well_devices_are_used_where_their_peak_is_known(clock, capsys):
    lines = TrainingProgress(steps=50, steps_per_epoch=5, start_step=0, peak=1e9)
    for _ in range(3):
        lines.computed(1e9)
    clock.now += 10
    assert lines.line(2, 1.5)["mfu"] == 0.3
    assert "  MFU 30.0%  at most" in capsys.readouterr().out
    clock.now += 10
    assert lines.line(4, 1.5)["mfu"] == 0.0


def test_time_left_of_a_run_that_goes_on(clock, capsys):
    lines = TrainingProgress(steps=100, steps_per_epoch=10, start_step=90)
    clock.now += 5
    lines.line(95, 1.0)
    assert capsys.readouterr().out.endswith("at most 5 s left\n")


def test_the_counter_is_silent_about_what_is_quick(clock, capsys):
    count = Counter("features")
    count(10, 10)
    assert capsys.readouterr().out == ""
    count = Counter("features")
    clock.now += 3
    count(1000, 4000)
    clock.now += 1
    count(2000, 4000)
    clock.now += 5
    count(4000, 4000)
    assert (
        capsys.readouterr().out
        == "features 1,000/4,000, 9 s left\nfeatures 4,000/4,000, 0 s left\n"
    )


def test_records_become_lines_and_tags(tmp_path):
    log = RunLog(tmp_path, resume_step=0)
    log.write(1, {"loss": 0.5})
    log.write(2, {"loss": 0.25})
    log.write(2, {"epoch": 1, "validation": {"mcc": 0.125, "confusion": [[1]]}})
    log.close()
    assert records(tmp_path) == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25},
        {"step": 2, "epoch": 1, "validation": {"mcc": 0.125, "confusion": [[1]]}},
    ]
    assert scalars(tmp_path) == {
        "loss": [(1, 0.5), (2, 0.25)],
        "epoch": [(2, 1.0)],
        "validation/mcc": [(2, 0.125)],
    }


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path, monkeypatch):
    log = RunLog(tmp_path, resume_step=0)
    for step in (1, 2, 3, 4):
        log.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # where the run was killed
    # The name of an events file holds the second in which it was begun.
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: 2_000_000_000.0)
    log = RunLog(tmp_path, resume_step=2)
    log.write(3, {"loss": 30.0})
    log.close()
    assert records(tmp_path) == [{"step": i, "loss": x} for i, x in ((1, 1.0), (2, 2.0), (3, 30.0))]
    assert scalars(tmp_path) == {"loss": [(1, 1.0), (2, 2.0), (3, 30.0)]}


@contextlib.contextmanager
def small_files():
    """No file can grow beyond 4,000 bytes, as if the disk were full.

    Not a fixture: pytest itself writes, perhaps to a long file, before a fixture is taken down.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_until_full(log):
    for step in range(1000):
        log.write(step, {f"loss_{name}": 0.5 for name in "abcdefgh"})


def test_a_full_disk_is_told_and_does_not_hang(tmp_path):
    told = pytest.raises(UserError, match=r"the log .* cannot be written \(File too large\)")
    with told, small_files():
        write_until_full(RunLog(tmp_path, resume_step=0))
    # What was whole stays readable.
    RunLog(tmp_path, resume_step=5)
    assert [record["step"] for record in records(tmp_path)] == [0, 1, 2, 3, 4, 5]
