"""The sockets: an ASGI application on a port, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from erc_jax.errors import UserError
from erc_jax.progress import say
from erc_jax.serve.app import LOOPBACK

HEAD_SECONDS = 10.0  # until a connection has sent a request's line and headers
UNREAD_SECONDS = 60  # until a client has taken in what was sent to it
STOPPING_SECONDS = 10  # for requests that have begun when the server is told to stop


class ImpatientProtocol(H11Protocol):
    """Closes connections that send no whole request: uvicorn would keep them for good."""

    _running_out: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel()  # from here on the application keeps the time
        elif self._running_out is None:
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        self._running_out = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _cancel(self) -> None:
        if self._running_out is not None:
            self._running_out.cancel()
            self._running_out = None


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address; nobody can connect before ``serve`` listens.

    Raises:
      UserError: the address is no address of this machine, or is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(AttributeError, OSError):  # Linux only
                bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise UserError(
            f"cannot serve at {host}, port {port} ({error.strerror}); choose another --port, or "
            "an address of this machine as --host"
        ) from error
    return bound


def names_of(bound: socket.socket, host: str) -> list[str] | None:
    """The names by which a socket that only this machine reaches is asked; None if others can.

    Args:
      bound: as of ``bind``.
      host: what it was asked for.
    """
    address = bound.getsockname()[0]
    if not ipaddress.ip_address(address).is_loopback:
        return None
    return list(dict.fromkeys((*LOOPBACK, _in_url(address), host)))


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def configure(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # a client may write there what it likes
        timeout_graceful_shutdown=STOPPING_SECONDS,
    )


def serve(app: ASGIApp, bound: socket.socket) -> None:
    """Answers requests until SIGTERM or Ctrl-C; requests that have begun are finished."""
    host, port = bound.getsockname()[:2]
    say(f"Open http://{_in_url(host)}:{port}/ in a browser; Ctrl-C ends.")
    # uvicorn stops by itself, and then raises the signal again for whoever handled it before.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        uvicorn.Server(configure(app)).run(sockets=[bound])
