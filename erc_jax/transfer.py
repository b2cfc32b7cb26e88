"""Starting a run from another run's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.errors import UserError
from erc_jax.experiment import best_meta, load_run
from erc_jax.progress import say
from erc_jax.systems import HEAD, Params, Task


def take_over(
    params: Params, tasks: Sequence[Task], encoder: SentenceEncoder, source: Path
) -> Params:
    """Replaces fresh parameters by those of another run's best checkpoint, where they fit.

    A head whose label names differ stays fresh, and so does what the other run does not have;
    this is said.

    Args:
      params: fresh parameters of the new run.
      tasks: the new run's tasks.
      encoder: the new run's encoder; the other run must have used the same.
      source: the other run's workdir.

    Raises:
      UserError: the other run read features of another encoder.
    """
    named = best_meta(source)["encoder"]
    name = named["name"]
    if named["sha256"] != encoder.sha256:
        raise UserError(
            f"init_from: {source} was trained on features of {name}, this run reads "
            f"{encoder.name}; give --config.encoder={name}"
        )
    other = load_run(source, encoder)
    classes = {task.name: task.classes for task in other.system.tasks}
    same_labels = {HEAD + task.name for task in tasks if classes.get(task.name) == task.classes}
    taken = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(other.params)
    }
    fresh: set[str] = set()

    def choose(path: Any, leaf: jax.Array) -> jax.Array:
        module = path[0].key
        found = taken.get(jax.tree_util.keystr(path))
        is_other_head = module.startswith(HEAD) and module not in same_labels
        if found is None or found.shape != leaf.shape or is_other_head:
            fresh.add(module)
            return leaf
        return found.astype(leaf.dtype)

    params = jax.tree_util.tree_map_with_path(choose, params)
    say(
        f"Weights taken from {source}"
        + (f"; these start fresh: {', '.join(sorted(fresh))}" if fresh else "")
    )
    return params
