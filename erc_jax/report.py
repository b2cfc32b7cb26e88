"""A finished run as one HTML page: what was run, its scores, and where it errs."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erc_jax import charts
from erc_jax.data.dialogue import VAD, parse_json, text_lines
from erc_jax.finished import (
    Conversation,
    FinishedRun,
    Turn,
    damaged,
    predictions_file,
    read_log,
    read_predictions,
    read_run,
    value_at,
)
from erc_jax.metrics import LOWER_IS_BETTER, SCORE_NAMES
from erc_jax.pages import write_page
from erc_jax.progress import duration
from erc_jax.published import published

REPLIES = "response"  # the system whose runs reply
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
BINS = 10
MISTAKES = 20
REPLIES_SHOWN = 20


def write_report(workdir: Path) -> Path:
    """Writes WORKDIR/report.html: a page that needs no other file.

    Args:
      workdir: of a finished run; of several seeds, their common one. Single utterances are then
        those of the seed that predicts.

    Returns:
      The page.

    Raises:
      UserError: the folder is no finished run, or one of its files is damaged.
    """
    run = read_run(workdir)
    split = _shown_split(run)
    several = len(run.folders) > 1
    notes = _notes(run)
    content: dict[str, Any] = dict.fromkeys(
        ("calibration", "planes", "dialogues", "mistakes", "replies"), ()
    )
    file = predictions_file(run, split)
    if not file.is_file():
        notes.append(
            f"{file.name} is missing, so that nothing is said of single utterances; write it with "
            f"--mode evaluate --split {split}."
        )
    elif run.facts["system"] == REPLIES:
        content |= _replies(file)
    else:
        content |= _from_predictions(run, split, read_predictions(file, run.emotions))
    with damaged(str(workdir / "metrics.json")):
        content |= {
            "facts": _facts(run),
            "settings": list(_flat(run.config)),
            "splits": list(run.blocks),
            "scores": _scores(run),
            "beside_paper": _beside_paper(run),
            "classes": _classes(run, split),
            "cost": _cost(run),
        }
    path = workdir / "report.html"
    write_page(
        path,
        "report.html.j2",
        title=f"{run.facts['system']} on {run.facts['corpus'].get('name', '?')}",
        made_from=str(workdir),
        emotions=run.emotions,
        split=split,
        several=several,
        predicting=run.predicting,
        notes=notes,
        learning=_learning_curves(run),
        **content,
    )
    return path


def _shown_split(run: FinishedRun) -> str:
    """The split that details are of: test, where it is scored."""
    return "test" if "test" in run.blocks else next(iter(run.blocks))


def _notes(run: FinishedRun) -> list[str]:
    notes = []
    if run.facts["corpus"].get("synthetic"):
        notes.append(
            "The corpus is synthetic: these scores say that the program works, nothing about real "
            "conversations."
        )
    if run.selected_on[0] == "test":
        notes.append(
            "The checkpoint was chosen on the test split: its scores there are too high to be "
            "expected elsewhere."
        )
    return notes


def _facts(run: FinishedRun) -> list[tuple[str, str]]:
    """What the scores are scores of."""
    facts, corpus = run.facts, run.facts["corpus"]
    rows = [("system", facts["system"])]
    named = [corpus.get("name"), f"SHA-256 {corpus['sha256'][:8]}" if "sha256" in corpus else None]
    rows.append(("corpus", ", ".join(filter(None, named)) or "see the settings"))
    for split, of_split in corpus.get("splits", {}).items():
        sizes = [f"{of_split[k]:,} {k}" for k in ("dialogues", "utterances") if k in of_split]
        rows.append((split, ", ".join(sizes)))
    if annotation := corpus.get("annotation"):
        rows.append(("ratings", str(annotation.get("annotator"))))
    has_shift = any("shift_global" in block for block in run.blocks.values())
    if has_shift and (first_shift := corpus.get("first_shift")):
        rows.append(("shift of first utterances", first_shift.replace("_", " ")))
    if encoder := facts.get("encoder"):
        rows.append(("encoder", f"{encoder['name']} ({encoder['sha256'][:8]})"))
    if modalities := facts.get("modalities"):
        rows.append(("modalities", ", ".join(modalities)))
    split, metric = run.selected_on
    if split:
        rows.append(("checkpoint chosen by", f"{split} {_name(metric)}"))
    for chosen in facts.get("checkpoints", []):
        if "best_epoch" in chosen:
            text = f"epoch {chosen['best_epoch']}, {_number(chosen['best_score'], metric)}"
            rows.append((f"seed {chosen['seed']}", text))
    if len(run.folders) > 1:
        rows.append(("predictions are those of", f"seed {run.predicting}"))
    if run.facts["system"] == "prompting":
        rows += [("model", str(facts.get("model"))), ("prompt", str(facts.get("prompt")))]
    versions = facts.get("versions", {})
    rows.append(("versions", ", ".join(f"{name} {v}" for name, v in versions.items() if v)))
    rows.append(("commit", facts.get("commit") or "an installed package"))
    return rows


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "–" if value is None else str(value)


def _name(metric: str) -> str:
    """Of a score by which checkpoints are chosen, such as "heads.E6.macro_f1"."""
    *_, head, leaf = ["", *metric.split(".")]
    return f"{head} {SCORES.get(leaf, leaf)}".strip()


def _number(value: float, metric: str) -> str:
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
    text = _number(value, path)
    if (std := _mirrored(block, "std", path)) is not None:
        text += f" ± {_number(std, path)}"
    if (interval := _mirrored(block, "interval", path)) is not None:
        text += f"\n[{_number(interval[0], path)}, {_number(interval[1], path)}]"
    return text


def _scores(run: FinishedRun) -> list[tuple[str, ...]]:
    """A row per score, a cell per split."""
    heads = {head: None for block in run.blocks.values() for head in block.get("heads", {})}
    paths = {**PLAIN_SCORES, **REPLY_SHARES, **SCORES} | {
        f"heads.{head}.{metric}": f"{head}: {SCORES[metric]}"
        for head in heads
        if head != "std"
        for metric in ("accuracy", "macro_f1")
    }
    rows = [
        (name, *(_cell(block, path) for block in run.blocks.values()))
        for path, name in paths.items()
    ]
    return [row for row in rows if any(row[1:])]


def _beside_paper(run: FinishedRun) -> list[tuple[str, str, str, str]]:
    block = run.blocks.get("test", {})
    rows = []
    for figure in published(run.facts["system"], run.facts["corpus"].get("name", ""), run.config):
        if value_at(block, figure.metric) is None:
            continue
        task, _, rest = figure.metric.partition(".per_class.")
        name = SCORES.get(figure.metric) or (
            f"{TASKS[task]}: F1 of {rest.removesuffix('.f1').replace('_', ' ')}"
        )
        rows.append((name, _cell(block, figure.metric), figure.printed, figure.where))
    return rows


def _classes(run: FinishedRun, split: str) -> list[dict[str, Any]]:
    """Scores per class and confusion matrices, of emotions, of shifts, and of heads."""
    block = run.blocks[split]
    over = f"{split}, sum over {len(run.folders)} seeds" if len(run.folders) > 1 else split
    parts = []
    if "per_class" in block:
        parts.append(
            {
                "title": f"Emotions, {split}",
                "of": "emotion",
                "rows": _per_class(block),
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
            rows = _per_class(of)
            title = f"Head {head}, {split}"
            parts.append({"title": title, "of": "class", "rows": rows, "matrices": matrices})
    return parts


def _per_class(block: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, scores in block["per_class"].items():
        spreads = block.get("std", {}).get("per_class", {}).get(name, {})
        cells = [
            f"{100 * scores[key]:.1f}" + (f" ± {100 * spreads[key]:.1f}" if key in spreads else "")
            for key in ("precision", "recall", "f1")
        ]
        rows.append((name, *cells, f"{scores['support']:,.0f}"))
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


def _learning_curves(run: FinishedRun) -> list[tuple[Any, str]]:
    """Loss by step and selection score by epoch, a line per seed."""
    split, metric = run.selected_on
    chosen = {c["seed"]: c.get("best_epoch") for c in run.facts.get("checkpoints", [])}
    losses, scores = [], []
    for seed, folder in run.folders.items():
        records, main = read_log(folder), seed == run.predicting
        points = [(r["step"], r["loss"]) for r in records if isinstance(r.get("loss"), float)]
        losses.append(charts.Curve(f"seed {seed}", points, main))
        found = [(r["epoch"], value_at(r, f"{split}.{metric}")) for r in records if "epoch" in r]
        points = [(epoch, float(_number(v, metric))) for epoch, v in found if v is not None]
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
            f"{split} {_name(metric)}",
            ("epoch", _name(metric)),
            f"{split} {_name(metric)}, by which the checkpoint is chosen.{dot}",
        ),
    ):
        if values := [y for curve in curves if curve.main for _, y in curve.points]:
            description = f"From {values[0]:.4g} to {values[-1]:.4g}."
            drawn.append((charts.curves(name, description, curves, axes), caption))
    return drawn


def _cost(run: FinishedRun) -> list[tuple[str, str]]:
    facts = run.facts
    rows = []
    if seconds := facts.get("seconds"):
        rows.append(("time of training, all seeds", duration(seconds)))
    rates = [
        record["utterances_per_second"]
        for folder in run.folders.values()
        for record in read_log(folder)
        if "utterances_per_second" in record
    ]
    if rates:
        rows.append(
            ("utterances per second in training, median", f"{statistics.median(rates):,.0f}")
        )
    if devices := facts.get("devices"):
        rows.append(("devices", ", ".join(devices)))
    return rows or [("time", "not recorded")]


def _from_predictions(
    run: FinishedRun, split: str, conversations: Sequence[Conversation]
) -> dict[str, Any]:
    """What is said of single utterances and dialogues."""
    return {
        "calibration": calibration(conversations),
        "planes": _planes(run, conversations),
        "mistakes": most_confident_mistakes(conversations),
        **_dialogues(run, split, conversations),
    }


def calibration(conversations: Sequence[Conversation]) -> dict[str, Any] | None:
    """How far confidence is earned (Guo et al., 2017).

    Returns:
      ``error``, the expected calibration error: the mean over utterances of the gap between mean
      confidence and accuracy in their bin, of ten equally wide ones; ``confidence`` and
      ``accuracy``, means over all; ``count``; and ``chart``. None where there are no probabilities.
    """
    turns = [t for c in conversations for t in c.turns if t.scored and t.probabilities]
    if not turns:
        return None
    confidence = np.array([turn.confidence for turn in turns])
    right = np.array([turn.right for turn in turns], float)
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    means = [
        np.bincount(places, values, minlength=BINS) / np.maximum(counts, 1)
        for values in (confidence, right)
    ]
    error = float((counts * np.abs(means[0] - means[1])).sum() / len(turns))
    bins = list(zip(counts.tolist(), means[0].tolist(), means[1].tolist(), strict=True))
    description = f"Expected calibration error {100 * error:.2f} percent."
    return {
        "error": error,
        "confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
        "count": len(turns),
        "chart": charts.reliability("Reliability diagram", description, bins),
    }


def most_confident_mistakes(conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
    """The wrong predictions with the highest probability, each with its turn's neighbours."""
    wrong = [
        (turn.confidence, conversation, place)
        for conversation in conversations
        for place, turn in enumerate(conversation.turns)
        if turn.scored and not turn.right and turn.probabilities
    ]
    wrong.sort(key=lambda found: -found[0])
    return [
        {
            "id": conversation.id,
            "number": place + 1,
            "turns": _numbered(conversation.turns)[max(place - 2, 0) : place + 2],
        }
        for _, conversation, place in wrong[:MISTAKES]
    ]


