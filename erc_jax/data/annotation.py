"""Annotations: valence, arousal and dominance of a corpus' utterances, in a folder of their own.

annotation.json        who made it, its scale, the corpus, and how much of it is rated
<split>.jsonl          {"dialogue": "d1", "utterance": 2, "valence": 6.1, "arousal": 4.2,
                       "dominance": 5.5, "annotator": "lexicon"}, a line per rated utterance;
                       "utterance" is its place in the dialogue, from 1
descriptions.json      of the corpus' emotions, see erc_jax.data.descriptions; may be missing

``python -m erc_jax.main --mode annotate`` writes such a folder; ratings by people can be put into
one. Only "annotator" and "scale" of annotation.json are needed then.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from erc_jax.data.descriptions import load_descriptions, load_object
from erc_jax.data.dialogue import (
    VAD,
    Dialogue,
    parse_json,
    read_bytes,
    text_lines,
    write_whole,
)
from erc_jax.errors import UserError

SPLITS = ("train", "validation", "test")
MANIFEST = "annotation.json"
DESCRIPTIONS = "descriptions.json"
KEYS = ("dialogue", "utterance", *VAD, "annotator")

Scale = tuple[float, float]
Place = tuple[str, int]  # a dialogue's id, and the utterance's place in it from 1
Ratings = Mapping[Place, Mapping[str, float]]  # each with valence, arousal and dominance


@dataclasses.dataclass(frozen=True)
class Annotation:
    """What an annotation's folder holds.

    Attributes:
      scale: lowest and highest possible rating.
      ratings: of the rated utterances of each split, on the scale.
      descriptions: emotion to description; may be empty.
      facts: annotation.json and "sha256", for metrics.json.
      sha256: of the files, hex.
    """

    scale: Scale
    ratings: Mapping[str, Ratings]
    descriptions: Mapping[str, str]
    facts: Mapping[str, Any]
    sha256: str


def load_annotation(folder: Path) -> Annotation:
    """Reads an annotation.

    Raises:
      UserError: something in the folder is missing, cut off, there twice or not on the scale; the
        message names file and line.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise UserError(
            f"{folder}: expected an annotation, but there is no {MANIFEST}; make one with "
            "python -m erc_jax.main --mode annotate"
        )
    facts = load_object(manifest)
    annotator = facts.get("annotator")
    if not isinstance(annotator, str) or not annotator.strip():
        raise UserError(f'{manifest}: expected text as "annotator", found {_shown(annotator)}')
    scale = _scale(facts.get("scale"), f"{manifest}")
    corpus = facts.get("corpus", {})
    if not isinstance(corpus, dict):
        raise UserError(
            f'{manifest}: expected {{"name": text, "sha256": text}} as "corpus", found '
            f"{_shown(corpus)}"
        )
    rated = _rated(facts.get("coverage", {}), f"{manifest}")
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    paths = {s: path for s, path in paths.items() if path.is_file() or s in rated}
    if not paths:
        raise UserError(
            f"{folder}: there are no ratings; expected train.jsonl, validation.jsonl or test.jsonl"
        )
    ratings = {split: dict(_ratings(path, scale)) for split, path in paths.items()}
    for split, count in rated.items():
        if len(ratings[split]) != count:
            raise UserError(
                f"{paths[split]}: {len(ratings[split]):,} utterances are rated, but {MANIFEST} "
                f"says {count:,}; was the file cut off, or annotating interrupted? Annotate again"
            )
    descriptions = folder / DESCRIPTIONS
    files = [manifest, *paths.values(), *([descriptions] if descriptions.is_file() else [])]
    sha256 = _sha256(files)
    return Annotation(
        scale=scale,
        ratings=ratings,
        descriptions=load_descriptions(descriptions) if descriptions.is_file() else {},
        facts={**facts, "sha256": sha256},
        sha256=sha256,
    )


