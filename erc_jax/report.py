"""A finished run as one HTML page: what was run, its scores, and where it errs.

``report_scores`` has what metrics.json and the log give, ``report_utterances`` what predictions
give.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from erc_jax.finished import (
    FinishedRun,
    damaged,
    predictions_file,
    read_log,
    read_predictions,
    read_run,
)
from erc_jax.pages import write_page
from erc_jax.progress import duration
from erc_jax.report_scores import (
    class_parts,
    learning_curves,
    paper_rows,
    score_name,
    score_rows,
    score_text,
)
from erc_jax.report_utterances import parts_of_utterances, replies


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
        if not run.replies or "perplexity" in run.blocks[split]:  # heads alone leave none
            notes.append(
                f"{file.name} is missing, so that nothing is said of single utterances; write it "
                f"with --mode evaluate --split {split}."
            )
    elif run.replies:
        content |= replies(file)
    else:
        content |= parts_of_utterances(run, split, read_predictions(file, run.emotions))
    with damaged(str(workdir / "metrics.json")):
        content |= {
            "facts": _facts(run),
            "settings": list(_flat(run.config)),
            "splits": list(run.blocks),
            "scores": score_rows(run),
            "beside_paper": paper_rows(run),
            "classes": class_parts(run, split),
            "cost": _cost(run),
        }
    path = workdir / "report.html"
    write_page(
        path,
        "report.html.j2",
        title=f"{run.facts['system']} on {run.facts['corpus']['name']}",
        made_from=str(workdir),
        emotions=run.emotions,
        split=split,
        several=several,
        predicting=run.predicting,
        notes=notes,
        learning=learning_curves(run),
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
    digest = f", SHA-256 {corpus['sha256'][:8]}" if "sha256" in corpus else ""
    rows.append(("corpus", corpus["name"] + digest))
    for split, of_split in corpus.get("splits", {}).items():
        sizes = [f"{of_split[k]:,} {k}" for k in ("dialogues", "utterances") if k in of_split]
        rows.append((split, ", ".join(sizes)))
    if annotation := corpus.get("annotation"):
        rows.append(("ratings", str(annotation.get("annotator"))))
    has_shift = any("shift_global" in block for block in run.blocks.values())
    if has_shift and (first_shift := corpus.get("first_shift")):
        rows.append(("shift of first utterances", first_shift.replace("_", " ")))
    if encoder := facts.get("encoder"):
        # Without the folder: a report is for others, too.
        rows.append(("encoder", f"{Path(encoder['name']).name} ({encoder['sha256'][:8]})"))
    if modalities := facts.get("modalities"):
        rows.append(("modalities", ", ".join(modalities)))
    split, metric = run.selected_on
    if split:
        rows.append(("checkpoint chosen by", f"{split} {score_name(metric)}"))
    for chosen in facts.get("checkpoints", []):
        if "best_epoch" in chosen:
            text = f"epoch {chosen['best_epoch']}, {score_text(chosen['best_score'], metric)}"
            rows.append((f"seed {chosen['seed']}", text))
    if len(run.folders) > 1:
        rows.append(("predictions are those of", f"seed {run.predicting}"))
    if run.facts["system"] == "prompting":
        rows += [("model", str(facts.get("model"))), ("prompt", str(facts.get("prompt")))]
    versions = facts.get("versions", {})
    rows.append(("versions", ", ".join(f"{name} {v}" for name, v in versions.items() if v)))
    rows.append(("commit", run.commit or "an installed package"))
    return rows


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "–" if value is None else str(value)


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
    if parameters := facts.get("parameters"):
        sizes = [f"{parameters[kind]:,} {kind}" for kind in ("trained", "frozen")]
        rows.append(("parameters", ", ".join(sizes)))
    return rows or [("time", "not recorded")]
