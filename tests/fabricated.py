"""Workdirs of runs that never ran: the files that reports and comparisons read."""

import json

import numpy as np

from erc_jax import metrics

EMOTIONS = ("neutral", "joy", "anger")
CONFIG = {
    "system": "mtl_erc_es",
    "data": {"name": "meld"},
    "tasks": {"shift": True, "sentiment": True},
    "train": {"epochs": 3},
}


def utterance(true, predicted, p=0.8, text="So.", speaker="Ann", **fields):
    rest = {name: (1 - p) / (len(EMOTIONS) - 1) for name in EMOTIONS}
    gold = {"gold": {"emotion": true}} if true else {}
    return {
        "speaker": speaker,
        "text": text,
        "emotion": predicted,
        "probabilities": {**rest, predicted: p},
        **gold,
        **fields,
    }


def dialogues(seed=0, right=0.7, n=12):
    """Conversations of six turns, of which about such a share is right."""
    said = np.random.default_rng(99)  # the same whatever the run
    rng = np.random.default_rng(seed)
    records = []
    for number in range(n):
        turns = []
        for turn in range(6):
            true = EMOTIONS[said.integers(3)]
            predicted = true if rng.random() < right else EMOTIONS[rng.integers(3)]
            p = 0.4 + 0.59 * rng.random()
            turns.append(utterance(true, predicted, p, f"Turn {turn} of {number}."))
        records.append({"id": f"d{number}", "utterances": turns})
    return records


def counts(records):
    """Confusion counts [M, C, C] of M dialogues."""
    of_dialogues = []
    for record in records:
        pairs = [
            [EMOTIONS.index(u["gold"]["emotion"]), EMOTIONS.index(u["emotion"])]
            for u in record["utterances"]
            if "gold" in u
        ]
        classes = np.array(pairs, int).reshape(-1, 2).T
        of_dialogues.append(metrics.confusion(*classes, len(EMOTIONS)))
    return np.stack(of_dialogues)


def block(records):
    return metrics.block(counts(records).sum(axis=0), EMOTIONS, "neutral")


def block_of(runs):
    """The block of one run's records, or of several seeds', as training writes it."""
    if len(runs) == 1:
        return block(runs[0])
    return metrics.aggregate(np.stack(list(map(counts, runs))), EMOTIONS, "neutral")


def make_run(workdir, runs=None, *, splits=("validation", "test"), facts=(), config=()):
    """Writes a workdir.

    Args:
      workdir: its folder.
      runs: seed to the records that it predicts of each split.
      splits: that are scored.
      facts: changes of the ``run`` block.
      config: changes of config.json.
    """
    runs = runs or {0: dialogues()}
    workdir.mkdir(parents=True)
    write(workdir / "config.json", CONFIG | dict(config))
    content = {split: block_of(list(runs.values())) for split in splits}
    content["run"] = {
        "system": "mtl_erc_es",
        "corpus": {"name": "meld", "sha256": "c0ffee00c0ffee", "neutral": "neutral"},
        "encoder": {"name": "all-MiniLM-L6-v2", "sha256": "deadbeefdead", "width": 384},
        "seeds": list(runs),
        "selected_on": "validation weighted_f1",
        "checkpoints": [{"seed": s, "best_epoch": 2, "best_score": 0.5} for s in runs],
        "seconds": 125.0,
        "devices": ["1 x cpu", "x86_64"],
        "commit": "0123456789abcdef",
    } | dict(facts)
    folders = {seed: workdir / "seeds" / str(seed) for seed in runs}
    if len(runs) == 1:
        folders = dict.fromkeys(runs, workdir)
    else:
        content["seeds"] = [
            {"seed": seed, **{split: block(records) for split in splits}}
            for seed, records in runs.items()
        ]
    for seed, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        for split in splits:
            write_lines(folder / f"predictions_{split}.jsonl", runs[seed])
        log = [{"step": 10 * e, "loss": 2.0 / e, "utterances_per_second": 321.0} for e in (1, 2, 3)]
        log += [
            {"step": 10 * e, "epoch": e, "validation": {"weighted_f1": e / 7}} for e in (1, 2, 3)
        ]
        write_lines(folder / "metrics.jsonl", log)
    if len(runs) > 1:
        best = max(runs, key=lambda seed: block(runs[seed])["weighted_f1"])
        for split in splits:
            write_lines(workdir / f"predictions_{split}.jsonl", runs[best])
    write(workdir / "metrics.json", content)
    return workdir


def write(path, content):
    path.write_text(json.dumps(content))


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def change(path, function):
    """Changes what a JSON file holds."""
    content = json.loads(path.read_text())
    function(content)
    write(path, content)
