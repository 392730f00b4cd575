"""Middleware for any ASGI application (Starlette, FastAPI, Django, Quart …).

    app = VisitMiddleware(app, issue_cookie=True)

The visit of a request lasts until the application returns, so it covers streams and background
tasks. WebSockets and lifespan have no visit, not even one that the server left in the context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.contrib.request_context import Request, Visit, VisitOptions, mount, origin_form, quote
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
    """Adds url, path, referrer and anonymous_id to the events tracked in a request."""

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
        # A server may handle a request in the context of the previous one.
        with RequestScope(read, is_best_effort=self._options.best_effort):
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


class ScopeRequest(Request):
    """A request as ASGI describes it, by a scope."""

    __slots__ = ()

    def header(self, name: str) -> str | None:
        """Return a header; HTTP/2 may split cookies over several."""
        key = name.encode("latin-1")
        values: list[bytes] = [value for k, value in self._source["headers"] if k == key]
        if not values:
            return None
        return (b"; " if name == "cookie" else b", ").join(values).decode("latin-1")

    def scheme(self) -> str:
        """Return the scheme, as far as the server knows it."""
        return str(self._source.get("scheme", "http"))

    def target(self) -> tuple[str, str]:
        """Return path and query."""
        query = self._source.get("query_string", b"").decode("latin-1")
        return raw_path(self._source), query

    def inner_path(self) -> str:
        """Return the decoded path below the mount point of the application."""
        path: str = self._source["path"]
        root: str = self._source.get("root_path", "").rstrip("/")
        return path[len(root) :] if path == root or path.startswith(root + "/") else path


def raw_path(scope: Message) -> str:
    """Return the path as the client sent it, with the mount point of the application.

    By the specification the path begins with the mount point already; some servers omit it.
    """
    raw = scope.get("raw_path")
    if raw is None:
        path = quote(scope["path"].encode("utf-8", "surrogateescape"))
    else:
        path = origin_form(raw.decode("latin-1"))[0]
    root: str = scope.get("root_path", "").rstrip("/")
    return mount(root.encode("utf-8", "surrogateescape"), path)
