"""Each example on its real server: what requests say of themselves is in their events."""

import contextlib
import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import waiting_events as stored
from tests.contrib.conftest import get

SERVERS = {
    "Flask on gunicorn": ("gunicorn", "flask_app:app", "default"),
    "FastAPI on uvicorn": ("uvicorn", "fastapi_app:app", "default"),
    "Django on gunicorn": ("gunicorn", "shop.wsgi:application", "shop"),
}


def ask(address, n):
    """Ask as a visitor of their own; return what their event must say."""
    target = f"/pricing?utm_source=s{n}&q=%C3%A4%20{n}&empty="
    url, referrer = f"http://{address}{target}", f"https://search.example/?q={n}"
    headers = {"Referer": referrer, "Cookie": f"theme=dark; aid=visitor-{n}; aid2=no"}
    status, _, body = get(address, target, headers)
    assert status == 200
    visit = {"url": url, "path": "/pricing", "referrer": referrer, "anonymous_id": f"visitor-{n}"}
    return json.loads(body)["id"], visit


@pytest.mark.parametrize("example", SERVERS.values(), ids=SERVERS.keys())
def test_1000_requests_by_8_clients_store_1000_correct_events(stack, copied, serve, redis, example):
    """The fields of one visitor never appear in events of another, in any process or thread."""
    kind, app, project = example
    copied()
    server = serve(kind, app)
    with ThreadPoolExecutor(8) as clients:
        expected = dict(clients.map(lambda n: ask(server.address, n), range(1000)))

    events = {event["event_id"]: event for event in stored(redis, project)}
    assert len(expected) == 1000
    assert events.keys() == expected.keys()
    assert all(expected[key].items() <= event.items() for key, event in events.items())

    assert_a_sigterm_loses_nothing(server, redis, project)
    assert "Traceback" not in stack.read(server)


def assert_a_sigterm_loses_nothing(server, redis, project):
    """Every request that is answered while the server is told to end has its event."""
    answered, enough = [], threading.Event()

    def go_on():
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                answered.append(ask(server.address, len(answered))[0])
                if len(answered) > 100:
                    enough.set()

    clients = [threading.Thread(target=go_on) for _ in range(8)]
    for client in clients:
        client.start()
    assert enough.wait(20)
    server.terminate()
    for client in clients:
        client.join(20)
    server.wait(20)

    assert len(answered) > 100
    assert set(answered) <= {event["event_id"] for event in stored(redis, project)}


def test_a_django_view_stores_an_event_at_a_commit_and_none_at_a_rollback(migrated, serve, redis):
    migrated()
    address = serve("gunicorn", "shop.wsgi:application").address
    headers = {"Cookie": "aid=buyer"}
    failed = [json.loads(get(address, "/buy?fail=1", headers)[2]) for _ in range(3)]
    bought = [json.loads(get(address, "/buy", headers)[2]) for _ in range(3)]

    assert [answer["orders"] for answer in failed] == [0, 0, 0]
    assert [answer["orders"] for answer in bought] == [1, 2, 3]
    events = stored(redis, "shop")
    assert [event["event_id"] for event in events] == [answer["id"] for answer in bought]
    assert {(event["path"], event["anonymous_id"]) for event in events} == {("/buy", "buyer")}


def test_django_on_uvicorn_keeps_the_visit_in_async_views_and_in_streams(migrated, serve, redis):
    migrated()
    address = serve("uvicorn", "shop.asgi:application").address
    targets = ["/apricing?n=%2F", "/pricing?n=1", "/export?n=2", "/healthz"]
    headers = {"Cookie": "aid=a", "Referer": "https://r.example/"}
    assert [get(address, target, headers)[0] for target in targets] == [200] * 4

    events = stored(redis, "shop")
    assert [event["url"] for event in events] == [f"http://{address}{t}" for t in targets[:3]]
    assert {event["anonymous_id"] for event in events} == {"a"}


def test_the_command_of_manage_py_reads_djangos_settings(stack, copied):
    """The project's name is in no variable of the environment."""
    copied()
    command = stack.start("manage", "manage", "mm_tasks", "status", "--json")

    assert command.wait(30) == 0, stack.read(command)
    assert json.loads(stack.read(command))["project"] == "shop"


def test_a_worker_started_by_djangos_app_reads_djangos_settings(stack, copied):
    copied()
    stack.env.update(DJANGO_SETTINGS_MODULE="shop.settings", PYTHONPATH=str(stack.log_dir))
    printed = stack.produce(
        "from celery.app.utils import find_app\n"
        "from mm_tasks import app, runtime\n"
        "assert find_app('mm_tasks.contrib.django') is app\n"
        "print(runtime.current().settings.project)"
    )

    assert printed.split() == ["shop"]


def test_importing_a_middleware_imports_no_framework(stack):
    printed = stack.produce("import sys, mm_tasks, mm_tasks.contrib.asgi; print(*sys.modules)")
    assert not {"django", "flask", "fastapi", "starlette", "asgiref"} & set(printed.split())
