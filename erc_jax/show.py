"""Conversations and scores on the terminal.

What comes from the user (texts, names, labels) is wrapped in Text: rich would take [brackets] in a
plain string for markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from erc_jax.charts import N_COLOURS, colour_number
from erc_jax.drawing import COLOURS
from erc_jax.system_names import RESPONSE

if TYPE_CHECKING:
    from erc_jax.compare import Comparison

EMOTION_STYLES = (*(f"bold {colour}" for colour in COLOURS[:N_COLOURS]), "")
SHIFT_STYLES = {"negative": "#D55E00", "positive": "#56B4E9"}
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

    An emotion has its colour, of a palette that colour-blind readers tell apart, and its name.

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
    table.add_column("Conf.", justify="right", no_wrap=True)
    if has_shift:
        table.add_column("Shift", justify="center", no_wrap=True)
        table.add_column("Own", justify="center", no_wrap=True)
    for utterance in utterances:
        emotion = utterance["emotion"]
        cells: list[str | Text] = [
            Text(utterance["speaker"]),
            Text(utterance["text"]),
            Text(emotion, EMOTION_STYLES[colour_number(emotion, list(utterance["probabilities"]))]),
            f"{utterance['probabilities'][emotion]:.0%}",
        ]
        if has_shift:
            cells += [_arrow(utterance["shift"][level]) for level in ("global", "speaker")]
        table.add_row(*cells)
    console = console or Console()
    console.print(table)
    if has_shift:
        arrows = "  ".join(f"{a} {name.replace('_', ' ')}" for name, a in SHIFT_ARROWS.items())
        console.print(
            f"Shift: from the previous utterance; own: from the speaker's previous one.  {arrows}"
        )


def _arrow(shift: str | None) -> Text:
    direction = (shift or "").removeprefix("strong_")
    return Text(SHIFT_ARROWS.get(shift or "", ""), SHIFT_STYLES.get(direction, ""))


def show_reply(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the end of a conversation, its reply, and what was read in the last utterance.

    Args:
      record: a line of what ``respond`` writes.
      console: where to; standard output by default.
    """
    console = console or Console()
    last = record["utterances"][-1]
    console.print(Text(f"{last['speaker']}: {last['text']}"))
    if "reply" in record:
        console.print(Text(f"  → {record['reply']}", "bold"))
    for task, head in record["heads"].items():
        label = head["label"]
        console.print(Text(f"    {task}: {label} {head['probabilities'][label]:.0%}", "dim"))


