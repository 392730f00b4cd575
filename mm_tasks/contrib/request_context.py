"""The visit of a web request: its url, path, referrer and anonymous_id.

A visit is read at the first event of the request, so a request without events costs nothing. Path
and query stay as the client sent them. Fields that the vendor would refuse are dropped and counted
(`track:left_out`). Nothing here raises into a request.

`asgi`, `wsgi` and `django` adapt the requests of their servers.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from logging import getLogger
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, get_args
from urllib.parse import quote_from_bytes, unquote_to_bytes

from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.errors import ConfigurationError, MMTasksError
from mm_tasks.events import ids
from mm_tasks.events.context import valid_fields
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
# The parameters of a query that the vendor's classifier reads.
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
    best_effort: bool


@dataclass(frozen=True, slots=True)
class VisitOptions:
    """How requests are read. A wrong option raises `ConfigurationError` at start.

    `cookie`, `header`: the sources of `anonymous_id`; the header wins if both are present.
    `issue_cookie`: set a cookie of that name for a visitor without an id.
    `forwarded`: trusted headers of a proxy, `x-forwarded-proto` and `x-forwarded-host`. Of several
    values the last one counts, which the nearest proxy added.
    `skip`: a pattern of paths without a visit; None for no path.
    `url_query`: the part of the query to keep in url and referrer: `all`, the parameters of a
    `campaign` (`utm_…`, `fbclid`, `gclid`), or `none`.
    `best_effort`: no event of a request raises because Redis is away or full; see `best_effort`.
    """

    cookie: str | None = "aid"
    header: str | None = None
    issue_cookie: bool = False
    cookie_max_age_s: int = YEAR_S
    forwarded: Collection[str] = ()
    skip: str | None = SKIP
    url_query: UrlQuery = "all"
    best_effort: bool = False
    _skips: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        """Refuse options that cannot work; convert names to lower case."""
        if problems := list(_problems(self)):
            raise ConfigurationError("; ".join(problems))
        forwarded = tuple(name.lower() for name in self.forwarded)
        object.__setattr__(self, "forwarded", forwarded)
        object.__setattr__(self, "header", self.header and self.header.lower())
        object.__setattr__(self, "_skips", None if self.skip is None else re.compile(self.skip))

    def skips(self, path: str) -> bool:
        """Return whether requests for this path have no visit."""
        return self._skips is not None and self._skips.search(path) is not None


class Request(Protocol):
    """A request as its server describes it. Texts are latin-1, as on the wire; may be hostile."""

    __slots__ = ("_source",)
    _source: Any

    def __init__(self, source: Any) -> None:
        """Take the server's description; read nothing yet."""
        self._source = source

    def header(self, name: str) -> str | None:
        """Return a header by its lower-case name."""

    def scheme(self) -> str:
        """Return the scheme, as far as the server knows it."""

    def target(self) -> tuple[str, str]:
        """Return path and query, as the client sent them."""

    def inner_path(self) -> str:
        """Return the decoded path below the mount point of the application."""

    def host(self) -> str | None:
        """Return host and port as the client named them."""
        return self.header("host")

    def kept(self, name: str, value: str) -> str:
        """Store a value in the request, unless it has one; return the stored value."""
        return str(self._source.setdefault(name, value))


