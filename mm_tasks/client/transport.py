"""The transport of `requests` to one host: sends a prepared request, and reads its answer.

It says what `requests` cannot say by itself: whether a byte of the request may have left. One
deadline is for the whole exchange. See ADR 17.
"""

from __future__ import annotations

import io
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter

from mm_tasks.client.connection import IdleConnections
from mm_tasks.client.dial import Attempt
from mm_tasks.client.http1 import read_answer

if TYPE_CHECKING:
    from mm_tasks.client.connection import Connection
    from mm_tasks.client.dial import Dialer
    from mm_tasks.client.http1 import Answer


class _Failed(requests.ConnectionError):
    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class NotSent(_Failed):
    """No byte of the request left. `kind` is that of `Unavailable`."""


class InDoubt(_Failed):
    """A byte of the request may have left, and no answer came. `kind` is that of `Ambiguous`."""


class WireResponse(requests.Response):
    """A response that was read to its end. `content` is empty if `answer.body` is unreadable."""

    def __init__(self, request: requests.PreparedRequest, answer: Answer) -> None:
        """Show the answer as `requests` does."""
        super().__init__()
        self.request, self.url, self.answer = request, request.url or "", answer
        self.status_code, self.reason = answer.status, ""
        self.headers.update({name: ", ".join(values) for name, values in answer.fields.items()})
        self.raw = io.BytesIO(answer.body or b"")


class WireAdapter(BaseAdapter):
    """Sends every request to the host of its dialer. Safe for threads and forks."""

    def __init__(self, dialer: Dialer) -> None:
        """Open nothing yet."""
        super().__init__()
        self._dialer = dialer
        self._idle = IdleConnections()

    def send(self, request: requests.PreparedRequest, *_: object, **options: Any) -> WireResponse:
        """Return the response to a request with a body of bytes.

        The option `timeout` bounds the whole exchange, in seconds. The other options are ignored:
        the dialer decides about proxy and TLS. Raises `NotSent` or `InDoubt`. Any other exception
        is not of the connection, and leaves a doubt too.
        """
        attempt = Attempt(options["timeout"])
        try:
            return WireResponse(request, self._exchange(attempt, request))
        except Exception as error:
            kind = attempt.kind(error)
            if not attempt.is_sent:
                raise NotSent(kind) from None
            if kind == "error":
                raise
            raise InDoubt(kind) from None

    def close(self) -> None:
        """Close the connections."""
        self._idle.close()

    def _exchange(self, attempt: Attempt, request: requests.PreparedRequest) -> Answer:
        data = _encoded(request)
        connection = self._idle.take() or self._dialer.open(attempt)
        try:
            connection.deadline = attempt.deadline
            connection.deadline.left_s()
            attempt.stage = "sent"
            answer = _answer(connection, data)
        except BaseException:
            connection.close()
            raise
        if answer.is_last:
            connection.close()
        else:
            self._idle.give(connection)
        return answer


def _encoded(request: requests.PreparedRequest) -> bytes:
    lines = [f"{request.method} {request.path_url} HTTP/1.1"]
    # `requests` leaves this one to its transport.
    lines.append(f"Host: {urlsplit(request.url or '').netloc}")
    for name, value in request.headers.items():
        lines.append(f"{name}: {value if isinstance(value, str) else value.decode()}")
    assert isinstance(request.body, bytes)
    return "\r\n".join([*lines, "", ""]).encode() + request.body


def _answer(connection: Connection, data: bytes) -> Answer:
    try:
        connection.write(data)
    except (ConnectionError, ssl.SSLEOFError):
        # A filter refuses a body before it has read it all, and closes.
        answer = read_answer(connection)
        if answer.status // 100 == 2:  # noqa: PLR2004 - HTTP
            raise
        answer.is_last = True
        return answer
    return read_answer(connection)
