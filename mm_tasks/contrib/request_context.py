"""What a web request says of its visitor: url, path, referrer and anonymous_id.

Read when the first event of the request asks, so a request that tracks nothing pays for
nothing. Path and query stay as the client sent them. What the vendor would refuse is left
out and counted (`track:left_out`); nothing here ever raises into a request.

Not here: how a server hands a request over (`asgi`, `wsgi`, `django`).
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from logging import getLogger
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, get_args
from urllib.parse import quote_from_bytes

import uuid_utils
from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.errors import ConfigurationError, MMTasksError
from mm_tasks.events.context import usable
from mm_tasks.events.lanes import TRACK

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

log = getLogger(__name__)

YEAR_S = 365 * 86_400
SKIP = r"^/(health|healthz|ready|readyz|live|livez|ping|metrics)/?$"
UrlQuery = Literal["all", "campaign", "none"]

_PROTO, _HOST = "x-forwarded-proto", "x-forwarded-host"
_IS_HOST = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_ESCAPED = re.compile(r"\\(?:([0-3][0-7][0-7])|(.))")
# What the vendor's classifier reads in a query.
_CAMPAIGN = re.compile(r"utm_[^=]*|fbclid|gclid")
_IS_PRIVATE = re.compile("private|no-store", re.IGNORECASE)
_ISSUED = "mm_tasks.issued"
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_SEGMENT = "/:@!$&'()*+,;="


class VisitKeywords(TypedDict, total=False):
    """The options of a middleware, as keyword arguments: see `VisitOptions`."""

    cookie: str | None
    header: str | None
    issue_cookie: bool
    cookie_max_age_s: int
    forwarded: Collection[str]
    skip: str | None
    url_query: UrlQuery


@dataclass(frozen=True, slots=True)
class VisitOptions:
    """How requests are read. A wrong option raises `ConfigurationError` at start.

    `cookie`, `header`: where `anonymous_id` comes from; a header that is there wins.
    `issue_cookie`: give a visitor without any a cookie of that name.
    `forwarded`: the headers of a proxy that are trusted, `x-forwarded-proto` and
    `x-forwarded-host`; of several values the last one counts, the nearest proxy's.
    `skip`: a pattern of paths that get nothing; None: no path.
    `url_query`: of the query of url and referrer keep all, what campaigns are known by
    (`utm_…`, `fbclid`, `gclid`), or none.
    """

    cookie: str | None = "aid"
    header: str | None = None
    issue_cookie: bool = False
    cookie_max_age_s: int = YEAR_S
    forwarded: Collection[str] = ()
    skip: str | None = SKIP
    url_query: UrlQuery = "all"
    _skips: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        """Refuse what could not work, and make names comparable."""
        if problems := list(_problems(self)):
            raise ConfigurationError("; ".join(problems))
        forwarded = tuple(name.lower() for name in self.forwarded)
        object.__setattr__(self, "forwarded", forwarded)
        object.__setattr__(self, "header", self.header and self.header.lower())
        object.__setattr__(self, "_skips", None if self.skip is None else re.compile(self.skip))

    def skips(self, path: str) -> bool:
        """Say whether requests for this path get nothing."""
        return self._skips is not None and self._skips.search(path) is not None


class Request(Protocol):
    """What a server tells of a request. Texts are latin-1, as on the wire; they may be hostile."""

    def header(self, name: str) -> str | None:
        """Return a header by its lower-case name."""

    def scheme(self) -> str:
        """Return the scheme, as far as the server knows it."""

    def host(self) -> str | None:
        """Return host and port, if the server knows them."""

    def target(self) -> tuple[str, str]:
        """Return path and query, as the client sent them."""

    def inner_path(self) -> str:
        """Return the decoded path below what the application is mounted at."""

    def kept(self, name: str, value: str) -> str:
        """Keep a value with the request, unless there is one; return what is kept."""


class Visit:
    """One request. `issued` is the anonymous_id that its response should set as a cookie."""

    __slots__ = ("_fields", "_known", "_options", "_request", "issued")

    def __init__(self, options: VisitOptions, request: Request) -> None:
        """Read nothing yet, unless a cookie may have to be issued."""
        self._options, self._request = options, request
        self._fields: Mapping[str, str] | None = None
        self._known: tuple[str | None, int] | None = None
        self.issued: str | None = None
        if options.skips(request.inner_path()):
            self._fields = {}
        elif options.issue_cookie and self._anonymous_id()[0] is None:
            # An application in another may have a middleware too: one visitor, one id.
            self.issued = request.kept(_ISSUED, str(uuid_utils.uuid4()))

    def fields(self) -> Mapping[str, str]:
        """Return what events have in common; only what the vendor takes, and never raise."""
        if self._fields is None:
            try:
                self._fields, dropped_fields = self._read()
            except Exception as error:  # noqa: BLE001 - a request must not fail for its url
                self._fields, dropped_fields = {}, 1
                log.warning("visit_unreadable", extra={"error": type(error).__name__})
            if dropped_fields:
                _count(dropped_fields)
        return self._fields

    def added(self, headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return what sets the cookie in a response with these headers; nothing if it must not.

        Not HttpOnly: the vendor's library in the page is to use the same id.
        """
        options, private = self._options, is_private(headers)
        own = f"{options.cookie}="
        if self.issued is None or private is False:
            return []
        if any(name.lower() == "set-cookie" and value.startswith(own) for name, value in headers):
            return []
        secure = "; Secure" if self.is_secure() else ""
        age = f"Max-Age={options.cookie_max_age_s}"
        value = f"{own}{self.issued}; {age}; Path=/; SameSite=Lax{secure}"
        caches = [] if private else [("Cache-Control", "private")]
        return [("Set-Cookie", value), *caches]

    def is_secure(self) -> bool:
        """Say whether the visitor came by https."""
        trusted = self._options.forwarded
        scheme = (self._nearest(_PROTO) if _PROTO in trusted else "") or self._request.scheme()
        return scheme.lower() == "https"

    def _read(self) -> tuple[dict[str, str], int]:
        anonymous_id, dropped_fields = self._anonymous_id()
        path, query = self._request.target()
        path, query = _as_sent(path) or "/", _as_sent(query)
        referrer = _text(self._request.header("referer") or "")
        found = {
            "anonymous_id": anonymous_id or self.issued,
            "path": path,
            "referrer": self._trimmed(*_split(referrer)),
        }
        host = self._host()
        scheme = "https" if self.is_secure() else "http"
        if host and _IS_HOST.fullmatch(host) and path.startswith("/"):
            found["url"] = self._trimmed(f"{scheme}://{host}{path}", query)
        elif host:
            dropped_fields += 1
        given = {name: value for name, value in found.items() if value}
        kept = usable(given)
        return kept, dropped_fields + len(given) - len(kept)

    def _anonymous_id(self) -> tuple[str | None, int]:
        """Return the id that came with the request, and how many were of no use."""
        if self._known is None:
            self._known = self._find_anonymous_id()
        return self._known

    def _find_anonymous_id(self) -> tuple[str | None, int]:
        options, request = self._options, self._request
        found = []
        if options.header is not None:
            found.append(request.header(options.header))
        if options.cookie is not None:
            found.append(cookie(request.header("cookie") or "", options.cookie))
        texts = [_text(text.strip()) for text in found if text and text.strip()]
        for refused, text in enumerate(texts):
            if usable({"anonymous_id": text}):
                return text, refused
        return None, len(texts)

    def _host(self) -> str:
        """Return what the visitor's browser shows; nothing if that is not known."""
        trusted = self._options.forwarded
        host = (self._nearest(_HOST) if _HOST in trusted else "") or self._request.host() or ""
        return host.removesuffix(":443" if self.is_secure() else ":80")

    def _nearest(self, name: str) -> str:
        return (self._request.header(name) or "").rpartition(",")[2].strip()

    def _trimmed(self, text: str, query: str) -> str:
        if self._options.url_query == "none":
            query = ""
        elif self._options.url_query == "campaign":
            parts = query.split("&")
            query = "&".join(p for p in parts if _CAMPAIGN.fullmatch(p.partition("=")[0]))
        return f"{text}?{query}" if query else text


