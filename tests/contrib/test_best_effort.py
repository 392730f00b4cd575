"""The option `best_effort` of each middleware: without Redis no page fails, and orders still do.

Django's is tested in `test_django`.
"""

import asyncio
import io
import json

import flask
import pytest
from fastapi import FastAPI

import mm_tasks
from mm_tasks import track
from mm_tasks.contrib import asgi, wsgi
from mm_tasks.contrib.fastapi import add_visits
from mm_tasks.contrib.flask import MMTasks
from mm_tasks.errors import BufferUnavailable
from tests.contrib.test_middleware import environ


@pytest.fixture(autouse=True)
def _away(fresh):
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")


def seen():
    """Track an event as a page view does; return why it was dropped."""
    return track.delay("seen").reason


def of_wsgi(**options):
    def app(_environ, start_response):
        start_response("200 OK", [])

        def steps():
            yield seen().encode()
            yield seen().encode()

        return steps()

    served = wsgi.VisitMiddleware(app, **options)
    return list(served(environ(), lambda *_: io.BytesIO().write))


def of_asgi(kind):
    def serve(**options):
        told = []

        async def app(_scope, _receive, _send):
            told.append((await track.adelay("seen")).reason)
            told.append(await asyncio.to_thread(seen))

        scope = {"type": kind, "path": "/", "headers": []}
        asyncio.run(asgi.VisitMiddleware(app, **options)(scope, None, None))
        return told

    return serve


def of_flask(**options):
    app = flask.Flask(__name__)
    app.testing = True
    app.add_url_rule("/", view_func=seen)
    MMTasks(app, **options)
    return [app.test_client().get("/").text]


def of_fastapi(**options):
    app = FastAPI()
    app.get("/")(seen)
    add_visits(app, **options)
    sent = []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    asyncio.run(app(scope, receive, send))
    return [json.loads(sent[1]["body"])]


SERVERS = {
    "WSGI": of_wsgi,
    "ASGI": of_asgi("http"),
    "a WebSocket": of_asgi("websocket"),
    "Flask": of_flask,
    "FastAPI": of_fastapi,
}


@pytest.mark.parametrize("serve", SERVERS.values(), ids=SERVERS)
def test_with_the_option_no_event_of_a_request_raises(serve):
    told = [part.decode() if isinstance(part, bytes) else part for part in serve(best_effort=True)]

    assert set(told) == {"unavailable"}
    # The choice ends with the request.
    with pytest.raises(BufferUnavailable):
        track.delay("after")


@pytest.mark.parametrize("serve", SERVERS.values(), ids=SERVERS)
def test_without_the_option_they_raise(serve):
    with pytest.raises(BufferUnavailable):
        serve()


def test_a_view_may_let_its_order_raise():
    def app(_environ, _start_response):
        assert not track.delay("page_viewed").accepted
        with mm_tasks.best_effort(enabled=False):
            track.delay("order_placed")

    with pytest.raises(BufferUnavailable):
        wsgi.VisitMiddleware(app, best_effort=True)(environ(), None)
