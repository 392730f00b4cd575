"""Where every accepted event is, as Redis counts and stores it."""

import json

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import HEADER_BYTES
from tests.system.processes import BATCH

KEYS = ProjectKeys("default")
PLACES = ("scheduled", "waiting", "leased", "delivered", "dead", "erased", "discarded")


def counts(redis):
    raw = redis.hgetall(KEYS.counts)
    return {key.decode(): int(value) for key, value in raw.items()}


def waiting(redis, lane="track"):
    """Return the records that wait in a lane, in order."""
    return redis.lrange(KEYS.lane(lane).waiting, 0, -1)


def waiting_ids(redis):
    return [json.loads(record[HEADER_BYTES:])["event_id"] for record in waiting(redis)]


def account(redis):
    """Return the number of events by place; `leased` and `waiting` also as they are stored."""
    keys, raw = KEYS.lane("track"), counts(redis)
    numbers = {name: raw.get(f"track:{name}", 0) for name in ("accepted", "ambiguous", *PLACES)}
    batches = list(redis.scan_iter("{mm:default}:track:records:*"))
    return {
        **numbers,
        "waiting": redis.llen(keys.waiting),
        "in_batches": sum(redis.llen(key) for key in batches),
        "held_bytes": raw.get("held_bytes", 0),
        "left_behind": redis.zcard(keys.leases) + redis.zcard(keys.claimed) + len(batches),
    }


def assert_balanced(redis):
    """Each accepted event is in one place. Nothing may move meanwhile: this reads repeatedly."""
    numbers = account(redis)

    assert numbers["accepted"] == sum(numbers[place] for place in PLACES), numbers
    assert numbers["leased"] == numbers["in_batches"], numbers
    return numbers


def wait_until_all_is_sent(stack, redis, within_s=60):
    """Wait until no event waits or is leased, and return the balanced account."""

    def is_done():
        numbers = account(redis)
        return not any(numbers[n] for n in ("scheduled", "waiting", "leased", "left_behind"))

    stack.wait(is_done, within_s)
    numbers = assert_balanced(redis)

    assert numbers["held_bytes"] == 0, numbers
    return numbers


def wait_until_delivered(stack, redis, n):
    """Wait until `n` events are with the vendor, repeated no more often than Redis counted."""
    numbers = wait_until_all_is_sent(stack, redis)
    summary = stack.get("summary")

    assert numbers["delivered"] == summary["distinct"] == n
    assert summary["duplicates"] == summary["events"] - n <= BATCH * numbers["ambiguous"]
    return numbers