def cookie(header: str, name: str) -> str | None:
    """Return the first cookie of this name that is not empty, without its quotes.

    Browsers send the one with the longest path first.
    """
    if name not in header:
        return None
    for part in header.split(";"):
        key, _, value = part.partition("=")
        if key.strip() != name:
            continue
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = _ESCAPED.sub(_unescaped, value[1:-1])
        if value:
            return value
    return None


def is_private(headers: Iterable[tuple[str, str]]) -> bool | None:
    """Say whether only the visitor's browser may keep a response; None if it says nothing.

    What must be asked about (`no-cache`) may be kept by a shared cache all the same, with the
    cookie of whom it was made for.
    """
    said = [value for name, value in headers if name.lower() == "cache-control"]
    return any(map(_IS_PRIVATE.search, said)) if said else None


def origin_form(target: str) -> tuple[str, str]:
    """Return path and query of a request's target, whichever form the client used."""
    if not target.startswith("/") and "://" in target:
        _, slash, rest = target.partition("://")[2].partition("/")
        target = slash + rest
    path, _, query = target.partition("#")[0].partition("?")
    return path, query


def quoted(path: bytes) -> str:
    """Percent-encode a path that the server had decoded."""
    return quote_from_bytes(path, safe=_SEGMENT)


def _split(url: str) -> tuple[str, str]:
    text, _, query = url.partition("?")
    return text, query


