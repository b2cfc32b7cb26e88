"""Utterances to feature vectors, kept on disk under a hash of everything that decides them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from erc_jax.data.cache import cache_dir
from erc_jax.data.dialogue import Dialogue, write_whole
from erc_jax.errors import UserError
from erc_jax.progress import say

# Raise it when a change of the encoding code changes the numbers; old cache files are then unused.
ENCODING_VERSION = 2


class FeatureMaker(Protocol):
    """What makes features; see ``erc_jax.encoders.sentence.SentenceEncoder``."""

    fingerprint: str  # two encoders with the same one give the same vectors
    width: int
    cross_fitted: Path | None  # features of the dialogues that it was trained on, if kept

    def encode_dialogues(
        self, dialogues: Sequence[Dialogue], *, progress: Callable[[int, int], None] | None = None
    ) -> np.ndarray: ...


def utterance_features(
    dialogues: Sequence[Dialogue],
    encoder: FeatureMaker,
    *,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Encodes every utterance, or takes the vectors from the cache.

    Args:
      dialogues: conversations with N utterances in all.
      encoder: what makes vectors of utterances.
      cache: folder of cached files; by default ``$ERC_JAX_CACHE``.
      progress: called with (done, total) while the encoder works.

    Returns:
      float32 [N, D], in the order of the dialogues and their utterances.

    Raises:
      UserError: the encoder gave NaN or infinity; the message names dialogue and utterance.
    """
    if encoder.cross_fitted and stands_for(encoder, dialogues):
        say(f"Cross-fitted features of {len(dialogues):,} dialogues: {encoder.cross_fitted}")
        features = _read(encoder.cross_fitted, None)
        if features is None:
            raise UserError(f"{encoder.cross_fitted}: damaged; fine-tune the encoder again")
        return features
    key = _key(dialogues, encoder.fingerprint)
    file = (cache or cache_dir()) / "features" / key / "features.safetensors"
    features = _read(file, (sum(len(d.utterances) for d in dialogues), encoder.width))
    if features is None:
        features = encoder.encode_dialogues(dialogues, progress=progress)
        _require_finite(features, dialogues)
        try:
            save_features(file, features, dialogues)
        except UserError as error:
            logging.warning("the features are not cached and will be computed again: %s", error)
    return features


def save_features(file: Path, features: np.ndarray, dialogues: Sequence[Dialogue]) -> None:
    """Writes features, float32 [N, D], of the utterances of dialogues.

    Raises:
      UserError: the disk is full, or the file cannot be written.
    """
    facts = {"sha256": _sha256(features), "dialogues": _key(dialogues)}
    write_whole(file, save({"features": features}, facts))


def load_features(file: Path, dialogues: Sequence[Dialogue]) -> np.ndarray | None:
    """What ``save_features`` wrote of these dialogues; None where there is no such file."""
    if not file.is_file() or _dialogues_of(file) != _key(dialogues):
        return None
    return _read(file, None)


def stands_for(encoder: FeatureMaker, dialogues: Sequence[Dialogue]) -> bool:
    """Whether an encoder's cross-fitted features, if it keeps any, are of these dialogues."""
    file = encoder.cross_fitted
    return file is None or _dialogues_of(file) == _key(dialogues)


def _dialogues_of(file: Path) -> str | None:
    """The key of the dialogues whose features a file holds."""
    try:
        with safe_open(file, framework="np") as stored:
            return (stored.metadata() or {}).get("dialogues")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged ({error}); fine-tune the encoder again") from error


def _key(dialogues: Sequence[Dialogue], fingerprint: str = "") -> str:
    digest = hashlib.sha256(f"{ENCODING_VERSION} {fingerprint} {len(dialogues)}\n".encode())
    for dialogue in dialogues:
        digest.update(len(dialogue.utterances).to_bytes(8, "big"))
        for utterance in dialogue.utterances:
            for text in (utterance.speaker, utterance.text):
                # Lengths keep "ab", "c" and "a", "bc" apart. JSON can hold half a surrogate pair.
                raw = text.encode("utf-8", "surrogatepass")
                digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()


def _sha256(features: np.ndarray) -> str:
    return hashlib.sha256(features.tobytes()).hexdigest()


def _read(file: Path, shape: tuple[int, int] | None) -> np.ndarray | None:
    """The array in a file, or None where there is none that can be trusted."""
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="np") as stored:
            features = stored.get_tensor("features")
            checksum = (stored.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as error:
        logging.warning("%s: damaged (%s); computing the features again", file, error)
        return None
    if shape not in (None, features.shape) or checksum != _sha256(features):
        logging.warning("%s: damaged (wrong checksum); computing the features again", file)
        return None
    return features


def _require_finite(features: np.ndarray, dialogues: Sequence[Dialogue]) -> None:
    bad = ~np.isfinite(features).all(axis=1)
    if not bad.any():
        return
    places = [(d.id, t) for d in dialogues for t in range(1, len(d.utterances) + 1)]
    dialogue, position = places[int(bad.argmax())]
    raise UserError(
        f"dialogue {dialogue}, utterance {position}: the encoder gave NaN or infinity "
        f"({bad.sum()} of {len(bad)} utterances); its weights are damaged: fetch them again, or "
        "choose another encoder"
    )
