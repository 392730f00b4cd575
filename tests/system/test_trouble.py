"""Faults of production: a broker that is emptied, poison events, a revoked key, lost answers."""

import time

from redis import Redis

from tests.system.accounting import counts


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
    stack.fault(
        {"kind": "status", "status": 401, "body": '{"error":"invalid_api_key"}', "times": 1000}
    )
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
