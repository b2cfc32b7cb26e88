"""Models that need no weights, for tests of the server; run as a program they are served.

They go by words: "won" is joy, "lost" is sadness. Where somebody says "kidding", all joy of the
conversation turns into surprise. "Break" raises a bug's error, "too long" a user's; "hold on"
waits.
"""

import contextlib
import threading
import time

import uvicorn

from erc_jax.data.dialogue import Dialogue
from erc_jax.errors import UserError
from erc_jax.serve import http
from erc_jax.serve.app import make_app

HOST = "http://127.0.0.1"
ABOUT = {
    "system": "stand_in",
    "corpus": "nothing",
    "labels": ["neutral", "joy", "sadness", "surprise"],
    "polarity": {
        "neutral": "neutral",
        "joy": "positive",
        "sadness": "negative",
        "surprise": "positive",
    },
    "vad_scale": None,
    "encoder": "words",
    "without": ["audio"],
    "commit": None,
    "responder": {"classes": {}},
}


class StandIn:
    def __init__(self, seconds: float = 0.0):
        self.calls: list[list[str]] = []  # ids of the dialogues of each call
        self.go_on = threading.Event()  # what "hold on" waits for
        self._seconds = seconds  # each call takes as many

    def predict(self, dialogues):
        self.calls.append([dialogue.id for dialogue in dialogues])
        time.sleep(self._seconds)
        return [self._labelled(dialogue) for dialogue in dialogues]

    def _labelled(self, dialogue: Dialogue):
        record = dialogue.to_json()
        texts = [utterance.text.lower() for utterance in dialogue.utterances]
        if any("hold on" in text for text in texts):
            assert self.go_on.wait(20)
        for text in texts:
            if "break" in text:
                raise RuntimeError(f"broken by {text}")
            if "too long" in text:
                raise UserError("the conversation is too long for this model; split it")
        joy = "surprise" if any("kidding" in text for text in texts) else "joy"
        before = None
        for utterance, text in zip(record["utterances"], texts, strict=True):
            emotion = joy if "won" in text else "sadness" if "lost" in text else "neutral"
            shares = {name: 0.7 if name == emotion else 0.1 for name in ABOUT["labels"]}
            sign = {"neutral": 0, "sadness": -1}.get(emotion, 1)
            names = ["strong_negative", "negative", "none", "positive", "strong_positive"]
            shift = None if before is None else names[sign - before + 2]
            before = sign
            utterance |= {
                "emotion": emotion,
                "probabilities": shares,
                "shift": {"global": shift, "speaker": None},
            }
        return record

    def respond(self, dialogues):
        self.calls.append([dialogue.id for dialogue in dialogues])
        return [
            {**d.to_json(), "reply": f"Tell me more: {d.utterances[-1].text}", "heads": {}}
            for d in dialogues
        ]


@contextlib.contextmanager
def listening(model, about=None):
    """The port of a server with sockets, in a thread; one without replies says about what."""
    with http.bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        app = make_app(model, None, about) if about else make_app(model, model, ABOUT)
        server = uvicorn.Server(http.configure(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield port
        finally:
            server.should_exit = True
            thread.join()


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


if __name__ == "__main__":
    model = StandIn(seconds=0.5)
    http.serve(make_app(model, model, ABOUT), http.bind("127.0.0.1", 0))
