import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from erc_jax import checkpoint
from erc_jax.checkpoint import Checkpointer
from erc_jax.errors import UserError


@flax.struct.dataclass
class State:
    step: jax.Array
    params: Any
    opt_state: Any


def make_state(seed=0, width=300):
    # Random floats do not compress: their bytes are stored nearly as they are, and a flipped bit
    # among them is what the file formats do not notice.
    key = jax.random.key(seed)
    params = {
        "dense": {"kernel": jax.random.normal(key, (16, width)), "bias": jnp.full((7,), seed / 3)},
        "half": jax.random.normal(key, (5,), jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return State(jnp.asarray(seed), params, optimizer.init(params))


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save_all(workdir, scores, **options):
    checkpointer = Checkpointer(workdir, **options)
    for step, score in scores.items():
        checkpointer.save(step, make_state(step), {"epoch": step}, score)
    checkpointer.wait()
    return checkpointer


def folders(checkpointer):
    return sorted(path.name for path in checkpointer.folder.iterdir())


def test_round_trip(tmp_path):
    checkpointer = Checkpointer(tmp_path / "run")
    assert checkpointer.restore_latest(make_state()) is None
    assert checkpointer.latest_step is None
    assert checkpointer.best_step is None
    assert not (tmp_path / "run").exists()
    meta = {"labels": ["joy", "fear"], "seconds": 0.1, "é": None, "10": {"9": 1, "a": [1, 2]}}
    checkpointer.save(3, make_state(3), meta, np.float32(0.5))
    for restored in (
        checkpointer.restore_latest(make_state(0)),
        Checkpointer(tmp_path / "run").restore_best(jax.eval_shape(make_state)),
    ):
        assert_same(restored[0], make_state(3))
        assert restored[1] == meta


def test_relative_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_all("run", {1: 0.0})
    assert (tmp_path / "run/checkpoints/1").is_dir()


def test_keeps_the_latest_two_and_the_best(tmp_path):
    checkpointer = save_all(tmp_path, {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.2, 5: 0.4})
    assert folders(checkpointer) == ["2", "4", "5"]
    assert (checkpointer.latest_step, checkpointer.best_step) == (5, 2)
    assert checkpointer.restore_latest(make_state())[1] == {"epoch": 5}
    assert checkpointer.restore_best(make_state())[1] == {"epoch": 2}
    # A new process knows the earlier scores, and lets the old best go for a better one.
    later = save_all(tmp_path, {6: 0.8, 7: 0.95})
    assert folders(later) == ["6", "7"]
    assert later.best_step == 7


def test_the_earliest_of_equals_is_the_best(tmp_path):
    checkpointer = save_all(tmp_path, {1: 0.5, 2: 0.7, 3: 0.7, 4: 0.7, 5: 0.1})
    assert folders(checkpointer) == ["2", "4", "5"]
    assert checkpointer.best_step == 2
    assert checkpointer.restore_best(make_state())[1] == {"epoch": 2}


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_refuses_a_score_that_is_not_finite(tmp_path, score):
    checkpointer = save_all(tmp_path, {1: 0.5})
    with pytest.raises(ValueError, match="finite"):
        checkpointer.save(2, make_state(), {}, score)
    assert checkpointer.best_step == checkpointer.latest_step == 1


def test_refuses_steps_and_states_that_cannot_be_saved(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(2, make_state(2), {}, 0.5)
    for step in (1, 2):
        with pytest.raises(ValueError, match=f"step {step} is not after 2"):
            checkpointer.save(step, make_state(), {}, 0.9)
    with pytest.raises(TypeError, match="step of the state is int"):
        checkpointer.save(3, make_state().replace(step=3), {}, 0.5)
    with pytest.raises(TypeError, match="JSON"):
        checkpointer.save(3, make_state(), {"folder": Path()}, 0.5)
    assert checkpointer.best_step == checkpointer.latest_step == 2
    assert_same(checkpointer.restore_best(make_state())[0], make_state(2))


def test_parameters_alone(tmp_path):
    checkpointer = save_all(tmp_path, {1: 0.9, 2: 0.1})
    target = {"params": jax.eval_shape(lambda: make_state().params)}
    restored, meta = checkpointer.restore_best(target, partial=True)
    assert_same(restored, {"params": make_state(1).params})
    assert meta == {"epoch": 1}
    with pytest.raises(UserError, match=r"opt_state.* has no place"):
        checkpointer.restore_best(target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda params: {**params, "half": jnp.zeros(5)}, r"bfloat16\[5\], expected float32\[5\]"),
        (lambda params: {**params, "half": jnp.zeros(6, jnp.bfloat16)}, r"expected bfloat16\[6\]"),
        (lambda params: {**params, "new": jnp.zeros(5)}, "it has no params/new"),
        (lambda params: {"half": params["half"]}, "params/dense/bias has no place"),
    ],
)
def test_a_state_of_another_model_is_refused(tmp_path, change, message):
    checkpointer = save_all(tmp_path, {1: 0.5, 2: 0.5})
    target = make_state()
    target = target.replace(params=change(target.params))
    for restore in (checkpointer.restore_latest, checkpointer.restore_best):
        with pytest.raises(UserError, match=message):
            restore(target)
    assert folders(checkpointer) == ["1", "2"]


def test_without_checkpoints_the_best_is_asked_for_in_vain(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint in .*checkpoints; train first with"):
        Checkpointer(tmp_path).restore_best(make_state())
    assert list(tmp_path.iterdir()) == []


def mesh_of(n):
    return Mesh(np.array(jax.devices()[:n]), ("data",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize(("saved_from", "n_devices"), [(2, 1), (1, 2), (2, 2)])
def test_restores_onto_other_devices(tmp_path, saved_from, n_devices):
    def placed(state, mesh):
        split = NamedSharding(mesh, PartitionSpec("data"))
        whole = NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(
            lambda leaf: jax.device_put(leaf, split if leaf.shape[:1] == (16,) else whole), state
        )

    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, placed(make_state(1), mesh_of(saved_from)), {}, 0.5)
    target = placed(make_state(0), mesh_of(n_devices))
    for restored, _ in (checkpointer.restore_latest(target), checkpointer.restore_best(target)):
        assert_same(restored, make_state(1))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, restored)
        assert shardings == jax.tree.map(lambda leaf: leaf.sharding, target)


@pytest.mark.parametrize("saved", [0, 1])
def test_processes_that_see_different_files(tmp_path, monkeypatch, saved):
    """Each would go on from another step, or wait for who begins anew."""
    checkpointer = Checkpointer(tmp_path)
    for step in range(1, saved + 1):
        checkpointer.save(step, make_state(step), {}, 0.5)
    monkeypatch.setattr("erc_jax.checkpoint.all_say", lambda number: False)
    with pytest.raises(UserError, match="the processes do not see the same checkpoints"):
        checkpointer.restore_latest(make_state(0))


def test_saves_what_is_donated_right_after(tmp_path):
    advance = jax.jit(
        lambda s: jax.tree.map(lambda x: (2 * x + 1).astype(x.dtype), s), donate_argnums=0
    )
    checkpointer = Checkpointer(tmp_path, keep_latest=4)
    for step in range(1, 5):
        state = make_state(step, width=20_000)
        checkpointer.save(step, state, {}, -step)
        for _ in range(5):
            state = advance(state)
        jax.block_until_ready(state)
        restored, _ = checkpointer.restore_latest(state)
        assert_same(restored, make_state(step, width=20_000))


def damages(content):
    middle = len(content) // 2
    flipped = bytearray(content)
    flipped[middle] ^= 0x10
    yield bytes(flipped)
    yield content[:middle]
    yield b""
    yield None  # the file is gone


def damaged_ways(folder):
    """Damages each file of a checkpoint in turn, and mends it afterwards."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        content = path.read_bytes()
        for new in damages(content):
            if new is None:
                path.unlink()
            else:
                path.write_bytes(new)
            yield path.relative_to(folder)
            if not folder.exists():  # set aside by the restore
                folder.with_name(folder.name + ".corrupt").rename(folder)
            path.write_bytes(content)


@pytest.mark.slow
def test_damage_never_gives_wrong_values(tmp_path, caplog, capfd):
    checkpointer = save_all(tmp_path, {1: 0.2, 2: 0.9})
    fell_back = set()
    for path in damaged_ways(checkpointer.folder / "2"):
        for restore in (checkpointer.restore_best, checkpointer.restore_latest):
            caplog.clear()
            state, meta = restore(make_state())
            step = meta["epoch"]
            assert_same(state, make_state(step))
            if step == 1:
                fell_back.add(path.parts[0])
                assert "checkpoint 2 is damaged" in caplog.text, path
                assert str(checkpointer.folder) in caplog.text
            else:
                assert caplog.text == "", path
    assert fell_back == {"state", "record", "checksums.sha256"}
    assert "Traceback" not in capfd.readouterr().err


def test_a_step_without_its_files(tmp_path, caplog):
    checkpointer = save_all(tmp_path, {1: 0.2})
    (checkpointer.folder / "2").mkdir()
    (checkpointer.folder / "3").mkdir()
    (checkpointer.folder / "3/checksums.sha256").touch()
    (checkpointer.folder / "notes.txt").write_text("not a checkpoint")
    assert checkpointer.latest_step == 3
    assert checkpointer.best_step == 1
    assert checkpointer.restore_latest(make_state())[1] == {"epoch": 1}
    assert "2 is damaged (it has no checksums.sha256)" in caplog.text
    assert "3 is damaged (record is missing" in caplog.text


def test_checksums_are_those_of_sha256sum(tmp_path):
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    checkpointer = save_all(tmp_path, {1: 0.2})
    command = ["sha256sum", "--check", "--strict", "--quiet", "checksums.sha256"]
    subprocess.run(command, cwd=checkpointer.folder / "1", check=True)


def test_a_flipped_bit_in_any_array_is_noticed(tmp_path, caplog):
    checkpointer = save_all(tmp_path, {1: 0.2, 2: 0.9})
    largest = max(checkpointer.folder.glob("2/state/**/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert checkpointer.restore_best(make_state())[1] == {"epoch": 1}
    assert "taking step 1" in caplog.text
    state, _ = checkpointer.restore_latest(make_state())
    assert_same(state, make_state(1))
    assert "going on from step 1" in caplog.text
    # The run goes on from step 1 and comes to step 2 again; nothing was deleted.
    assert folders(checkpointer) == ["1", "2.corrupt"]
    checkpointer.save(2, make_state(2), {"epoch": 2}, 0.9)
    assert_same(checkpointer.restore_latest(make_state())[0], make_state(2))
    assert folders(checkpointer) == ["1", "2", "2.corrupt"]


def test_a_changed_score_is_noticed(tmp_path, caplog):
    checkpointer = save_all(tmp_path, {1: 0.25, 2: 0.75, 3: 0.5})
    (path,) = checkpointer.folder.glob("2/record/metadata")
    path.write_text(path.read_text().replace("0.75", "0.15"))
    assert checkpointer.best_step == 3
    assert checkpointer.restore_best(make_state())[1] == {"epoch": 3}
    assert "checkpoint 2 is damaged" in caplog.text


def test_two_damaged_ones_are_both_set_aside(tmp_path, caplog):
    checkpointer = save_all(tmp_path, {1: 0.9, 2: 0.2, 3: 0.2})
    (checkpointer.folder / "3.corrupt").mkdir()
    for step in (2, 3):
        (checkpointer.folder / f"{step}/state/manifest.ocdbt").write_bytes(b"")
    assert checkpointer.restore_latest(make_state())[1] == {"epoch": 1}
    assert folders(checkpointer) == ["1", "2.corrupt", "3.corrupt", "3.corrupt-2"]
    assert "3.corrupt-2" in caplog.text


def test_all_damaged(tmp_path):
    checkpointer = save_all(tmp_path, {1: 0.9, 2: 0.2})
    for path in checkpointer.folder.glob("*/state/manifest.ocdbt"):
        path.write_bytes(b"")
    for restore in (checkpointer.restore_latest, checkpointer.restore_best):
        with pytest.raises(UserError, match=r"no checkpoint can be read: step \d.*remove it"):
            restore(make_state())
    assert folders(checkpointer) == ["1", "2"]


def test_a_file_that_may_not_be_read_is_not_damage(tmp_path, monkeypatch):
    checkpointer = save_all(tmp_path, {1: 0.9, 2: 0.2})

    def refuse(file, digest):
        raise PermissionError(errno.EACCES, "Permission denied", file.name)

    monkeypatch.setattr(checkpoint.hashlib, "file_digest", refuse)
    with pytest.raises(UserError, match=r"record/.*: cannot be read \(Permission denied\)"):
        checkpointer.restore_latest(make_state())
    assert folders(checkpointer) == ["1", "2"]


# What the child processes below start with.
PRELUDE = f"""
import os, resource, signal, sys
import jax
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_checkpoint import *
workdir = sys.argv[1]
"""


def run_child(script, *args):
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.slow
def test_kill_while_saving(tmp_path):
    child = run_child(
        """
        checkpointer = save_all(workdir, {1: 0.5, 2: 0.1})
        checkpointer.save(3, make_state(3, width=300_000), {"epoch": 3}, 0.9)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    checkpointer = Checkpointer(tmp_path)
    if checkpointer.latest_step == 2:  # else the save was quicker than the kill
        assert_same(checkpointer.restore_latest(make_state())[0], make_state(2))
        assert checkpointer.best_step == 1
        checkpointer.save(3, make_state(3), {"epoch": 3}, 0.9)
    checkpointer.save(4, make_state(4), {"epoch": 4}, 0.1)
    assert_same(checkpointer.restore_latest(make_state())[0], make_state(4))
    assert folders(checkpointer) == ["3", "4"]


FULL_DISK = """
scores = {1: 0.9, 2: 0.1}
checkpointer = save_all(workdir, scores)
fill_up(workdir)
for _ in range(2):  # it stays usable: the second try says the same
    try:
        checkpointer.save(3, make_state(3, width=100_000), {"epoch": 3}, 1.0)
        checkpointer.wait()
    except UserError as error:
        print(error)
assert_same(checkpointer.restore_latest(make_state())[0], make_state(2))
assert_same(checkpointer.restore_best(make_state())[0], make_state(1))
make_room(workdir)
checkpointer.save(3, make_state(3), {"epoch": 3}, 1.0)
assert_same(checkpointer.restore_best(make_state())[0], make_state(3))
print(folders(checkpointer))
"""


def assert_disk_trouble_was_told(child, what):
    assert child.returncode == 0, child.stderr
    first, second, kept = child.stdout.splitlines()
    assert first == second
    assert what in first
    assert "the last good checkpoint is step 2" in first
    assert "run the same command again" in first
    assert kept == "['2', '3']"


@pytest.mark.slow
def test_file_size_limit_while_saving(tmp_path):
    script = """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    def fill_up(workdir):
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, unlimited[1]))
    def make_room(workdir):
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    """
    child = run_child(textwrap.dedent(script) + FULL_DISK, tmp_path)
    assert_disk_trouble_was_told(child, "file too large")


@pytest.mark.slow
@pytest.mark.parametrize("foreseen", [True, False])
def test_full_disk_while_saving(tmp_path, foreseen):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    script = f"""
    if not {foreseen}:  # as when another process takes the room meanwhile
        checkpoint.Checkpointer._check_room = lambda self, state: None
    def fill_up(workdir):
        pass  # 3 MB hold the small checkpoints, and not the 19 MB of the large one
    make_room = fill_up
    """
    try:
        child = run_child(textwrap.dedent(script) + FULL_DISK, tmp_path)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert_disk_trouble_was_told(child, "no space left on device")
    assert "free space" in child.stdout
    if foreseen:
        assert child.stderr == ""


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "run").write_text("a file where the workdir should be")
    with pytest.raises(UserError, match=r"not a directory.*there is none"):
        Checkpointer(tmp_path / "run").save(1, make_state(), {}, 0.5)


def test_only_orbax_is_silenced(tmp_path, capfd):
    from absl import logging as absl_logging

    child = run_child(
        """
        from absl import logging as absl_logging
        save_all(workdir, {1: 0.5}).restore_best(make_state())
        absl_logging.warning("heard")
        """,
        tmp_path,
    )
    assert child.returncode == 0, child.stderr
    assert [line for line in child.stderr.splitlines() if "heard" not in line] == []
    assert "heard" in child.stderr
    assert absl_logging.get_absl_logger().filters
    assert logging.getLogger().filters == []


def test_an_optimizer_of_other_parts_with_the_same_arrays_is_told(tmp_path):
    """As when a version of this package, or of optax, wraps a part of the optimizer."""
    saved = make_state(1)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, saved, {}, 0.5)
    optimizer = optax.chain(optax.masked(optax.clip_by_global_norm(1.0), True), optax.adam(1e-3))
    target = saved.replace(opt_state=optimizer.init(saved.params))
    with pytest.raises(UserError, match=r"checkpoints/1: .* another version of erc_jax or optax"):
        checkpointer.restore_latest(target)
