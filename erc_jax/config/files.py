"""Where configs are: files that give one, and the config.json of a run."""

from __future__ import annotations

import inspect
import json
import runpy
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from erc_jax.config.fields import base_config, did_you_mean, flatten
from erc_jax.data.dialogue import write_whole
from erc_jax.errors import UserError
from erc_jax.plugins import import_plugins

# Fields that may differ between two starts of one run: they change no result.
FREE_FIELDS = (
    *("log_every", "profile", "fine_tuning.folds"),
    *("seeds_together", "mesh.seeds", "mesh.rules"),
)


def find_config(name: str) -> str:
    """Path of a config that is named by path ("configs/meld.py") or by name ("meld").

    A variant after a colon ("meld:paper") stays as it is. A path that does not exist is looked
    for among the package's own configs, so that the same command works after pip install.

    Raises:
      UserError: there is no such file and no such name; the nearest names are given.
    """
    path, colon, variant = name.partition(":")
    if Path(path).is_file():
        return name
    shipped = _shipped_configs()
    stem = Path(path).stem
    if stem in shipped and path in (stem, f"{stem}.py", f"configs/{stem}.py"):
        return f"{shipped[stem]}{colon}{variant}"
    raise UserError(
        f"--config {path}: no such file, and no config of this name comes along; "
        + did_you_mean(stem, shipped)
    )


def _shipped_configs() -> dict[str, Path]:
    package = Path(__file__).parent.parent
    # In a wheel the folder lies inside the package, in a checkout beside it.
    for folder in (package / "configs", package.parent / "configs"):
        if found := {p.stem: p for p in sorted(folder.glob("*.py"))}:
            return found
    return {}


def read_config(name: str) -> ConfigDict:
    """Runs a config file, "configs/meld.py" or "configs/meld.py:paper".

    Raises:
      UserError: it fails, or has no ``get_config`` that returns a ConfigDict; the message names the
        line.
    """
    path, _, variant = name.partition(":")
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise UserError(f"{path}: no function get_config; expected one that returns a config")
        if variant and not inspect.signature(get_config).parameters:
            raise UserError(f"unknown variant {variant!r}; {path} has none")
        config = get_config(variant) if variant else get_config()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:  # whatever a user's file may raise
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        where = f"{path}:{lines[-1]}" if lines else path
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: get_config returns {type(config).__name__}, expected a ConfigDict; does it "
            "begin with base_config() and end with return?"
        )
    return config


def save_config(config: ConfigDict, workdir: Path) -> None:
    write_whole(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def load_config(workdir: Path) -> ConfigDict:
    """The config of a run; fields that are newer than it have their defaults.

    Raises:
      UserError: the folder is not a workdir, or its config.json is damaged.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(
            f"{workdir}: not a workdir (no config.json); train one with "
            f"python -m erc_jax.main --config CONFIG --workdir {workdir}"
        )
    try:
        stored = ConfigDict(dict(_with_tuples(json.loads(path.read_text()))))
        config = ConfigDict(base_config().to_dict())
        config.update(stored)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: damaged, or not of a run ({error}); train again in another workdir"
        ) from error
    import_plugins(config.plugins)
    return config


def _with_tuples(value: Any) -> Any:
    """JSON knows lists only; configs hold tuples only."""
    if isinstance(value, dict):
        return {k: _with_tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value


def check_same_run(config: ConfigDict, workdir: Path, free: Collection[str] = FREE_FIELDS) -> None:
    """Refuses to go on with a run under another config.

    Args:
      config: of the run that is to start.
      workdir: its folder, which may hold a run already, or not exist.
      free: fields that may differ.

    Raises:
      UserError: the workdir's config.json differs, and the message names the fields; or the workdir
        is a file.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir}: this is a file, expected a folder or a new name")
    if not (workdir / "config.json").is_file():
        return
    there, here = dict(flatten(load_config(workdir))), dict(flatten(config))
    differences = [
        f"{field} is {there.get(field)!r} there and {here.get(field)!r} here"
        for field in sorted(there.keys() | here.keys())
        if there.get(field) != here.get(field) and field not in free
    ]
    if differences:
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(differences)}. "
            "Choose another --workdir, or give the same config to go on with that run."
        )
