"""Several finished runs side by side, with how sure one can be that they differ.

Scores and the bootstrap take all seeds of each run. McNemar's test and the utterances on which runs
disagree take one labelling of each: that of the seed that predicts, the best on validation.
"""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erc_jax import charts, metrics
from erc_jax.errors import UserError
from erc_jax.finished import (
    Conversation,
    FinishedRun,
    Turn,
    predictions_file,
    read_predictions,
    read_run,
)
from erc_jax.pages import write_page

DISAGREEMENTS = 20
MAX_RUNS = len(string.ascii_uppercase)


@dataclasses.dataclass(frozen=True)
class Pair:
    """What two runs differ by, the second less the first.

    Attributes:
      first: the letter of a run.
      second: likewise.
      differences: as ``metrics.paired_difference``.
      only_first: utterances that the first labels rightly and the second does not.
      only_second: the other way round.
      p: of McNemar's exact test.
      p_holm: the same, corrected for the number of pairs (Holm).
    """

    first: str
    second: str
    differences: Mapping[str, Any]
    only_first: int
    only_second: int
    p: float
    p_holm: float


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """An utterance that some runs label rightly and others do not.

    Attributes:
      dialogue: its id.
      number: of the turn, from 1.
      before: the two turns before it.
      turns: letter of a run to its turn.
      gap: the highest less the lowest probability that a run gives the true emotion.
    """

    dialogue: str
    number: int
    before: Sequence[Turn]
    turns: Mapping[str, Turn]
    gap: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs on the same dialogues.

    Attributes:
      split: that they are compared on.
      corpus: its name.
      emotions: the classes.
      support: utterances of each.
      runs: letter to run.
      scores: letter to its scores, as ``metrics.aggregate``.
      pairs: every two of them.
      disagreements: the most telling ones.
      n_disagreements: how many there are.
    """

    split: str
    corpus: str
    emotions: Sequence[str]
    support: Sequence[int]
    runs: Mapping[str, FinishedRun]
    scores: Mapping[str, Mapping[str, Any]]
    pairs: Sequence[Pair]
    disagreements: Sequence[Disagreement]
    n_disagreements: int

    @property
    def shown_scores(self) -> dict[str, str]:
        """Score to its name; without a neutral emotion some are left out."""
        of_first = next(iter(self.scores.values()))
        return {score: name for score, name in metrics.SCORE_NAMES.items() if score in of_first}


def compare(workdirs: Sequence[Path], split: str = "test") -> Comparison:
    """Compares finished runs on the dialogues of a split.

    Args:
      workdirs: of two runs or more, on the same corpus.
      split: which each of them was scored on.

    Raises:
      UserError: there are too few runs, one is given twice, is not finished, or replies, or they
        were not scored on the same utterances.
    """
    if not 2 <= len(workdirs) <= MAX_RUNS:
        raise UserError(
            f"--mode compare takes 2 to {MAX_RUNS} workdirs, found {len(workdirs)}; for instance "
            "--mode compare runs/a runs/b"
        )
    resolved = [workdir.resolve() for workdir in workdirs]
    for workdir, place in zip(workdirs, resolved, strict=True):
        if resolved.count(place) > 1:
            raise UserError(f"--mode compare: {workdir} is given twice")
    runs = dict(zip(string.ascii_uppercase, map(read_run, workdirs), strict=False))
    for run in runs.values():
        _check(run, next(iter(runs.values())), split)
    emotions = next(iter(runs.values())).emotions
    # Of older runs it is not known.
    neutral = {run.facts["corpus"].get("neutral") for run in runs.values()}
    counts, labelled = {}, {}
    for letter, run in runs.items():
        counts[letter], _ = seed_counts(run, split)
        labelled[letter] = _labelled(predictions_file(run, split), emotions)
    first, *others = labelled
    for other in others:
        _check_same_utterances(
            labelled[first], labelled[other], runs[first].workdir, runs[other].workdir, split
        )
    shared_neutral = neutral.pop() if len(neutral) == 1 else None
    disagreements = _disagreements(labelled)
    return Comparison(
        split=split,
        corpus=runs[first].facts["corpus"]["name"],
        emotions=emotions,
        support=counts[first][0].sum(axis=(0, 2)).tolist(),
        runs=runs,
        scores={
            letter: metrics.aggregate(of_run, emotions, shared_neutral)
            for letter, of_run in counts.items()
        },
        pairs=_pairs(counts, labelled, emotions, shared_neutral),
        disagreements=disagreements[:DISAGREEMENTS],
        n_disagreements=len(disagreements),
    )


def _check(run: FinishedRun, first: FinishedRun, split: str) -> None:
    """Refuses what cannot be compared with the first run."""
    if not run.emotions or run.replies or run.facts["system"] == "prompting":
        why = "replies" if run.replies else "is a chat model's, whose answers may name none"
        raise UserError(
            f"{run.workdir}: this run {why}; --mode compare compares runs that name an emotion "
            "for every utterance"
        )
    here, there = run.facts["corpus"]["name"], first.facts["corpus"]["name"]
    if here != there:
        raise UserError(
            f"{run.workdir} is a run on {here}, {first.workdir} on {there}; compare runs on the "
            "same corpus"
        )
    if list(run.emotions) != list(first.emotions):
        raise UserError(
            f"{run.workdir} names {', '.join(run.emotions)}; {first.workdir} names "
            f"{', '.join(first.emotions)}: compare runs with the same emotions"
        )
    for seed in run.folders:
        file = predictions_file(run, split, seed)
        if not file.is_file():
            raise UserError(
                f"{file} is missing: the run was not scored on {split}; write it with "
                f"--workdir {run.workdir} --mode evaluate --split {split}, or compare on another "
                "split: --split validation"
            )


def _check_same_utterances(
    ours: Sequence[Conversation],
    theirs: Sequence[Conversation],
    workdir: Path,
    other: Path,
    split: str,
) -> None:
    """Refuses to pair what was not said, or labelled, alike."""
    said = [
        [(c.id, number, t.text, t.true) for c in of_run for number, t in enumerate(c.turns, 1)]
        for of_run in (ours, theirs)
    ]
    if said[0] == said[1]:
        return
    for a, b in itertools.zip_longest(*said):
        if a != b:
            place, number = (a or b)[:2]
            raise UserError(
                f"{workdir} and {other} were not scored on the same utterances of {split}: they "
                f"differ from dialogue {place}, turn {number} on; score both on the same corpus "
                f"with --mode evaluate --split {split}"
            )


def seed_counts(run: FinishedRun, split: str) -> tuple[np.ndarray, list[str]]:
    """Confusion counts [K, M, C, C] of K seeds and M dialogues, and the dialogues' ids.

    Raises:
      UserError: a file is missing or damaged, or its dialogues are not those of the seed before.
    """
    of_seeds: list[np.ndarray] = []
    ids: list[str] = []
    number = {emotion: i for i, emotion in enumerate(run.emotions)}
    n_classes = len(run.emotions)
    for seed in run.folders:
        file = predictions_file(run, split, seed)
        conversations = _labelled(file, run.emotions)
        found = [conversation.id for conversation in conversations]
        if of_seeds and found != ids:
            raise UserError(
                f"{file}: not the dialogues of the run's other seeds; write them anew: "
                f"--workdir {run.workdir} --mode evaluate --split {split}"
            )
        ids = found
        counts = np.zeros((len(conversations), n_classes, n_classes), np.int64)
        for of_dialogue, conversation in zip(counts, conversations, strict=True):
            for turn in conversation.turns:
                if turn.true is not None and turn.predicted is not None:
                    of_dialogue[number[turn.true], number[turn.predicted]] += 1
        of_seeds.append(counts)
    return np.stack(of_seeds), ids


def _labelled(path: Path, emotions: Sequence[str]) -> list[Conversation]:
    """Reads predictions of a run that names an emotion for every utterance.

    Raises:
      UserError: it does not, or the file is damaged.
    """
    conversations = read_predictions(path, emotions)
    for conversation in conversations:
        for place, turn in enumerate(conversation.turns, start=1):
            if turn.predicted is None:
                raise UserError(
                    f"{path}: damaged (dialogue {conversation.id}, turn {place} has no emotion); "
                    "restore the file, or write it anew with --mode evaluate"
                )
    return conversations


def mcnemar(only_first: int, only_second: int) -> float:
    """p of McNemar's exact test: both runs are as often the only one that is right.

    It takes utterances as independent, which those of a dialogue are not.

    Args:
      only_first: utterances that the first labels rightly and the second does not.
      only_second: the other way round.
    """
    from scipy.stats import binomtest

    n = only_first + only_second
    return float(binomtest(only_first, n, 0.5).pvalue) if n else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm, 1979)."""
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, place in enumerate(np.argsort(values, kind="stable")):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
    return corrected


