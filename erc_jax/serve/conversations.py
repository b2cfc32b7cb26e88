"""What a request may hold: conversations, their limits, and what is said of those that are wrong.

The models below are the schema of the API, too. ``erc_jax.data.dialogue`` checks what files hold,
and names file and line; here the place is ``dialogues[2].utterances[5].text``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic import ValidationError as PydanticError

from erc_jax.data.dialogue import Dialogue

DIALOGUES = 64  # of a request
UTTERANCES = 500  # of a dialogue
UTTERANCES_IN_ALL = 2_000  # of a request; seconds on a small machine
CHARACTERS = 5_000  # of a text
NAME_CHARACTERS = 200  # of ids, speakers and labels
DEPTH = 32  # of objects and lists within each other


class Problem(Exception):
    """A request that cannot be answered; becomes an HTTP status and a JSON reason."""

    def __init__(
        self,
        status: int,
        reason: str,
        *,
        place: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.place = place
        self.headers = headers


def _number_as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _not_blank(name: str) -> str:
    if not name.strip():
        raise ValueError("expected a name, found none")
    return name


def _a_label(name: str) -> str:
    if name.strip().splitlines() != [name]:
        raise ValueError("expected the name of a label, on one line and without spaces around it")
    return name


_Name = Annotated[str, Field(max_length=NAME_CHARACTERS)]
_Label = Annotated[_Name, AfterValidator(_a_label)] | None
_Rating = Annotated[float, Field(allow_inf_nan=False)]


class Utterance(BaseModel):
    """One turn. Labels are optional and come back under ``gold``; other keys are kept."""

    model_config = ConfigDict(strict=True, extra="allow")

    speaker: Annotated[_Name, Field(min_length=1), AfterValidator(_not_blank)]
    text: Annotated[str, Field(max_length=CHARACTERS)]
    emotion: _Label = None
    sentiment: _Label = None
    vad: (
        Annotated[dict[Literal["valence", "arousal", "dominance"], _Rating], Field(min_length=1)]
        | None
    ) = None


class Conversation(BaseModel):
    """Utterances in the order in which they were said; other keys are kept."""

    model_config = ConfigDict(strict=True, extra="allow", title="Dialogue")

    id: Annotated[_Name, BeforeValidator(_number_as_text)] = "dialogue"
    utterances: Annotated[list[Utterance], Field(min_length=1, max_length=UTTERANCES)]


_ONE = TypeAdapter(Conversation)
_SEVERAL = TypeAdapter(Annotated[list[Conversation], Field(min_length=1, max_length=DIALOGUES)])


def parse(body: bytes) -> tuple[list[Dialogue], bool]:
    """The conversations of a request, and whether it was a list of them.

    Raises:
      Problem: 400 for what is not JSON, 422 for what is no conversation, or too much.
    """
    found = _parse_json(body)
    several = isinstance(found, list)
    try:
        (_SEVERAL if several else _ONE).validate_python(found)
    except PydanticError as error:
        _refuse(error, "dialogues" if several else "dialogue")
    dialogues = [Dialogue.from_json(record) for record in (found if several else [found])]
    in_all = sum(len(dialogue.utterances) for dialogue in dialogues)
    if in_all > UTTERANCES_IN_ALL:
        raise Problem(
            422,
            f"dialogues: expected at most {UTTERANCES_IN_ALL} utterances in all, found {in_all}; "
            "send several requests",
            place="dialogues",
        )
    return dialogues, several


def _parse_json(body: bytes) -> Any:
    try:
        text = body.decode("utf-8")
        found = json.loads(text, parse_float=_finite, parse_constant=_no_constant)
        if _depth(found) > DEPTH:
            raise ValueError(f"expected at most {DEPTH} levels of objects and lists, found more")
        if "\\ud" in text.lower():
            # JSON can spell half of a character (a lone surrogate), which no answer can hold.
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        reason = f"expected UTF-8, found byte 0x{body[error.start]:02x} at {error.start + 1}"
    except UnicodeEncodeError as error:
        reason = f"found half of a character ({error.object[error.start]!r}); was a text cut?"
    except json.JSONDecodeError as error:
        reason = f"expected JSON, found {error.msg} at line {error.lineno} column {error.colno}"
    except RecursionError:
        reason = f"expected at most {DEPTH} levels of objects and lists, found many more"
    except ValueError as error:
        reason = str(error)
    else:
        return found
    raise Problem(400, f"the body: {reason}")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"expected numbers within a double's range, found {number[:40]}")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"expected JSON, which has no {name}")


def _depth(value: Any) -> int:
    """How many objects and lists lie within each other; without recursion."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth


def _refuse(error: PydanticError, root: str) -> NoReturn:
    """Says the first thing that is wrong, and how many there are."""
    errors = error.errors(include_url=False, include_context=True)
    first = errors[0]
    place = root
    for part in first["loc"]:
        if part != "[key]":  # what pydantic calls a wrong key of an object
            place += f"[{part}]" if isinstance(part, int) else f".{str(part)[:80]}"
    match first["type"]:
        case "missing":
            reason = "is missing"
        case "string_too_long":
            limit = (first.get("ctx") or {})["max_length"]
            reason = f"expected at most {limit} characters, found {len(first['input'])}"
        case "too_long":
            limit = (first.get("ctx") or {})["max_length"]
            reason = f"expected at most {limit}, found {len(first['input'])}"
        case "too_short":
            reason = "expected at least one, found none"
        case "string_too_short":
            reason = "expected a name, found none"
        case "model_type":
            reason = f"expected an object, found {_short(first['input'])}"
        case "value_error":
            reason = f"{(first.get('ctx') or {})['error']}, found {_short(first['input'])}"
        case _:
            expected = first["msg"].replace("Input should be", "expected")
            reason = f"{expected}, found {_short(first['input'])}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    raise Problem(422, f"{place}: {reason}{more}", place=place)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"
