"""The visit of each request, for any ASGI application (Starlette, FastAPI, Django, Quart …).

    app = VisitMiddleware(app, issue_cookie=True)

Lasts until the application returns: streams and background tasks are inside. WebSockets and
lifespan get nothing: no visit of their own, and none that the server left around them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from mm_tasks.contrib.request_context import Visit, VisitOptions, origin_form, quoted
from mm_tasks.events.context import RequestScope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from typing import Unpack

    from mm_tasks.contrib.request_context import VisitKeywords
    from mm_tasks.events.context import Reader

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]


class VisitMiddleware:
    """Gives url, path, referrer and anonymous_id to the events tracked in a request."""

    def __init__(self, app: App, **options: Unpack[VisitKeywords]) -> None:
        """Wrap an application; see `VisitOptions`."""
        self._app = app
        self._options = VisitOptions(**options)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        read: Reader = dict
        if scope["type"] == "http":
            visit = Visit(self._options, ScopeRequest(scope))
            read = visit.fields
            if visit.issued is not None:
                send = _issuing(visit, send)
        # Servers call an application for one request from within the one before it.
        with RequestScope(read):
            await self._app(scope, receive, send)


def _issuing(visit: Visit, send: Send) -> Send:
    async def issue(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            texts = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
            headers += [
                (name.lower().encode(), value.encode()) for name, value in visit.added(texts)
            ]
            message = {**message, "headers": headers}
        await send(message)

    return issue


class ScopeRequest:
    """A request as ASGI describes it."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Message) -> None:
        """Read nothing yet."""
        self._scope = scope

    def header(self, name: str) -> str | None:
        """Return a header; HTTP/2 may split cookies over several."""
        wanted = name.encode("latin-1")
        found: list[bytes] = [value for key, value in self._scope["headers"] if key == wanted]
        if not found:
            return None
        return (b"; " if name == "cookie" else b", ").join(found).decode("latin-1")

    def scheme(self) -> str:
        """Return what the server knows of the scheme."""
        return str(self._scope.get("scheme", "http"))

    def host(self) -> str | None:
        """Return what the client calls the server."""
        return self.header("host")

    def target(self) -> tuple[str, str]:
        """Return path and query."""
        query = self._scope.get("query_string", b"").decode("latin-1")
        return raw_path(self._scope), query

    def inner_path(self) -> str:
        """Return the path below what the application is mounted at."""
        return inner_path(self._scope)

    def kept(self, name: str, value: str) -> str:
        """Keep a value with the request, unless there is one; return what is kept."""
        return str(self._scope.setdefault(name, value))


def raw_path(scope: Message) -> str:
    """Return the path as the client sent it, what the application is mounted at included.

    By the specification the path begins with it already; some servers leave it out.
    """
    raw = scope.get("raw_path")
    root: str = scope.get("root_path", "").rstrip("/")
    if raw is None:
        path = quoted(scope["path"].encode("utf-8", "surrogateescape"))
    else:
        path = origin_form(raw.decode("latin-1"))[0]
    if not root or _is_below(unquote_to_bytes(path).decode("utf-8", "replace"), root):
        return path
    return quoted(root.encode()) + path


def inner_path(scope: Message) -> str:
    """Return the path below what the application is mounted at."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if _is_below(path, root) else path


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")
