"""Prints docs/results.md's tables of FMERL from the runs of results/fmerl.sh.

python results/fmerl_tables.py RUNS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from erc_jax import metrics, published
from erc_jax.compare import seed_counts
from erc_jax.config import load_config
from erc_jax.data.dialogue import VAD
from erc_jax.finished import read_run
from erc_jax.workdir import best_meta, seed_folders

MOSI = {"mosi": "all three", "mosi-text": "text", "mosi-audio": "audio", "mosi-visual": "visual"}
ALL_THREE = {
    "all-three": "text, audio, visual",
    "all-three-text-audio": "text, audio",
    "all-three-text-visual": "text, visual",
    "all-three-audio-visual": "audio, visual",
}
RATED = {  # with ratings and without, and the paper's accuracy and weighted F1
    f"{corpus}{suffix}": (what, " / ".join(f"{value:.2f}" for value in row))
    for corpus, rows in published.RATED.items()
    for suffix, what, row in zip(
        ("", "-no-vad"), ("with the VAD nets", "without"), rows, strict=True
    )
}
# The paper's accuracy and F1 on the unseen utterances alone, then on all.
TABLE_2 = {
    f"{corpus}-without-{unseen}": "{:.2f} / {:.2f}, {:.2f} / {:.2f}".format(*row)
    for (corpus, unseen), row in published.HELD_OUT.items()
}
HELD_OUT = {
    f"{run}{form}": paper for run, paper in TABLE_2.items() for form in ("-phrase", "", "-name")
}
ZERO_SHOT = (
    *("unseen_recall", "unseen_f1", "unseen_f1_subset", "seen_recall"),
    *("harmonic_mean", "accuracy", "weighted_f1"),
)
RESAMPLES = 1000


def main(runs: Path) -> None:
    found = {
        name: json.loads((runs / name / "metrics.json").read_text())
        for name in (*MOSI, *ALL_THREE, *RATED, *HELD_OUT)
    }
    emotions = tuple(found["mosi"]["test"]["per_class"])
    for split in ("validation", "test"):
        ours, _ = seed_counts(read_run(runs / "mosi"), split)
        for name, modality in list(MOSI.items())[1:]:
            theirs, _ = seed_counts(read_run(runs / name), split)
            paired = metrics.paired_difference(ours, theirs, emotions, None)["weighted_f1"]
            low, high = (100 * end for end in paired["interval"])
            print(
                f"mosi, {split}: all three less {modality} alone, weighted F1 "
                f"{100 * paired['difference']:+.2f} ({low:+.2f} to {high:+.2f})"
            )
    for table in (MOSI, ALL_THREE):
        print("\n| modalities | validation weighted F1 | test weighted F1 | accuracy |")
        print("|---|---|---|---|")
        for name, modalities in table.items():
            blocks = found[name]
            cells = [cell(blocks["validation"], "weighted_f1")]
            cells += [cell(blocks["test"], score) for score in ("weighted_f1", "accuracy")]
            print(f"| {modalities} | {' | '.join(cells)} |")

    print("\n| corpus | | validation weighted F1 | test weighted F1 | accuracy ", end="")
    print("| CCC of V, A, D | Pearson of V, A, D | the paper, accuracy / weighted F1 |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (what, paper) in RATED.items():
        test = found[name]["test"]
        cells = [cell(found[name]["validation"], "weighted_f1")]
        cells += [cell(test, score) for score in ("weighted_f1", "accuracy")]
        cells += [agreement(test, "ccc"), agreement(test, "pearson")]
        print(f"| {name.split('-')[0]} | {what} | {' | '.join(cells)} | {paper} |")

    print(
        f"\n| corpus, held out | {' | '.join(ZERO_SHOT)} | 95% of the harmonic mean | chance ",
        end="",
    )
    print("| the paper: unseen, all |")
    print("|" + "---|" * (len(ZERO_SHOT) + 4))
    for name, paper in HELD_OUT.items():
        block = found[name]["test"]["zero_shot"]
        spread = found[name]["test"].get("std", {}).get("zero_shot", block.get("std", {}))
        cells = [percent(block[score], spread.get(score)) for score in ZERO_SHOT]
        (low, high), classes = harmonic_interval(runs / name)
        print(
            f"| {name.replace('-', ', ', 1)} | {' | '.join(cells)} "
            f"| {100 * low:.1f} to {100 * high:.1f} | {100 / classes:.1f} | {paper} |"
        )
    for name, blocks in found.items():
        facts = blocks["run"]
        print(
            f"{name}: {len(facts['seeds'])} seeds, chosen on {facts['selected_on']}, "
            f"{facts['encoder']['name']}, {facts['seconds'] / len(facts['seeds']):.0f} s per seed, "
            f"SHA-256 {facts['corpus']['sha256'][:8]}, commit {str(facts['commit'])[:8]}"
        )


def cell(block: dict[str, Any], score: str) -> str:
    return percent(block[score], block.get("std", {}).get(score))


def percent(value: float, spread: float | None) -> str:
    return f"{100 * value:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def agreement(block: dict[str, Any], score: str) -> str:
    vad = block.get("vad", {})
    return ", ".join(f"{vad[dimension][score]:.3f}" for dimension in VAD if dimension in vad)


def harmonic_interval(run: Path) -> tuple[list[float], int]:
    """95% interval of the harmonic mean over other dialogues and seeds; the number of classes."""
    config = load_config(run)
    emotions = tuple(best_meta(run)["labels"]["emotions"])
    unseen = [emotions.index(name) for name in config.zero_shot.unseen.split(",")]
    confusions, _ = seed_counts(read_run(run), "test")
    rng = np.random.default_rng(0)
    n_seeds, n_dialogues = confusions.shape[:2]
    assert n_seeds == len(seed_folders(config, run))
    means = []
    for _ in range(RESAMPLES):
        seeds = rng.integers(n_seeds, size=n_seeds)
        drawn = confusions[:, rng.integers(n_dialogues, size=n_dialogues)].sum(axis=1)
        if drawn[:, unseen].any():
            means.append(
                np.mean([metrics.zero_shot(drawn[s], unseen)["harmonic_mean"] for s in seeds])
            )
    return np.percentile(means, [2.5, 97.5]).tolist(), len(emotions)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