def _numbered(turns: Sequence[Turn]) -> list[tuple[int, Turn]]:
    return list(enumerate(turns, start=1))


def _dialogues(
    run: FinishedRun, split: str, conversations: Sequence[Conversation]
) -> dict[str, Any]:
    """Timelines of the best, the worst and the most changing dialogue."""
    scored = {c: [t for t in c.turns if t.scored] for c in map(_Keyed, conversations)}
    scored = {c: turns for c, turns in scored.items() if turns}
    if not scored:
        return {"dialogues": [], "shortest": 0}
    shortest = statistics.median_high(len(turns) for turns in scored.values())
    long = {c: turns for c, turns in scored.items() if len(turns) >= shortest}

    def share(c: _Keyed) -> float:
        return sum(turn.right for turn in long[c]) / len(long[c])

    def changes(c: _Keyed) -> int:
        true = [turn.true for turn in long[c]]
        return sum(a != b for a, b in itertools.pairwise(true))

    # Of equals the longest; of the best the one that changes most, as all neutral is easy.
    chosen = {
        "best": max(long, key=lambda c: (share(c), changes(c), len(long[c]))),
        "worst": min(long, key=lambda c: (share(c), -len(long[c]))),
        "most changes of emotion": max(long, key=lambda c: (changes(c), len(long[c]))),
    }
    reasons: dict[_Keyed, list[str]] = {}
    for why, c in chosen.items():
        reasons.setdefault(c, []).append(why)
    return {
        "shortest": shortest,
        "dialogues": [
            {
                "why": ", ".join(why).capitalize(),
                "id": c.conversation.id,
                "turns": _numbered(c.turns),
                "caption": (
                    f"{sum(t.right for t in long[c])} of {len(long[c])} right; changes of the true "
                    f"emotion: {changes(c)}"
                ),
                "chart": charts.timeline(
                    f"Emotions of dialogue {c.conversation.id} of {split}",
                    "Turn by turn; the same in words below.",
                    [turn.true for turn in c.turns],
                    [turn.predicted for turn in c.turns],
                    run.emotions,
                ),
            }
            for c, why in reasons.items()
        ],
    }


