"""Middleware for any WSGI application (Flask, Django, Pyramid …).

    application = VisitMiddleware(application, issue_cookie=True)

The visit of a request lasts until the server closes the response, streams included. Each step of
a response enters and leaves it. The thread's next request therefore never sees it, even if the
application raises or a server does not close a response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.contrib.request_context import Request, Visit, VisitOptions, mount, origin_form, quote
from mm_tasks.events.context import RequestScope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Unpack

    from mm_tasks.contrib.request_context import VisitKeywords

    Environ = dict[str, Any]
    StartResponse = Callable[..., Any]
    App = Callable[[Environ, StartResponse], Iterable[bytes]]


class VisitMiddleware:
    """Adds url, path, referrer and anonymous_id to the events tracked in a request."""

    def __init__(self, app: App, **options: Unpack[VisitKeywords]) -> None:
        """Wrap an application; see `VisitOptions`."""
        self._app = app
        self._options = VisitOptions(**options)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        visit = Visit(self._options, EnvironRequest(environ))
        if visit.issued is not None:
            start_response = _issuing(visit, start_response)
        scope = RequestScope(visit.fields, is_best_effort=self._options.best_effort)
        with scope:
            body = self._app(environ, start_response)
        if type(body) is list or type(body) is tuple or _is_file(body, environ):
            return body
        return Body(body, scope)


class Body:
    """A response that enters the scope of its request in every step."""

    __slots__ = ("_body", "_scope", "_steps")

    def __init__(self, body: Iterable[bytes], scope: RequestScope) -> None:
        """Do nothing yet."""
        self._body, self._scope = body, scope
        self._steps: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Return itself: a response is read once."""
        return self

    def __next__(self) -> bytes:
        """Take one step."""
        with self._scope:
            if self._steps is None:
                self._steps = iter(self._body)
            return next(self._steps)

    def close(self) -> None:
        """Close the response, if it can be."""
        close = getattr(self._body, "close", None)
        if close is not None:
            with self._scope:
                close()


def _issuing(visit: Visit, start_response: StartResponse) -> StartResponse:
    def issue(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        return start_response(status, [*headers, *visit.added(headers)], *rest)

    return issue


class EnvironRequest(Request):
    """A request as WSGI describes it, by an environ."""

    __slots__ = ()

    def header(self, name: str) -> str | None:
        """Return a header."""
        value: str | None = self._source.get("HTTP_" + name.upper().replace("-", "_"))
        return value

    def scheme(self) -> str:
        """Return the scheme, as far as the server knows it."""
        return str(self._source.get("wsgi.url_scheme", "http"))

    def target(self) -> tuple[str, str]:
        """Return path and query."""
        return raw_target(self._source)

    def inner_path(self) -> str:
        """Return the decoded path below the mount point of the application."""
        return str(self._source.get("PATH_INFO", ""))


def raw_target(environ: Environ) -> tuple[str, str]:
    """Return path and query as the client sent them, with the mount point of the application.

    WSGI has only the decoded path; many servers add the original. Behind a proxy that cuts off
    a prefix, the original lacks the prefix.
    """
    root = environ.get("SCRIPT_NAME", "").rstrip("/").encode("latin-1", "replace")
    path, query = origin_form(environ.get("RAW_URI") or environ.get("REQUEST_URI") or "")
    if path.startswith("/"):
        return mount(root, path), query
    path = quote(root + environ.get("PATH_INFO", "").encode("latin-1", "replace"))
    return path, environ.get("QUERY_STRING", "")


def _is_file(body: object, environ: Environ) -> bool:
    """Return whether the server recognises the body as a file and sends it by itself."""
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)