def _as_sent(text: str) -> str:
    """Return it with only what no URL may hold percent-encoded."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return quote_from_bytes(text.encode("latin-1", "replace"), safe=_PRINTABLE)


def _text(latin: str) -> str:
    """Return the UTF-8 text of a header; what is none becomes what the vendor refuses."""
    if latin.isascii():
        return latin
    try:
        return latin.encode("latin-1").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return latin


def _unescaped(found: re.Match[str]) -> str:
    octal, char = found.groups()
    return chr(int(octal, 8)) if octal else str(char)


def _problems(options: VisitOptions) -> Iterator[str]:
    for name in ("cookie", "header"):
        value = getattr(options, name)
        if value is not None and not _TOKEN.fullmatch(value):
            yield f"{name}: must be a name as HTTP allows it"
    if options.issue_cookie and options.cookie is None:
        yield "issue_cookie: needs the name of a cookie"
    if options.cookie_max_age_s < 1:
        yield "cookie_max_age_s: must be at least 1"
    names = options.forwarded
    if isinstance(names, str) or not {name.lower() for name in names} <= {_PROTO, _HOST}:
        yield f"forwarded: must be a list of {_PROTO} and {_HOST}"
    if options.url_query not in get_args(UrlQuery):
        yield f"url_query: must be one of {', '.join(get_args(UrlQuery))}"
    try:
        re.compile(options.skip or "")
    except re.error:
        yield "skip: must be a regular expression"


def _count(n: int) -> None:
    """Count what was left out, without holding up an event loop."""
    try:
        asyncio.get_running_loop().run_in_executor(None, _store_count, n)
    except RuntimeError:  # no loop, or one that is ending
        _store_count(n)


def _store_count(n: int) -> None:
    try:
        current = runtime.current()
        if current.has_broker:
            current.producers[TRACK].count_dropped_fields(n)
    except (MMTasksError, RedisError) as error:
        log.warning("dropped_fields_not_counted", extra={"error": type(error).__name__})
