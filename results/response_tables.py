"""Prints docs/results.md's tables of emotion-aware replies from the runs of results/response.sh.

python results/response_tables.py RUNS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from erc_jax import Responder
from erc_jax.published import REPLIES, REPLY_HEADS

RUNS = ("R", "R+E6")
# None of them is from a corpus.
UTTERANCES = (
    "I lost my keys again.",
    "We won the match last night!",
    "My grandmother is in hospital.",
    "Could you tell me how to get to the station?",
    "I have been waiting here for an hour!",
    "What would you like to eat?",
    "I am getting married next month.",
    "There is someone in the house.",
    "How much is this jacket?",
    "I'm so tired of this job.",
)


def main(runs: Path) -> None:
    contents = {run: json.loads((runs / run / "metrics.json").read_text()) for run in RUNS}
    print("| tasks | split | perplexity | BLEU | distinct-1 | distinct-2 | average length |")
    print("|---|---|---|---|---|---|---|")
    for run, content in contents.items():
        for split in ("validation", "test"):
            block = content[split]
            print(f"| {run} | {split} | {columns(block)} |")
            if left := block.get("without_seen"):
                print(f"| {run} | {split}, {left['pairs']:,} unseen pairs | {columns(left)} |")
        shown = " | ".join(f"{value:.2f}" for value in REPLIES[run])
        print(f"| {run}, paper | test | | {shown} |")

    print("\n| E6 of R+E6 | accuracy | macro F1 |\n|---|---|---|")
    for split in ("validation", "test"):
        head = contents["R+E6"][split]["heads"]["E6"]
        print(f"| {split} | {100 * head['accuracy']:.2f} | {100 * head['macro_f1']:.2f} |")
    print("| paper, test | {:.2f} | {:.2f} |".format(*REPLY_HEADS["R+E6", "E6"]))

    replies = {run: Responder.from_pretrained(runs / run).respond(list(UTTERANCES)) for run in RUNS}
    print("\n| utterance | " + " | ".join(RUNS) + " | E6 |\n|---|---|---|---|")
    for number, utterance in enumerate(UTTERANCES):
        answers = [replies[run][number] for run in RUNS]
        said = " | ".join(answer["reply"] for answer in answers)
        print(f"| {utterance} | {said} | {answers[-1]['heads']['E6']['label']} |")
    for run in RUNS:
        print(f"{run}: {len({answer['reply'] for answer in replies[run]})} different replies")

    facts = contents["R"]["run"]
    print(f"\n{facts['corpus']['name']}, commit {facts['commit']}; ", end="")
    print(", ".join(f"{run} {contents[run]['run']['seconds'] / 60:.0f} min" for run in RUNS))


def columns(scores: dict[str, Any]) -> str:
    """Perplexity and Table 2's columns; the paper has distinct in percent."""
    return (
        f"{scores['perplexity']:.2f} | {scores['bleu']:.2f} | {100 * scores['distinct_1']:.2f} | "
        f"{100 * scores['distinct_2']:.2f} | {scores['average_length']:.2f}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
