"""One's own conversations: JSON lines or CSV, with emotions of any names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable

from erc_jax.data.corpora.base import DialogueBuilder
from erc_jax.data.dialogue import iter_dialogues


class Own(DialogueBuilder):
    """The emotions are those of the training split, sorted."""

    name = "own"
    DESCRIPTION = "Conversations of the user's own"
    LANGUAGE = ""
    OTHER_EMOTIONS = "The emotions are those of the train split: mend the label, or add examples"
    MANUAL = (
        "data.name=own needs --config.data.source=DIR, a folder of train.jsonl, validation.jsonl "
        "and test.jsonl (or .csv)"
    )

    INCOMPLETE = (
        "With one file of conversations, deal its lines out: about eight of ten to train.jsonl, "
        "one to validation.jsonl (it chooses the checkpoint) and one to test.jsonl"
    )

    @classmethod
    def emotions_of(cls, files: Mapping[str, Traversable]) -> Sequence[str]:
        train = next(path for name, path in files.items() if name.startswith("train."))
        emotions = {
            utterance.emotion
            for _, dialogue in iter_dialogues(train)
            for utterance in dialogue.utterances
            if utterance.emotion is not None
        }
        return sorted(emotions)
