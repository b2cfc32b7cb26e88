"""Conversations and scores on the terminal.

What comes from the user (texts, names, labels) is wrapped in Text: rich would take [brackets] in a
plain string for markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

SENTIMENT_STYLES = {"negative": "red", "neutral": "dim", "positive": "green"}
SHIFT_ARROWS = {
    "strong_negative": "⇊",
    "negative": "↓",
    "none": "·",
    "positive": "↑",
    "strong_positive": "⇈",
}
HEADLINES = {
    "accuracy": "accuracy",
    "weighted_f1": "weighted F1",
    "macro_f1": "macro F1",
    "micro_f1_no_neutral": "no neutral",
    "mcc": "MCC",
}


def show_conversation(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints a labelled conversation: who said what, its emotion and how the mood shifts.

    Args:
      record: a line of what ``predict`` writes.
      console: where to; standard output by default, plain when that is not a terminal.
    """
    utterances = record["utterances"]
    has_shift = any("shift" in utterance for utterance in utterances)
    title = Text(f"Conversation {record['id']}")
    table = Table(title=title, title_justify="left", expand=True)
    table.add_column("Speaker", no_wrap=True)
    table.add_column("Utterance", ratio=1)
    table.add_column("Emotion", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    if has_shift:
        table.add_column("Shift", justify="center", no_wrap=True)
        table.add_column("Own", justify="center", no_wrap=True)
    for utterance in utterances:
        emotion = utterance["emotion"]
        cells: list[str | Text] = [
            Text(utterance["speaker"]),
            Text(utterance["text"]),
            Text(emotion, SENTIMENT_STYLES.get(utterance.get("sentiment", ""), "")),
            f"{utterance['probabilities'][emotion]:.0%}",
        ]
        if has_shift:
            shift = utterance["shift"]
            cells += [SHIFT_ARROWS.get(shift[level], "") for level in ("global", "speaker")]
        table.add_row(*cells)
    console = console or Console()
    console.print(table)
    if has_shift:
        arrows = "  ".join(f"{a} {name.replace('_', ' ')}" for name, a in SHIFT_ARROWS.items())
        console.print(
            f"Shift: from the previous utterance; own: from the speaker's previous one.  {arrows}"
        )


def show_scores(content: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the scores of metrics.json: a line per split and task, then emotions of the last.

    Args:
      content: what metrics.json holds, or its part with a single split.
      console: where to; standard output by default.
    """
    console = console or Console()
    splits = [split for split in content if split not in ("run", "seeds")]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("split", "task", *HEADLINES.values()):
        table.add_column(name, no_wrap=True)
    for split in splits:
        block = content[split]
        tasks = {k: v for k, v in block.items() if isinstance(v, dict) and "per_class" in v}
        tasks = {k: v for k, v in tasks.items() if k not in ("std", "interval")}
        for task, scores in ({"emotion": block} | tasks).items():
            table.add_row(Text(split), task, *(_score(scores, headline) for headline in HEADLINES))
    console.print(table)

    block = content[splits[-1]]
    if "classifier" in block:
        console.print(f"The emotion is that of {block['classifier']}, as chosen on validation.")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in (f"{splits[-1]}: emotion", "precision", "recall", "F1", "support"):
        table.add_column(Text(name), no_wrap=True)
    for name, scores in block["per_class"].items():
        cells = [f"{scores[key]:.3f}" for key in ("precision", "recall", "f1")]
        table.add_row(Text(name), *cells, str(scores["support"]))
    console.print(table)
    for dimension, scores in block.get("vad", {}).items():
        if dimension != "std":
            found = ", ".join(f"{name} {scores[name]:.3f}" for name in ("ccc", "pearson", "mse"))
            console.print(f"{dimension}: {found}")
    if scores := block.get("zero_shot"):
        shown = ("unseen_recall", "unseen_f1", "seen_recall", "harmonic_mean")
        found = ", ".join(f"{name.replace('_', ' ')} {scores[name]:.3f}" for name in shown)
        console.print(f"Held-out emotions: {found}")
    if content.get("run", {}).get("corpus", {}).get("synthetic"):
        console.print(
            "The corpus is synthetic: these scores say that the program works, "
            "nothing about real conversations."
        )


def _score(scores: Mapping[str, Any], name: str) -> str:
    if name not in scores:
        return ""
    spread = f" ± {scores['std'][name]:.4f}" if "std" in scores else ""
    return f"{scores[name]:.4f}{spread}"
