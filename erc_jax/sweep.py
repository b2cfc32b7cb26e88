"""The runs of a paper's tables, one after another; a finished one is not made again.

Tables 2, 4 and 5 of Ide and Kawahara: combinations of tasks, and weights of the tasks' losses. The
runs lie in the workdir's folders, each named by its tasks and weights; a run is resumed as any
other. ``sweep.json`` holds the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from erc_jax.config import check_same_run, save_config
from erc_jax.data.dialogue import parse_json, write_whole
from erc_jax.errors import UserError
from erc_jax.model_card import has_ended
from erc_jax.progress import say
from erc_jax.system_names import RESPONSE
from erc_jax.train import train

# Tasks, and weights that are not 1. The paper's weight 0 leaves a task out.
PAPER: tuple[tuple[str, Mapping[str, float]], ...] = (
    ("R", {}),
    ("R+E6", {}),
    ("R+E6+E2", {}),
    ("R+E6+E12", {}),
    ("R+E6+E2+E12", {}),
    ("R+E6+E2", {"E6": 0.5, "E2": 0.5}),
    ("R+E6+E12", {"E6": 0.5, "E12": 0.5}),
    ("R+E6+E2+E12", {"E6": 0.33, "E2": 0.33, "E12": 0.33}),
)
SCORES = ("perplexity", "bleu", "distinct_1", "distinct_2", "average_length")


def sweep(config: ConfigDict, workdir: Path) -> list[dict[str, Any]]:
    """Trains and scores every run of the sweep that ``config.sweep`` names.

    Args:
      config: of system "response"; its tasks and weights are the sweep's.
      workdir: folder of the runs.

    Returns:
      A row per run: its tasks, weights, and test scores of replies and of task E6. They are
      written to sweep.json after every run.

    Raises:
      UserError: the system is another, or the workdir, or a run's folder, holds something else.
    """
    if config.system != RESPONSE:
        raise UserError(f"sweep is for runs of response; this one is of {config.system}")
    check_same_run(config, workdir)
    save_config(config, workdir)
    rows = []
    for number, (tasks, weights) in enumerate(PAPER, start=1):
        name = "-".join([tasks, *(f"{task}_{weight:g}" for task, weight in weights.items())])
        say(f"\n{name}: run {number} of {len(PAPER)}")
        of_run = _config(config, tasks, weights)
        content = _finished(of_run, workdir / name) or train(of_run, workdir / name)
        test = content["test"]
        row: dict[str, Any] = {"tasks": tasks}
        row["weights"] = ", ".join(f"{task} {weight:g}" for task, weight in weights.items())
        row |= {score: test[score] for score in SCORES}
        # Without E6 there is no trained head to score (the paper scores an untrained one).
        head = test.get("heads", {}).get("E6", {})
        row |= {f"E6_{score}": head.get(score) for score in ("accuracy", "macro_f1")}
        rows.append(row)
        write_whole(workdir / "sweep.json", json.dumps(rows, indent=2) + "\n")
    return rows


def _config(config: ConfigDict, tasks: str, weights: Mapping[str, float]) -> ConfigDict:
    alone = config.copy_and_resolve_references()
    alone.sweep = ""
    alone.response.tasks = tasks
    for task in tasks.split("+"):
        alone.weights[task] = weights.get(task, 1.0)
    return alone


def _finished(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """What metrics.json of a finished run holds; None of one that is to go on.

    Raises:
      UserError: the folder holds a run of another config.
    """
    check_same_run(config, workdir)
    if not has_ended(workdir):
        return None
    path = workdir / "metrics.json"
    return parse_json(path.read_text(), str(path))
