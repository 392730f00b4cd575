"""Compare trivial applications with and without a middleware, side by side in one run.

What a request that tracks nothing pays, in microseconds. Exits 1 when a promise is broken.
"""

from __future__ import annotations

import sys
import time

import django
from bench_report import report
from django.conf import settings
from django.http import HttpResponse
from django.test import RequestFactory

from mm_tasks.contrib import asgi, wsgi

ROUNDS = 100
CALLS = 100
COST_US_MAX = 15
HEADERS = {
    "host": "shop.example",
    "referer": "https://search.example/",
    "cookie": "theme=dark; sid=0123456789abcdef",
    "user-agent": "a browser",
}


def wsgi_call(app):  # noqa: ANN001, ANN201
    """Return what serves one request to its end, as a server would."""
    environ = {
        "PATH_INFO": "/pricing",
        "SCRIPT_NAME": "",
        "RAW_URI": "/pricing?utm_source=x",
        "QUERY_STRING": "utm_source=x",
        "wsgi.url_scheme": "https",
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in HEADERS.items()},
    }

    def call() -> None:
        body = app(environ, lambda *_: None)
        for _ in body:
            pass
        if hasattr(body, "close"):
            body.close()

    return call


def asgi_call(app):  # noqa: ANN001, ANN201
    """Return what serves one request, without a loop: the trivial application waits for nothing."""
    headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    scope = {
        "type": "http",
        "scheme": "https",
        "path": "/pricing",
        "raw_path": b"/pricing",
        "query_string": b"utm_source=x",
        "headers": headers,
    }

    async def send(_: object) -> None:
        return

    def call() -> None:
        try:
            app(scope, None, send).send(None)
        except StopIteration:
            return

    return call


class Streamed:
    """A body whose every step the middleware has to enter."""

    def __iter__(self):  # noqa: ANN204
        """Return two parts."""
        return iter((b"a", b"b"))

    def close(self) -> None:
        """End."""


def wsgi_app(_: object, start_response):  # noqa: ANN001, ANN201
    """Answer as frameworks do, with an object that is closed."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return Streamed()


async def asgi_app(_: object, __: object, send) -> None:  # noqa: ANN001
    """Answer."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


def django_calls() -> tuple[object, object]:
    """Return a view by itself, and behind the middleware."""
    settings.configure(ALLOWED_HOSTS=["shop.example"], INSTALLED_APPS=["mm_tasks.contrib.django"])
    django.setup()
    from mm_tasks.contrib.django.middleware import VisitMiddleware

    request = RequestFactory().get("/pricing?utm_source=x", headers=HEADERS)
    response = HttpResponse(b"x")

    def view(_: object) -> HttpResponse:
        return response

    wrapped = VisitMiddleware(view)
    return (lambda: view(request)), (lambda: wrapped(request))


def cost_us(without, with_it) -> float:  # noqa: ANN001
    """Return what one call costs more: of each the best round, which nobody else disturbed."""
    rounds = [(timed_us(without), timed_us(with_it)) for _ in range(ROUNDS)]
    bare, wrapped = (min(column) for column in zip(*rounds, strict=True))
    return wrapped - bare


def timed_us(call) -> float:  # noqa: ANN001
    """Return the microseconds of one call."""
    began = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - began) * 1e6 / CALLS


def main() -> int:
    """Measure, print, compare."""
    issue = {"issue_cookie": True}
    pairs = {
        "WSGI": (wsgi_call(wsgi_app), wsgi_call(wsgi.VisitMiddleware(wsgi_app))),
        "ASGI": (asgi_call(asgi_app), asgi_call(asgi.VisitMiddleware(asgi_app))),
        "Django": django_calls(),
        "WSGI, issuing": (
            wsgi_call(wsgi_app),
            wsgi_call(wsgi.VisitMiddleware(wsgi_app, **issue)),
        ),
        "ASGI, issuing": (
            asgi_call(asgi_app),
            asgi_call(asgi.VisitMiddleware(asgi_app, **issue)),
        ),
    }
    kept = [
        report(f"{name}: microseconds a request", cost_us(*pair), "<=", COST_US_MAX)
        for name, pair in pairs.items()
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
