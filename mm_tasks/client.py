"""The vendor's API over HTTP. Every call returns an `Outcome` and raises nothing.

Doubt is `Ambiguous`: a request that may have been stored is never called
refused, and a success needs the complete JSON body to say so, because an
answer cut inside its headers looks like an empty 200. Retries live elsewhere.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

from mm_tasks import failpoints, guards
from mm_tasks.addresses import is_loopback
from mm_tasks.errors import ConfigurationError
from mm_tasks.events import IDENTIFY
from mm_tasks.outcome import (
    Ambiguous,
    Answer,
    Delivered,
    Misdirected,
    Outcome,
    Rejected,
    Throttled,
    Unauthorized,
    Unavailable,
)
from mm_tasks.transport import CONNECT_TIMEOUT_S, EXCHANGE, DeadlineAdapter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import SecretStr

# More than this is no answer of this API.
ANSWER_BYTES_MAX = 64 * 1024

_KEY = re.compile(r"sk_[!-^`-~]+_[!-^`-~]+_[!-~]+")
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_OTHER_KEYS = {
    "pk_": "is for browsers and must never be on a server",
    "rk_": "only reads",
    "ak_": "only reads, across an account",
}


@dataclass(frozen=True, slots=True)
class VendorAccess:
    """Where requests go and with which key; its repr hides the key."""

    host: str
    key: SecretStr


def vendor_access(host: str, key: SecretStr | None) -> VendorAccess:
    """Check host and key; raise `ConfigurationError` naming the variable and the rule."""
    if key is None:
        msg = "MILLIMETRIC_KEY: is required by workers; give the project's secret key, sk_…"
        raise ConfigurationError(msg)
    text = key.get_secret_value()
    if text[:3] in _OTHER_KEYS:
        msg = f"MILLIMETRIC_KEY: a {text[:3]} key {_OTHER_KEYS[text[:3]]}; give the sk_… key"
        raise ConfigurationError(msg)
    if not _KEY.fullmatch(text):
        msg = "MILLIMETRIC_KEY: must have the shape sk_<environment>_<prefix>_<secret>"
        raise ConfigurationError(msg)
    return VendorAccess(_checked_host(host), key)


def _checked_host(host: str) -> str:
    try:
        url = urlsplit(host)
        rule = _host_rule(url.scheme, url.hostname, url.port)
    except ValueError:
        rule = "must be a URL"
        url = urlsplit("")
    if not rule and (url.username or url.password or url.query or url.fragment):
        rule = "must hold no user, query or fragment"
    if rule:
        msg = f"MILLIMETRIC_HOST: {rule}"
        raise ConfigurationError(msg)
    return host.rstrip("/")


def _host_rule(scheme: str, name: str | None, _port: int | None) -> str:
    if not name or scheme not in {"http", "https"}:
        return "must be an https URL"
    if scheme == "http" and not is_loopback(name):
        return "must be https, unless the host is loopback: the key would travel in the clear"
    return ""


def batch_body(bodies: Sequence[bytes]) -> bytes:
    """Return the body of `/v1/batch`; its length is what `claim` promised."""
    return b'{"events":[' + b",".join(bodies) + b"]}"


class _Session(requests.Session):
    """A session that does not even look where a redirect points to.

    requests resolves it although it will not follow: it would read the whole body,
    and raise on a `Location` that is no URL.
    """

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return nothing: there are no redirects here."""


