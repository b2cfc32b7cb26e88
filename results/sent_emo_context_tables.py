"""Prints docs/results.md's tables of SentEmoContext from the runs of results/sent_emo_context.sh.

python results/sent_emo_context_tables.py RUNS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RUNS = {
    "sent_emo_context": "SentEmoContext",
    "direct": "direct classifier",
    "direct_six": "direct classifier, six emotions",
    "isolated_lstm": "isolated utterances, LSTM",
    "isolated_mlp": "isolated utterances, MLP",
}
WAYS = {"head": "classifier", "centroid": "nearest centroid", "knn": "nearest neighbours"}
SCORES = ("macro_f1_no_neutral", "micro_f1_no_neutral", "mcc")
# A corpus without neutral has the same scores under other names.
WITHOUT_NEUTRAL = {"macro_f1_no_neutral": "macro_f1", "micro_f1_no_neutral": "accuracy"}


def main(runs: Path) -> None:
    contents = {
        run: json.loads((runs / f"dailydialog-{run}" / "metrics.json").read_text()) for run in RUNS
    }
    for split in ("validation", "test"):
        print(f"\n| {split} | by | macro F1 | micro F1 | MCC | seeds |\n|---|---|---|---|---|---|")
        for run, name in RUNS.items():
            block, seeds = contents[run][split], len(contents[run]["run"]["seeds"])
            for way in WAYS:
                if way in block:
                    print(f"| {name} | {WAYS[way]} | {row(block[way])} | {seeds} |")
            print(f"| {name} | *chosen: {block['classifier']}* | {row(block)} | {seeds} |")
            if run == "sent_emo_context" and "without_seen" in block:
                left = block["without_seen"]
                print(f"| {name} | *chosen*, {left['dialogues']:.0f} unseen dialogues ", end="")
                print(f"| {row(left)} | {seeds} |")

    print("\n| triplet verification, test | macro F1 | micro F1 | MCC |\n|---|---|---|---|")
    for run, name in RUNS.items():
        verification = contents[run]["test"].get("triplet_verification")
        if verification is None:  # sentence embeddings are no learned space
            continue
        print(f"| {name} | {row(verification)} |")
        for chance, of in verification["chance"].items():
            if chance != "std":
                print(f"| {name}, {chance.replace('_', ' ')} | {row(of)} |")

    facts = contents["sent_emo_context"]["run"]
    print(
        f"\nchosen on {facts['selected_on']}; {facts['encoder']['name']}; "
        f"{facts['seconds'] / len(facts['seeds']) / 60:.1f} min per seed; {facts['commit']}"
    )


def row(scores: dict[str, Any]) -> str:
    cells = []
    for name in SCORES:
        name = name if name in scores else WITHOUT_NEUTRAL.get(name, name)
        spread = f" ± {100 * scores['std'][name]:.2f}" if "std" in scores else ""
        cells.append(f"{100 * scores[name]:.2f}{spread}" if name in scores else "")
    return " | ".join(cells)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
