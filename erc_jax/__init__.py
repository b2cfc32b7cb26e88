"""Emotion recognition in conversation, and emotion-aware replies, in JAX and Flax.

>>> import erc_jax
>>> recognizer = erc_jax.Recognizer.from_pretrained("runs/meld")
>>> recognizer.predict(erc_jax.load_dialogues("talk.jsonl"))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erc_jax.data.dialogue import Dialogue, Utterance, load_dialogues
    from erc_jax.encoders.sentence import SentenceEncoder
    from erc_jax.encoders.seq2seq import Seq2Seq
    from erc_jax.errors import UserError
    from erc_jax.predict import Recognizer
    from erc_jax.respond import Responder

__version__ = "0.1.0"
__all__ = [
    "Dialogue",
    "Recognizer",
    "Responder",
    "SentenceEncoder",
    "Seq2Seq",
    "UserError",
    "Utterance",
    "load_dialogues",
]

# Loaded when first asked for: `import erc_jax` takes no jax, tokenizers or orbax with it.
_HOME = {
    "Dialogue": "erc_jax.data.dialogue",
    "Recognizer": "erc_jax.predict",
    "Responder": "erc_jax.respond",
    "SentenceEncoder": "erc_jax.encoders.sentence",
    "Seq2Seq": "erc_jax.encoders.seq2seq",
    "UserError": "erc_jax.errors",
    "Utterance": "erc_jax.data.dialogue",
    "load_dialogues": "erc_jax.data.dialogue",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'erc_jax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
