"""The vendor's API over HTTP. Every call returns an `Outcome` and raises nothing.

Doubt is `Ambiguous`: a request of which a byte may have left never counts as unsent, and a
success needs the complete JSON body. Retries are not here: see `delivery/retry`.
"""

from __future__ import annotations

import json
from functools import partial
from importlib.metadata import version
from logging import getLogger
from typing import TYPE_CHECKING

import requests

from mm_tasks import failpoints
from mm_tasks.client import egress
from mm_tasks.client.access import tls_context
from mm_tasks.client.dial import Dialer
from mm_tasks.client.outcome import Ambiguous, Outcome, Unavailable
from mm_tasks.client.responses import classify, classify_forget
from mm_tasks.client.transport import InDoubt, NotSent, WireAdapter, WireResponse
from mm_tasks.events.lanes import IDENTIFY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mm_tasks.client.access import VendorAccess
    from mm_tasks.client.http1 import Answer

log = getLogger(__name__)


class _Session(requests.Session):
    """A session that ignores the target of a redirect.

    Otherwise requests resolves it even without following it, and raises on a `Location` that is
    no URL.
    """

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None: no redirect is followed."""


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
        adapter = WireAdapter(Dialer(access.host, proxy_url, tls=tls, look_up=look_up))
        self._session = session = _Session()
        # No proxy, password or authority of the environment.
        session.trust_env = False
        session.headers = requests.structures.CaseInsensitiveDict(
            {
                "Authorization": f"Bearer {access.key.get_secret_value()}",
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": f"mm-tasks/{version('mm-tasks')}",
            }
        )
        session.mount("http://", adapter)
        session.mount("https://", adapter)

    def __repr__(self) -> str:
        """Name the host, never the key."""
        return f"Client({self._host!r})"

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

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
        if_failed: Outcome = Unavailable("connect")
        try:
            request = requests.Request("POST", self._host + path, data=body)
            prepared = self._session.prepare_request(request)
            if_failed = Ambiguous("error")
            response = self._session.send(prepared, timeout=self._timeout_s, allow_redirects=False)
            assert isinstance(response, WireResponse)
            return classified(response.answer)
        except NotSent as error:
            return Unavailable(error.kind)
        except InDoubt as error:
            return Ambiguous(error.kind)
        except Exception as error:  # noqa: BLE001 - of requests, or Celery's soft time limit
            name = type(error).__name__
        # The exception ends here: its frames hold the request, and that holds the key.
        log.warning("request_failed", extra={"error": name})
        return if_failed
