"""Prints docs/results.md's tables from the runs that results/mtl_erc_es.sh made.

python results/tables.py RUNS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from erc_jax import metrics
from erc_jax.config import load_config
from erc_jax.data.corpora import load_corpus
from erc_jax.data.labels import SHIFTS, previous_utterances, shift_ids
from erc_jax.published import TABLE_4, TABLE_5, TABLE_6
from erc_jax.systems.mtl_erc_es import LEVELS

ABLATIONS = {  # the run's suffix: with shift, with sentiment
    "": (True, True),
    "-without-shift": (False, True),
    "-without-sentiment": (True, False),
    "-without-both": (False, False),
}


def main(runs: Path) -> None:
    print("| corpus | metric | validation | test | 95% interval (test) | paper |")
    print("|---|---|---|---|---|---|")
    for corpus, columns in TABLE_4.items():
        content = read(runs / corpus)
        for metric, paper in columns.items():
            low, high = content["test"]["interval"][metric]
            print(
                f"| {corpus} | {metric} | {score(content['validation'], metric)} "
                f"| {score(content['test'], metric)} | {100 * low:.2f} to {100 * high:.2f} "
                f"| {paper:.2f} |"
            )
    facts = read(runs / "meld")["run"]
    print(f"\nEncoder {facts['encoder']['name']} ({facts['encoder']['sha256'][:8]}), frozen;")
    print(f"seeds {facts['seeds']}; commit {facts['commit']}.")
    for corpus in TABLE_4:
        facts = read(runs / corpus)["run"]
        sizes = [split["utterances"] for split in facts["corpus"]["splits"].values()]
        print(
            f"{corpus}: SHA-256 {facts['corpus']['sha256'][:8]}, utterances {sizes}, "
            f"chosen on {facts['selected_on']}, {facts['seconds'] / 60:.0f} min"
        )

    print("\n| tasks | IEMOCAP validation | IEMOCAP test | paper | EmoryNLP validation |", end="")
    print(" EmoryNLP test | paper |\n|---|---|---|---|---|---|---|")
    for suffix, tasks in ABLATIONS.items():
        cells = []
        for corpus, value in zip(("iemocap", "emorynlp"), TABLE_5[tasks], strict=True):
            content = read(runs / f"{corpus}{suffix}")
            cells += [score(content[split], "weighted_f1") for split in ("validation", "test")]
            cells.append(f"{value:.2f}")
        print(f"| {suffix.removeprefix('-').replace('-', ' ') or 'all'} | {' | '.join(cells)} |")

    ignored, counted = read(runs / "iemocap"), read(runs / "iemocap-first-shift")
    rules = rule(runs / "iemocap-first-shift")
    print("\n| shift on IEMOCAP, F1 | level | firsts ignored | firsts strongly negative |", end="")
    print(" the rule alone | paper |\n|---|---|---|---|---|---|")
    for place, level in enumerate(LEVELS):
        for name in SHIFTS:
            cells = [
                shift_score(content["test"][f"shift_{level}"], name)
                for content in (ignored, counted)
            ]
            of_rule = f"{100 * rules[level]['per_class'][name]['f1']:.2f}"
            paper = f"{TABLE_6[name][place]:.2f}"
            print(f"| {name} | {level} | {' | '.join([*cells, of_rule, paper])} |")


def read(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "metrics.json").read_text())


def score(block: dict[str, Any], metric: str) -> str:
    return f"{100 * block[metric]:.2f} ± {100 * block['std'][metric]:.2f}"


def shift_score(block: dict[str, Any], name: str) -> str:
    f1, std = block["per_class"][name]["f1"], block["std"]["per_class"][name]["f1"]
    return f"{100 * f1:.2f} ± {100 * std:.2f}"


def rule(workdir: Path) -> dict[str, Any]:
    """Test scores of "a first utterance is strongly negative, all others are no shift": a rule
    that reads nothing of what is said.
    """
    data = load_config(workdir).data
    corpus = load_corpus(data.name, data.source)
    counts = {level: np.zeros((len(SHIFTS), len(SHIFTS)), np.int64) for level in LEVELS}
    for dialogue in corpus.splits["test"]:
        polarity = corpus.labels.polarity_ids(dialogue)
        speakers = [utterance.speaker for utterance in dialogue.utterances]
        for level, previous in zip(LEVELS, previous_utterances(speakers), strict=True):
            targets = shift_ids(polarity, previous, "strong_negative")
            guesses = np.where(previous < 0, SHIFTS.index("strong_negative"), SHIFTS.index("none"))
            counts[level] += metrics.confusion(targets, guesses, len(SHIFTS))
    return {level: metrics.block(counts[level], SHIFTS, None) for level in LEVELS}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
