"""A visit lasts through streams and background work, and ends before the next request."""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import flask
import pytest
from fastapi import BackgroundTasks, FastAPI
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import StreamingResponse

from mm_tasks import context, track
from mm_tasks.contrib import asgi, wsgi
from mm_tasks.contrib.fastapi import add_visits
from mm_tasks.contrib.flask import MMTasks
from tests.conftest import waiting_events as stored
from tests.contrib.conftest import dropped_fields

pytestmark = pytest.mark.usefixtures("here")

AFTER = ("after", None)


def note(name):
    track.delay(name, event_id=name)


def noted(redis):
    return [(event["event_id"], event.get("anonymous_id")) for event in stored(redis)]


def environ(path="/a", aid="u"):
    request = {"PATH_INFO": path, "HTTP_HOST": "h", "HTTP_COOKIE": f"aid={aid}", "SCRIPT_NAME": ""}
    request["QUERY_STRING"] = ""  # the validator warns where it is missing
    setup_testing_defaults(request)
    return request | {"wsgi.errors": io.StringIO()}


def wsgi_headers(app, request, **options):
    """Serve one request to its end, with wsgiref's validator; return the response's headers."""
    seen = []
    checked = validator(wsgi.VisitMiddleware(validator(app), **options))
    body = checked(request, lambda _status, headers, _info=None: seen.extend(headers))
    list(body)
    body.close()
    return dict(seen)