def save_annotation(
    folder: Path,
    ratings: Mapping[str, Ratings],
    descriptions: Mapping[str, Mapping[str, str]],
    facts: Mapping[str, Any],
) -> None:
    """Writes an annotation; every file appears whole, annotation.json last.

    Args:
      folder: is made if need be.
      ratings: of each split.
      descriptions: emotion to "description" and "origin".
      facts: annotation.json, with "annotator" (and its "model"), "scale" and "coverage".

    Raises:
      UserError: a file cannot be written.
    """
    annotator = ":".join(filter(None, (facts["annotator"], facts.get("model"))))
    for split, of_split in ratings.items():
        lines = [
            json.dumps(
                {"dialogue": dialogue, "utterance": position, **vad} | {"annotator": annotator},
                ensure_ascii=False,
            )
            for (dialogue, position), vad in of_split.items()
        ]
        write_whole(folder / f"{split}.jsonl", "".join(f"{line}\n" for line in lines))
    for name, content in ((DESCRIPTIONS, descriptions), (MANIFEST, facts)):
        write_whole(folder / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def annotated(
    dialogues: Sequence[Dialogue], ratings: Ratings, scale: Scale, where: str
) -> list[Dialogue]:
    """The dialogues with an annotation's ratings in place of their own.

    Args:
      dialogues: of a split.
      ratings: of that split.
      scale: of the ratings; every dialogue's "vad_scale" then.
      where: the ratings' place, for the message of an error.

    Returns:
      The same dialogues, whose utterances without a rating have no ``vad``.

    Raises:
      UserError: an utterance that is rated is not there, or a dialogue's id is there twice.
    """
    left = dict(ratings)
    found = []
    for dialogue, places in zip(dialogues, places_of(dialogues), strict=True):
        utterances = tuple(
            dataclasses.replace(utterance, vad=left.pop(place, None))
            for utterance, place in zip(dialogue.utterances, places, strict=True)
        )
        extra = {**dialogue.extra, "vad_scale": list(scale)}
        found.append(dataclasses.replace(dialogue, utterances=utterances, extra=extra))
    if left:
        identifier, position = min(left)
        raise UserError(
            f"{where}: utterance {position} of dialogue {identifier!r} is rated, but not there "
            f"({len(left):,} such); was another corpus annotated, or with another "
            "--config.data.keep_unlabelled?"
        )
    return found


def places_of(dialogues: Sequence[Dialogue]) -> list[list[Place]]:
    """Each dialogue's utterances' places, by which ratings are kept.

    Raises:
      UserError: a dialogue's id is there twice.
    """
    seen = set()
    for dialogue in dialogues:
        if dialogue.id in seen:
            raise UserError(
                f"two dialogues of a split have the id {dialogue.id!r}, by which ratings are "
                "kept; give each an id of its own"
            )
        seen.add(dialogue.id)
    return [[(d.id, i) for i in range(1, len(d.utterances) + 1)] for d in dialogues]


def _scale(value: Any, where: str) -> Scale:
    if isinstance(value, list) and len(value) == 2 and all(_is_number(x) for x in value):
        low, high = value
        if low < high:
            return float(low), float(high)
    raise UserError(f'{where}: expected [low, high] as "scale", low < high, found {_shown(value)}')


def _rated(coverage: Any, where: str) -> dict[str, int]:
    """How many utterances of each split are rated, as far as annotation.json says."""
    rated = {}
    for split, counts in coverage.items() if isinstance(coverage, dict) else [("", None)]:
        count = counts.get("rated") if isinstance(counts, dict) else None
        if split not in SPLITS or not isinstance(count, int):
            raise UserError(
                f'{where}: expected {{split: {{"utterances": n, "rated": n}}}} as "coverage", '
                f"splits being {', '.join(SPLITS)}; found {_shown(coverage)}"
            )
        rated[split] = count
    return rated


def _ratings(path: Path, scale: Scale) -> Iterator[tuple[Place, dict[str, float]]]:
    seen: dict[Place, str] = {}
    for where, line in text_lines(path):
        record = parse_json(line, where)
        if not isinstance(record, dict) or record.keys() != set(KEYS):
            keys = sorted(record) if isinstance(record, dict) else record
            raise UserError(
                f"{where}: expected an object of {', '.join(KEYS)}; found {_shown(keys)}"
            )
        place = record["dialogue"], record["utterance"]
        if not isinstance(place[0], str):
            raise UserError(f'{where}: expected text as "dialogue", found {_shown(place[0])}')
        if type(place[1]) is not int or place[1] < 1:
            raise UserError(
                f'{where}: expected the place in the dialogue, from 1, as "utterance"; found '
                f"{_shown(place[1])}"
            )
        if not isinstance(record["annotator"], str):
            raise UserError(
                f'{where}: expected text as "annotator", found {_shown(record["annotator"])}'
            )
        for dimension in VAD:
            value = record[dimension]
            if not (_is_number(value) and scale[0] <= value <= scale[1]):
                raise UserError(
                    f"{where}: expected a number from {scale[0]:g} to {scale[1]:g} as "
                    f'"{dimension}", found {_shown(value)}'
                )
        if place in seen:
            raise UserError(
                f"{where}: utterance {place[1]} of dialogue {place[0]!r} is rated twice, before "
                f"at {seen[place]}; remove one"
            )
        seen[place] = where
        yield place, {dimension: float(record[dimension]) for dimension in VAD}


def _is_number(value: Any) -> bool:
    """Whether it is a finite number; math.isfinite fails on whole numbers of 309 digits."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < math.inf


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]


def _sha256(paths: Sequence[Path]) -> str:
    sums = (f"{path.name} {hashlib.sha256(read_bytes(path)).hexdigest()}\n" for path in paths)
    return hashlib.sha256("".join(sums).encode()).hexdigest()