class _Keyed:
    """A conversation as a key of its own: ids may come twice."""

    def __init__(self, conversation: Conversation):
        self.conversation = conversation
        self.turns = conversation.turns


def _planes(run: FinishedRun, conversations: Sequence[Conversation]) -> list[tuple[Any, str]]:
    """Mean predicted ratings of each true emotion, where two dimensions or more are learned."""
    turns = [(t, c.scale) for c in conversations for t in c.turns if t.true is not None and t.vad]
    if not turns:
        return []
    dimensions = [d for d in VAD if d in turns[0][0].vad]
    scales = {scale for _, scale in turns}
    of_scale = ""
    if len(scales) == 1 and (scale := scales.pop()):
        of_scale = f" ({scale[0]:g} to {scale[1]:g})"
    drawn = []
    for other in dimensions[1:]:
        pair = (dimensions[0], other)
        means, rated = {}, {}
        for emotion in run.emotions:
            own = [(t, scale) for t, scale in turns if t.true == emotion]
            given = [
                [t.rated[d] for d in pair]
                for t, scale in own
                if all(d in t.rated and _on_scale(t.rated[d], scale) for d in pair)
            ]
            if own:
                x, y = np.mean([[t.vad[d] for d in pair] for t, _ in own], axis=0).tolist()
                means[emotion] = (x, y)
            if given:
                x, y = np.mean(given, axis=0).tolist()
                rated[emotion] = (x, y)
        crosses = " Crosses: mean of what these are rated." if rated else ""
        chart = charts.plane(
            f"{pair[0]} and {pair[1]}",
            "; ".join(f"{name} {x:.2f}, {y:.2f}" for name, (x, y) in means.items()),
            means,
            rated,
            (pair[0] + of_scale, pair[1] + of_scale),
            run.emotions,
        )
        drawn.append(
            (chart, f"Dots: mean of what is predicted of each true emotion's utterances.{crosses}")
        )
    return drawn


def _on_scale(rating: float, scale: tuple[float, float] | None) -> bool:
    return scale is None or scale[0] <= rating <= scale[1]


def _replies(file: Path) -> dict[str, Any]:
    """Some pairs of an utterance and its reply, evenly spaced through the file."""
    lines = list(text_lines(file))
    found = []
    for where, line in lines[:: -(-len(lines) // REPLIES_SHOWN) or 1]:
        record = parse_json(line, where)
        with damaged(where):
            last = record["utterances"][-1]
            found.append(
                {
                    "id": record["id"],
                    "speaker": last["speaker"],
                    "text": last["text"],
                    "reply": record["reply"],
                    "reference": record.get("reference", ""),
                }
            )
    return {"replies": found, "n_replies": len(lines)}
