"""The examples on real servers, and the events that middlewares store in a real Redis."""

import http.client
import re
import shutil
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mm_tasks.monitoring import status
from tests.system.processes import Stack

EXAMPLES = Path(__file__).parents[2] / "examples"
GUNICORN = ("gunicorn", "--preload", "-w", "2", "-b", "127.0.0.1:0", "--no-control-socket")
_STARTED = re.compile(r"(?:Listening at:|running on) (http://\S+)")


@pytest.fixture
def stack(redis, redis_url, tmp_path):  # noqa: ARG001 - `redis` empties the server
    stack = Stack(redis_url, tmp_path)
    stack.env.update(PYTHONPATH=str(EXAMPLES), SHOP_DATABASE=str(tmp_path / "shop.sqlite3"))
    yield stack
    stack.end()


@pytest.fixture
def here(redis, redis_url, fresh):  # noqa: ARG001 - `redis` empties the server
    """Let this process store in this Redis."""
    fresh(MM_TASKS_REDIS_URL=redis_url)


@pytest.fixture
def copied(stack):
    """Copy the Django project to a writable folder, where programs are started."""
    return lambda: shutil.copytree(EXAMPLES / "django_app", stack.log_dir, dirs_exist_ok=True)


@pytest.fixture
def migrated(stack, copied):
    """Copy the Django project and create its database."""

    def migrate():
        copied()
        manage = stack.start("manage", "manage", "migrate", "--run-syncdb", "-v", "0")
        assert manage.wait(30) == 0, stack.read(manage)

    return migrate


@pytest.fixture
def serve(stack):
    """Start a server of an example, with two workers if it is gunicorn."""

    def start(kind, app, **env):
        args = GUNICORN if kind == "gunicorn" else ("uvicorn", "--port", "0", "--no-access-log")
        server = stack.start(kind, *args, app, **env)
        stack.wait(lambda: _STARTED.search(stack.read(server)) or server.poll() is not None, 30)
        match = _STARTED.search(stack.read(server))
        assert match, stack.read(server)
        server.address = urlsplit(match[1]).netloc
        return server

    return start


def get(address, target, headers=()):
    """Send one request on a new connection; return status, headers and body."""
    with closing(http.client.HTTPConnection(address, timeout=20)) as connection:
        connection.request("GET", target, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def dropped_fields(redis, project="default"):
    return status.read(redis, project)["left_out"]
