"""The events that the tasks of this process store in a real Redis."""

import base64
import json
from functools import partial

import pytest
from celery import Celery

from mm_tasks import app, install
from mm_tasks.tasks import registry
from mm_tasks.tasks.celery_app import _Owner
from tests.conftest import waiting_events


@pytest.fixture
def stored(redis, redis_url, fresh):
    """Return a function that returns the waiting events of a lane."""
    fresh(MM_TASKS_REDIS_URL=redis_url)
    return partial(waiting_events, redis, "default")


@pytest.fixture
def host(redis_url, stored, fresh):  # noqa: ARG001 - `stored` sets its own variables first
    """A host with settings of its own in most places where ours go; its broker has a prefix."""
    fresh(MM_TASKS_REDIS_URL=redis_url, MILLIMETRIC_KEY="sk_test_abc_x")
    host = Celery("host", set_as_current=False)
    host.conf.update(
        broker_url=redis_url,
        broker_transport_options={"global_keyprefix": "host:", "visibility_timeout": 900},
        result_backend=redis_url,
        task_serializer="pickle",
        accept_content=["pickle", "json"],
        task_routes={"*": {"queue": "slow"}, "host.quick": {"queue": "quick"}},
        beat_schedule={"host-entry": {"task": "host.work", "schedule": 5.0}},
        task_default_rate_limit="1/m",
    )
    yield host
    host.close()
    for kind in map(type, registry.TASKS):
        kind._app = app  # noqa: SLF001 - as at import
    _Owner.app = app
    if app.finalized:
        registry.register(app)


@pytest.fixture
def installed(host):
    install(host)
    return host


@pytest.fixture
def published(redis):
    """Return a function that reads headers, arguments and fields of the messages of a queue."""

    def read(queue):
        messages = []
        for raw in redis.lrange(f"host:{queue}", 0, -1):
            message = json.loads(raw)
            assert message["content-type"] == "application/json"
            body = json.loads(base64.b64decode(message["body"]))
            messages.append((message["headers"], body[0], body[1]))
        return messages

    return read
