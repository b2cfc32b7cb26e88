"""Checkpoints of a run: the latest for resuming, the best on validation for prediction.

This is the one module that knows Orbax. Orbax restores a flipped bit in an array without a word,
and meets a damaged index with tracebacks from its background tasks. So each checkpoint holds the
SHA-256 of its files, written before the rename that makes it count, and Orbax is only given what
has been verified. A checkpoint is a folder of

* ``state/``: the arrays,
* ``record/``: score, meta, and the shape and dtype of every array, as JSON,
* ``checksums.sha256``: as ``sha256sum --check`` reads it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from erc_jax.errors import UserError
from erc_jax.processes import all_say, is_first, wait_for_all

logger = logging.getLogger(__name__)

PyTree = Any

_CHECKSUMS = "checksums.sha256"
_ROOM_BESIDE_ARRAYS = 1 << 20  # bytes, for the record and Orbax's indexes


def _not_from_orbax(record: logging.LogRecord) -> bool:
    code = f"{os.sep}orbax{os.sep}checkpoint{os.sep}"
    return code not in record.pathname and code not in record.getMessage()


# Orbax tells of its inner life through the logger of absl, and errors that it raises are told again
# there and, of tasks that it left behind, by asyncio. Only its own records are dropped.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_not_from_orbax)


class _Damaged(Exception):
    """A checkpoint's files are not what was saved; the message says which."""


