"""From `track.delay` to the vendor, also with faults of production: all by real processes."""

import json
import time

from redis import Redis

from mm_tasks.monitoring import status
from tests.system.accounting import counts
from tests.system.processes import KEY


def test_a_backlog_arrives_once_in_full_batches_and_draws_no_429(stack, redis):
    stack.sandbox()
    stack.produce_events(10_000)
    workers = [stack.worker(), stack.worker()]
    stack.beat()
    stack.wait_for_events(10_000)
    summary = stack.get("summary")

    assert summary["events"] == summary["distinct"] == 10_000
    assert summary["requests"] == {"/v1/batch 202": 20}
    assert summary["violations"] == {}
    assert summary["over_rate"] == 0
    assert summary["body_bytes_max"] <= 256_000
    stack.wait(lambda: counts(redis)["track:delivered"] == 10_000, 10)
    assert counts(redis)["held_bytes"] == 0
    assert all(KEY not in stack.read(process) for process in workers)
    # A key may expire in between, as a nudge does.
    assert not any(KEY.encode() in (redis.dump(key) or b"") for key in redis.scan_iter())


def test_identifies_arrive_once_each(stack):
    stack.sandbox()
    stack.produce(
        "from mm_tasks import identify\n"
        "for i in range(300): identify.delay(anonymous_id=f'a{i}', user_id=f'u{i}')"
    )
    stack.worker_and_beat()
    stack.wait(lambda: stack.get("summary")["identifies"] >= 300)

    assert stack.get("summary")["requests"] == {"/v1/identify 200": 300}


HOSTILE = r"""
import sys
from mm_tasks import track
track.delay("noted", event_id="hostile", timestamp="2026-01-31T12:00:00+01:00",
            user_id="\u00fc\U0001f600",
            properties={"text": "\u2028\"\\\U0001f600", "max": 2**53 - 1, "min": 1 - 2**53,
                        "small": -1.5e-7, "list": [], "object": {}, "none": None, "true": True})
"""
BODY = (
    '{"events":[{"event":"noted","event_id":"hostile","timestamp":"2026-01-31T11:00:00.000Z",'
    '"user_id":"\u00fc\U0001f600","properties":{"text":"\u2028\\"\\\\\U0001f600",'
    '"max":9007199254740991,"min":-9007199254740991,"small":-1.5e-7,"list":[],"object":{},'
    '"none":null,"true":true}}]}'
)


def test_a_legal_but_hostile_event_arrives_byte_for_byte(stack):
    """No script decodes JSON: Lua would turn the number into 9.007199254741e+15, and [] into {}."""
    stack.sandbox()
    stack.worker_and_beat()
    stack.produce(HOSTILE)
    stack.wait_for_events(1)

    assert stack.get("bodies") == [["/v1/batch", BODY]]


THROUGH_THE_BROKER = """
from celery import chain, group
from mm_tasks import app, identify, track
app.send_task("mm_tasks.track", ("by_name",), {"user_id": "u"})
track.apply_async(("in_a_second",), {"user_id": "u"}, countdown=1)  # stored for later
chain(track.si("first", user_id="u"), track.si("second", user_id="u")).apply_async()
group(track.s("together", user_id="u"), track.s("too", user_id="u")).apply_async()
app.send_task("mm_tasks.identify", kwargs={"anonymous_id": "a", "user_id": "u"})
"""


def test_calls_that_need_the_broker_are_stored_by_a_worker(stack, redis):
    """In a chain, a group, or by the task's name, the event is in the Celery message."""
    stack.sandbox()
    worker, _ = stack.worker_and_beat()
    stack.produce(THROUGH_THE_BROKER)
    stack.wait_for_events(6)
    stack.wait(lambda: stack.get("summary")["identifies"] == 1)
    bodies = [json.loads(body) for _, body in stack.get("bodies")]
    names = {event["event"] for body in bodies for event in body.get("events", [])}

    assert names == {"by_name", "in_a_second", "first", "second", "together", "too"}
    assert counts(redis)["track:accepted"] == 6
    assert "'u'" not in stack.read(worker)


BACKLOG = """
from mm_tasks.events.encode import encode_track
from mm_tasks.events.lanes import BACKFILL
from mm_tasks.tasks.receipts import entries, parts
from mm_tasks.runtime import current
events = [encode_track({"event": "imported", "user_id": f"u{i}"}) for i in range(20_000)]
for part in parts(events):
    current().producers[BACKFILL].append(entries(part))
"""
LIVE = """
import time
from mm_tasks import track
for i in range(3):
    track.delay("signed_up", event_id=f"live-{i}", user_id="u")
    time.sleep(1)
"""


