"""Starting a run from another run's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from erc_jax.errors import UserError
from erc_jax.experiment import Encoder
from erc_jax.progress import say
from erc_jax.systems import HEAD, Params, Recognition
from erc_jax.workdir import best_meta, load_run


def take_over(params: Params, system: Recognition, encoder: Encoder, source: Path) -> Params:
    """Replaces fresh parameters by those of another run's best checkpoint, where they fit.

    A module is taken whole or not at all. A head whose label names differ stays fresh, and so does
    what the other run does not have; this is said.

    Args:
      params: fresh parameters of the new run.
      system: the new run's.
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
    # An encoder's layers may be stacked in one run and apart in the other.
    taken = other.system.to_published(other.params)
    classes = {task.name: task.classes for task in other.system.tasks}
    other_labels = {
        HEAD + task.name for task in system.tasks if classes.get(task.name) != task.classes
    }
    result, fresh = {}, []
    for module, leaves in system.to_published(params).items():
        fits = module in taken and _shapes(taken[module]) == _shapes(leaves)
        if fits and module not in other_labels:
            result[module] = jax.tree.map(lambda x, y: x.astype(y.dtype), taken[module], leaves)
        else:
            result[module] = leaves
            fresh.append(module)
    say(
        f"Weights taken from {source}"
        + (f"; these start fresh: {', '.join(sorted(fresh))}" if fresh else "")
    )
    return system.from_published(result)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
