"""The visit of each request, for any WSGI application (Flask, Django, Pyramid …).

    application = VisitMiddleware(application, issue_cookie=True)

Lasts until the server closed the response, streams included. Each step of a response is entered
and left by itself, so nothing of a request is left for the thread's next one, even if the
application raises or a server forgets to close a response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from mm_tasks.contrib.request_context import Visit, VisitOptions, origin_form, quoted
from mm_tasks.events.context import RequestScope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Unpack

    from mm_tasks.contrib.request_context import VisitKeywords

    Environ = dict[str, Any]
    StartResponse = Callable[..., Any]
    App = Callable[[Environ, StartResponse], Iterable[bytes]]


class VisitMiddleware:
    """Gives url, path, referrer and anonymous_id to the events tracked in a request."""

    def __init__(self, app: App, **options: Unpack[VisitKeywords]) -> None:
        """Wrap an application; see `VisitOptions`."""
        self._app = app
        self._options = VisitOptions(**options)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        visit = Visit(self._options, EnvironRequest(environ))
        if visit.issued is not None:
            start_response = _issuing(visit, start_response)
        carried = RequestScope(visit.fields)
        with carried:
            body = self._app(environ, start_response)
        if type(body) is list or type(body) is tuple or _is_file(body, environ):
            return body
        return Body(body, carried)


class Body:
    """A response whose every step is one of its request."""

    __slots__ = ("_body", "_carried", "_steps")

    def __init__(self, body: Iterable[bytes], carried: RequestScope) -> None:
        """Do nothing yet."""
        self._body, self._carried = body, carried
        self._steps: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Return itself: a response is read once."""
        return self

    def __next__(self) -> bytes:
        """Take one step."""
        with self._carried:
            if self._steps is None:
                self._steps = iter(self._body)
            return next(self._steps)

    def close(self) -> None:
        """Close the response, if it can be."""
        close = getattr(self._body, "close", None)
        if close is not None:
            with self._carried:
                close()


def _issuing(visit: Visit, start_response: StartResponse) -> StartResponse:
    def issue(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        return start_response(status, [*headers, *visit.added(headers)], *rest)

    return issue


class EnvironRequest:
    """A request as WSGI describes it."""

    __slots__ = ("_environ",)

    def __init__(self, environ: Environ) -> None:
        """Read nothing yet."""
        self._environ = environ

    def header(self, name: str) -> str | None:
        """Return a header."""
        return self._environ.get("HTTP_" + name.upper().replace("-", "_"))

    def scheme(self) -> str:
        """Return what the server knows of the scheme."""
        return str(self._environ.get("wsgi.url_scheme", "http"))

    def host(self) -> str | None:
        """Return what the client calls the server."""
        return self.header("host")

    def target(self) -> tuple[str, str]:
        """Return path and query."""
        return raw_target(self._environ)

    def inner_path(self) -> str:
        """Return the path below what the application is mounted at."""
        return str(self._environ.get("PATH_INFO", ""))

    def kept(self, name: str, value: str) -> str:
        """Keep a value with the request, unless there is one; return what is kept."""
        return str(self._environ.setdefault(name, value))


def raw_target(environ: Environ) -> tuple[str, str]:
    """Return path and query as the client sent them, what the application is mounted at included.

    WSGI itself has only the decoded path; many servers give the original too. Behind a
    proxy that cuts off a prefix the original does not begin with it.
    """
    root = environ.get("SCRIPT_NAME", "").rstrip("/").encode("latin-1", "replace")
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    path, query = origin_form(raw)
    if not path.startswith("/"):
        path = quoted(root + environ.get("PATH_INFO", "").encode("latin-1", "replace"))
        return path, environ.get("QUERY_STRING", "")
    decoded = unquote_to_bytes(path.encode("latin-1", "replace")) if root else b""
    if root and decoded != root and not decoded.startswith(root + b"/"):
        path = quoted(root) + path
    return path, query


def _is_file(body: object, environ: Environ) -> bool:
    """Say whether the server will send it by itself, which it knows by its type."""
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)