class Checkpointer:
    """Saves and restores a run's state under ``workdir/checkpoints/<step>/``.

    Of several processes, all make the same calls, on one folder that all of them see.

    The latest ``keep_latest`` checkpoints and the best ``keep_best`` ones stay, older ones are
    deleted once a newer one is whole. A killed process or a full disk leaves the earlier
    checkpoints as they were. Nothing is created on disk before the first save.
    """

    def __init__(self, workdir: str | Path, *, keep_latest: int = 2, keep_best: int = 1):
        self.folder = Path(workdir).absolute() / "checkpoints"  # Orbax refuses relative paths
        self._keep_latest = keep_latest
        self._keep_best = keep_best
        self._writer: ocp.CheckpointManager | None = None  # lives from a save to the next wait
        self._scores: dict[int, float] = {}  # of the checkpoints that the writer knows

    @property
    def latest_step(self) -> int | None:
        """The newest checkpoint's step; None where there is none."""
        self.wait()
        return max(self._steps(), default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the best score, the earliest of equals; None where there is none."""
        self.wait()
        scores = self._read_scores()
        return min(scores, key=lambda step: (-scores[step], step), default=None)

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any], score: float) -> None:
        """Starts to save, and returns as soon as the state may be donated or changed.

        Args:
          step: greater than that of every checkpoint there is.
          state: a pytree of jax arrays, on any sharding; its values are for the caller to check.
          meta: anything that is JSON, given back by the restore.
          score: what ``restore_best`` goes by; higher is better.

        Raises:
          ValueError: the score is not finite, or the step is not a new one.
          TypeError: a leaf is not a jax array, or meta is not JSON.
          UserError: the disk refuses this checkpoint, or the one before.
        """
        score = float(score)
        if not math.isfinite(score):
            raise ValueError(f"the score of step {step} is {score}; expected a finite number")
        record = {"score": score, "meta": meta, "leaves": _described(state)}
        json.dumps(record)  # Orbax would fail in the background
        if self._writer is None:
            with self._explained():
                self._writer = self._open_writer()
        latest = self._writer.latest_step()
        if latest is not None and step <= latest:  # Orbax would do nothing, and not say so
            raise ValueError(f"step {step} is not after {latest}, the newest in {self.folder}")
        self._scores[step] = score
        with self._explained():
            self._writer.wait_until_finished()  # what the last save needs is not free
            self._check_room(state)
            self._writer.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
                ),
            )

    def wait(self) -> None:
        """Returns when all that was saved is on disk.

        Raises:
          UserError: the disk is full, or refuses the checkpoint for another reason.
        """
        if self._writer is not None:
            with self._explained():
                self._writer.close()
            self._writer = None

    def restore_latest(self, target: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """Restores the newest checkpoint that can be read, for the run to go on from there.

        Newer ones that are damaged are renamed to ``<step>.corrupt``, with a warning, so that the
        run can save these steps again.

        Args:
          target: a pytree of jax arrays or ``jax.ShapeDtypeStruct`` with the state's structure,
            shapes and dtypes. The state comes back on its shardings, whatever the ones were that
            it was saved from; a leaf without sharding goes to the first device.

        Returns:
          The state and the meta it was saved with; None when there is no checkpoint.

        Raises:
          UserError: the state does not fit the target, or no checkpoint can be read.
        """
        self.wait()
        steps = self._steps()
        # Else one process would begin anew, and the others wait for it.
        self._check_all_see(max(steps, default=0))
        if not steps:
            return None
        step, loaded, damaged = self._first_whole(sorted(steps, reverse=True), target)
        wait_for_all("checkpoints are read")
        for bad, reason in damaged.items() if is_first() else ():
            kept_as = self._set_aside(bad).name
            logger.warning(
                "%s: checkpoint %d is damaged (%s); going on from step %d. "
                "The damaged one is kept as %s.",
                *(self.folder, bad, reason, step, kept_as),
            )
        wait_for_all("damaged checkpoints are set aside")
        return loaded

    def restore_best(
        self, target: PyTree, *, partial: bool = False
    ) -> tuple[PyTree, dict[str, Any]]:
        """Restores the checkpoint with the best score, the earliest of equals.

        A damaged one is passed over, with a warning, and left where it is.

        Args:
          target: as for ``restore_latest``.
          partial: the target may be a part of the state, such as ``{"params": ...}``.

        Returns:
          The state, or its part, and the meta it was saved with.

        Raises:
          UserError: there is no checkpoint, none can be read, or it does not fit the target.
        """
        step, loaded, damaged = self._first_whole(self._best_first(), target, partial=partial)
        for bad, reason in damaged.items():
            logger.warning(
                "%s: checkpoint %d is damaged (%s); taking step %d, the best of the others.",
                *(self.folder, bad, reason, step),
            )
        return loaded

    def best_meta(self) -> dict[str, Any]:
        """The meta of the best checkpoint whose record can be read: what to build a target from.

        Raises:
          UserError: there is no checkpoint, or no record can be read.
        """
        ranked = self._best_first()
        with self._open_reader() as reader:
            for step in ranked:
                with contextlib.suppress(_Damaged):
                    return self._read_record(reader, step)["meta"]
        raise UserError(
            f"{self.folder}: no checkpoint can be read. Restore the folder from a backup, or "
            "remove it and train again."
        )

    def _best_first(self) -> list[int]:
        """Steps by falling score; one whose score cannot be read may be the best: it comes first.

        Raises:
          UserError: there is no checkpoint.
        """
        self.wait()
        steps = self._steps()
        if not steps:
            raise UserError(
                f"no checkpoint in {self.folder}; train first with: "
                f"python -m erc_jax.main --config CONFIG --workdir {self.folder.parent}"
            )
        scores = self._read_scores()
        return sorted(steps, key=lambda step: (-scores.get(step, math.inf), step))

    def _steps(self) -> list[int]:
        """Checkpoints that are whole as far as their names tell: unfinished ones have a suffix."""
        if not self.folder.is_dir():
            return []
        return [int(path.name) for path in self.folder.iterdir() if path.name.isdecimal()]

    def _open_writer(self) -> ocp.CheckpointManager:
        if is_first():
            for unfinished in self.folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}"):
                shutil.rmtree(unfinished)
        wait_for_all("unfinished checkpoints are gone")
        self._scores = self._read_scores()
        keep = policies.AnyPreservationPolicy(
            [policies.LatestN(self._keep_latest), _KeepBest(self._scores, self._keep_best)]
        )
        return ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                # Seeds save at the same time: one's processes must not wait for another's.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=self.folder.parent.name
                ),
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
            ),
        )

    def _check_room(self, state: PyTree) -> None:
        """Raises what a full disk raises, while that is still one error and not one per array."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _ROOM_BESIDE_ARRAYS
        if shutil.disk_usage(self.folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _write_checksums(self) -> None:
        """Called by Orbax when all files are written, before the folder gets its final name."""
        (folder,) = self.folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}")
        lines = _checksums(folder, "record") + _checksums(folder, "state")
        (folder / _CHECKSUMS).write_text("\n".join(lines) + "\n")

    def _verify(self, step: int, item: str) -> None:
        folder = self.folder / str(step)
        try:
            noted = (folder / _CHECKSUMS).read_text(errors="replace").splitlines()
            found = _checksums(folder, item)
        except (FileNotFoundError, NotADirectoryError):
            raise _Damaged(f"it has no {_CHECKSUMS}") from None
        except OSError as error:  # not the checkpoint's fault: it must not be set aside for it
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
        differing = set(found).symmetric_difference(line for line in noted if f"  {item}/" in line)
        if differing or not found:
            names = sorted({line.partition("  ")[2] for line in differing})
            raise _Damaged(f"{names[0] if names else item} is missing or not what was saved")

    def _open_reader(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.folder, options=ocp.CheckpointManagerOptions(read_only=True)
        )

    def _read_scores(self) -> dict[int, float]:
        """Scores of the checkpoints whose record can be read."""
        scores = {}
        if steps := self._steps():
            with self._open_reader() as reader:
                for step in steps:
                    with contextlib.suppress(_Damaged):
                        scores[step] = self._read_record(reader, step)["score"]
        return scores

    def _read_record(self, reader: ocp.CheckpointManager, step: int) -> dict[str, Any]:
        self._verify(step, "record")
        return reader.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record

    def _first_whole(
        self, steps: Sequence[int], target: PyTree, *, partial: bool = False
    ) -> tuple[int, tuple[PyTree, dict[str, Any]], dict[int, str]]:
        """Step and content of the first one that can be read, and why those before it cannot.

        Raises:
          UserError: there is none, it does not fit, or processes see different files.
        """
        damaged: dict[int, str] = {}
        for step in steps:
            reason = self._damage(step)
            self._check_all_see(step, reason)
            if reason is None:
                return step, self._load(step, target, partial), damaged
            damaged[step] = reason
        raise UserError(
            f"{self.folder}: no checkpoint can be read: "
            + "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            + ". Restore the folder from a backup, or remove it and train again."
        )

    def _check_all_see(self, step: int, reason: str | None = None) -> None:
        """Refuses to go on where processes would go on from different checkpoints.

        Args:
          step: of the checkpoint that comes next; 0 is none.
          reason: why it cannot be read, if it cannot.
        """
        if not all_say(-step if reason else step):
            raise UserError(
                f"{self.folder}: the processes do not see the same checkpoints (here step {step} "
                f"is {reason or 'whole'}); expected one folder that all of them see. Start them "
                "again"
            )

    def _damage(self, step: int) -> str | None:
        """Why a checkpoint cannot be read; None if it can."""
        try:
            for item in ("record", "state"):
                self._verify(step, item)
        except _Damaged as error:
            return str(error)
        return None

    def _load(self, step: int, target: PyTree, partial: bool) -> tuple[PyTree, dict[str, Any]]:
        with self._open_reader() as reader:
            record = self._read_record(reader, step)
            self._check_fit(step, record["leaves"], target, partial)
            abstract = jax.tree.map(_abstract, target)
            # The fit is checked, so that partial_restore can hide nothing.
            args = ocp.args.PyTreeRestore(
                item=abstract,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                partial_restore=True,
            )
            try:
                restored = reader.restore(step, args=ocp.args.Composite(state=args))
            except TypeError as error:
                # The leaves are the same; what holds them, such as an optimizer's parts, is not.
                raise UserError(
                    f"{self.folder / str(step)}: the checkpoint was written by another version of "
                    f"erc_jax or optax ({error}); go on with that version, or in another workdir"
                ) from error
        return restored.state, record["meta"]

    def _check_fit(
        self, step: int, saved: Mapping[str, Any], target: PyTree, partial: bool
    ) -> None:
        wanted = _described(target)
        problems = [f"it has no {name}" for name in wanted if name not in saved]
        if not partial:
            problems += [f"its {name} has no place" for name in saved if name not in wanted]
        problems += [
            f"its {name} is {saved[name]}, expected {wanted[name]}"
            for name in saved.keys() & wanted.keys()
            if saved[name] != wanted[name]
        ]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise UserError(
                f"{self.folder / str(step)}: the checkpoint does not fit this model: "
                f"{'; '.join(sorted(problems)[:3])}{more}. "
                "Use the config that the run was trained with, or another workdir."
            )

    def _set_aside(self, step: int) -> Path:
        path = self.folder / f"{step}.corrupt"
        number = 1
        while path.exists():
            number += 1
            path = self.folder / f"{step}.corrupt-{number}"
        return (self.folder / str(step)).rename(path)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what the disk says to a writer into a UserError."""
        try:
            yield
        except Exception as error:
            writer, self._writer = self._writer, None
            if writer is not None:
                # It raises at the first array that fails, while others are still being written: no
                # other writer may begin before these have ended. It says the same again.
                with contextlib.suppress(Exception):
                    writer.close()
            code = _os_error(error)
            if code is None:
                raise
            steps = self._steps()
            last = f"the last good checkpoint is step {max(steps)}" if steps else "there is none"
            remedy = "free space" if code in (errno.ENOSPC, errno.EDQUOT) else "mend this"
            raise UserError(
                f"{self.folder}: {os.strerror(code).lower()}: the checkpoint could not be saved; "
                f"{last}; {remedy} and run the same command again"
            ) from error


class _KeepBest(policies.PreservationPolicy):
    """Keeps the n best scores, the earliest of equals, and what has no readable score.

    Orbax's own BestN keeps the latest of equals.
    """

    def __init__(self, scores: Mapping[int, float], n: int):
        self.scores = scores
        self.n = n

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        scored = [info.step for info in checkpoints if info.step in self.scores]
        lost = sorted(scored, key=lambda step: (-self.scores[step], step))[self.n :]
        return [info.step not in lost for info in checkpoints]


def _described(state: PyTree) -> dict[str, str]:
    """Leaves as {"params/dense/kernel": "float32[16, 7]"}: the same for a dict and a dataclass."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            raise TypeError(f"{name} of the state is {type(leaf).__name__}, expected a jax array")
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _checksums(folder: Path, item: str) -> list[str]:
    """A line for each file of an item: SHA-256, two spaces, path in the checkpoint's folder."""
    lines = []
    for path in sorted((folder / item).rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{digest}  {path.relative_to(folder).as_posix()}")
    return lines


def _os_error(error: BaseException) -> int | None:
    """The operating system's error number; TensorStore gives it only inside the message."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    told = re.search(r"os_error_code='(\d+)'", str(error))
    return int(told.group(1)) if told else None