class Visit:
    """The visit of one request. `issued` is the anonymous_id to set as a cookie, if any."""

    __slots__ = ("_fields", "_options", "_request", "issued")

    def __init__(self, options: VisitOptions, request: Request) -> None:
        """Read nothing yet, unless a cookie may have to be issued."""
        self._options, self._request = options, request
        self._fields: Mapping[str, str] | None = None
        self.issued: str | None = None
        if options.skips(request.inner_path()):
            self._fields = {}
        elif options.issue_cookie and self._anonymous_id()[0] is None:
            # An outer application may have this middleware too: one visitor, one id.
            self.issued = request.kept(_ISSUED, ids.uuid4())

    def fields(self) -> Mapping[str, str]:
        """Return the shared fields of the events, only valid ones. Never raises."""
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
        """Return the headers that set the cookie in a response with `headers`, if it may be set.

        The cookie is not HttpOnly: the vendor's library in the page uses the same id.
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
        """Return whether the visitor used https."""
        scheme = self._forwarded(_PROTO) or self._request.scheme()
        return scheme.lower() == "https"

    def _read(self) -> tuple[dict[str, str], int]:
        anonymous_id, dropped_fields = self._anonymous_id()
        path, query = self._request.target()
        path, query = _as_sent(path) or "/", _as_sent(query)
        referrer, _, referrer_query = _text(self._request.header("referer") or "").partition("?")
        fields = {
            "anonymous_id": anonymous_id or self.issued,
            "path": path,
            "referrer": self._trimmed(referrer, referrer_query),
        }
        host = self._host()
        scheme = "https" if self.is_secure() else "http"
        if host and _IS_HOST.fullmatch(host) and path.startswith("/"):
            fields["url"] = self._trimmed(f"{scheme}://{host}{path}", query)
        elif host:
            dropped_fields += 1
        given = {name: value for name, value in fields.items() if value}
        kept = valid_fields(given)
        return kept, dropped_fields + len(given) - len(kept)

    def _anonymous_id(self) -> tuple[str | None, int]:
        """Return the id of the request, and the number of invalid ids before it."""
        options, request = self._options, self._request
        values = []
        if options.header is not None:
            values.append(request.header(options.header))
        if options.cookie is not None:
            values.append(cookie(request.header("cookie") or "", options.cookie))
        texts = [_text(text.strip()) for text in values if text and text.strip()]
        for refused, text in enumerate(texts):
            if valid_fields({"anonymous_id": text}):
                return text, refused
        return None, len(texts)

    def _host(self) -> str:
        """Return the host in the visitor's address bar; empty if it is unknown."""
        host = self._forwarded(_HOST) or self._request.host() or ""
        return host.removesuffix(":443" if self.is_secure() else ":80")

    def _forwarded(self, name: str) -> str:
        if name not in self._options.forwarded:
            return ""
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

    Browsers send the cookie with the longest path first.
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
    """Return whether only the visitor's browser may store a response; None without a rule.

    A shared cache may store a `no-cache` response, with the cookie of its first visitor.
    """
    rules = [value for name, value in headers if name.lower() == "cache-control"]
    return any(map(_IS_PRIVATE.search, rules)) if rules else None


def origin_form(target: str) -> tuple[str, str]:
    """Return path and query of a request's target, in absolute or origin form."""
    if not target.startswith("/") and "://" in target:
        _, slash, rest = target.partition("://")[2].partition("/")
        target = slash + rest
    path, _, query = target.partition("#")[0].partition("?")
    return path, query


def quote(path: bytes) -> str:
    """Percent-encode a path that the server decoded."""
    return quote_from_bytes(path, safe=_SEGMENT)


def mount(root: bytes, path: str) -> str:
    """Return the path with the mount point `root` in front, unless it begins with it."""
    decoded = unquote_to_bytes(path.encode("latin-1", "replace")) if root else b""
    if decoded == root or decoded.startswith(root + b"/"):
        return path
    return quote(root) + path


def _as_sent(text: str) -> str:
    """Percent-encode only the characters that no URL may contain."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return quote_from_bytes(text.encode("latin-1", "replace"), safe=_PRINTABLE)


def _text(latin: str) -> str:
    """Return the UTF-8 text of a header. Invalid UTF-8 becomes text that the vendor refuses."""
    if latin.isascii():
        return latin
    try:
        return latin.encode("latin-1").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return latin


def _unescaped(match: re.Match[str]) -> str:
    octal, char = match.groups()
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
    """Count dropped fields, without blocking an event loop."""
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
