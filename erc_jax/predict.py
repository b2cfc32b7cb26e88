"""A trained model, from its workdir alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from erc_jax.data.dialogue import Dialogue
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.evaluate import Predictor, label_dialogues
from erc_jax.experiment import load_run, to_arrays
from erc_jax.progress import Counter
from erc_jax.sharding import make_mesh
from erc_jax.systems import Params, System


class Recognizer:
    """Names the emotions of conversations.

    >>> recognizer = Recognizer.from_pretrained("runs/meld")
    >>> recognizer.predict({"utterances": [{"speaker": "Ann", "text": "We won!"}]})
    {'id': 'dialogue', 'utterances': [{'speaker': 'Ann', 'text': 'We won!', 'emotion': 'joy', ...

    The model reads a conversation to its end: the label of a turn can change when the conversation
    goes on.
    """

    def __init__(self, system: System, params: Params, encoder: SentenceEncoder):
        self.system = system
        self.encoder = encoder
        self._params = params
        self._predictor = Predictor(system, make_mesh())

    @classmethod
    def from_pretrained(cls, workdir: str | Path, *, encoder: str | None = None) -> Recognizer:
        """Loads the best checkpoint of a run, and the encoder that it names.

        Args:
          workdir: of the run.
          encoder: where the run's encoder is now, if it is not where it was.

        Raises:
          UserError: the folder is not a workdir, nothing in it can be read, or the encoder is not
            the one that the model was trained with.
        """
        run = load_run(Path(workdir), encoder)
        return cls(run.system, run.params, run.encoder)

    @overload
    def predict(self, dialogues: Dialogue | Mapping[str, Any]) -> dict[str, Any]: ...

    @overload
    def predict(
        self, dialogues: Sequence[Dialogue | Mapping[str, Any]]
    ) -> list[dict[str, Any]]: ...

    def predict(self, dialogues):
        """Labels a conversation, or several at once.

        Args:
          dialogues: a Dialogue, or a mapping as in a JSON line; or a sequence of these.

        Returns:
          The conversation as a JSON line has it, each utterance with ``emotion``,
          ``probabilities`` (label name to probability) and, where the model learned them,
          ``sentiment`` and ``shift`` (``global``, ``speaker``; None on firsts). A label that was
          given is kept under ``gold``. A list of these for a sequence.

        Raises:
          UserError: it is not a conversation.
        """
        if isinstance(dialogues, Dialogue | Mapping):
            return self.predict([dialogues])[0]
        parsed = [d if isinstance(d, Dialogue) else Dialogue.from_json(d) for d in dialogues]
        if not parsed:
            return []
        # Not through the feature cache: what people ask about is nobody else's business.
        examples = to_arrays(
            parsed, self.encoder, self.system, {}, cached=False, progress=Counter("features")
        )
        return label_dialogues(self.system, parsed, self._predictor(self._params, examples))