def page(*names, body=b"x"):
    """Return an application that tracks events and then responds."""

    def app(_environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        for name in names:
            note(name)
        return [body]

    return app


class Streamed:
    """A response that tracks in every step."""

    def __init__(self):
        self.parts = iter(["first", "second"])

    def __iter__(self):
        return self

    def __next__(self):
        name = next(self.parts)
        note(name)
        return name.encode()

    def close(self):
        note("close")


def streaming(*request):
    page("call")(*request)
    return Streamed()


def flask_app():
    app = flask.Flask("a")
    MMTasks().init_app(app)
    return app


def test_wsgi_keeps_the_visit_until_the_response_is_closed(redis):
    wsgi_headers(streaming, environ())
    note("after")
    assert noted(redis) == [*((name, "u") for name in ("call", "first", "second", "close")), AFTER]


def test_wsgi_ends_the_visit_even_if_the_server_does_not_close_the_response(redis):
    """A context that a stream began does not leave the stream either."""

    def stream(_environ, start_response):
        start_response("200 OK", [])
        with context(anonymous_id="inner"):
            yield b"1"
            note("later step")
            yield b"2"

    body = wsgi.VisitMiddleware(stream)(environ(), lambda *_: None)
    steps = iter(body)
    next(steps)
    note("between")
    next(steps)
    note("after")

    assert noted(redis) == [("between", None), ("later step", "inner"), AFTER]


def test_wsgi_ends_the_visit_if_the_application_raises(redis):
    def failing(_environ, _start_response):
        note("call")
        raise LookupError

    with pytest.raises(LookupError):
        wsgi.VisitMiddleware(failing)(environ(), lambda *_: None)
    note("after")

    assert noted(redis) == [("call", "u"), AFTER]


def test_wsgi_adds_no_fields_for_a_skipped_path(redis):
    """Fields of the context around it belong to another request."""
    with context(anonymous_id="before"):
        headers = wsgi_headers(streaming, environ("/healthz"), issue_cookie=True)

    assert noted(redis) == [(name, None) for name in ("call", "first", "second", "close")]
    assert "Set-Cookie" not in headers


def test_wsgi_issues_a_cookie_with_the_id_of_the_event(redis):
    headers = wsgi_headers(page("plain"), environ(aid=""), issue_cookie=True)
    [(_, issued)] = noted(redis)
    assert headers["Set-Cookie"].startswith(f"aid={issued}; Max-Age=")


def test_wsgi_does_not_wrap_a_file_that_the_server_sends_by_itself():
    class FileWrapper:
        def __init__(self, file):
            self.file = file

    app = wsgi.VisitMiddleware(lambda environ, _: environ["wsgi.file_wrapper"](io.BytesIO()))
    request = {**environ(), "wsgi.file_wrapper": FileWrapper}

    assert isinstance(app(request, lambda *_: None), FileWrapper)


def test_arguments_of_the_call_win(redis):
    def app(*request):
        track.delay("e", anonymous_id="own", path=None)
        return page()(*request)

    wsgi_headers(app, environ())

    [event] = stored(redis)
    assert event["anonymous_id"] == "own"
    assert "path" not in event
    assert event["url"] == "http://h/a"


def test_flask_responds_and_counts_dropped_fields(redis):
    app = flask_app()
    MMTasks(app)
    app.get("/")(lambda: note("seen") or "answered")
    answer = app.test_client().get("/", headers={"Referer": "x" * 2049, "Host": "a b"})
    note("after")

    assert answer.text == "answered"
    assert [event.get("path") for event in stored(redis)] == ["/", None]
    assert dropped_fields(redis) == 2


def test_flask_streams_with_its_own_context_in_a_test_client(redis):
    """Flask begins its context in the call and ends it in the last step of the stream."""
    app = flask_app()

    def parts():
        note(flask.request.path)
        yield b"x"

    app.get("/a")(lambda: flask.stream_with_context(parts()))
    with app.test_client() as client:
        client.set_cookie("aid", "u")
        assert client.get("/a").text == "x"
        note("after")
        assert flask.request.path == "/a"

    assert noted(redis) == [("/a", "u"), AFTER]


def scope(path="/a", cookies=(b"aid=u",), kind="http", **more):
    headers = [(b"host", b"h"), *((b"cookie", value) for value in cookies)]
    described = {"type": kind, "scheme": "http", "path": path, "raw_path": path.encode()}
    return {**described, "query_string": b"", "headers": headers, **more}


async def serve(app, request, **options):
    """Serve one request; return the sent messages."""
    sent = []

    async def send(message):
        sent.append(message)

    await asgi.VisitMiddleware(app, **options)(request, None, send)
    return sent


def served(app, request, **options):
    """Serve one request on a loop and track an event after it; return the sent messages."""

    async def main():
        sent = await serve(app, request, **options)
        note("after")
        return sent

    return asyncio.run(main())


async def seen(*_):
    note("seen")


async def answering(_scope, _receive, send):
    await track.adelay("call", event_id="call")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await asyncio.create_task(track.adelay("task", event_id="task"))
    await asyncio.to_thread(note, "thread")
    await send({"type": "http.response.body", "body": b""})
    note("background")


@pytest.mark.parametrize("cookies", [(b"aid=u",), (b"x=y", b"aid=u")], ids=["one", "two headers"])
def test_asgi_keeps_the_visit_until_the_application_returns(redis, cookies):
    assert len(served(answering, scope(cookies=cookies))) == 2
    names = ("call", "task", "thread", "background")
    assert noted(redis) == [*((name, "u") for name in names), AFTER]


def test_asgi_ends_the_visit_if_the_application_raises(redis):
    async def failing(*_):
        raise LookupError

    async def main():
        with pytest.raises(LookupError):
            await serve(failing, scope())
        note("after")

    asyncio.run(main())
    assert noted(redis) == [AFTER]


def test_asgi_separates_concurrent_requests(redis):
    async def slow(scope, _receive, _send):
        await asyncio.sleep(0)
        track.delay(scope["path"])

    async def main():
        requests = (scope(f"/{n}", (b"aid=u%d" % n,)) for n in range(50))
        await asyncio.gather(*(serve(slow, request) for request in requests))

    asyncio.run(main())
    ids = {event["event"]: event["anonymous_id"] for event in stored(redis)}
    assert ids == {f"/{n}": f"u{n}" for n in range(50)}


@pytest.mark.parametrize("depth", [1, 2], ids=["alone", "nested"])
def test_asgi_issues_a_cookie_with_the_id_of_the_event(redis, depth):
    """Nested ones issue the same id: another would belong to a visitor who never returns."""

    async def nested(*request):
        note("outer")
        await asgi.VisitMiddleware(answering, issue_cookie=True)(*request)

    app = nested if depth == 2 else answering
    first, second = asyncio.run(serve(app, scope(cookies=()), issue_cookie=True))
    [issued] = {aid for _, aid in noted(redis)}
    [cookie] = [value for name, value in first["headers"] if name == b"set-cookie"]

    assert first["headers"][0] == (b"a", b"b")
    assert cookie.startswith(f"aid={issued}; ".encode())
    assert "headers" not in second


@pytest.mark.parametrize(
    "other", [scope("/healthz"), scope(kind="websocket")], ids=["skipped", "websocket"]
)
def test_asgi_adds_no_fields_for_skipped_paths_and_websockets(redis, other):
    """Nor fields around it: a server may begin a request in the context of the previous one."""
    with context(anonymous_id="before"):
        asyncio.run(serve(seen, other, issue_cookie=True))
    assert noted(redis) == [("seen", None)]


def test_asgi_lets_a_request_be_closed_in_another_context(redis):
    """A loop that ends closes waiting coroutines outside the context of the request."""

    async def waiting(*_):
        note("call")
        await asyncio.sleep(3600)

    serving = serve(waiting, scope())
    copy_context().run(asyncio.run, started(serving))
    serving.close()
    note("after")

    assert noted(redis) == [("call", "u"), AFTER]


async def started(coroutine):
    """Run a coroutine up to its first wait."""
    coroutine.send(None)


def test_asgi_counts_dropped_fields_without_blocking_the_loop(redis):
    """`asyncio.run` waits for the thread that counts."""
    asyncio.run(serve(seen, scope(cookies=(b"aid=" + b"x" * 129,))))
    assert noted(redis) == [("seen", None)]
    assert dropped_fields(redis) == 1


def test_starlettes_own_middleware_streams_and_background_tasks_keep_the_visit(redis):
    app = FastAPI()
    app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, go_on: go_on(request))
    add_visits(app)
    app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, go_on: go_on(request))

    def parts():
        note("stream")
        yield b"x"

    def page(tasks: BackgroundTasks):
        note("call")
        tasks.add_task(note, "background")
        return StreamingResponse(parts(), background=tasks)

    app.get("/a")(page)

    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        if not messages:
            await asyncio.Event().wait()  # the client stays
        return messages.pop()

    async def send(_message): ...

    async def main():
        await app(scope(method="GET", http_version="1.1"), receive, send)
        note("after")

    asyncio.run(main())
    assert noted(redis) == [("call", "u"), ("stream", "u"), ("background", "u"), AFTER]


def test_threads_that_serve_several_requests_do_not_mix_their_visits(redis):
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: wsgi_headers(page(f"e{n}"), environ(aid=f"u{n}")), range(100)))

    assert sorted(noted(redis)) == sorted((f"e{n}", f"u{n}") for n in range(100))
