"""What the files of a finished run say, read without JAX: reports and comparisons start at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from erc_jax.data.dialogue import decode, parse_json, read_bytes, text_lines
from erc_jax.errors import UserError
from erc_jax.metrics import best_of
from erc_jax.system_names import RESPONSE


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A workdir whose training has ended.

    Attributes:
      workdir: its folder.
      config: what config.json holds.
      facts: the ``run`` block of metrics.json: what its scores are scores of.
      blocks: split to its scores, the other blocks of metrics.json.
      emotions: the classes, in order; none of runs that only reply.
      folders: seed to the folder of its run.
      predicting: the seed whose predictions stand in the workdir, the best on the selection split.
    """

    workdir: Path
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    blocks: Mapping[str, Mapping[str, Any]]
    emotions: Sequence[str]
    folders: Mapping[int, Path]
    predicting: int

    @property
    def selected_on(self) -> tuple[str, str]:
        """The split and the score that chose the checkpoint, ("", "") where nothing was trained."""
        split, _, metric = self.facts.get("selected_on", "").partition(" ")
        return split, metric

    @property
    def commit(self) -> str:
        """Its first digits, with the "+" of a changed checkout; "" of an installed package."""
        commit = self.facts.get("commit") or ""
        return commit[:12] + ("+" if commit[12:].endswith("+") else "")

    @property
    def replies(self) -> bool:
        """Whether it is of the system that replies, be it with classification heads alone."""
        return self.facts["system"] == RESPONSE


@dataclasses.dataclass(frozen=True)
class Turn:
    """An utterance and what a run says of it.

    Attributes:
      speaker: who said it.
      text: what was said.
      true: its emotion, if it is labelled.
      predicted: the run's, if it names one.
      probabilities: emotion to probability, of runs that have such.
      vad: predicted valence, arousal and dominance, or some of them.
      rated: what the corpus gives for these.
    """

    speaker: str
    text: str
    true: str | None
    predicted: str | None
    probabilities: Mapping[str, float]
    vad: Mapping[str, float]
    rated: Mapping[str, float]

    @property
    def scored(self) -> bool:
        """Whether both are known, so that they can be compared."""
        return self.true is not None and self.predicted is not None

    @property
    def right(self) -> bool:
        return self.true == self.predicted

    @property
    def confidence(self) -> float:
        """The probability of the emotion that is named; NaN where there are no probabilities."""
        return self.probabilities.get(self.predicted or "", math.nan)


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A dialogue of a predictions file; ``scale`` is the lowest and highest rating of its turns."""

    id: str
    turns: Sequence[Turn]
    scale: tuple[float, float] | None = None


def read_run(workdir: Path) -> FinishedRun:
    """Reads config.json and metrics.json of a workdir.

    Raises:
      UserError: the folder is no workdir, its run is not finished, or a file is damaged.
    """
    config = _read_object(
        workdir / "config.json",
        f"{workdir}: not a workdir (no config.json); train one with "
        f"python -m erc_jax.main --config CONFIG --workdir {workdir}",
    )
    path = workdir / "metrics.json"
    content = _read_object(
        path,
        f"{path} is missing: the run is not finished; the command that started it goes on "
        "from the last checkpoint",
    )
    with damaged(str(path)):
        facts = content["run"]
        blocks = {split: dict(content[split]) for split in content if split not in ("run", "seeds")}
        emotions = list(next(iter(blocks.values())).get("per_class", {}))
        _check_corpus(facts["corpus"], emotions)
        seeds = [int(seed) for seed in facts.get("seeds", [0])]
        run = FinishedRun(
            workdir=workdir,
            config=config,
            facts={"system": facts["system"], "corpus": facts["corpus"], **facts},
            blocks=blocks,
            emotions=emotions,
            folders=seed_folders(workdir, seeds),
            predicting=seeds[0],
        )
        if len(seeds) == 1:
            return run
        split, metric = run.selected_on
        best = best_of([of_seed[split] for of_seed in content["seeds"]], metric)
        return dataclasses.replace(run, predicting=seeds[best])


def _check_corpus(corpus: Mapping[str, Any], emotions: Sequence[str]) -> None:
    if not isinstance(corpus["name"], str):
        raise ValueError("the corpus has no name")
    if corpus.get("neutral") not in (None, *emotions):
        raise ValueError(f"the neutral emotion {corpus['neutral']!r} is none of the classes")


def seed_folders(workdir: Path, seeds: Sequence[int]) -> dict[int, Path]:
    """Each seed of an experiment to the folder of its run; a single one is the workdir's own."""
    if len(seeds) == 1:
        return {seeds[0]: workdir}
    return {seed: workdir / "seeds" / str(seed) for seed in seeds}


