"""A client of OpenAI's chat completions that keeps a pace and repeats what may help."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from erc_jax.errors import UserError
from erc_jax.progress import duration, say

ATTEMPTS = 6
LONGEST_WAIT = 600.0  # seconds; a server that asks for more, such as a day's quota, ends the run


class Stopped(Exception):
    """Another thread has ended the run."""


class _Pace:
    """When threads may send: so many requests a minute in all, and pauses that all of them keep."""

    def __init__(self, requests_per_minute: float):
        self._interval = 60 / requests_per_minute
        self._next = 0.0  # when the next request may go, on the monotonic clock
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def wait(self, until: float) -> None:
        """Returns when a request may be sent, not before ``until``; raises Stopped after stop."""
        left = 0.0
        while not self._stopped.wait(left):
            with self._lock:
                now = time.monotonic()
                left = max(self._next, until) - now
                if left <= 0:
                    self._next = now + self._interval
                    return
        raise Stopped

    def pause(self, until: float) -> None:
        with self._lock:
            self._next = max(self._next, until)

    def stop(self) -> None:
        self._stopped.set()


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a chat model wrote, and the name that the server gives this model."""

    text: str
    model: str | None


class ChatClient:
    """An endpoint of OpenAI's chat completions; may be used by several threads.

    The server's key, if it wants one, is read from the environment variable OPENAI_API_KEY.

    Args:
      endpoint: address that "/chat/completions" is added to, such as http://localhost:8000/v1. A
        user and a password in it go as basic authentication.
      requests_per_minute: at most, by all threads, repeated requests included.
      timeout: seconds to wait for a connection, or for the next byte of an answer.
      back_off: seconds before the first repetition; doubled for each further one.

    Attributes:
      address: the endpoint without user, password and query: what may be shown.

    Raises:
      UserError: the endpoint is no address, or the key cannot be one.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        requests_per_minute: float,
        timeout: float,
        back_off: float = 1.0,
    ):
        try:
            url = httpx2.URL(endpoint)
        except httpx2.InvalidURL:
            url = httpx2.URL("")
        # A host with characters that no host has comes out percent-encoded.
        if url.scheme not in ("http", "https") or not url.host or "%" in url.host:
            raise UserError(
                "--endpoint: expected an address that begins with http:// or https://, such as "
                "http://localhost:8000/v1"
            )
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError("OPENAI_API_KEY holds characters that no key has; set it again")
        # Kept out of the address, which the client's own log records show.
        login = (url.username, url.password) if url.userinfo else None
        url = url.copy_with(userinfo=b"", fragment=None)
        self.address = str(url.copy_with(query=None)).rstrip("/")
        self._url = url.copy_with(path=url.path.rstrip("/") + "/chat/completions")
        self._timeout = timeout
        self._back_off = back_off
        self._pace = _Pace(requests_per_minute)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx2.Client(headers=headers, auth=login, timeout=timeout)

    def ask(self, request: Mapping[str, Any]) -> Answer:
        """Sends a request, and repeats it where that may help.

        Raises:
          UserError: the server refuses it, or could not be reached in ATTEMPTS attempts.
        """
        again = 0.0  # when the next attempt may be made, on the monotonic clock
        for attempt in range(ATTEMPTS):
            self._pace.wait(again)
            busy = False
            pause = self._back_off * 2**attempt
            try:
                response = self._http.post(self._url, json=request)
            except httpx2.TimeoutException:
                problem = f"no answer within {self._timeout:g} s"
            except httpx2.RequestError as error:
                problem = f"the connection failed ({error or type(error).__name__})"
            else:
                if response.is_success:
                    if answer := _read_answer(response):
                        return answer
                    problem = f"this is not a chat completion: {self._message(response)}"
                elif response.status_code in (408, 429) or response.status_code >= 500:
                    problem = f"status {response.status_code}: {self._message(response)}"
                    pause = _retry_after(response, otherwise=pause)
                    busy = response.status_code == 429
                else:
                    raise UserError(self._refused(response))
            if pause > LONGEST_WAIT:
                raise UserError(f"{self.address}: {problem} (to be repeated in {duration(pause)}).")
            if attempt + 1 < ATTEMPTS:
                say(f"{problem}; once more in {duration(pause)}")
                again = time.monotonic() + pause
                if busy:  # with all that this key asks, not with this one request
                    self._pace.pause(again)
        raise UserError(f"{self.address}: {problem} ({ATTEMPTS} attempts).")

    def stop(self) -> None:
        """Ends what waits for its turn; what is under way is finished."""
        self._pace.stop()

    def close(self) -> None:
        self._http.close()

    def _refused(self, response: httpx2.Response) -> str:
        hint = ""
        if response.status_code in (401, 403):
            state = "is it this server's?" if self._key else "it is not set."
            hint = f" The key comes from the environment variable OPENAI_API_KEY; {state}"
        elif response.status_code == 404:
            hint = " Is --model a name that the server knows, and does --endpoint end in /v1?"
        message = self._message(response)
        return f"{self.address} refuses with status {response.status_code}: {message}.{hint}"

    def _message(self, response: httpx2.Response) -> str:
        """What the server says is wrong, in short, and without the key should it repeat it."""
        message: Any = response.text
        try:
            found = response.json()
            while isinstance(found, dict):
                found = next((found[k] for k in ("error", "message", "detail") if k in found), None)
            message = found if isinstance(found, str) else message
        except ValueError:
            pass  # not JSON: shown as it is
        if self._key:
            message = message.replace(self._key, "…")
        message = " ".join(message.split()).rstrip(".") or response.reason_phrase
        return message if len(message) <= 300 else message[:300] + "…"


def _read_answer(response: httpx2.Response) -> Answer | None:
    """The answer in a completion; None if it is none."""
    try:
        completion = response.json()
        text = completion["choices"][0]["message"]["content"]
        model = completion.get("model")
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    if not isinstance(text, str | None):
        return None
    # An answer that was cut within an emoji ends in half of one, which no UTF-8 file can hold.
    whole = (text or "").encode("utf-8", "replace").decode()
    return Answer(whole, model if isinstance(model, str) else None)


def _retry_after(response: httpx2.Response, otherwise: float) -> float:
    """Seconds that the server asks to wait, which it gives as such or as a date."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return min(float(value), 1e9)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return otherwise
