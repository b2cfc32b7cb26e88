"""By how much one run's scores are above another's: a paired bootstrap over dialogues and seeds.

python results/compare.py RUN OTHER_RUN [SPLIT]

Prints the difference of the runs' means over seeds and its 95% interval, in percent. The interval
speaks of other dialogues; of other seeds only as far as so few of them can. Choices are made on
"validation", the default.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from erc_jax import metrics
from erc_jax.config import load_config
from erc_jax.data.dialogue import iter_dialogues
from erc_jax.workdir import best_meta, labels_from_json, seed_folders

SHOWN = ("weighted_f1", "macro_f1", "micro_f1_no_neutral", "macro_f1_no_neutral", "mcc")


def main(run: Path, other: Path, split: str = "validation") -> None:
    labels = labels_from_json(best_meta(run)["labels"])
    ours, our_ids = counts(run, split, labels.emotions)
    theirs, their_ids = counts(other, split, labels.emotions)
    if our_ids != their_ids:
        sys.exit(f"{run} and {other} were not scored on the same dialogues of {split}")
    found = metrics.paired_difference(ours, theirs, labels.emotions, labels.neutral)
    print(f"{run} ({len(ours)} seeds) less {other} ({len(theirs)} seeds), {split}")
    for name in SHOWN:
        if name in found:
            low, high = found[name]["interval"]
            print(
                f"{name:22} {100 * found[name]['difference']:+6.2f}   "
                f"{100 * low:+6.2f} to {100 * high:+6.2f}"
            )


def counts(run: Path, split: str, emotions: tuple[str, ...]) -> tuple[np.ndarray, list[str]]:
    """Confusion counts [K, M, C, C] of K seeds and M dialogues, and the dialogues' ids."""
    of_seeds, ids = [], []
    for _, folder in seed_folders(load_config(run), run):
        of_dialogues, ids = [], []
        for _, dialogue in iter_dialogues(folder / f"predictions_{split}.jsonl"):
            confusion = np.zeros((len(emotions), len(emotions)), int)
            for utterance in dialogue.utterances:
                gold = utterance.extra.get("gold", {}).get("emotion")
                if gold is not None:
                    confusion[emotions.index(gold), emotions.index(str(utterance.emotion))] += 1
            of_dialogues.append(confusion)
            ids.append(dialogue.id)
        of_seeds.append(of_dialogues)
    return np.array(of_seeds), ids


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
