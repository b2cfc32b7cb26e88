"""Conversations: the records that everything else works on, and the files they are read from.

A conversation is one JSON line::

    {"id": "d1", "utterances": [{"speaker": "Ann", "text": "We won!", "emotion": "joy"}, ...]}

``emotion``, ``sentiment`` and ``vad`` are optional; other keys are kept and written back. A CSV
file with the columns dialogue, speaker, text (and emotion, sentiment) is read too, one utterance a
row.

What is read goes about together with its place, "file:line", so that any later complaint can name
it.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from erc_jax.errors import UserError

VAD = ("valence", "arousal", "dominance")
MODALITIES = ("text", "audio", "visual")
# Attention is quadratic in a dialogue's length: 10,000 utterances are 100 million pairs.
MAX_UTTERANCES = 10_000


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One turn. Labels are names; None is "not labelled"."""

    speaker: str
    text: str
    emotion: str | None = None
    sentiment: str | None = None
    # Valence, arousal, dominance, or some of them, on the annotation's scale.
    vad: Mapping[str, float] | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # other keys, as they came

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"speaker": self.speaker, "text": self.text}
        for key in ("emotion", "sentiment", "vad"):
            if (value := getattr(self, key)) is not None:
                record[key] = dict(value) if key == "vad" else value
        return {**record, **self.extra}


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A conversation: its utterances in the order in which they were said."""

    id: str
    utterances: Sequence[Utterance]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # other keys, as they came

    def to_json(self) -> dict[str, Any]:
        utterances = [utterance.to_json() for utterance in self.utterances]
        return {"id": self.id, "utterances": utterances, **self.extra}

    @classmethod
    def from_json(cls, record: Any, where: str = "dialogue") -> Dialogue:
        """Checks a parsed JSON record and makes a dialogue of it.

        Args:
          record: what ``json.loads`` gave for one line.
          where: the record's place, "file:line", for the message of an error.

        Raises:
          UserError: the record is not a conversation; the message says where and why.
        """
        _require(isinstance(record, dict), where, "expected an object", record)
        utterances = record.get("utterances")
        _require(isinstance(utterances, list), where, 'expected a list "utterances"', utterances)
        check_length(len(utterances), where)
        identifier = record.get("id", where)
        _require(isinstance(identifier, str | int), where, 'expected text as "id"', identifier)
        return cls(
            id=str(identifier),
            utterances=tuple(
                _utterance(utterance, place)
                for place, utterance in zip(
                    utterance_places(where, len(utterances)), utterances, strict=True
                )
            ),
            extra={k: v for k, v in record.items() if k not in ("id", "utterances")},
        )


# A dialogue and its utterances' places.
Located = tuple[Sequence[str], Dialogue]


def check_length(utterances: int, where: str) -> None:
    """Raises UserError for a dialogue of no utterances, or of more than MAX_UTTERANCES."""
    _require(utterances > 0, where, "the dialogue has no utterances; remove it", None)
    _require(
        utterances <= MAX_UTTERANCES,
        where,
        f"the dialogue has {utterances} utterances, the limit is {MAX_UTTERANCES}; split it",
        None,
    )


def _require(condition: bool, where: str, message: str, found: Any) -> None:
    if not condition:
        got = "" if found is None else f", found {json.dumps(found)[:80]}"
        raise UserError(f"{where}: {message}{got}")


def _utterance(record: Any, where: str) -> Utterance:
    _require(isinstance(record, dict), where, "expected an object", record)
    for key in ("speaker", "text"):
        _require(key in record, where, f'"{key}" is missing', None)
        _require(isinstance(record[key], str), where, f'expected text as "{key}"', record[key])
    _require(record["speaker"].strip() != "", where, '"speaker" is empty; name the speaker', None)
    for key in ("emotion", "sentiment"):
        value = record.get(key)
        _require(
            value is None or (isinstance(value, str) and value.strip().splitlines() == [value]),
            where,
            f'expected a label name (without spaces around it) or null as "{key}"',
            value,
        )
    vad = record.get("vad")
    if vad is not None:
        good = isinstance(vad, dict) and all(k in VAD and _is_number(vad[k]) for k in vad)
        _require(good, where, f'expected numbers {", ".join(VAD)}, or some of them, in "vad"', vad)
        _require(bool(vad), where, '"vad" is empty; leave it out', None)
        vad = {dimension: float(vad[dimension]) for dimension in VAD if dimension in vad}
    known = ("speaker", "text", "emotion", "sentiment", "vad")
    return Utterance(
        speaker=record["speaker"],
        text=record["text"],
        emotion=record.get("emotion"),
        sentiment=record.get("sentiment"),
        vad=vad,
        extra={k: v for k, v in record.items() if k not in known},
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def load_dialogues(path: str | Path) -> list[Dialogue]:
    """Reads conversations from JSON lines (``.jsonl``, ``.json``) or CSV (``.csv``).

    Raises:
      UserError: the file is missing, empty, not UTF-8, cut off, or holds something that is not a
        conversation; the message names file and line.
    """
    return [dialogue for _, dialogue in iter_dialogues(Path(path))]


def iter_dialogues(path: Traversable) -> Iterator[Located]:
    """Yields the dialogues of a file with their utterances' places; see load_dialogues."""
    empty = True
    for located in group_rows(_own_rows(path)) if path.name.endswith(".csv") else _json_lines(path):
        empty = False
        yield located
    if empty:
        raise UserError(f"{path}: no dialogues in the file; expected one JSON object a line")