def show_scores(content: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the scores of metrics.json: a line per split and task, then emotions of the last.

    Args:
      content: what metrics.json holds, or its part with a single split.
      console: where to; standard output by default.
    """
    console = console or Console()
    splits = [split for split in content if split not in ("run", "seeds")]
    if content.get("run", {}).get("system") == RESPONSE:
        _show_reply_scores(console, {split: content[split] for split in splits})
        _say_if_synthetic(console, content)
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("split", "task"):
        table.add_column(name, no_wrap=True)
    for name in HEADLINES.values():
        table.add_column(name)  # where a terminal is narrow, a deviation goes below its mean
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
    for name in (f"{splits[-1]}: emotion", "precision", "recall", "F1", "utterances"):
        table.add_column(Text(name), no_wrap=True)
    n_seeds = len(content.get("run", {}).get("seeds", [0]))  # the support is the sum over them
    for name, scores in block["per_class"].items():
        cells = [f"{scores[key]:.3f}" for key in ("precision", "recall", "f1")]
        table.add_row(Text(name), *cells, f"{scores['support'] / n_seeds:,.0f}")
    console.print(table)
    for dimension, scores in block.get("vad", {}).items():
        found = ", ".join(f"{name} {scores[name]:.3f}" for name in ("ccc", "pearson", "mse"))
        console.print(f"{dimension}: {found}")
    if scores := block.get("zero_shot"):
        shown = ("unseen_recall", "unseen_f1", "seen_recall", "harmonic_mean")
        found = ", ".join(f"{name.replace('_', ' ')} {scores[name]:.3f}" for name in shown)
        console.print(f"Held-out emotions: {found}")
    _say_if_synthetic(console, content)


def _say_if_synthetic(console: Console, content: Mapping[str, Any]) -> None:
    if content.get("run", {}).get("corpus", {}).get("synthetic"):
        console.print(
            "The corpus is synthetic: these scores say that the program works, "
            "nothing about real conversations."
        )


# Scores of replies, with how many digits they are shown.
REPLY_SCORES = {
    "perplexity": 2,
    "bleu": 2,
    "distinct_1": 4,
    "distinct_2": 4,
    "average_length": 2,
}


def _show_reply_scores(console: Console, blocks: Mapping[str, Mapping[str, Any]]) -> None:
    """A line per split, and one per split and classification head."""
    if any(name in block for block in blocks.values() for name in REPLY_SCORES):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for name in ("split", *(name.replace("_", " ") for name in REPLY_SCORES)):
            table.add_column(name)
        for split, block in blocks.items():
            cells = [_score(block, name, digits) for name, digits in REPLY_SCORES.items()]
            table.add_row(Text(split), *cells)
        console.print(table)
    heads = {(s, task): of for s, b in blocks.items() for task, of in b.get("heads", {}).items()}
    if heads:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for name in ("split", "head", "accuracy", "macro F1"):
            table.add_column(name, no_wrap=True)
        for (split, task), of in heads.items():
            table.add_row(Text(split), task, _score(of, "accuracy"), _score(of, "macro_f1"))
        console.print(table)


# Of the table of a sweep: score to its column, which has to be narrow, and its digits.
SWEEP_COLUMNS = {
    "perplexity": ("perpl.", 2),
    "bleu": ("BLEU", 2),
    "distinct_1": ("dist-1", 4),
    "distinct_2": ("dist-2", 4),
    "average_length": ("length", 2),
    "E6_accuracy": ("E6 acc.", 4),
    "E6_macro_f1": ("E6 F1", 4),
}


def show_sweep(rows: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Prints the table of a sweep.

    Args:
      rows: as ``erc_jax.sweep.sweep`` returns them.
      console: where to; standard output by default.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("tasks", "weights"):
        table.add_column(name, overflow="fold")
    for name, _ in SWEEP_COLUMNS.values():
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        scores = (
            "" if row[score] is None else f"{row[score]:.{digits}f}"
            for score, (_, digits) in SWEEP_COLUMNS.items()
        )
        table.add_row(row["tasks"], row["weights"], *scores)
    (console or Console()).print(table)


def show_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints runs side by side, and by how much every two of them differ.

    Args:
      comparison: of the runs.
      console: where to; standard output by default.
    """
    from erc_jax.compare import pair_rows, score_rows

    console = console or Console()
    for letter, run in comparison.runs.items():
        console.print(Text(f"{letter}  {run.workdir}"))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(Text(f"{comparison.corpus}, {comparison.split}"), no_wrap=True)
    for letter in comparison.runs:
        table.add_column(letter, justify="right", no_wrap=True)
    for row in score_rows(comparison):
        table.add_row(*row)
    console.print(table)
    for pair in comparison.pairs:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column(f"{pair.second} less {pair.first}", no_wrap=True)
        for name in ("difference", "95% interval"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in pair_rows(pair, comparison.shown_scores):
            table.add_row(*map(Text, row))  # brackets are no markup
        console.print(table)
        corrected = f", corrected {pair.p_holm:.2g}" if len(comparison.pairs) > 1 else ""
        console.print(
            f"McNemar: only {pair.second} right {pair.only_second:,}, only {pair.first} right "
            f"{pair.only_first:,}; p {pair.p:.2g}{corrected}",
            highlight=False,
        )
    seeds = ", ".join(f"{letter} {run.predicting}" for letter, run in comparison.runs.items())
    console.print(
        "In percent, of all seeds; intervals by a paired bootstrap over dialogues and seeds. "
        f"McNemar's test takes the seeds that predict: {seeds}.",
        highlight=False,
    )


def _score(scores: Mapping[str, Any], name: str, digits: int = 4) -> str:
    if name not in scores:
        return ""
    spread = f" ± {scores['std'][name]:.{digits}f}" if "std" in scores else ""
    return f"{scores[name]:.{digits}f}{spread}"