class Client:
    """One process's connections to the vendor. Open it after a fork."""

    def __init__(
        self, access: VendorAccess, *, request_timeout_s: float = 10, proxy_url: str | None = None
    ) -> None:
        """Open nothing yet. `request_timeout_s` bounds a whole exchange, all but DNS."""
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
            return self._post("/v1/batch", batch_body(bodies))
        (body,) = bodies
        return self._post("/v1/identify", body)

    def send_track(self, body: bytes) -> Outcome:
        """Send one event by itself, as `mm-tasks check --send` does."""
        return self._post("/v1/track", body)

    def forget(self, user_id: str) -> Outcome:
        """Ask for the deletion of all rows with this id.

        Success is 200 with the complete body `{"ok": true, "queued": true}`; it says that
        the deletion was put into the vendor's queue, not that it is done ("Forget").
        """
        body = json.dumps({"user_id": user_id}, ensure_ascii=False, separators=(",", ":"))
        return self._post("/v1/forget", body.encode(), step="forget")

    def _post(self, path: str, body: bytes, step: str = "send") -> Outcome:
        failpoints.reach(step, "before")
        outcome = self._exchange(path, body, is_forget=step == "forget")
        failpoints.reach(step, "after")
        return outcome

    def _exchange(self, path: str, body: bytes, *, is_forget: bool) -> Outcome:
        guards.admit(self._host)
        EXCHANGE.start(self._timeout_s)
        kind = "connect"
        try:
            with self._session.post(
                self._host + path,
                data=body,
                stream=True,
                allow_redirects=False,
                timeout=(min(CONNECT_TIMEOUT_S, self._timeout_s), self._timeout_s),
            ) as response:
                answer = (response.status_code, response.headers, _read(response))
                return _classify_forget(*answer) if is_forget else _classify(*answer)
        except (requests.RequestException, HTTPError, OSError) as error:
            kind = _kind(error)
        # The exception ends here: it holds the request, and that holds the key.
        if not EXCHANGE.is_connected:
            return Unavailable(kind)
        return Ambiguous("timeout" if kind == "timeout" else "cut")


def _kind(error: Exception) -> str:
    names = {type(cause).__name__ for cause in _causes(error)}
    if names & {"NameResolutionError", "gaierror"}:
        return "dns"
    if names & {"ReadTimeoutError", "TimeoutError", "ConnectTimeoutError", "timeout"}:
        return "timeout"
    if names & {"SSLError", "SSLCertVerificationError"}:
        return "tls"
    return "refused" if "ConnectionRefusedError" in names else "connect"


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        inner = [arg for arg in error.args if isinstance(arg, BaseException)]
        reason = getattr(error, "reason", None)
        error = reason if isinstance(reason, BaseException) else next(iter(inner), None)
        error = error or found[-1].__cause__ or found[-1].__context__
    return found


def _read(response: requests.Response) -> bytes | None:
    """Return the complete body; None when it was cut, too long or too slow."""
    try:
        body: bytes = response.raw.read(ANSWER_BYTES_MAX + 1, decode_content=False)
        if len(body) <= ANSWER_BYTES_MAX and not response.raw.read(1):
            return body
    except (HTTPError, OSError):
        pass
    # What is left unread would be taken for the next answer.
    response.raw.close()
    return None


def _classify(status: int, headers: Mapping[str, str], body: bytes | None) -> Outcome:
    said = _json_object(body)
    code = said.get("error")
    answer = Answer(status, code if isinstance(code, str) and _CODE.fullmatch(code) else "-")
    if status in {200, 202}:
        return _success(status, said, body)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Throttled(answer, _retry_after_s(headers, said))
    if status in {400, 413, 422}:
        return Rejected(answer)
    if status in {401, 403}:
        return Unauthorized(answer)
    if status // 100 in {3, 4} and status != HTTPStatus.REQUEST_TIMEOUT:
        return Misdirected(answer)
    return Ambiguous(str(status), status, answer.code)


def _classify_forget(status: int, headers: Mapping[str, str], body: bytes | None) -> Outcome:
    outcome = _classify(status, headers, body)
    if not isinstance(outcome, Delivered):
        return outcome
    is_queued = status == HTTPStatus.OK and _json_object(body).get("queued") is True
    return outcome if is_queued else Ambiguous("unusable", status)


def _success(status: int, said: dict[str, Any], body: bytes | None) -> Outcome:
    if said.get("ok") is not True:
        return Ambiguous("cut" if body in {None, b""} else "unusable", status)
    count = said.get("count")
    return Delivered(count if type(count) is int else None)


def _json_object(body: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(body or b"")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _retry_after_s(headers: Mapping[str, str], said: dict[str, Any]) -> float | None:
    """Return the vendor's wait: seconds or a date (RFC 9110, 10.2.3), else its body's word."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"-?\d{1,9}(\.\d+)?", text):
        return max(0.0, float(text))
    try:
        then = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        then = None
    if then is not None:
        return max(0.0, then - time.time())
    asked = said.get("retry_after_s")
    if isinstance(asked, bool) or not isinstance(asked, int | float):
        return None
    return max(0.0, float(asked))