def _read_object(path: Path, missing: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(missing)
    content = parse_json(decode(read_bytes(path), str(path)), str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged (not a JSON object); restore the file")
    return content


def predictions_file(run: FinishedRun, split: str, seed: int | None = None) -> Path:
    """Where the predictions of a split are: those of a seed, or of the one that predicts."""
    folder = run.workdir if seed is None else run.folders[seed]
    return folder / f"predictions_{split}.jsonl"


def read_predictions(path: Path, emotions: Sequence[str]) -> list[Conversation]:
    """Reads a predictions_<split>.jsonl of a run that names emotions.

    Args:
      path: of the file.
      emotions: the run's classes.

    Raises:
      UserError: a line is damaged; the message names it.
    """
    conversations: list[Conversation] = []
    first: Mapping[str, float] | None = None  # ratings of the first utterance
    for where, line in text_lines(path):
        record = parse_json(line, where)
        with damaged(where):
            turns = [_turn(utterance, emotions) for utterance in record["utterances"]]
            for turn in turns:
                first = turn.vad if first is None else first
                if turn.vad.keys() != first.keys():
                    here, there = (", ".join(vad) or "nothing" for vad in (turn.vad, first))
                    raise ValueError(f"vad is of {here}; of the first utterance it is of {there}")
            scale = record.get("vad_scale")
            low_high = (float(scale[0]), float(scale[1])) if scale else None
            conversations.append(Conversation(str(record["id"]), turns, low_high))
    return conversations


def _turn(utterance: Mapping[str, Any], emotions: Sequence[str]) -> Turn:
    gold = utterance.get("gold", {})
    predicted, true = utterance.get("emotion"), gold.get("emotion")
    if unknown := {predicted, true} - {None, *emotions}:
        raise ValueError(f"emotion {unknown.pop()!r} is none of {', '.join(emotions)}")
    probabilities = {name: float(p) for name, p in utterance.get("probabilities", {}).items()}
    shares = probabilities.values()
    # What is not a number is not at most 1.01.
    if shares and not (predicted in probabilities and min(shares) >= 0 and sum(shares) <= 1.01):
        raise ValueError("probabilities are not those of the emotions")
    return Turn(
        speaker=str(utterance["speaker"]),
        text=str(utterance["text"]),
        true=true,
        predicted=predicted,
        probabilities=probabilities,
        vad=_ratings(utterance.get("vad")),
        rated=_ratings(gold.get("vad")),
    )


def _ratings(record: Mapping[str, Any] | None) -> dict[str, float]:
    ratings = {name: float(value) for name, value in (record or {}).items()}
    if not all(map(math.isfinite, ratings.values())):
        raise ValueError("vad is no number")
    return ratings


LOGGED = ("epoch", "loss", "utterances_per_second")  # numbers, where a record has them


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl: losses of steps, scores of epochs.

    A killed run may have left half a line at the end, and a run from elsewhere no file; what cannot
    be read is left out.

    Raises:
      UserError: a number is none, or not finite; training logs no such.
    """
    path = folder / "metrics.jsonl"
    records = []
    lines = path.read_text(errors="replace").split("\n") if path.is_file() else ()
    for number, line in enumerate(lines, start=1):
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
                with damaged(f"{path}:{number}"):
                    for name in LOGGED:
                        if not math.isfinite(record.get(name, 0)):
                            raise ValueError(f"{name} is {record[name]}")
    return records


def value_at(tree: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path, such as "vad.valence.ccc"; None where there is nothing."""
    value: Any = tree
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


@contextlib.contextmanager
def damaged(where: str) -> Iterator[None]:
    """Turns what is met in a file of another shape into a UserError."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: damaged ({type(error).__name__}: {error}); restore the file, or train again "
            "in another workdir"
        ) from error
