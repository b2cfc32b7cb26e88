"""The server: what it answers, what it refuses and how."""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

import erc_jax
from erc_jax.config import base_config
from erc_jax.data.batching import make_examples
from erc_jax.data.dialogue import Dialogue
from erc_jax.drawing import COLOURS
from erc_jax.encoders.multimodal import FileModality, MultimodalEncoder
from erc_jax.errors import UserError
from erc_jax.predict import Recognizer
from erc_jax.serve import http, warm_up
from erc_jax.serve.__main__ import about_run, load, main
from erc_jax.serve.app import Limits, make_app
from tests.stand_in import ABOUT, HOST, StandIn, listening, wait_until
from tests.test_predict import untrained
from tests.tiny import EMOTION_ONLY, QUESTION

ROOT = Path(erc_jax.__file__).parent.parent


def talk(*texts, **more):
    return {"utterances": [{"speaker": "AB"[i % 2], "text": t} for i, t in enumerate(texts)]} | more


@contextlib.contextmanager
def serving(model=None, responder=None, warm_up=(), **fields):
    """A client of a server in this process; keywords are its limits."""
    limits = Limits(**fields)
    app = make_app(model or StandIn(), responder, ABOUT, limits=limits, warm_up=warm_up)
    with TestClient(app, base_url=HOST, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def client():
    with serving(responder=StandIn()) as client:
        yield client


# What is answered.


def test_a_dialogue_comes_back_labelled(client):
    sent = talk("We won!", "Oh.", id="d1", scene=3)
    answer = client.post("/predict", json=sent)
    assert answer.status_code == 200
    record = answer.json()
    assert (record["id"], record["scene"]) == ("d1", 3)
    first = record["utterances"][0]
    assert (first["speaker"], first["text"], first["emotion"]) == ("A", "We won!", "joy")
    assert sum(first["probabilities"].values()) == pytest.approx(1)


def test_a_list_comes_back_as_a_list(client):
    assert [r["id"] for r in client.post("/predict", json=[talk("a", id=7)]).json()] == ["7"]
    many = [talk("a", id=f"d{i}") for i in range(64)]
    assert [r["id"] for r in client.post("/predict", json=many).json()] == [d["id"] for d in many]


def test_texts_are_those_that_were_sent(client):
    text = '<b>&amp;</b> "é 🙂\u0085\u2028'
    found = client.post("/predict", json=talk(text)).json()["utterances"][0]["text"]
    assert found == text


def test_replies(client):
    answer = client.post("/respond", json=talk("Hello.", "I lost it."))
    assert answer.json()["reply"] == "Tell me more: I lost it."


def test_no_replies_without_a_model_for_them():
    with serving() as client:
        answer = client.post("/respond", json=talk("Hello."))
    assert answer.status_code == 404
    assert "--respond" in answer.json()["reason"]


def test_health_says_what_is_loaded(client):
    found = client.get("/health").json()
    assert found["status"] == "ok"
    assert {key: found[key] for key in ABOUT} == ABOUT
    assert found["limits"]["utterances"] == 500
    # The colours of reports; the neutral emotion has none.
    assert found["colours"] == {
        "joy": COLOURS[1],
        "sadness": COLOURS[0],
        "surprise": COLOURS[4],
    }


def test_the_api_is_described(client):
    api = client.get("/openapi.json").json()
    assert api["openapi"].startswith("3.1")
    assert set(api["paths"]) == {"/predict", "/respond", "/health"}
    schemas = api["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(api)):
        assert name in schemas
    assert schemas["Utterance"]["properties"]["text"]["maxLength"] == 5_000
    assert schemas["Conversation"]["properties"]["utterances"]["maxItems"] == 500
    health = api["paths"]["/health"]["get"]["description"]
    assert "For more than 256 utterances at a time, and for replies," in health
    assert {"400", "408", "413", "415", "422", "429", "503"} <= set(
        api["paths"]["/predict"]["post"]["responses"]
    )


def test_the_page_needs_nothing_else_and_runs_no_other_script(client):
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    for tag in ("script", "style"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert set(re.findall(r"https?://[^\"' ]+", answer.text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", answer.text)


def test_no_other_site_may_read_answers(client):
    headers = {"Origin": "https://elsewhere.example"}
    answer = client.post("/predict", json=talk("a"), headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = {**headers, "Access-Control-Request-Method": "POST"}
    assert client.options("/predict", headers=asked).status_code == 405


# What is refused. Kind to what makes the i-th of its requests: arguments of ``client.request``
# besides POST /predict, the status, and what the reason says.

TURN = {"speaker": "A", "text": "a"}


def sent(content, status, reason, **more):
    """Bytes go as they are, anything else as JSON."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return {"content": content, **more}, status, reason


def in_turn(i, **fields):
    """Dialogues of which the third has a sixth turn with other fields; None leaves one out."""
    turn = {key: value for key, value in {**TURN, **fields}.items() if value is not None}
    dialogues = [{"utterances": [TURN] * 6} for _ in range(3 + i)]
    dialogues[2] = {"utterances": [*[TURN] * 5, turn, *[TURN] * i]}
    return dialogues


AT = "dialogues[2].utterances[5]"
ODD = [5, 0.5, True, [], {}, ["a"], {"a": 1}, [[]], -1, 1e9]  # values that are no texts
WHOLE = json.dumps(talk("We won!")).encode()
MALFORMED = {
    "cut off": lambda i: sent(WHOLE[: -1 - i], 400, "expected JSON"),
    "no JSON": lambda i: sent(b"hello"[: i % 5] + b"<a>" * i, 400, "expected JSON"),
    "no UTF-8": lambda i: sent(WHOLE[:-i] + bytes([0xF5 + i]), 400, f"byte 0x{0xF5 + i:02x}"),
    "no number of JSON": lambda i: sent(
        WHOLE[:-1] + b', "x": %s}' % [b"NaN", b"Infinity", b"-Infinity"][i % 3], 400, "JSON"
    ),
    "number out of range": lambda i: sent(
        WHOLE[:-1] + b', "x": %s}' % [b"1e999", b"-9e%d" % (400 + i), b"9" * 5_000][i % 3],
        400,
        "the body: ",
    ),
    "nested": lambda i: sent(b"[" * (40 << i) + b"]" * (40 << i), 400, "32 levels"),
    "nested keys": lambda i: sent(
        WHOLE[:-1] + b', "x": ' + b'{"x":' * (40 + i) + b"1" + b"}" * (41 + i), 400, "32 levels"
    ),
    "half of a character": lambda i: sent(
        b'{"utterances": [{"speaker": "A", "text": "\\ud8%02x"}]}' % i, 400, "half of a character"
    ),
    "no object": lambda i: sent(
        [None, True, 5, "hello", 0.5, "", False, -1, "[]", "{}"][i], 422, "dialogue: expected an"
    ),
    "no object in a list": lambda i: sent(
        [talk("a"), [None, True, 5, "hello", 0.5, [], False, -1, [[]], "{}"][i]],
        422,
        "dialogues[1]: expected an object, found",
    ),
    "no utterances": lambda i: sent({f"turns{i}": []}, 422, "dialogue.utterances: is missing"),
    "utterances are no list": lambda i: sent(
        {"utterances": [{}, "a", 5, None, True, 0.5, {"a": 1}, "", -1, {"0": TURN}][i]},
        422,
        "dialogue.utterances: expected a valid list, found",
    ),
    "nobody speaks": lambda i: sent(
        [talk("a")] * i + [{"utterances": []}], 422, f"dialogues[{i}].utterances: expected at least"
    ),
    "utterance is no object": lambda i: sent(
        {"utterances": [TURN] * i + [[None, "a", 5, [], True][i % 5]]},
        422,
        f"dialogue.utterances[{i}]: expected an object",
    ),
    "text is missing": lambda i: sent(in_turn(i, text=None), 422, f"{AT}.text: is missing"),
    "text is no text": lambda i: sent(
        in_turn(i, text=ODD[i]),
        422,
        f"{AT}.text: expected a valid string, found {json.dumps(ODD[i])}",
    ),
    "text is too long": lambda i: sent(
        in_turn(i, text="a" * (5_001 + i)),
        422,
        f"{AT}.text: expected at most 5000 characters, found {5_001 + i}",
    ),
    "speaker is nobody": lambda i: sent(
        in_turn(i, speaker=" " * (i % 3)), 422, f"{AT}.speaker: expected a name, found none"
    ),
    "speaker is no text": lambda i: sent(
        in_turn(i, speaker=ODD[i]), 422, f"{AT}.speaker: expected"
    ),
    "label is no name": lambda i: sent(
        in_turn(i, emotion=[" joy", "joy ", "", "a\nb", " ", "\n", "a\r", "\tb", "c\u2028d", 5][i]),
        422,
        f"{AT}.emotion: expected",
    ),
    "ratings": lambda i: sent(
        in_turn(
            i,
            vad=[
                {},
                5,
                [1],
                {"joy": 1},
                {"valence": "a"},
                {"arousal": None},
                "",
                True,
                {"dominance": [1]},
                {"valence": 10**400},
            ][i],
        ),
        422,
        f"{AT}.vad",
    ),
    "id": lambda i: sent(
        {**talk("a"), "id": [None, [], {}, 0.5, True, "a" * 201, [1], 10**300, False, ["a"]][i]},
        422,
        "dialogue.id: expected",
    ),
    "too many utterances": lambda i: sent(
        [talk("a"), talk(*["a"] * (501 + i))],
        422,
        f"dialogues[1].utterances: expected at most 500, found {501 + i}",
    ),
    "too many dialogues": lambda i: sent(
        [talk("a")] * (65 + i), 422, "dialogues: expected at most 64"
    ),
    "too many in all": lambda i: sent(
        [talk(*["a"] * 500)] * 4 + [talk("a")] * (1 + i),
        422,
        f"2000 utterances in all, found {2001 + i}",
    ),
    "no dialogues": lambda i: sent(
        b" " * i + b"[]", 422, "dialogues: expected at least one, found none"
    ),
    "too many bytes": lambda i: sent(WHOLE + b" " * (1_000_000 + i), 413, "1,000,000 bytes"),
    "type": lambda i: sent(
        WHOLE,
        415,
        "expected application/json",
        headers={
            "Content-Type": [
                "text/plain",
                "",
                "application/x-www-form-urlencoded",
                "json",
                "a/b",
                "multipart/form-data",
                "application/json; charset=latin-1",
                "*/*",
                "application/jsonl",
                "text/json",
            ][i]
        },
    ),
    "encoding": lambda i: sent(
        WHOLE,
        415,
        "Content-Encoding: expected none",
        headers={"Content-Encoding": ["gzip", "br", "deflate", "zstd", "x"][i % 5]},
    ),
    "method": lambda i: (
        {
            "method": ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"][i % 5],
            "url": ["/predict", "/respond"][i // 5],
        },
        405,
        "expected POST",
    ),
    "path": lambda i: sent(WHOLE, 404, "no such path", url=f"/{'predict/' * (i + 1)}x"),
    "host": lambda i: sent(
        WHOLE, 400, "Host: expected", headers={"Host": f"elsewhere{i}.example:80"}
    ),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_requests_are_refused_with_a_reason_and_the_next_one_is_answered(client, kind):
    for i in range(10):
        request, status, reason = MALFORMED[kind](i)
        headers = {"Content-Type": "application/json"} | request.pop("headers", {})
        request = {"method": "POST", "url": "/predict", "headers": headers} | request
        answer = client.request(**request)
        assert (answer.status_code, kind) == (status, kind), answer.text
        found = answer.json()
        assert reason in found["reason"]
        assert len(found["reason"]) < 400
        if status == 422:
            assert found["reason"].startswith(found["place"])
        good = client.post("/predict", json=talk("We won!"))
        assert good.json()["utterances"][0]["emotion"] == "joy"


def test_bodies_of_unknown_length_are_limited_too(client):
    chunks = (b" " * 100_000 for _ in range(100))
    headers = {"Content-Type": "application/json"}
    assert client.post("/predict", content=chunks, headers=headers).status_code == 413


def test_what_the_model_refuses(client):
    answer = client.post("/predict", json=talk("This is too long."))
    assert answer.status_code == 422
    assert answer.json()["reason"] == "the conversation is too long for this model; split it"


def test_a_fault_is_told_and_logged_without_what_was_said(client, caplog):
    caplog.set_level(logging.DEBUG)
    answer = client.post("/predict", json=talk("Break a secret."))
    assert answer.status_code == 500
    assert "secret" not in answer.text
    client.post("/predict", json=talk("A secret we won."))
    client.post("/predict", json={"utterances": "a secret"})
    client.get("/a-secret")
    logged = [r for r in caplog.records if r.name.startswith(("erc_jax", "uvicorn", "asyncio"))]
    text = "\n".join(logging.Formatter().format(record) for record in logged)
    assert "RuntimeError at stand_in.py" in text
    assert "POST /predict 200" in text
    assert "GET (another path) 404" in text
    assert "secret" not in text


# Many at a time.


def asked_together(client, dialogues):
    """Sends each in a request of its own while the model waits; returns the answers."""
    with ThreadPoolExecutor(len(dialogues)) as pool:
        asked = [pool.submit(client.post, "/predict", json=dialogue) for dialogue in dialogues]
        wait_until(lambda: client.get("/health").json()["requests_now"] == 1 + len(dialogues))
        client.model.go_on.set()
        return [of_one.result() for of_one in asked]


@pytest.fixture
def busy():
    """A client of a server whose model waits, in the middle of a request, for ``model.go_on``."""
    model = StandIn()
    with serving(model, requests=9, requests_of_one=9) as client, ThreadPoolExecutor(1) as pool:
        client.model = model
        first = pool.submit(client.post, "/predict", json=talk("Hold on.", id="first"))
        wait_until(lambda: model.calls)
        yield client
        model.go_on.set()
        assert first.result().status_code == 200


def test_requests_that_come_together_are_one_call(busy):
    dialogues = [talk("We won!" if i % 2 else "a", id=f"d{i}") for i in range(5)]
    answers = asked_together(busy, dialogues)
    assert [answer.json()["id"] for answer in answers] == [d["id"] for d in dialogues]
    emotions = [answer.json()["utterances"][0]["emotion"] for answer in answers]
    assert emotions == ["neutral", "joy"] * 2 + ["neutral"]
    first, together = busy.model.calls
    assert (first, sorted(together)) == (["first"], [d["id"] for d in dialogues])


def test_a_call_has_its_limit():
    model = StandIn()
    with serving(model, utterances_together=2) as client, ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(client.post, "/predict", json=talk("Hold on."))]
        wait_until(lambda: model.calls)
        asked += [pool.submit(client.post, "/predict", json=talk("a")) for _ in range(5)]
        wait_until(lambda: client.get("/health").json()["requests_now"] == 6)
        model.go_on.set()
        assert {of_one.result().status_code for of_one in asked} == {200}
    assert [len(call) for call in model.calls] == [1, 2, 2, 1]


def test_one_request_does_not_spoil_the_others(busy):
    dialogues = [talk("a"), talk("Break."), talk("too long"), talk("b")]
    statuses = [answer.status_code for answer in asked_together(busy, dialogues)]
    assert statuses == [200, 500, 422, 200]


def test_the_model_is_warmed_up_while_nobody_asks():
    model = StandIn()
    calls = [[Dialogue.from_json(talk(text, id=f"warm-up {text}"))] for text in ("hold on", "b")]
    with serving(model, warm_up=calls) as client, ThreadPoolExecutor(1) as pool:
        wait_until(lambda: model.calls)
        assert client.get("/health").json()["ready"] is False
        asked = pool.submit(client.post, "/predict", json=talk("We won!", id="first"))
        wait_until(lambda: client.get("/health").json()["requests_now"])
        model.go_on.set()
        assert asked.result().status_code == 200
        wait_until(lambda: client.get("/health").json()["ready"])
    assert model.calls == [["warm-up hold on"], ["first"], ["warm-up b"]]


def test_a_warm_up_that_fails_is_no_end(caplog):
    calls = [[Dialogue.from_json(talk("Break a secret."))]] * 2
    with serving(warm_up=calls) as client:
        wait_until(lambda: client.get("/health").json()["ready"])
        assert client.post("/predict", json=talk("We won!")).status_code == 200
    assert caplog.text.count("RuntimeError at stand_in.py") == 2
    assert "secret" not in caplog.text


def test_the_warm_up_meets_all_shapes_of_its_size():
    import jax

    met = []
    for dialogues in warm_up.calls(64):
        texts = [u.text for d in dialogues for u in d.utterances]
        assert len(set(texts)) == len(texts)
        examples = make_examples(dialogues, np.zeros((len(texts), 1)), {})
        examples = dataclasses.replace(examples, few_shapes=True)
        batch = examples.batch(np.arange(len(dialogues)))
        met.append(tuple(leaf.shape for leaf in jax.tree.leaves(batch)))
    assert len(set(met)) == len(met) == 6


class Forgetful(StandIn):
    """Gives too few answers, or ends its thread."""

    def predict(self, dialogues):
        if any(u.text == "die" for d in dialogues for u in d.utterances):
            raise SystemExit
        return [] if dialogues[0].id == "forgotten" else super().predict(dialogues)


def test_a_missing_answer_is_a_fault_and_no_end():
    with serving(Forgetful()) as client:
        assert client.post("/predict", json=talk("a", id="forgotten")).status_code == 500
        assert client.post("/predict", json=talk("We won!")).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_health_tells_of_a_model_that_answers_no_more():
    with serving(Forgetful(), answer_seconds=0.1) as client:
        assert client.get("/health").status_code == 200
        assert client.post("/predict", json=talk("die")).status_code == 503
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "failed")


def test_too_many_of_one_client_and_in_all():
    model = StandIn()
    for limit, status in (("requests_of_one", 429), ("requests", 503)):
        model.go_on.clear()
        model.calls.clear()
        with serving(model, **{limit: 1}) as client, ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.post, "/predict", json=talk("Hold on."))
            wait_until(lambda: model.calls)
            refused = client.post("/predict", json=talk("a"))
            assert refused.status_code == status
            assert refused.headers["retry-after"] == "1"
            assert "reason" in refused.json()
            assert client.get("/health").status_code == 200
            model.go_on.set()
            assert first.result().status_code == 200
            assert client.post("/predict", json=talk("a")).status_code == 200


def test_who_waits_too_long_is_told_and_is_not_worked_on():
    model = StandIn()
    with serving(model, answer_seconds=0.1) as client:
        for name in ("first", "second"):
            late = client.post("/predict", json=talk("Hold on.", id=name))
            assert late.status_code == 503
            assert "no answer within 0.1 s" in late.json()["reason"]
        model.go_on.set()
        assert client.post("/predict", json=talk("a", id="third")).status_code == 200
    assert model.calls == [["first"], ["third"]]


def test_a_body_that_never_comes_is_not_waited_for():
    async def ask():
        sent_back = []

        async def receive():
            await asyncio.sleep(20)

        async def send(message):
            sent_back.append(message)

        app = make_app(StandIn(), limits=Limits(reading_seconds=0.05))
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}
        scope |= {"query_string": b"", "client": ("127.0.0.1", 1), "root_path": ""}
        await app(scope, receive, send)
        return sent_back

    start, body = asyncio.run(ask())
    assert start["status"] == 408
    assert "found 0 bytes" in json.loads(body["body"])["reason"]


# Sockets.


def test_connections_that_ask_nothing_are_closed(monkeypatch):
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.3)
    with listening(StandIn()) as port:
        url = f"{HOST}:{port}/predict"
        with contextlib.ExitStack() as stack:
            slow = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                for _ in range(30)
            ]
            for number, one in enumerate(slow):
                one.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"[: number % 30])
            assert httpx2.post(url, json=talk("We won!")).status_code == 200
            assert [one.recv(100) for one in slow] == [b""] * 30
        garbage = socket.create_connection(("127.0.0.1", port), timeout=10)
        with garbage:
            garbage.sendall(b"\x16\x03\x01" + bytes(range(256)) + b"\r\n\r\n")
            assert garbage.recv(100).startswith(b"HTTP/1.1 400")
        assert httpx2.post(url, json=talk("We won!")).status_code == 200


def test_a_request_that_takes_longer_than_a_head_may_is_answered(monkeypatch):
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.1)
    with listening(StandIn(seconds=0.3)) as port, httpx2.Client() as client:
        for _ in range(2):  # over one connection
            answer = client.post(f"{HOST}:{port}/predict", json=talk("We won!"))
            assert answer.status_code == 200


def test_sigterm_finishes_what_has_begun():
    command = [sys.executable, "-m", "tests.stand_in"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
            with ThreadPoolExecutor(1) as pool:
                wait_until(lambda: answers(url))
                asked = pool.submit(httpx2.post, f"{url}/predict", json=talk("We won!"))
                wait_until(lambda: httpx2.get(f"{url}/health").json()["requests_now"])
                process.send_signal(signal.SIGTERM)
                assert asked.result().status_code == 200
            assert process.wait(10) == 0
        finally:
            process.kill()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/health")


def answers(url):
    try:
        return httpx2.get(f"{url}/health").status_code == 200
    except httpx2.ConnectError:
        return False


# The command line.


def test_what_is_wrong_with_the_command_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # what main sets is put back
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    arguments = ["--workdir", str(tmp_path)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match=rf"port {port} \(Address already in use\)"):
            main([*arguments, "--port", port])
    with pytest.raises(SystemExit, match="expected a number from 0 to 65535"):
        main([*arguments, "--port", "99999"])
    with pytest.raises(SystemExit, match=str(tmp_path)):
        main([*arguments, "--port", "0"])
    monkeypatch.delitem(sys.modules, "erc_jax.serve.app")
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(SystemExit, match=r"pip install 'erc-jax\[serve\]'"):
        main(arguments)


@pytest.mark.parametrize(
    ("host", "is_open"),
    [(None, False), ("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)],
)
def test_a_host_of_this_machine_alone_is_asked_by_its_names(monkeypatch, capsys, host, is_open):
    """A page elsewhere could reach it by a name of its own (DNS rebinding)."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # what main sets is put back
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    loaded = (StandIn(), None, ABOUT)
    monkeypatch.setattr("erc_jax.serve.__main__.load", lambda *args: loaded)
    served = []
    monkeypatch.setattr("erc_jax.serve.http.serve", lambda *args: served.append(args))
    main(["--workdir", "x", "--port", "0", *(["--host", host] if host else [])])
    ((app, bound),) = served
    bound.close()
    client = TestClient(app)  # does not run it: nothing is warmed up
    statuses = {
        name: client.get("/openapi.json", headers={"Host": f"{name}:8080"}).status_code
        for name in (host or "127.0.0.1", "localhost", "elsewhere.example")
    }
    assert statuses.pop("elsewhere.example") == (200 if is_open else 400)
    assert set(statuses.values()) == {200}
    assert ("Anyone who can reach" in capsys.readouterr().out) == is_open


def test_an_address_of_ipv6_is_asked_by_its_name_in_a_url():
    try:
        bound = http.bind("::1", 0)
    except UserError:
        pytest.skip("this machine has no IPv6")
    with bound:
        assert http.names_of(bound, "::1") == ["127.0.0.1", "localhost", "[::1]", "::1"]


@pytest.fixture(scope="module")
def workdir(place):
    return untrained(place, place / "run", **EMOTION_ONLY)


def test_a_run_that_reads_no_texts_is_not_served(monkeypatch, tmp_path):
    made = FileModality("a program", "1", np.zeros(3), np.ones(3))
    files = {"visual": made, "audio": made}
    loaded = types.SimpleNamespace(encoder=MultimodalEncoder(None, files, sha256="x"))
    monkeypatch.setattr(Recognizer, "from_pretrained", lambda *args, **options: loaded)
    with pytest.raises(UserError, match=r"visual, audio from feature files and no texts, .*audio="):
        load(tmp_path, None, None)


def test_what_a_run_does_without_is_said(monkeypatch, tmp_path):
    audio = FileModality("a program", "1", np.zeros(3), np.ones(3))
    text = types.SimpleNamespace(name="words", folder=Path(), width=4, sha256="y")
    encoder = MultimodalEncoder(text, {"audio": audio}, sha256="x")
    monkeypatch.setattr("erc_jax.config.load_config", lambda workdir: base_config())
    labels = {"emotions": ["joy"], "polarity": None}
    monkeypatch.setattr("erc_jax.workdir.best_meta", lambda workdir: {"labels": labels})
    about = about_run(tmp_path, types.SimpleNamespace(encoder=encoder))
    assert about["without"] == ["audio"]
    assert about_run(tmp_path, types.SimpleNamespace(encoder=text))["without"] == []


@pytest.mark.slow
def test_a_run_is_served(workdir):
    recognizer, responder, about = load(workdir, None, None)
    assert responder is None
    assert about["labels"] == ["calm", "happy", "sad"]
    assert about["polarity"] == {"calm": "neutral", "happy": "positive", "sad": "negative"}
    assert (about["system"], about["encoder"]) == ("mtl_erc_es", "encoder")
    with TestClient(make_app(recognizer, responder, about), base_url=HOST) as client:
        answer = client.post("/predict", json=QUESTION).json()
        assert client.get("/health").json()["responder"] is None
    assert answer == json.loads(json.dumps(recognizer.predict(QUESTION)))


@pytest.mark.slow
def test_the_command_serves_and_stops_at_once(workdir, one_device_env, tmp_path):
    """Even while the model is compiled for its warm-up."""
    command = [sys.executable, "-m", "erc_jax.serve", "--workdir", workdir, "--port", "0"]
    env = one_device_env | {"ERC_JAX_CACHE": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())):
                assert process.poll() is None
            wait_until(lambda: answers(found[0]))
            asked = httpx2.post(f"{found[0]}/predict", json=QUESTION, timeout=120)
            assert asked.status_code == 200
            assert httpx2.get(f"{found[0]}/health", timeout=120).json()["ready"] is False
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
