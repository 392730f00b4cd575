"""The books of a lane, as Redis has them: where every accepted event is."""

from __future__ import annotations

import json

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import HEADER_BYTES
from tests.system.test_main_job import counts

# Events of a batch where callers go on all the time.
BATCH = 100
# Connecting, one answer, asking for a flush: 2 s at most, and this machine may be busy.
CALL_S = 6

PLACES = ("waiting", "leased", "delivered", "dead", "erased", "discarded")


def books(redis):
    """Return the number of events by place; `leased` and `waiting` also as they are stored."""
    keys, raw = ProjectKeys("default").lane("track"), counts(redis)
    found = {name: raw.get(f"track:{name}", 0) for name in ("accepted", "ambiguous", *PLACES)}
    batches = list(redis.scan_iter("{mm:default}:track:records:*"))
    return {
        **found,
        "waiting": redis.llen(keys.waiting),
        "in_batches": sum(redis.llen(key) for key in batches),
        "held_bytes": raw.get("held_bytes", 0),
        "left_behind": redis.zcard(keys.leases) + redis.zcard(keys.claimed) + len(batches),
    }


def assert_balanced(redis):
    """Nothing may move meanwhile: this reads more than once."""
    found = books(redis)

    assert found["accepted"] == sum(found[place] for place in PLACES), found
    assert found["leased"] == found["in_batches"], found
    return found


def wait_until_all_is_sent(stack, redis, within_s=60):
    """Wait until nothing is waiting or leased, and close the books."""

    def is_done():
        found = books(redis)
        return not (found["waiting"] or found["leased"] or found["left_behind"])

    stack.wait(is_done, within_s)
    found = assert_balanced(redis)

    assert found["held_bytes"] == 0, found
    return found


def assert_all_go_on(stack, caller, processes, redis, safe):
    """After a failover to `redis`: what was safe before and what came later has arrived."""
    caller.wait_for("stored", 2 * BATCH)
    after = caller.said()["stored"][-BATCH:]
    said = caller.end()
    found = wait_until_all_is_sent(stack, redis)
    arrived = set(stack.get("ids"))

    assert all(process.poll() is None for process in processes)
    assert set(safe) | set(after) <= arrived
    assert arrived <= set(said["stored"]) | set(said["maybe"])
    assert found["accepted"] == found["delivered"]
    assert caller.longest_s() < CALL_S


def waiting_ids(redis):
    """Return the event_id of every record that waits, in order."""
    records = redis.lrange(ProjectKeys("default").lane("track").waiting, 0, -1)
    return [json.loads(record[HEADER_BYTES:])["event_id"] for record in records]
