"""The visit of each request, for the events tracked in it, synchronous and asynchronous.

Scheme and host are what Django makes of them: `SECURE_PROXY_SSL_HEADER`,
`USE_X_FORWARDED_HOST` and `ALLOWED_HOSTS` decide. Streams are inside; receivers of
`request_finished` are not: for them wrap the application with `contrib.wsgi` or `contrib.asgi`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import SuspiciousOperation

from mm_tasks.contrib.asgi import ScopeRequest, raw_path
from mm_tasks.contrib.django.conf import visit_options
from mm_tasks.contrib.request_context import Visit, is_private
from mm_tasks.contrib.wsgi import Body, EnvironRequest, raw_target
from mm_tasks.events.context import RequestScope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class VisitMiddleware:
    """Gives url, path, referrer and anonymous_id to the events tracked in a request."""

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
        carried = RequestScope(visit.fields)
        if self._is_async:
            return self._answer(request, visit, carried)
        with carried:
            response = self._get_response(request)
        return self._finished(response, visit, carried)

    async def _answer(self, request: Any, visit: Visit, carried: RequestScope) -> Any:
        with carried:
            response = await self._get_response(request)
        return self._finished(response, visit, carried)

    def _finished(self, response: Any, visit: Visit, carried: RequestScope) -> Any:
        # What is a file is left as it is, for the server to send by itself.
        if response.streaming and getattr(response, "file_to_stream", None) is None:
            stream = _astream if response.is_async else Body
            response.streaming_content = stream(response.streaming_content, carried)
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


async def _astream(content: AsyncIterator[bytes], carried: RequestScope) -> AsyncIterator[bytes]:
    parts = aiter(content)
    while True:
        with carried:
            part = await anext(parts, None)
        if part is None:
            return
        yield part


class DjangoRequest:
    """A request as Django describes it."""

    __slots__ = ("_request",)

    def __init__(self, request: Any) -> None:
        """Read nothing yet."""
        self._request = request

    def header(self, name: str) -> str | None:
        """Return a header; from ASGI itself, as Django joins cookies by commas."""
        return self._server().header(name)

    def scheme(self) -> str:
        """Return what Django's settings let it believe of the scheme."""
        return str(self._request.scheme)

    def host(self) -> str | None:
        """Return the host if Django's settings allow it."""
        try:
            return str(self._request.get_host())
        except SuspiciousOperation:
            return "?"  # was given: left out, and counted

    def target(self) -> tuple[str, str]:
        """Return path and query; what Django is mounted at may be known to it alone."""
        scope, meta = getattr(self._request, "scope", None), self._request.META
        if scope is None:
            return raw_target(meta)
        query = meta["QUERY_STRING"].encode("utf-8", "surrogateescape").decode("latin-1")
        return raw_path({**scope, "root_path": meta["SCRIPT_NAME"]}), query

    def inner_path(self) -> str:
        """Return the path below what the application is mounted at."""
        return str(self._request.path_info)

    def kept(self, name: str, value: str) -> str:
        """Keep a value with the request, unless there is one; return what is kept."""
        return self._server().kept(name, value)

    def _server(self) -> EnvironRequest | ScopeRequest:
        scope = getattr(self._request, "scope", None)
        return EnvironRequest(self._request.META) if scope is None else ScopeRequest(scope)
