"""Prints docs/results.md's table of fine-tuned encoders from the runs of results/encoders.sh.

python results/encoder_tables.py RUNS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from erc_jax.published import TABLE_4

ROWS = {  # the run's suffix: what it is
    "-frozen": "Mtl-ERC-ES on the published encoder",
    "": "the encoder, fine-tuned, with a linear layer",
    "-mtl": "Mtl-ERC-ES on the fine-tuned encoder",
}
FROZEN_MINILM = "{}-all-MiniLM-L6-v2-frozen"  # is called by the corpus alone
CORPORA = ("meld", "emorynlp")


def main(runs: Path) -> None:
    print("| corpus | encoder | system | validation | test | seeds | minutes |")
    print("|---|---|---|---|---|---|---|")
    for corpus in CORPORA:
        for folder in sorted(runs.glob(f"{corpus}-*-mtl")):
            name = folder.name.removesuffix("-mtl")
            for suffix, system in ROWS.items():
                run = name + suffix
                run = corpus if run == FROZEN_MINILM.format(corpus) else run
                if not (runs / run / "metrics.json").is_file():
                    continue  # encoders.sh was given other encoders, or is not done
                content = json.loads((runs / run / "metrics.json").read_text())
                facts = content["run"]
                print(
                    f"| {corpus} | {name.removeprefix(corpus + '-')} | {system} "
                    f"| {score(content['validation'])} | {score(content['test'])} "
                    f"| {len(facts['seeds'])} | {facts['seconds'] / 60:.0f} |"
                )
        paper = TABLE_4[corpus]["weighted_f1"]  # Mtl-ERC-ES on a fine-tuned RoBERTa-large
        print(f"| {corpus} | RoBERTa-large, fine-tuned | the paper | | {paper:.2f} | | |")
    facts = json.loads((next(runs.glob("meld-*-mtl")) / "metrics.json").read_text())["run"]
    print(f"\nWeighted F1; chosen on {facts['selected_on']}; seeds from 0; {facts['commit']}.")


def score(block: dict[str, Any]) -> str:
    mean = f"{100 * block['weighted_f1']:.2f}"
    return f"{mean} ± {100 * block['std']['weighted_f1']:.2f}" if "std" in block else mean


if __name__ == "__main__":
    main(Path(sys.argv[1]))
