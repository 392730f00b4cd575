"""The visit of each request, for the events tracked in it, synchronous and asynchronous.

Scheme and host are what Django makes of them: `SECURE_PROXY_SSL_HEADER`,
`USE_X_FORWARDED_HOST` and `ALLOWED_HOSTS` decide. Streams are inside; receivers of
`request_finished` are not: for them wrap the application with `contrib.wsgi` or `contrib.asgi`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import SuspiciousOperation
from django.utils.cache import patch_vary_headers

from mm_tasks.ambient import enter, leave
from mm_tasks.contrib.asgi import ScopeRequest, raw_path
from mm_tasks.contrib.django.conf import visit_options
from mm_tasks.contrib.visit import Visit, may_be_shared
from mm_tasks.contrib.wsgi import EnvironRequest, raw_target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


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

    def __call__(self, request: Any) -> Any:  # noqa: ANN401 - Django ships no types
        """Serve one request."""
        if self._options.skips(request.path_info):
            return self._get_response(request)
        visit = Visit(self._options, DjangoRequest(request))
        if self._is_async:
            return self._answer(request, visit)
        token = enter(visit.fields)
        try:
            response = self._get_response(request)
        finally:
            leave(token)
        return self._finished(response, visit)

    async def _answer(self, request: Any, visit: Visit) -> Any:  # noqa: ANN401
        token = enter(visit.fields)
        try:
            response = await self._get_response(request)
        finally:
            leave(token)
        return self._finished(response, visit)

    def _finished(self, response: Any, visit: Visit) -> Any:  # noqa: ANN401
        if response.streaming:
            stream = _astream if response.is_async else _stream
            response.streaming_content = stream(response.streaming_content, visit)
        if visit.issued is None:
            return response
        name = str(self._options.cookie)
        if name not in response.cookies and not may_be_shared(response.items(), name):
            response.set_cookie(
                name,
                visit.issued,
                max_age=self._options.cookie_max_age_s,
                secure=visit.is_secure(),
                samesite="Lax",
            )
            patch_vary_headers(response, ("Cookie",))
        return response


def _stream(content: Iterator[bytes], visit: Visit) -> Iterator[bytes]:
    token = enter(visit.fields)
    try:
        yield from content
    finally:
        leave(token)


async def _astream(content: AsyncIterator[bytes], visit: Visit) -> AsyncIterator[bytes]:
    token = enter(visit.fields)
    try:
        async for part in content:
            yield part
    finally:
        leave(token)


class DjangoRequest:
    """A request as Django describes it."""

    __slots__ = ("_request",)

    def __init__(self, request: Any) -> None:  # noqa: ANN401
        """Read nothing yet."""
        self._request = request

    def header(self, name: str) -> str | None:
        """Return a header; from ASGI itself, as Django joins cookies by commas."""
        scope = getattr(self._request, "scope", None)
        server = EnvironRequest(self._request.META) if scope is None else ScopeRequest(scope)
        return server.header(name)

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
        """Return path and query."""
        scope = getattr(self._request, "scope", None)
        if scope is None:
            return raw_target(self._request.META)
        return raw_path(scope), self._request.META.get("QUERY_STRING", "")
