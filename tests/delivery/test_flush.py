"""The task `flush` by hand: which lanes it serves, and in what order workers get the messages."""

import ast
import json

import pytest

from mm_tasks import runtime
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.events.encode import encode_track
from mm_tasks.settings import Settings
from mm_tasks.tasks.celery_app import beat_schedule
from mm_tasks.tasks.receipts import entries
from mm_tasks.tasks.worker import flush
from tests.conftest import load_fences

KEYS = ProjectKeys("default")
# As kombu spells the queue of the least urgent messages, which is read last.
QUEUES = {"track": "mm.deliver", "backfill": "mm.deliver\x06\x169"}


@pytest.fixture
def producers(redis, redis_url, fresh, tmp_path):
    """Buffers of a project whose every event is a full batch, at a rate that no test waits for."""
    fresh(
        MM_TASKS_REDIS_URL=redis_url,
        MM_TASKS_STATE_DIR=str(tmp_path),
        MM_TASKS_BATCH_EVENTS_MAX="1",
        MM_TASKS_BATCH_RATE_PER_S="1000",
        MM_TASKS_BATCH_BURST="100",
        MILLIMETRIC_KEY="sk_test_abc_not-a-real-secret",
        MILLIMETRIC_HOST="http://127.0.0.1:1",
    )
    load_fences(redis, "default")
    return runtime.current().producers


def append(producers, *lanes):
    for lane in lanes:
        producers[lane].append(entries([encode_track({"event": "e"})]))


def lanes_sent(redis):
    """Return the lane of each published message, by the lane of its queue."""
    headers = {
        lane: [json.loads(message)["headers"] for message in redis.lrange(queue, 0, -1)]
        for lane, queue in QUEUES.items()
    }
    return {lane: [ast.literal_eval(h["argsrepr"])[0] for h in of] for lane, of in headers.items()}


@pytest.mark.parametrize("lane", ["track", "backfill"])
def test_a_flush_of_either_lane_serves_both_of_the_endpoint(redis, producers, lane):
    """So beats and hosts' schedules of an earlier release serve backfills as well."""
    append(producers, "track", "backfill")
    flush.run(lane)

    assert lanes_sent(redis) == {"track": ["track"], "backfill": ["backfill"]}


@pytest.mark.parametrize(("broken", "served"), [("track", "backfill"), ("backfill", "track")])
def test_a_lane_that_cannot_be_flushed_blocks_no_other(redis, producers, broken, served):
    """Otherwise one broken lane would silently starve the other for ever."""
    redis.set(KEYS.lane(broken).waiting, "not a list")
    append(producers, served)
    flush.run()

    assert lanes_sent(redis)[served] == [served]


def test_beat_has_one_entry_for_each_endpoint():
    """Earlier workers would not know the task of a new entry."""
    args = [entry["args"] for entry in beat_schedule(Settings()).values()]

    assert args == [("track",), ("identify",), ()]
