"""The description of the API (OpenAPI 3.1)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic.json_schema import models_json_schema

from erc_jax.serve import conversations
from erc_jax.serve.conversations import Conversation

_PROBABILITIES = {
    "type": "object",
    "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
    "description": "Label to probability.",
}
_SHIFT = {
    "enum": ["strong_negative", "negative", "none", "positive", "strong_positive", None],
}


def describe_api(body_bytes: int, warmed_up: int) -> dict[str, Any]:
    """What GET /openapi.json answers.

    Args:
      body_bytes: the limit of a request's body.
      warmed_up: utterances, up to which the model is compiled for before anybody asks.
    """
    _, schemas = models_json_schema(
        [(Conversation, "validation")], ref_template="#/components/schemas/{model}"
    )
    asked = _one_or_several("Conversation", maxItems=conversations.DIALOGUES, minItems=1)
    refused = {
        "400": "Not JSON, or not for this server.",
        "408": "The body did not come in time.",
        "413": f"More than {body_bytes:,} bytes.",
        "415": "Not application/json.",
        "422": "Not a conversation, or more than the limits allow; place says where.",
        "429": "Too many requests of this client at a time.",
        "500": "The server has failed at this request.",
        "503": "Too many requests at a time, or no answer in time; Retry-After says when again.",
    }

    def post(name: str, summary: str, description: str, answer: str, **more: str) -> dict[str, Any]:
        return {
            "post": {
                "operationId": name,
                "summary": summary,
                "description": description,
                "requestBody": {"required": True, **_json(asked)},
                "responses": {
                    "200": {
                        "description": "One for each dialogue; a list if a list was sent.",
                        **_json(_one_or_several(answer)),
                    },
                    **{
                        status: {"description": reason, **_json(_ref("Problem"))}
                        for status, reason in (refused | more).items()
                    },
                },
            }
        }

    return {
        "openapi": "3.1.0",
        "info": {
            "title": "erc_jax",
            "version": _version(),
            "description": "Emotion recognition in conversation. The model reads a conversation "
            "to its end: the label of a turn can change when the conversation goes on.",
        },
        "paths": {
            "/predict": post(
                "predict",
                "Label one conversation, or several.",
                "Up to "
                f"{conversations.UTTERANCES_IN_ALL:,} utterances in all; what the command line "
                "writes with --mode predict.",
                "Labelled",
            ),
            "/respond": post(
                "respond",
                "Reply to the last utterance of one conversation, or of several.",
                "What the command line writes with --mode respond.",
                "Replied",
                **{"404": "No model that replies is loaded."},
            ),
            "/health": {
                "get": {
                    "operationId": "health",
                    "summary": "What is loaded, and the limits.",
                    "description": "While ready is false, the model is still being compiled for "
                    "conversations of some lengths: the first of such a length waits for it. For "
                    f"more than {warmed_up} utterances at a time, and for replies, it is compiled "
                    "when they are first asked for, ready or not.",
                    "responses": {
                        "200": {"description": "The server works.", **_json(_ref("Health"))},
                        "503": {"description": "It works no more.", **_json(_ref("Health"))},
                    },
                }
            },
        },
        "components": {"schemas": {**schemas["$defs"], **_ANSWERS}},
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _one_or_several(name: str, **limits: int) -> dict[str, Any]:
    return {"oneOf": [_ref(name), {"type": "array", "items": _ref(name), **limits}]}


def _version() -> str:
    try:
        return version("erc-jax")
    except PackageNotFoundError:
        return "unknown"


_ANSWERS: dict[str, Any] = {
    "Labelled": {
        "type": "object",
        "required": ["id", "utterances"],
        "properties": {
            "id": {"type": "string"},
            "utterances": {"type": "array", "items": _ref("LabelledUtterance")},
        },
    },
    "LabelledUtterance": {
        "type": "object",
        "description": "What was sent, and what is predicted; what is there depends on the model.",
        "required": ["speaker", "text", "emotion", "probabilities"],
        "properties": {
            "speaker": {"type": "string"},
            "text": {"type": "string"},
            "emotion": {"type": "string"},
            "probabilities": _PROBABILITIES,
            "sentiment": {"type": "string"},
            "shift": {
                "type": "object",
                "description": "From the previous utterance (global), and from the speaker's "
                "previous one (speaker); null on firsts.",
                "properties": {"global": _SHIFT, "speaker": _SHIFT},
            },
            "vad": {"type": "object", "additionalProperties": {"type": "number"}},
            "similarity": {"type": "object", "additionalProperties": {"type": "number"}},
            "gold": {"type": "object", "description": "Labels that were sent."},
        },
    },
    "Replied": {
        "type": "object",
        "description": "What was sent, with a reply to its last utterance.",
        "required": ["id", "utterances", "heads"],
        "properties": {
            "id": {"type": "string"},
            "utterances": {"type": "array", "items": {"type": "object"}},
            "reply": {"type": "string"},
            "beams": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"text": {"type": "string"}, "score": {"type": "number"}},
                },
            },
            "heads": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "properties": {
                        "label": {"type": "string"},
                        "probabilities": _PROBABILITIES,
                    },
                },
            },
        },
    },
    "Health": {
        "type": "object",
        "required": ["status", "ready"],
        "properties": {
            "status": {"enum": ["ok", "failed"]},
            "ready": {"type": "boolean"},
            "without": {
                "type": "array",
                "description": "What the model also learned from, and does here without: audio, …",
                "items": {"type": "string"},
            },
        },
    },
    "Problem": {
        "type": "object",
        "required": ["reason"],
        "properties": {
            "reason": {"type": "string", "description": "What was found, and what is expected."},
            "place": {"type": "string", "description": "dialogues[2].utterances[5].text"},
        },
    },
}