def _pairs(
    counts: Mapping[str, np.ndarray],
    labelled: Mapping[str, Sequence[Conversation]],
    emotions: Sequence[str],
    neutral: str | None,
) -> list[Pair]:
    right = {
        letter: np.array([turn.right for c in of_run for turn in c.turns if turn.scored], bool)
        for letter, of_run in labelled.items()
    }
    combinations = list(itertools.combinations(counts, 2))
    only = [
        (int((right[a] & ~right[b]).sum()), int((right[b] & ~right[a]).sum()))
        for a, b in combinations
    ]
    p_values = [mcnemar(*of_pair) for of_pair in only]
    return [
        Pair(
            a, b, metrics.paired_difference(counts[b], counts[a], emotions, neutral), *of_pair, p, q
        )
        for (a, b), of_pair, p, q in zip(combinations, only, p_values, holm(p_values), strict=True)
    ]


def _disagreements(labelled: Mapping[str, Sequence[Conversation]]) -> list[Disagreement]:
    """Where some runs are right and others are not, the largest gap in probability first."""
    found = []
    for conversations in zip(*labelled.values(), strict=True):
        for place, turns in enumerate(zip(*(c.turns for c in conversations), strict=True)):
            if not all(t.scored for t in turns) or len({t.right for t in turns}) == 1:
                continue
            given = [t.probabilities.get(t.true or "", float(t.right)) for t in turns]
            found.append(
                Disagreement(
                    dialogue=conversations[0].id,
                    number=place + 1,
                    before=conversations[0].turns[max(place - 2, 0) : place],
                    turns=dict(zip(labelled, turns, strict=True)),
                    gap=max(given) - min(given),
                )
            )
    return sorted(found, key=lambda d: -d.gap)


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Writes a comparison as one HTML page.

    Raises:
      UserError: the page cannot be written.
    """
    names = comparison.shown_scores
    drawn = {"weighted_f1", "macro_f1", "mcc"}
    drawn |= {run.selected_on[1] for run in comparison.runs.values()}
    shown = [
        charts.intervals(
            name,
            f"{name} of each run with its 95% interval",
            [
                (letter, *(100 * x for x in (of[score], *of["interval"][score])))
                for letter, of in comparison.scores.items()
            ],
            name,
        )
        for score, name in names.items()
        if score in drawn
    ]
    write_page(
        path,
        "compare.html.j2",
        title=f"{len(comparison.runs)} runs on {comparison.corpus}, {comparison.split}",
        made_from=", ".join(str(run.workdir) for run in comparison.runs.values()),
        comparison=comparison,
        emotions=comparison.emotions,
        runs=[(letter, _described(run)) for letter, run in comparison.runs.items()],
        scores=score_rows(comparison),
        charts=shown,
        differences=[
            (pair, pair_rows(pair, names), _class_differences(pair)) for pair in comparison.pairs
        ],
        classes=class_rows(comparison),
    )


def _described(run: FinishedRun) -> str:
    encoder = Path(run.facts.get("encoder", {}).get("name", "no encoder")).name
    seeds = f"{len(run.folders)} seed{'s' * (len(run.folders) > 1)}"
    commit = run.commit or "unknown"
    return f"{run.workdir}: {run.facts['system']} on {encoder}, {seeds}, commit {commit}"


def score_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row per score, a cell per run, in percent."""
    return [
        (
            name,
            *(
                f"{100 * of[score]:.2f}"
                + (f" ± {100 * of['std'][score]:.2f}" if len(run.folders) > 1 else "")
                for of, run in zip(
                    comparison.scores.values(), comparison.runs.values(), strict=True
                )
            ),
        )
        for score, name in comparison.shown_scores.items()
    ]


def pair_rows(pair: Pair, names: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """A row per score: its difference in percent points and the 95% interval."""
    return [(name, *_difference(pair.differences[score])) for score, name in names.items()]


def class_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row per emotion: its support, and F1 of each run."""
    return [
        (
            emotion,
            f"{support:,}",
            *(f"{100 * of['per_class'][emotion]['f1']:.2f}" for of in comparison.scores.values()),
        )
        for emotion, support in zip(comparison.emotions, comparison.support, strict=True)
    ]


def _class_differences(pair: Pair) -> list[tuple[str, str, str]]:
    """A row per emotion, of F1: as ``pair_rows``."""
    return [
        (emotion, *_difference(of["f1"])) for emotion, of in pair.differences["per_class"].items()
    ]


def _difference(of: Mapping[str, Any]) -> tuple[str, str]:
    """A difference and its interval, in percent points."""
    low, high = of["interval"]
    return f"{100 * of['difference']:+.2f}", f"[{100 * low:+.2f}, {100 * high:+.2f}]"
