"""Helpers of the tests of the buffer: both sides of a lane, and the check that counts add up."""

import hashlib
import json
from collections import Counter
from contextlib import contextmanager

from mm_tasks.buffer.batches import Admitted, Batches
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import Producer
from mm_tasks.buffer.records import HEADER_BYTES, STAMP_BYTES
from mm_tasks.buffer.refusals import Refusals
from mm_tasks.buffer.scripts import Script
from mm_tasks.events.lanes import LANES
from tests.conftest import patient_client

# Before each scheduled record: see `keys`.
SERIAL_BYTES = 16

PLACES = ("scheduled", "leased", "delivered", "dead", "erased", "discarded")


class LaneBuffer(Batches):
    """The batches of a lane and its producer's `append`, with defaults for most arguments."""

    def __init__(self, redis, project, lane, limits, *, held_bytes_max=1 << 30, **more):
        super().__init__(redis, project, lane, limits)
        self._client = patient_client(redis)
        self.producer = Producer(
            self._client,
            Refusals(project),
            *(project, lane, limits),
            held_bytes_max=held_bytes_max,
            **more,
        )
        self.append = self.producer.append
        self.schedule = self.producer.schedule

    def close(self):
        """Leave no connection of the producer to the garbage collector."""
        self._client.close()

    def claim(self, *, slot_us=None, found_again_ms=5000, linger=True):
        return super().claim(slot_us=slot_us, found_again_ms=found_again_ms, linger=linger)

    def begin(self, batch_id, *, slot="none", slot_valid_ms=2000, lease_ms=60_000):
        return super().begin(batch_id, slot=slot, slot_valid_ms=slot_valid_ms, lease_ms=lease_ms)

    def take_over(self, batch_id, *, lease_ms=60_000):
        return super().take_over(batch_id, lease_ms=lease_ms)

    def ack(self, batch_id, attempt, *, token="", exchange=None, **more):
        return super().ack(batch_id, _attempt(attempt, token, exchange), **more)

    def release(self, batch_id, attempt, *, wait_ms=0, grace_ms=0, exchange=None, **more):
        attempt = _attempt(0, attempt, exchange) if attempt else None
        return super().release(batch_id, attempt, wait_ms=wait_ms, grace_ms=grace_ms, **more)

    def bisect(self, batch_id, attempt, *, why="{}", isolation_max=0, exchange=None):
        attempt = _attempt(0, attempt, exchange)
        return super().bisect(batch_id, attempt, why=why, isolation_max=isolation_max)

    def bisect_filtered(self, batch_id, attempt, *, why, is_probe=False, exchange=None):
        paused = "filtered" if is_probe else ""
        attempt = _attempt(0, attempt, exchange, paused=paused)
        return super().bisect_filtered(batch_id, attempt, why=why)

    def bury(self, batch_id, attempt, *, why="{}", outcome="rejected", exchange=None, **more):
        attempt = _attempt(0, attempt, exchange)
        return super().bury(batch_id, attempt, why=why, outcome=outcome, **more)


def claim_in_parts(records_max):
    """Return the script of a claim that stops after so many records."""
    script, bound = Script("batch_claim"), "RECORDS_MAX, BYTES_MAX = 2000,"
    assert script.text.count(bound) == script.text.count("PAGE = 100") == 1
    text = script.text.replace(bound, f"RECORDS_MAX, BYTES_MAX = {records_max},")
    script.text = text.replace("PAGE = 100", "PAGE = 2")
    script.sha = hashlib.sha1(script.text.encode(), usedforsecurity=False).hexdigest()
    return script


def _attempt(generation, token, exchange, *, paused=""):
    """Return an attempt with this generation and token, unless one of them is an attempt."""
    for attempt in (generation, token):
        if isinstance(attempt, Admitted):
            return attempt
    return Admitted(token, 1, 1, generation, [], 0, paused=paused, exchange=exchange)


@contextmanager
def opened(redis, lane, limits, project="p"):
    buffer = LaneBuffer(redis, project, lane, limits)
    try:
        yield buffer
    finally:
        buffer.close()


def counts(redis, project="p"):
    raw = redis.hgetall(ProjectKeys(project).counts)
    return Counter({name.decode(): int(n) for name, n in raw.items()})


