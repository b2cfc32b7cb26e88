"""What a report says of scores: tables, confusion matrices, learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from erc_jax import charts
from erc_jax.data.dialogue import VAD
from erc_jax.finished import FinishedRun, damaged, read_log, value_at
from erc_jax.metrics import LOWER_IS_BETTER, SCORE_NAMES
from erc_jax.published import published

TASKS = {
    "sentiment": "sentiment",
    "shift_global": "shift from the previous utterance",
    "shift_speaker": "shift from the speaker's previous utterance",
}
# Where a score stands in a split's block, and how it is called.
SCORES = {
    **SCORE_NAMES,
    "without_seen.weighted_f1": "weighted F1, dialogues not seen in training",
    **{f"{task}.weighted_f1": f"{name}: weighted F1" for task, name in TASKS.items()},
    **{f"vad.{dimension}.ccc": f"{dimension}: CCC" for dimension in VAD},
    "zero_shot.unseen_recall": "held-out emotions: recall",
    "zero_shot.unseen_f1": "held-out emotions: F1",
    "zero_shot.unseen_f1_subset": "held-out emotions: F1 on their utterances alone",
    "zero_shot.seen_recall": "held-out emotions: recall of the others",
    "zero_shot.harmonic_mean": "held-out emotions: harmonic mean of both recalls",
    "zero_shot.accuracy": "held-out emotions: accuracy on all",
    "zero_shot.weighted_f1": "held-out emotions: weighted F1 on all",
    "triplet_verification.macro_f1_no_neutral": "triplets: macro F1 without neutral",
    "triplet_verification.micro_f1_no_neutral": "triplets: micro F1 without neutral",
    "triplet_verification.mcc": "triplets: MCC",
}
PLAIN_SCORES = {  # those that are no shares, and come as they are
    "perplexity": "perplexity",
    "bleu": "BLEU",
    "average_length": "words of a reply",
}
REPLY_SHARES = {"distinct_1": "distinct-1", "distinct_2": "distinct-2"}


def score_name(metric: str) -> str:
    """Of a score by which checkpoints are chosen, such as "heads.E6.macro_f1"."""
    *_, head, leaf = ["", *metric.split(".")]
    return f"{head} {SCORES.get(leaf, leaf)}".strip()


def score_text(value: float, metric: str) -> str:
    """A score as people read it: in percent, unless it is no share, or a concordance."""
    leaf = metric.rpartition(".")[2]
    if leaf == "ccc":
        return f"{value:.3f}"
    return f"{value:.2f}" if leaf in (*PLAIN_SCORES, *LOWER_IS_BETTER) else f"{100 * value:.2f}"


def _mirrored(block: Mapping[str, Any], kind: str, path: str) -> Any:
    """The std or the interval of a score: it stands under that name beside one of its parts."""
    parts = path.split(".")
    for place in range(len(parts)):
        found = value_at(block, ".".join([*parts[:place], kind, *parts[place:]]))
        if found is not None:
            return found
    return None


def _cell(block: Mapping[str, Any], path: str) -> str:
    value = value_at(block, path)
    if value is None:
        return ""
    text = score_text(value, path)
    if (std := _mirrored(block, "std", path)) is not None:
        text += f" ± {score_text(std, path)}"
    if (interval := _mirrored(block, "interval", path)) is not None:
        text += f"\n[{score_text(interval[0], path)}, {score_text(interval[1], path)}]"
    return text


def score_rows(run: FinishedRun) -> list[tuple[str, ...]]:
    """A row per score, a cell per split."""
    heads = {head: None for block in run.blocks.values() for head in block.get("heads", {})}
    paths = [*PLAIN_SCORES, *REPLY_SHARES, *SCORES]
    paths += [f"heads.{head}.{metric}" for head in heads for metric in ("accuracy", "macro_f1")]
    rows = [(_name(path), *(_cell(block, path) for block in run.blocks.values())) for path in paths]
    return [row for row in rows if any(row[1:])]


def paper_rows(run: FinishedRun) -> list[tuple[str, str, str, str]]:
    """A row per score of the paper: its name, this run's, the paper's, and where that stands."""
    block = run.blocks.get("test", {})
    rows = []
    for figure in published(run.facts["system"], run.facts["corpus"]["name"], run.config):
        if value_at(block, figure.metric) is None:
            continue
        rows.append(
            (_name(figure.metric), _cell(block, figure.metric), figure.printed, figure.where)
        )
    return rows


def _name(path: str) -> str:
    """How a score is called that stands at a path: an own name, or one by task and class."""
    task, _, rest = path.partition(".per_class.")
    if task in TASKS:
        return f"{TASKS[task]}: F1 of {rest.removesuffix('.f1').replace('_', ' ')}"
    if path.startswith("heads."):
        _, head, metric = path.split(".")
        return f"{head}: {SCORES[metric]}"
    return {**PLAIN_SCORES, **REPLY_SHARES, **SCORES}.get(path, path)


def class_parts(run: FinishedRun, split: str) -> list[dict[str, Any]]:
    """Scores per class and confusion matrices, of emotions, of shifts, and of heads."""
    block = run.blocks[split]
    over = f"{split}, sum over {len(run.folders)} seeds" if len(run.folders) > 1 else split
    parts = []
    if "per_class" in block:
        parts.append(
            {
                "title": f"Emotions, {split}",
                "of": "emotion",
                "rows": _per_class(block, len(run.folders)),
                "matrices": [_matrix(block, over)],
            }
        )
    tasks = {
        name: block[task]
        for task, name in TASKS.items()
        if task in block and np.sum(block[task]["confusion"])
    }
    if tasks:
        matrices = [_matrix(of, f"{name}, {over}") for name, of in tasks.items()]
        title = " and ".join(dict.fromkeys(name.partition(" ")[0] for name in tasks)).capitalize()
        parts.append({"title": f"{title}, {split}", "rows": [], "matrices": matrices})
    for head, of in block.get("heads", {}).items():
        if "per_class" in of:
            matrices = [_matrix(of, over)] if "confusion" in of else []
            rows = _per_class(of, len(run.folders))
            title = f"Head {head}, {split}"
            parts.append({"title": title, "of": "class", "rows": rows, "matrices": matrices})
    return parts


def _per_class(block: Mapping[str, Any], n_seeds: int) -> list[tuple[str, ...]]:
    """A row per class; of several seeds its utterances are counted once, as the split has them."""
    rows = []
    for name, scores in block["per_class"].items():
        # ``metrics.aggregate`` has them in a tree of their own, ``metrics.over_seeds`` beside each.
        spreads = block.get("std", {}).get("per_class", {}).get(name) or scores.get("std", {})
        cells = [
            f"{100 * scores[key]:.1f}" + (f" ± {100 * spreads[key]:.1f}" if key in spreads else "")
            for key in ("precision", "recall", "f1")
        ]
        rows.append((name, *cells, f"{scores['support'] / n_seeds:,.0f}"))
    return rows


def _matrix(block: Mapping[str, Any], title: str) -> dict[str, Any]:
    names = [name.replace("_", " ") for name in block["per_class"]]
    counts = np.array(block["confusion"], np.int64).reshape(len(names), len(names))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = [
        list(zip(row.tolist(), of_row.tolist(), strict=True))
        for row, of_row in zip(counts, shares, strict=True)
    ]
    return {"title": title, "names": names, "rows": list(zip(names, cells, strict=True))}


def learning_curves(run: FinishedRun) -> list[tuple[Any, str]]:
    """Loss by step and selection score by epoch, a line per seed."""
    split, metric = run.selected_on
    chosen = {c["seed"]: c.get("best_epoch") for c in run.facts.get("checkpoints", [])}
    losses, scores = [], []
    for seed, folder in run.folders.items():
        records, main = read_log(folder), seed == run.predicting
        points = [(r["step"], r["loss"]) for r in records if "loss" in r]
        losses.append(charts.Curve(f"seed {seed}", points, main))
        found = [(r["epoch"], value_at(r, f"{split}.{metric}")) for r in records if "epoch" in r]
        with damaged(str(folder / "metrics.jsonl")):
            points = [(epoch, float(score_text(v, metric))) for epoch, v in found if v is not None]
        scores.append(
            charts.Curve(f"seed {seed}", points, main, chosen.get(seed) if main else None)
        )
    others = " Thin lines are the other seeds." if len(run.folders) > 1 else ""
    dot = f" The dot is the epoch that was chosen.{others}"
    drawn = []
    for curves, name, axes, caption in (
        (losses, "Training loss", ("step", "loss"), f"Training loss.{others}"),
        (
            scores,
            f"{split} {score_name(metric)}",
            ("epoch", score_name(metric)),
            f"{split.capitalize()} {score_name(metric)}, by which the checkpoint is chosen.{dot}",
        ),
    ):
        # A perplexity may be infinite at first.
        if values := [y for c in curves if c.main for _, y in c.points if math.isfinite(y)]:
            description = f"From {values[0]:.4g} to {values[-1]:.4g}."
            drawn.append((charts.curves(name, description, curves, axes), caption))
    return drawn