def _json_lines(path: Traversable) -> Iterator[Located]:
    for where, line in text_lines(path):
        dialogue = Dialogue.from_json(parse_json(line, where), where)
        yield utterance_places(where, len(dialogue.utterances)), dialogue


def utterance_places(where: str, count: int) -> list[str]:
    """Places of the utterances of a dialogue that stands on one line."""
    return [f"{where}: utterance {position}" for position in range(1, count + 1)]


def save_dialogues(path: str | Path, records: Iterable[Dialogue | Mapping[str, Any]]) -> None:
    """Writes one JSON line per dialogue, or per ready-made record; the file appears whole."""
    lines = (
        json.dumps(r.to_json() if isinstance(r, Dialogue) else r, ensure_ascii=False) + "\n"
        for r in records
    )
    write_whole(path, "".join(lines))


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes a file so that a killed run or a full disk leaves the old one, never a half.

    Raises:
      UserError: the file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    # Two programs that write the same file, such as cached features, must not meet.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where the folder is a file, for one
            partial.unlink()
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another "
            "place. What was there before is unchanged."
        ) from error


def remove(path: Path) -> None:
    """Removes a file, if it is there.

    Raises:
      UserError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be removed ({error.strerror}); choose another place"
        ) from error


def text_lines(path: Traversable) -> Iterator[tuple[str, str]]:
    r"""Yields ("file:line", line) for the lines of a UTF-8 file that are not blank.

    Lines end at ``\n`` only: texts hold other separators, such as U+0085, that
    ``str.splitlines`` would split at.
    """
    for number, raw in enumerate(read_bytes(path).split(b"\n"), start=1):
        line = decode(raw, f"{path}:{number}").removeprefix("\ufeff").rstrip("\r")
        if line.strip():
            yield f"{path}:{number}", line


def read_bytes(path: Traversable) -> bytes:
    """Reads a file, a member of a zip archive (``zipfile.Path``) or a packaged resource."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path}: the archive is damaged ({error}); get it again") from error


def decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start + 1}); "
            "convert the file, for instance with: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error


def parse_json(line: str, where: str) -> Any:
    try:
        record = json.loads(line)
        if "\\ud" in line.lower():
            # JSON can spell half of a character (a lone surrogate), which no UTF-8 file can hold.
            json.dumps(record, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not a JSON object ({error.msg} at column {error.colno}); "
            "is the file cut off, or not one object a line?"
        ) from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: holds half of a character ({error.object[error.start]!r}); "
            "was a text cut inside an emoji? Mend or remove it"
        ) from error
    return record


def csv_rows(path: Traversable, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ("file:line", row) for a UTF-8 CSV file with a header; other columns come along.

    Raises:
      UserError: a column is missing, a row has too few or too many fields, a quote never closes.
    """
    raw = read_bytes(path)
    for number, line in enumerate(raw.split(b"\n"), start=1):
        decode(line, f"{path}:{number}")
    reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True)
    try:
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise UserError(
                f"{path}:1: columns {', '.join(missing)} are missing; "
                f"found {', '.join(reader.fieldnames or ()) or 'nothing'}"
            )
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise UserError(
                    f"{where}: the row does not have {len(reader.fieldnames or ())} fields; "
                    "is the file cut off?"
                )
            yield where, row
    except csv.Error as error:
        # Where the row begins: a quote that never closes takes in all lines after it.
        raise UserError(f"{path}:{reader.line_num + 1}: {error}; is the file cut off?") from error


def _own_rows(path: Traversable) -> Iterator[tuple[str, str, Utterance]]:
    for where, row in csv_rows(path, ("dialogue", "speaker", "text")):
        identifier = row.pop("dialogue")
        labels = {key: row.pop(key, None) or None for key in ("emotion", "sentiment")}
        yield where, identifier, _utterance({**row, **labels}, where)


def group_rows(rows: Iterable[tuple[str, str, Utterance]]) -> Iterator[Located]:
    """Makes dialogues of rows that hold one utterance each.

    Args:
      rows: ("file:line", the dialogue's id, utterance) of each row, in the file's order.

    Yields:
      ("file:line" of each row, dialogue), in the file's order.

    Raises:
      UserError: a dialogue comes back after another one began; the rows were shuffled or joined.
    """
    seen = set()
    for identifier, run in itertools.groupby(rows, key=lambda row: row[1]):
        places, _, utterances = zip(*run, strict=True)
        _require(
            identifier not in seen,
            places[0],
            f"dialogue {identifier!r} goes on after another one began; "
            "keep a dialogue's rows together",
            None,
        )
        seen.add(identifier)
        check_length(len(utterances), places[0])
        yield places, Dialogue(identifier, utterances)
