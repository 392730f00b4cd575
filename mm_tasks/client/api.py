"""The vendor's API over HTTP. Every call returns an `Outcome` and raises nothing.

Doubt is `Ambiguous`: a request that may have been stored never counts as refused, and a
success needs the complete JSON body, because a response cut inside its headers looks like an
empty 200. Retries are not here: see `delivery/retry`.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING

import requests
from urllib3.exceptions import HTTPError

from mm_tasks import failpoints
from mm_tasks.client import egress
from mm_tasks.client.outcome import Ambiguous, Outcome, Unavailable
from mm_tasks.client.responses import classify, classify_forget
from mm_tasks.client.transport import CONNECT_TIMEOUT_S, DEADLINE, DeadlineAdapter
from mm_tasks.events.lanes import IDENTIFY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mm_tasks.client.access import VendorAccess

# A larger body is no response of this API.
ANSWER_BYTES_MAX = 64 * 1024


class _Session(requests.Session):
    """A session that ignores the target of a redirect.

    Otherwise requests resolves it even without following it: it would read the whole body, and
    raise on a `Location` that is no URL.
    """

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None: no redirect is followed."""


class Client:
    """One process's connections to the vendor. Open it after a fork."""

    def __init__(
        self, access: VendorAccess, *, request_timeout_s: float = 10, proxy_url: str | None = None
    ) -> None:
        """Open nothing yet. `request_timeout_s` bounds a whole exchange except DNS."""
        self._host = access.host
        self._timeout_s = request_timeout_s
        self._session = session = _Session()
        session.trust_env = False
        session.proxies = {"http": proxy_url, "https": proxy_url} if proxy_url else {}
        session.headers = requests.structures.CaseInsensitiveDict(
            {
                "Authorization": f"Bearer {access.key.get_secret_value()}",
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": f"mm-tasks/{version('mm-tasks')}",
            }
        )
        adapter = DeadlineAdapter(max_retries=0, pool_maxsize=100)
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
        outcome = self._exchange(path, body, is_forget=step == "forget")
        failpoints.reach(step, "after")
        return outcome

    def _exchange(self, path: str, body: bytes, *, is_forget: bool) -> Outcome:
        egress.admit(self._host)
        DEADLINE.start(self._timeout_s)
        try:
            with self._session.post(
                self._host + path,
                data=body,
                stream=True,
                allow_redirects=False,
                timeout=(min(CONNECT_TIMEOUT_S, self._timeout_s), self._timeout_s),
            ) as response:
                answer = (response.status_code, response.headers, _read(response))
                return classify_forget(*answer) if is_forget else classify(*answer)
        except (requests.RequestException, HTTPError, OSError) as error:
            kind = _kind(error)
        # The exception ends here: it holds the request, and that holds the key.
        if not DEADLINE.is_connected:
            return Unavailable(kind)
        return Ambiguous("timeout" if kind == "timeout" else "cut")


def _kind(error: Exception) -> str:
    causes: list[BaseException] = [error]
    for cause in causes:  # grows by the causes of each
        inner = (*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__)
        causes += (e for e in inner if isinstance(e, BaseException) and e not in causes)
    names = {type(cause).__name__ for cause in causes}
    if names & {"NameResolutionError", "gaierror"}:
        return "dns"
    if names & {"ReadTimeoutError", "TimeoutError", "ConnectTimeoutError", "timeout"}:
        return "timeout"
    if names & {"SSLError", "SSLCertVerificationError"}:
        return "tls"
    return "refused" if "ConnectionRefusedError" in names else "connect"


def _read(response: requests.Response) -> bytes | None:
    """Return the complete body; None when it was cut, too long or too slow."""
    try:
        body: bytes = response.raw.read(ANSWER_BYTES_MAX + 1, decode_content=False)
        if len(body) <= ANSWER_BYTES_MAX and not response.raw.read(1):
            return body
    except (HTTPError, OSError):
        pass
    # Unread bytes would be taken for the next response.
    response.raw.close()
    return None
