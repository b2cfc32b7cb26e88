"""Emotions described by their arousal, valence and dominance (FMERL, section 3.4).

A phrase such as "Arousal: Moderately high arousal, Valence: Positive valence, Dominance: High
dominance" says more of an emotion than its name does, and can be written for one that no training
utterance has. A file of descriptions is a JSON object::

    {"relief": {"description": "Arousal: Low arousal, …", "origin": "who wrote it"}, …}

where ``"relief": "Arousal: Low arousal, …"`` will do, too.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import Any

from erc_jax.data.dialogue import decode, read_bytes
from erc_jax.errors import UserError

PACKAGED = importlib.resources.files("erc_jax.data") / "descriptions.json"


def known_descriptions() -> dict[str, str]:
    """Emotion to description, for the corpora's emotions and some that people ask for."""
    return load_descriptions(PACKAGED)


def load_descriptions(path: Traversable) -> dict[str, str]:
    """Reads a file of descriptions, emotion to description.

    Raises:
      UserError: the file cannot be read, or is not an object of descriptions; the message names
        the line or the emotion.
    """
    return {name: found["description"] for name, found in read_descriptions(path).items()}


def read_descriptions(path: Traversable) -> dict[str, dict[str, str]]:
    """Like load_descriptions, with each description's origin ("" where the file does not say)."""
    return {name: _entry(name, value, f"{path}") for name, value in load_object(path).items()}


def _entry(name: str, value: Any, where: str) -> dict[str, str]:
    entry = value if isinstance(value, Mapping) else {"description": value}
    if name.strip().splitlines() != [name]:
        raise UserError(
            f"{where}: {name!r} is no emotion's name; expected text without spaces around it"
        )
    if unknown := entry.keys() - {"description", "origin"}:
        raise UserError(
            f"{where}: {name!r} has {min(unknown)!r}, which is unknown; expected "
            '"description" and "origin"'
        )
    phrase, origin = entry.get("description"), entry.get("origin", "")
    if not isinstance(phrase, str) or not phrase.strip():
        raise UserError(
            f"{where}: the description of {name!r} is {json.dumps(phrase)[:80]}; expected a "
            'phrase, such as "Arousal: Low arousal, Valence: Positive valence, Dominance: '
            'Moderate dominance"'
        )
    if not isinstance(origin, str):
        raise UserError(f"{where}: the origin of {name!r} is {json.dumps(origin)[:80]}, not text")
    return {"description": " ".join(phrase.split()), "origin": origin}


def load_object(path: Traversable) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
      UserError: it cannot be read, is not such a file, or gives a key twice.
    """

    def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{path}: {twice!r} is there twice; remove one")
        return found

    text = decode(read_bytes(path), f"{path}").removeprefix("\ufeff")
    try:
        found = json.loads(text, object_pairs_hook=without_doubles)
        json.dumps(found, ensure_ascii=False).encode()  # see parse_json on half characters
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno}); is the file "
            "cut off?"
        ) from error
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise UserError(f"{path}: holds half of a character ({half!r}); mend it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found {json.dumps(found)[:80]}")
    return found
