"""Middleware for Django, synchronous and asynchronous.

Django determines scheme and host, by `SECURE_PROXY_SSL_HEADER`, `USE_X_FORWARDED_HOST` and
`ALLOWED_HOSTS`. The visit of a request covers streams, but not receivers of `request_finished`: for
those, wrap the application with `contrib.wsgi` or `contrib.asgi`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import SuspiciousOperation

from mm_tasks.contrib.asgi import ScopeRequest, raw_path
from mm_tasks.contrib.django.conf import visit_options
from mm_tasks.contrib.request_context import Request, Visit, is_private
from mm_tasks.contrib.wsgi import Body, EnvironRequest, raw_target
from mm_tasks.events.context import RequestScope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class VisitMiddleware:
    """Adds url, path, referrer and anonymous_id to the events tracked in a request."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        """Read the options from `MM_TASKS_VISIT`."""
        self._get_response = get_response
        self._options = visit_options()
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        """Serve one request."""
        visit = Visit(self._options, DjangoRequest(request))
        scope = RequestScope(visit.fields, is_best_effort=self._options.best_effort)
        if self._is_async:
            return self._answer(request, visit, scope)
        with scope:
            response = self._get_response(request)
        return self._finished(response, visit, scope)

    async def _answer(self, request: Any, visit: Visit, scope: RequestScope) -> Any:
        with scope:
            response = await self._get_response(request)
        return self._finished(response, visit, scope)

    def _finished(self, response: Any, visit: Visit, scope: RequestScope) -> Any:
        # A file is left as it is, so that the server can send it by itself.
        if response.streaming and getattr(response, "file_to_stream", None) is None:
            stream = _astream if response.is_async else Body
            response.streaming_content = stream(response.streaming_content, scope)
        name = str(self._options.cookie)
        if visit.issued is None or name in response.cookies:
            return response
        if is_private(response.items()) is not False:
            response.headers.setdefault("Cache-Control", "private")
            response.set_cookie(
                name,
                visit.issued,
                max_age=self._options.cookie_max_age_s,
                secure=visit.is_secure(),
                samesite="Lax",
            )
        return response


async def _astream(content: AsyncIterator[bytes], scope: RequestScope) -> AsyncIterator[bytes]:
    parts = aiter(content)
    while True:
        with scope:
            part = await anext(parts, None)
        if part is None:
            return
        yield part


class DjangoRequest(Request):
    """A request as Django describes it."""

    __slots__ = ()

    def header(self, name: str) -> str | None:
        """Return a header from the server's description, as Django joins cookies by commas."""
        return self._server().header(name)

    def scheme(self) -> str:
        """Return the scheme by Django's settings."""
        return str(self._source.scheme)

    def host(self) -> str | None:
        """Return the host, which Django's settings may refuse."""
        try:
            return str(self._source.get_host())
        except SuspiciousOperation:
            return "?"  # present but invalid: dropped, and counted

    def target(self) -> tuple[str, str]:
        """Return path and query; only Django may know its mount point."""
        scope, meta = getattr(self._source, "scope", None), self._source.META
        if scope is None:
            return raw_target(meta)
        query = meta["QUERY_STRING"].encode("utf-8", "surrogateescape").decode("latin-1")
        return raw_path({**scope, "root_path": meta["SCRIPT_NAME"]}), query

    def inner_path(self) -> str:
        """Return the decoded path below the mount point of the application."""
        return str(self._source.path_info)

    def kept(self, name: str, value: str) -> str:
        """Store a value in the request, unless it has one; return the stored value."""
        return self._server().kept(name, value)

    def _server(self) -> EnvironRequest | ScopeRequest:
        scope = getattr(self._source, "scope", None)
        return EnvironRequest(self._source.META) if scope is None else ScopeRequest(scope)
