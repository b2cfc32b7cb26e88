"""Which pictures a finished run gives, and what is in them; ``erc_jax.drawing`` draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from erc_jax import metrics
from erc_jax.clouds import rating_clouds
from erc_jax.data.dialogue import VAD
from erc_jax.drawing import confusion_matrices, label_histogram
from erc_jax.errors import UserError
from erc_jax.finished import FinishedRun, damaged, read_predictions, read_run
from erc_jax.progress import say
from erc_jax.system_names import FMERL

EARLY = "after the first epoch"


def run_figures(workdir: Path) -> list[Path]:
    """Draws what a finished run's metrics.json and predictions hold into WORKDIR/figures.

    Args:
      workdir: of the run; of several seeds, their common one. Predictions are then those of the
        seed that predicts.

    Returns:
      The files, each PNG and SVG: confusion_SPLIT of every split that is scored; labels;
      early_and_best, where the run kept the predictions of its first epoch; vad, where valence,
      arousal and dominance, or two of them, were learned.

    Raises:
      UserError: the folder is no finished run, its run replies, one of its files is damaged, or
        matplotlib is not installed.
    """
    run = read_run(workdir)
    if run.replies:
        raise UserError(f"{workdir}: this run replies; figures are of runs that name emotions")
    path = workdir / "metrics.json"
    names = run.emotions
    with damaged(str(path)):
        corpus = run.facts["corpus"]
        if "neutral" not in corpus or any("emotions" not in s for s in corpus["splits"].values()):
            raise UserError(
                f"{path} is of an earlier version, which did not count the labels; write it anew: "
                f"python -m erc_jax.main --workdir {workdir} --mode evaluate --split test"
            )
        counts = {
            split: [int(facts["emotions"].get(name, 0)) for name in names]
            for split, facts in corpus["splits"].items()
        }
        confusions = {
            split: np.array(block["confusion"], np.int64).reshape(len(names), len(names))
            for split, block in run.blocks.items()
        }
        epochs = {r["seed"]: r["best_epoch"] for r in run.facts.get("checkpoints", [])}
    stages = _stages(run, epochs.get(run.predicting))

    several = len(run.folders) > 1
    of_seeds = f", sum of {len(run.folders)} seeds" if several else ""
    files = []
    for split, confusion in confusions.items():
        file = workdir / "figures" / f"confusion_{split}.png"
        title = f"{corpus['name']}, {split}{of_seeds}"
        files += confusion_matrices({"": confusion}, names, file, title)
    file = workdir / "figures" / "labels.png"
    files += label_histogram(counts, names, corpus["neutral"], file, f"{corpus['name']}: emotions")
    title = f"{corpus['name']}, {run.selected_on[0]}"
    if several:
        title += f", seed {run.predicting}"
    return files + _stage_figures(stages, names, workdir / "figures", title)


@dataclasses.dataclass(frozen=True)
class _Predictions:
    """What is predicted of the labelled utterances of a split.

    Attributes:
      emotions: true classes int [N].
      predicted: classes int [N].
      dimensions: the V that are regressed, valence first; none where none is.
      vad: predictions float [N, V].
      ratings: what the corpus gives float [N, V], NaN where that is nothing, or not on the scale.
      scale: of both, where it is known.
    """

    emotions: np.ndarray
    predicted: np.ndarray
    dimensions: Sequence[str]
    vad: np.ndarray
    ratings: np.ndarray
    scale: tuple[float, float] | None


def _stages(run: FinishedRun, epoch: int | None) -> dict[str, _Predictions]:
    """Predictions of the split that the checkpoint was chosen on, early and of that checkpoint.

    Args:
      run: of several seeds, the one that predicts is taken.
      epoch: which was chosen, if that is known.

    Returns:
      Title to predictions; the early ones only where the run kept them; nothing where nothing is
      to be drawn of them.
    """
    split, folder = run.selected_on[0], run.folders[run.predicting]
    early, best = folder / f"early_{split}.jsonl", folder / f"predictions_{split}.jsonl"
    rates = run.facts["system"] == FMERL
    if not early.is_file() and not (rates and best.is_file()):
        return {}
    if not best.is_file():
        raise UserError(
            f"{best} is missing; write it anew: python -m erc_jax.main --workdir {run.workdir} "
            f"--mode evaluate --split {split}"
        )
    learned: Sequence[str] = ()
    if rates:
        with damaged(str(run.workdir / "config.json")):
            learned = run.config["fmerl"]["vad"]["dimensions"]
    dimensions = [dimension for dimension in VAD if dimension in learned]
    chosen = "chosen checkpoint" + (f" (epoch {epoch})" if epoch else "")
    files = {EARLY: early, chosen: best} if early.is_file() else {chosen: best}
    stages = {
        title: _read_predictions(file, run.emotions, dimensions) for title, file in files.items()
    }
    first, last = next(iter(stages.values())), stages[chosen]
    if not np.array_equal(first.emotions, last.emotions) or first.dimensions != last.dimensions:
        raise UserError(
            f"{early} and {best} are not of the same utterances; was one of them cut off, or the "
            "corpus changed? Restore the file, or train again in another workdir"
        )
    return stages if len(last.emotions) else {}


def _read_predictions(path: Path, names: Sequence[str], dimensions: Sequence[str]) -> _Predictions:
    """What figures need of a file that ``erc_jax.predictor.label_dialogues`` made.

    Args:
      path: of the file.
      names: the classes.
      dimensions: which ratings the run learns, if its corpus has any.
    """
    conversations = read_predictions(path, names)
    turns = [turn for c in conversations for turn in c.turns if turn.true is not None]
    if not any(turn.vad for turn in turns):  # nothing to learn from: the corpus is not rated
        dimensions = []
    with damaged(str(path)):
        emotions = [names.index(turn.true or "") for turn in turns]
        predicted = [names.index(turn.predicted or "") for turn in turns]
        vad = [[turn.vad[d] for d in dimensions] for turn in turns]
    ratings = [[turn.rated.get(d, np.nan) for d in dimensions] for turn in turns]
    shape = (len(turns), len(dimensions))
    given = np.reshape(np.array(ratings, np.float64), shape)
    scale = next((c.scale for c in reversed(conversations) if c.scale), None)
    if scale is not None:
        given = np.where((scale[0] <= given) & (given <= scale[1]), given, np.nan)
    return _Predictions(
        np.array(emotions, np.int64),
        np.array(predicted, np.int64),
        dimensions,
        np.reshape(np.array(vad, np.float64), shape),
        given,
        scale,
    )


def _stage_figures(
    stages: Mapping[str, _Predictions], names: Sequence[str], folder: Path, title: str
) -> list[Path]:
    """Draws early_and_best and vad, as far as there is anything to draw."""
    files: list[Path] = []
    if not stages:
        return files
    if len(stages) > 1:
        confusions = {
            panel: metrics.confusion(of_stage.emotions, of_stage.predicted, len(names))
            for panel, of_stage in stages.items()
        }
        files += confusion_matrices(confusions, names, folder / "early_and_best.png", title)
    *_, best = stages.values()
    if len(best.dimensions) == 1:
        say(
            f"Note: vad is not drawn: the run learned {best.dimensions[0]} alone, and a plane "
            "needs two dimensions."
        )
    if len(best.dimensions) < 2:
        return files
    of_scale = "" if best.scale is None else " (scale {:g} to {:g})".format(*best.scale)
    return files + rating_clouds(
        {panel: of_stage.vad for panel, of_stage in stages.items()},
        best.ratings,
        best.emotions,
        names,
        [dimension + of_scale for dimension in best.dimensions],
        folder / "vad.png",
        f"{title}: predicted ratings of each true emotion",
    )
