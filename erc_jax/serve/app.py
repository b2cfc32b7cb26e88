"""The routes: what is asked over HTTP, what is refused, and what is answered.

Nothing that people write is logged or kept.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from erc_jax.charts import N_COLOURS, colour_number
from erc_jax.data.dialogue import Dialogue
from erc_jax.drawing import COLOURS
from erc_jax.errors import UserError
from erc_jax.serve import conversations
from erc_jax.serve.batcher import Batcher, Records, log_fault
from erc_jax.serve.conversations import Problem
from erc_jax.serve.openapi import describe_api

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost")


class Predicts(Protocol):
    """What is asked of an ``erc_jax.Recognizer``."""

    def predict(self, dialogues: Sequence[Dialogue], /) -> Records: ...


class Responds(Protocol):
    """What is asked of an ``erc_jax.Responder``."""

    def respond(self, given: Sequence[Dialogue], /) -> Records: ...


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of requests; what their conversations may hold stands in ``conversations``.

    Attributes:
      body_bytes: of a request.
      requests: that are read, wait or are worked on at a time; the next one gets 503.
      requests_of_one: the same of one client, by its address; the next one gets 429.
      reading_seconds: until a body is there; then 408.
      answer_seconds: until the model has answered; then 503.
      utterances_together: a call of the recognizer takes in no further request once it has these.
      replies_together: the same of the responder, in utterances of the conversations.
    """

    body_bytes: int = 1_000_000
    requests: int = 64
    requests_of_one: int = 32
    reading_seconds: float = 10.0
    answer_seconds: float = 120.0  # a conversation of a new length may have to be compiled for
    utterances_together: int = 128  # with more there are more lengths to compile for
    replies_together: int = 64

    @property
    def warmed_up(self) -> int:
        """Utterances of a call, up to which all shapes are compiled for before anybody asks.

        A call may take in one request too many, and rows are not full.
        """
        return 2 * self.utterances_together


