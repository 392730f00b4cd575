"""The public calls, on a real Redis, without a worker."""

import asyncio
import json
import os
import subprocess
import sys

import pytest
from kombu import Connection

from mm_tasks import Receipt, app, identify, track
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import tag
from mm_tasks.errors import BufferFull, InvalidEvent


@pytest.mark.parametrize(
    "call",
    [
        lambda: track.delay(event="e", event_id="i"),
        lambda: track.apply_async(("e",), {"event_id": "i"}),
        lambda: track.s("e", event_id="i").delay(),
        lambda: track.s("e", event_id="i").apply_async(),
        lambda: track.run("e", event_id="i"),
    ],
    ids=["delay", "apply_async", "signature delay", "signature apply_async", "run in a worker"],
)
def test_every_plain_call_stores_the_same_event_before_it_returns(stored, call):
    receipt = call()
    assert [(event["event"], event["event_id"]) for event in stored()] == [("e", "i")]
    assert receipt is None or (type(receipt), receipt.id, receipt.accepted) == (Receipt, "i", True)


@pytest.mark.parametrize(
    "call",
    [
        track.delay,
        lambda: track.delay("e", "f"),
        lambda: track.delay("e", event="f"),
        lambda: track.delay("e", self="x"),
        lambda: track.delay("e", args=1, kwargs=2),
        identify.delay,
        lambda: identify.delay("a", "u", {}, 1),
        lambda: asyncio.run(track.adelay()),
        lambda: asyncio.run(track.adelay("e", usr_id="u")),
        lambda: asyncio.run(identify.adelay(user_id="u")),
        lambda: asyncio.run(track.adelay_many([{"event": 1}])),
    ],
)
def test_an_invalid_call_raises_invalid_event_and_not_type_error(stored, call):
    with pytest.raises(InvalidEvent):
        call()
    assert stored() == []


def test_delay_many_stores_nothing_if_an_item_is_invalid_unless_it_skips_it(stored):
    items = [{"event": "a"}, {"event": 1}, {"event": "b"}]
    with pytest.raises(InvalidEvent) as caught:
        track.delay_many([*items, "c"])
    assert [problem.index for problem in caught.value.problems] == [1, 3]
    assert stored() == []
    receipts = track.delay_many(items, on_error="skip")

    assert [receipt.accepted for receipt in receipts] == [True, False, True]
    assert receipts[1].error.problems[0].index == 1
    assert [event["event"] for event in stored()] == ["a", "b"]


def test_delay_many_keeps_order_over_several_scripts(stored):
    track.delay_many({"event": "e", "properties": {"n": n}} for n in range(2_500))
    assert [event["properties"]["n"] for event in stored()] == list(range(2_500))


@pytest.mark.parametrize("call", [track.delay, lambda *a, **k: asyncio.run(track.adelay(*a, **k))])
def test_an_event_of_a_suppressed_person_is_not_accepted(redis, stored, call):
    redis.sadd(ProjectKeys("default").fence, tag("default", "user", "gone"))
    assert not call("e", user_id="gone").accepted
    assert stored() == []


@pytest.mark.parametrize("call", [track.delay_many, lambda i: asyncio.run(track.adelay_many(i))])
def test_a_full_buffer_reports_the_number_of_stored_events(stored, fresh, call):
    fresh(MM_TASKS_BUFFER_BYTES_MAX="150000")
    with pytest.raises(BufferFull) as caught:
        call({"event": "e"} for _ in range(3_000))

    assert caught.value.stored == len(stored()) == 1_000 * (len(stored()) // 1_000)


def test_with_a_countdown_the_message_is_redacted(redis, redis_url, stored):
    with Connection(redis_url) as broker:
        track.apply_async(("e",), {"user_id": "s3cret"}, countdown=60, connection=broker)
    (message,) = redis.lrange("mm.deliver", 0, -1)
    headers = json.loads(message)["headers"]

    assert "s3cret" not in headers["argsrepr"] + headers["kwargsrepr"]
    assert stored() == []


def test_our_tasks_belong_to_our_app():
    assert track.app is app
    assert {"mm_tasks.track", "mm_tasks.identify", "mm_tasks.flush"} <= app.tasks.keys()


@pytest.mark.parametrize("module", ["mm_tasks", "mm_tasks.tasks.celery_app"])
def test_a_worker_that_starts_from_either_module_knows_all_tasks(module):
    """The package that `-A` names imports its modules only at their first use."""
    program = (
        "from celery.app.utils import find_app\n"
        f"app = find_app('{module}')\n"
        "app.loader.import_default_modules()\n"
        "print(len([name for name in app.tasks if name.startswith('mm_tasks.')]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert int(done.stdout) == 7


FIRST_CALLS = ("track.delay('e')", "identify.delay('a', 'u')", "forget.delay('u', 'dpo')")


@pytest.mark.parametrize("call", [*FIRST_CALLS, "asyncio.run(track.adelay('e'))"])
def test_a_call_may_be_the_first_use_of_the_tasks_in_a_process(redis_url, tmp_path, call):
    """Celery has not bound the task to its app then, so the task has no `request`."""
    program = f"import asyncio\nfrom mm_tasks import forget, identify, track\n{call}"
    env = {"MM_TASKS_REDIS_URL": redis_url, "MM_TASKS_STATE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env={**os.environ, **env}, check=True)