def records_of(letters):
    """Return the records of dead letters."""
    return [text.partition(b"\n")[2] for text in letters]


def reasons_of(letters, lane):
    """Return the reasons of a lane's dead letters; a test may bury with a line without one."""
    of_lane = [text for id_, text in letters.items() if id_.startswith(lane.encode())]
    whys = [json.loads(text.partition(b"\n")[0]) for text in of_lane]
    return Counter(why.get("reason", "unknown") for why in whys)


def reasons_counted(total, lane):
    prefix = f"{lane}:dead:"
    found = {name.removeprefix(prefix): n for name, n in total.items() if name.startswith(prefix)}
    return +Counter(found)


def scheduled_records(members):
    """Return the records of a zset of scheduled ones, by member."""
    return [member[SERIAL_BYTES:] for member in members]


def advance_scheduled(redis, key, by_ms):
    """Move the times of all scheduled records to the past: their scores and their headers."""
    for member, due_ms in redis.zrange(key, 0, -1, withscores=True):
        at, rest = SERIAL_BYTES + 1, member[SERIAL_BYTES + STAMP_BYTES :]
        earlier = b"%b%013d%b" % (member[:at], due_ms - by_ms, rest)
        redis.zrem(key, member)
        redis.zadd(key, {earlier: due_ms - by_ms})


def pairs(flat):
    return dict(zip(flat[::2], flat[1::2], strict=True))


# All of the database in one reply: key, type and content.
_SNAPSHOT = """
local read = {string = {'GET'}, list = {'LRANGE', 0, -1}, hash = {'HGETALL'},
  set = {'SMEMBERS'}, zset = {'ZRANGE', 0, -1, 'WITHSCORES'}}
local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  local how = read[kind]
  all[#all + 1] = {key, kind, redis.call(how[1], key, unpack(how, 2))}
end
return all
"""
_PARSE = {
    b"string": bytes,
    b"list": list,
    b"hash": pairs,
    b"set": set,
    b"zset": lambda flat: {_text(member): float(at) for member, at in pairs(flat).items()},
}


def _text(member):
    """Return an id as text; a scheduled record stays as it is."""
    return member if len(member) > SERIAL_BYTES + HEADER_BYTES else member.decode()


def snapshot(redis):
    """Return everything in the database by key."""
    return {key.decode(): _PARSE[kind](value) for key, kind, value in redis.eval(_SNAPSHOT, 0)}


def assert_adds_up(redis):
    assert_snapshot_adds_up(snapshot(redis))


def assert_snapshot_adds_up(seen):
    """Every record is in one place, nothing is left of a batch that is gone, and counts agree."""
    keys, held = ProjectKeys("p"), 0
    total = Counter({name.decode(): int(n) for name, n in seen.get(keys.counts, {}).items()})
    letters = seen.get(keys.dead, {})
    assert {id_.decode() for id_ in letters} == seen.get(keys.dead_at, {}).keys()
    for lane in LANES:
        of_lane = keys.lane(lane)
        waiting, batches = seen.get(of_lane.waiting, []), seen.get(of_lane.leases, {})
        leased = []
        for id_ in batches:
            records = seen[of_lane.records(id_)]
            assert int(seen[of_lane.batch(id_)][b"held"]) == sum(map(len, records))
            leased += records
        for key in (of_lane.batch, of_lane.records):
            assert {name for name in seen if name.startswith(key(""))} == set(map(key, batches))
        assert seen.get(of_lane.claimed, {}).keys() <= batches.keys()
        dead = records_of(t for id_, t in letters.items() if id_.startswith(lane.encode()))
        places = sum(total[f"{lane}:{place}"] for place in PLACES)
        assert total[f"{lane}:accepted"] == len(waiting) + places
        scheduled = scheduled_records(seen.get(of_lane.scheduled, {}))
        assert total[f"{lane}:leased"] == len(leased)
        assert total[f"{lane}:scheduled"] == len(scheduled)
        assert total[f"{lane}:dead"] == len(dead)
        assert reasons_counted(total, lane) == reasons_of(letters, lane)
        assert total[f"{lane}:waiting_bytes"] == sum(len(r) - HEADER_BYTES + 1 for r in waiting)
        held += sum(map(len, [*scheduled, *waiting, *leased, *dead]))
    assert total["held_bytes"] == held