def test_live_events_overtake_a_backlog(stack, redis):
    """A hundred batches wait: 20 s at the permitted rate. `scripts/bench` measures the delay."""
    stack.env["MM_TASKS_BATCH_EVENTS_MAX"] = "200"
    stack.sandbox()
    stack.produce(BACKLOG)
    stack.worker_and_beat()
    stack.wait_for_batches(5)
    stack.produce(LIVE)
    stack.wait(lambda: sum(str(id_).startswith("live-") for id_ in stack.get("ids")) == 3)
    counts = status.read(redis, "default")["counts"]
    summary = stack.get("summary")

    assert counts["waiting"] > 0
    assert counts["accepted"] == 20_003
    assert counts["accepted"] == sum(counts[place] for place in ("waiting", "leased", "delivered"))
    assert (summary["duplicates"], summary["over_rate"], summary["throttled"]) == (0, 0, 0)


# Faults of production.


def test_a_broker_emptied_again_and_again_loses_and_repeats_nothing(stack, redis, redis_url):
    """A Celery message is a nudge, never the data."""
    stack.env["MM_TASKS_BROKER_URL"] = redis_url.replace("/0", "/1")
    broker = Redis.from_url(stack.env["MM_TASKS_BROKER_URL"])
    stack.sandbox()
    stack.worker_and_beat()
    stack.produce_events(10_000)
    for _ in range(40):
        broker.flushdb()
        time.sleep(0.1)
    stack.wait_for_events(10_000)
    broker.close()

    assert stack.get("summary")["duplicates"] == 0
    stack.wait(lambda: counts(redis)["track:delivered"] == 10_000, 10)


def test_poison_events_are_set_aside_in_few_requests_and_their_neighbours_arrive(stack, redis):
    """The vendor refuses events that our models accept: three, in three batches of six."""
    waiting = "{mm:default}:track:waiting"
    stack.sandbox()
    stack.produce_events(2_997)
    for place in (10, 1_499, 2_990):
        poison = b"1" + b"0" * 13 + bytes(32) + b'{"event":7}'
        redis.linsert(waiting, "AFTER", redis.lindex(waiting, place), poison)
        redis.hincrby("{mm:default}:counts", "track:accepted", 1)
    stack.worker_and_beat()
    stack.wait_for_events(2_997)
    stack.wait(lambda: counts(redis).get("track:dead") == 3)
    stack.wait(lambda: counts(redis)["track:delivered"] == 2_997)
    summary = stack.get("summary")

    assert summary["duplicates"] == 0
    assert sum(summary["requests"].values()) < 60
    assert all(text.endswith(b'{"event":7}') for text in redis.hvals("{mm:default}:dead"))


def test_a_revoked_key_pauses_the_project_and_a_probe_resumes_it(stack, redis):
    stack.env["MM_TASKS_PROBE_INTERVAL_S"] = "3"
    stack.sandbox()
    body = '{"error":"invalid_api_key"}'
    stack.fault({"kind": "status", "status": 401, "body": body, "times": 1000})
    stack.produce_events(5_000)
    stack.worker_and_beat()
    pause = "{mm:default}:pause"
    stack.wait(lambda: redis.hget(pause, "kind") == b"unauthorized")
    time.sleep(4)
    refused = len(stack.get("requests"))
    stack.fault()
    stack.wait_for_events(5_000)

    assert refused <= 4 + 2
    assert not redis.exists(pause)
    assert stack.get("summary")["duplicates"] == 0


def test_requests_without_an_answer_are_counted_and_repeated(stack, redis):
    stack.env.update(MM_TASKS_REQUEST_TIMEOUT_S="2", MM_TASKS_LEASE_S="8")
    stack.sandbox()
    stack.fault({"kind": "cut_body", "store": True}, {"kind": "hang", "store": False, "for_s": 4})
    stack.produce_events(3_000)
    stack.worker_and_beat()
    stack.wait_for_events(3_000)
    stack.wait(lambda: counts(redis)["track:delivered"] == 3_000)

    assert counts(redis)["track:ambiguous"] == 2
    assert stack.get("summary")["duplicates"] == 500