def make_app(
    recognizer: Predicts,
    responder: Responds | None = None,
    about: Mapping[str, Any] | None = None,
    *,
    limits: Limits | None = None,
    hosts: Sequence[str] | None = LOOPBACK,
    warm_up: Iterable[list[Dialogue]] = (),
) -> ASGIApp:
    """The server as an ASGI application.

    Args:
      recognizer: answers POST /predict; called by one thread at a time.
      responder: answers POST /respond, likewise; without one that is 404.
      about: what GET /health tells of the models.
      limits: of requests.
      hosts: names in the Host header that are answered, so that no page elsewhere reaches a server
        on loopback by a name of its own (DNS rebinding); None is any.
      warm_up: calls of the recognizer that are made first, while nobody asks.
    """
    limits = limits or Limits()
    predicting = Batcher(
        lambda asked: recognizer.predict(asked), limits.utterances_together, warm_up
    )
    batchers = [predicting]
    replying = None
    if responder is not None:
        replying = Batcher(lambda asked: responder.respond(asked), limits.replies_together)
        batchers.append(replying)
    places = _Places(limits)
    page, page_headers = _page()
    api = describe_api(limits.body_bytes, limits.warmed_up)
    colours = _colours((about or {}).get("labels", ()))

    async def predict(request: Request) -> Response:
        return await _answer(request, predicting, places, limits)

    async def respond(request: Request) -> Response:
        if replying is None:
            raise Problem(
                404, "no model that replies is loaded; start the server with --respond WORKDIR"
            )
        return await _answer(request, replying, places, limits)

    async def health(request: Request) -> Response:
        del request
        works = all(batcher.works for batcher in batchers)
        state = {
            "status": "ok" if works else "failed",
            "ready": works and all(batcher.ready for batcher in batchers),
        }
        content = {
            "colours": colours,
            "limits": {
                "body_bytes": limits.body_bytes,
                "dialogues": conversations.DIALOGUES,
                "utterances": conversations.UTTERANCES,
                "utterances_in_all": conversations.UTTERANCES_IN_ALL,
                "characters": conversations.CHARACTERS,
            },
            "requests_now": places.taken,
        }
        return JSONResponse({**state, **(about or {}), **content}, 200 if works else 503)

    async def openapi(request: Request) -> Response:
        del request
        return JSONResponse(api)

    async def index(request: Request) -> Response:
        del request
        return HTMLResponse(page, headers=page_headers)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        for batcher in batchers:
            batcher.start()
        yield
        for batcher in batchers:
            batcher.stop(seconds=1.0)

    app = Starlette(
        routes=[
            Route("/", index, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
            Route("/predict", predict, methods=["POST"]),
            Route("/respond", respond, methods=["POST"]),
        ],
        exception_handlers={
            Problem: _tell_problem,
            HTTPException: _tell_http,
            Exception: _tell_fault,
        },
        lifespan=lifespan,
    )
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    return _Guard(app, hosts, paths)


async def _answer(
    request: Request, batcher: Batcher, places: _Places, limits: Limits
) -> JSONResponse:
    with places.one(request.client.host if request.client else ""):
        _check_type(request)
        dialogues, several = conversations.parse(await _read(request, limits))
        asked = batcher.submit(dialogues)
        try:
            records = await asyncio.wait_for(asyncio.wrap_future(asked), limits.answer_seconds)
        except TimeoutError:
            raise Problem(
                503,
                f"no answer within {limits.answer_seconds:g} s; the server is busy, or the "
                "conversations are long. Try again, or send fewer",
                headers={"Retry-After": "10"},
            ) from None
        except UserError as error:  # what only the model knows, such as the length that it reads
            raise Problem(422, str(error)) from error
        except Exception as error:  # a bug, which the batcher has logged
            raise Problem(500, _FAULT) from error
    return JSONResponse(records if several else records[0])


class _Places:
    """How many requests there are at a time, in all and of each client."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._of = Counter[str]()

    @property
    def taken(self) -> int:
        return self._of.total()

    @contextlib.contextmanager
    def one(self, client: str) -> Iterator[None]:
        limits, again = self._limits, {"Retry-After": "1"}
        if self._of[client] >= limits.requests_of_one:
            raise Problem(
                429,
                f"expected at most {limits.requests_of_one} requests of one client at a time, "
                "found one more; wait for an answer",
                headers=again,
            )
        if self.taken >= limits.requests:
            raise Problem(
                503,
                f"the server is busy with {limits.requests} requests, as many as it takes at a "
                "time; try again",
                headers=again,
            )
        self._of[client] += 1
        try:
            yield
        finally:
            self._of[client] -= 1
            if not self._of[client]:
                del self._of[client]


def _check_type(request: Request) -> None:
    """JSON alone: a form of another site cannot send it without being allowed to."""
    found = request.headers.get("content-type", "")
    kind, _, parameters = found.partition(";")
    charset = re.sub(r'[\s"]', "", parameters).lower()
    if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise Problem(
            415, f"Content-Type: expected application/json in UTF-8, found {found[:80] or 'none'}"
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Problem(415, f"Content-Encoding: expected none, found {encoding[:80]}")


async def _read(request: Request, limits: Limits) -> bytes:
    announced = request.headers.get("content-length", "")
    body = bytearray()
    try:
        async with asyncio.timeout(limits.reading_seconds):
            if announced.isdecimal() and int(announced) > limits.body_bytes:
                raise _too_large(f"{int(announced):,}", limits)
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise _too_large("more", limits)
    except TimeoutError:
        raise Problem(
            408,
            f"expected the whole body within {limits.reading_seconds:g} s, found "
            f"{len(body):,} bytes of it",
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise Problem(400, "the connection ended before the body did") from None
    return bytes(body)


def _too_large(found: str, limits: Limits) -> Problem:
    return Problem(
        413,
        f"the body: expected at most {limits.body_bytes:,} bytes, found {found}; send several "
        "requests",
    )


def _problem(
    status: int, reason: str, place: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    content = {"reason": reason} | ({"place": place} if place else {})
    return JSONResponse(content, status, headers)


async def _tell_problem(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, Problem)
    return _problem(error.status, error.reason, error.place, error.headers)


async def _tell_http(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    method = request.method[:20]
    reasons = {
        404: "there is no such path; expected /, /predict, /respond, /health or /openapi.json",
        405: f"this path does not take {method}; expected {(error.headers or {}).get('Allow')}",
    }
    return _problem(
        error.status_code, reasons.get(error.status_code, error.detail), headers=error.headers
    )


_FAULT = "the server has failed at this request; its log says where"


async def _tell_fault(request: Request, error: Exception) -> Response:
    del request, error
    return _problem(500, _FAULT)


class _Guard:
    """What holds for every request: whom it is for, headers, and a line in the log."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, paths: set[str]):
        self._app = app
        self._hosts = hosts
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        host = Request(scope).headers.get("host", "")
        if self._hosts is not None and not {host, host.rpartition(":")[0]} & {*self._hosts}:
            refused = _problem(
                400,
                f"Host: expected {' or '.join(self._hosts)}, found {host[:80] or 'none'}; to "
                "serve other machines start the server with --host",
            )
            await refused(scope, receive, send_on)
            return
        try:
            await self._app(scope, receive, send_on)
        except Exception as error:
            # Starlette has answered, and hands it on; the web server would log its message.
            log_fault(error)
        # An unknown path may hold what somebody wrote.
        path = scope["path"] if scope["path"] in self._paths else "(another path)"
        elapsed = 1000 * (time.monotonic() - started)
        log.info("%s %s %d, %.0f ms", scope["method"][:20], path, status, elapsed)


_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def _colours(labels: Sequence[str]) -> dict[str, str]:
    """Emotion to its colour, the same as in reports; the neutral one has none."""
    numbers = {label: colour_number(label, labels) for label in labels}
    return {label: COLOURS[number] for label, number in numbers.items() if number < N_COLOURS}


def _page() -> tuple[str, dict[str, str]]:
    """The page, and headers by which a browser runs its script and no other one."""
    page = files("erc_jax.serve").joinpath("page.html").read_text(encoding="utf-8")
    sources = {}
    for tag in ("script", "style"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        sources[tag] = f"{tag}-src 'sha256-{digest}'"
    policy = (
        f"default-src 'none'; {sources['script']}; {sources['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, {"Content-Security-Policy": policy}
