"""The vendor's API over HTTP. Every call returns an `Outcome` and raises nothing.

Doubt is `Ambiguous`: a request of which a byte may have left never counts as unsent, and a
success needs the complete JSON body. Retries are not here: see `delivery/retry`.
"""

from __future__ import annotations

import json
import ssl
from functools import partial
from importlib.metadata import version
from logging import getLogger
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from mm_tasks import failpoints
from mm_tasks.client import egress
from mm_tasks.client.access import tls_context
from mm_tasks.client.connection import IdleConnections
from mm_tasks.client.dial import Attempt, Dialer
from mm_tasks.client.http1 import read_answer
from mm_tasks.client.outcome import Ambiguous, Outcome, Unavailable
from mm_tasks.client.responses import classify, classify_forget
from mm_tasks.events.lanes import IDENTIFY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mm_tasks.client.access import VendorAccess
    from mm_tasks.client.connection import Connection
    from mm_tasks.client.http1 import Answer

log = getLogger(__name__)


class Client:
    """One process's connections to the vendor. A forked child opens its own."""

    def __init__(
        self,
        access: VendorAccess,
        *,
        request_timeout_s: float = 10,
        proxy_url: str | None = None,
        ca_file: Path | None = None,
        look_up: Callable[..., object] | None = None,
    ) -> None:
        """Open nothing yet. `request_timeout_s` bounds a whole exchange.

        For `look_up` see `Dialer`. Raises `ConfigurationError`, as `Dialer` and `tls_context`.
        """
        self._host = access.host
        self._timeout_s = request_timeout_s
        tls = partial(tls_context, ca_file)
        self._dialer = Dialer(access.host, proxy_url, tls=tls, look_up=look_up)
        self._idle = IdleConnections()
        url = urlsplit(access.host)
        self._path = quote(url.path, safe="/%!$&'()*+,;=:@~")
        self._head = (
            f"Host: {url.netloc.encode('idna').decode()}\r\n"
            f"Authorization: Bearer {access.key.get_secret_value()}\r\n"
            "Content-Type: application/json\r\n"
            "Accept-Encoding: identity\r\n"
            f"User-Agent: mm-tasks/{version('mm-tasks')}\r\n"
        )

    def __repr__(self) -> str:
        """Name the host, never the key."""
        return f"Client({self._host!r})"

    def close(self) -> None:
        """Close the connections."""
        self._idle.close()

    def send(self, lane: str, bodies: Sequence[bytes]) -> Outcome:
        """Send a batch of `track` or `backfill`, or the one record of an `identify` batch."""
        if lane != IDENTIFY:
            # `batch_claim.lua` bounded the length.
            return self._post("/v1/batch", b'{"events":[' + b",".join(bodies) + b"]}")
        (body,) = bodies
        return self._post("/v1/identify", body)

    def send_track(self, body: bytes) -> Outcome:
        """Send one event by itself, as `mm-tasks check --send` does."""
        return self._post("/v1/track", body)

    def forget(self, user_id: str) -> Outcome:
        """Ask for the deletion of all rows with this id.

        Success is 200 with the complete body `{"ok": true, "queued": true}`: the deletion is in
        the vendor's queue, and not yet done ("Forget").
        """
        body = json.dumps({"user_id": user_id}, ensure_ascii=False, separators=(",", ":"))
        return self._post("/v1/forget", body.encode(), step="forget")

    def _post(self, path: str, body: bytes, step: str = "send") -> Outcome:
        failpoints.reach(step, "before")
        outcome = self._outcome(path, body, classify_forget if step == "forget" else classify)
        failpoints.reach(step, "after")
        return outcome

    def _outcome(self, path: str, body: bytes, classified: Callable[[Answer], Outcome]) -> Outcome:
        egress.admit(self._host)
        attempt = Attempt(self._timeout_s)
        try:
            return classified(self._exchange(attempt, path, body))
        except Exception as error:  # noqa: BLE001 - whatever it is, it leaves no doubt or a doubt
            kind, name = attempt.kind(error), type(error).__name__
        # The exception ends here: its frames hold the request, and that holds the key.
        if not attempt.is_sent:
            return Unavailable(kind)
        if kind == "error":
            log.warning("request_failed", extra={"error": name})
        return Ambiguous(kind)

    def _exchange(self, attempt: Attempt, path: str, body: bytes) -> Answer:
        connection = self._idle.take() or self._dialer.open(attempt)
        try:
            connection.deadline = attempt.deadline
            connection.deadline.left_s()
            attempt.stage = "sent"
            answer = self._answer(connection, path, body)
        except BaseException:
            connection.close()
            raise
        if answer.is_last:
            connection.close()
        else:
            self._idle.give(connection)
        return answer

    def _answer(self, connection: Connection, path: str, body: bytes) -> Answer:
        head = f"POST {self._path}{path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}"
        try:
            connection.write(f"{head}\r\n\r\n".encode() + body)
        except (ConnectionError, ssl.SSLEOFError):
            # A filter refuses a body before it has read it all, and closes.
            answer = read_answer(connection)
            if answer.status // 100 == 2:  # noqa: PLR2004 - HTTP
                raise
            answer.is_last = True
            return answer
        return read_answer(connection)
