"""The buffer on a real server: every event is in exactly one place."""

from __future__ import annotations

import socket

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mm_tasks.buffer import Admitted, BatchLimits, Buffer, Entry, Refused
from mm_tasks.errors import BufferFull, BufferUnavailable
from mm_tasks.keys import ProjectKeys, tag

LIMITS = BatchLimits(events_max=3, bytes_max=200, linger_ms=60_000)
PLACES = ("leased", "delivered", "dead", "erased", "discarded")


def make(redis, limits=LIMITS, held_bytes_max=1 << 20):
    return Buffer(redis, "p", "track", limits, held_bytes_max=held_bytes_max)


@pytest.fixture
def buffer(redis):
    return make(redis)


def entries(n, size=10, user_id=None):
    return [Entry(b"%0*d" % (size, i), user_id, None) for i in range(n)]


def counts(redis):
    raw = redis.hgetall(ProjectKeys("p").counts)
    return {key.decode().removeprefix("track:"): int(value) for key, value in raw.items()}


def assert_adds_up(redis):
    found = counts(redis)
    waiting = redis.llen(ProjectKeys("p").lane("track").waiting)
    assert found.get("accepted", 0) == waiting + sum(found.get(place, 0) for place in PLACES)


def claim(buffer):
    return buffer.claim(slot_us=None, found_again_ms=5000)


def begin(buffer, batch_id, slot="none", lease_ms=60_000):
    return buffer.begin(batch_id, slot=slot, slot_valid_ms=2000, lease_ms=lease_ms)


def test_what_is_sent_is_what_was_appended(redis, buffer):
    buffer.append(entries(3))

    admitted = begin(buffer, claim(buffer))

    assert admitted.bodies == [entry.body for entry in entries(3)]
    assert_adds_up(redis)


def test_a_part_full_batch_waits_for_more_until_it_has_lingered(redis, buffer):
    buffer.append(entries(2))

    assert claim(buffer) is None
    assert buffer.claim(slot_us=None, found_again_ms=5000, linger=False) is not None
    assert_adds_up(redis)


@pytest.mark.parametrize("size", [5, 56, 57, 58, 60, 90, 187])
def test_no_body_exceeds_the_byte_limit_and_none_could_take_one_more(redis, size):
    """Brackets and commas count: 13 bytes around, one between two events."""
    buffer = make(redis, BatchLimits(events_max=100, bytes_max=200, linger_ms=0))
    buffer.append(entries(50, size))
    admitted = begin(buffer, claim(buffer))
    n = len(admitted.bodies)

    assert 13 + n * size + n - 1 <= 200
    assert n == 50 or 13 + (n + 1) * size + n > 200


def test_a_batch_full_by_bytes_does_not_linger(redis):
    buffer = make(redis, BatchLimits(events_max=100, bytes_max=200, linger_ms=60_000))
    appended = buffer.append(entries(5, 60))

    assert appended.nudge
    assert buffer.look(late_ms=1000, claimed_max=10) == "ready"
    assert claim(buffer) is not None
    assert_adds_up(redis)


def test_a_full_batch_asks_for_one_nudge_and_not_for_two(buffer):
    assert not buffer.append(entries(2)).nudge
    assert buffer.append(entries(1)).nudge
    assert not buffer.append(entries(9)).nudge


def test_above_the_cap_nothing_is_stored_and_nothing_dropped(redis):
    buffer = make(redis, held_bytes_max=3 * 56)
    buffer.append(entries(2))

    with pytest.raises(BufferFull):
        buffer.append(entries(2))

    assert counts(redis)["accepted"] == 2
    buffer.append(entries(1))
    assert_adds_up(redis)


def test_an_acknowledged_batch_makes_room(redis):
    buffer = make(redis, held_bytes_max=3 * 56)
    buffer.append(entries(3))
    batch_id = claim(buffer)
    begin(buffer, batch_id)

    assert buffer.ack(batch_id) == 3
    assert counts(redis)["held_bytes"] == 0
    assert counts(redis)["waiting_bytes"] == 0
    buffer.append(entries(3))
    assert_adds_up(redis)


def test_only_one_attempt_holds_a_batch(buffer):
    buffer.append(entries(3))
    batch_id = claim(buffer)

    assert isinstance(begin(buffer, batch_id), Admitted)
    assert begin(buffer, batch_id) == Refused("held")


def test_a_late_success_removes_the_batch_whoever_holds_it(redis, buffer):
    buffer.append(entries(3))
    batch_id = claim(buffer)
    begin(buffer, batch_id, lease_ms=0)
    second = buffer.lapse(batch_id, lease_ms=60_000)
    assert second is not None

    assert buffer.ack(batch_id) == 3
    assert not buffer.release(batch_id, second.token, wait_ms=0, grace_ms=0)
    assert_adds_up(redis)


def test_a_release_with_an_old_token_changes_nothing(redis, buffer):
    buffer.append(entries(3))
    batch_id = claim(buffer)
    first = begin(buffer, batch_id, lease_ms=0)
    buffer.lapse(batch_id, lease_ms=60_000)

    assert not buffer.release(batch_id, first.token, wait_ms=0, grace_ms=0)
    assert buffer.split(batch_id, first.token) is None
    assert buffer.bury(batch_id, first.token, why="{}", outcome="rejected") == 0
    assert begin(buffer, batch_id) == Refused("held")
    assert_adds_up(redis)


def test_a_released_batch_is_due_at_its_time_and_keeps_its_attempts(buffer):
    buffer.append(entries(3))
    batch_id = claim(buffer)
    first = begin(buffer, batch_id)
    buffer.release(batch_id, first.token, wait_ms=60_000, grace_ms=0)

    assert begin(buffer, batch_id).reason == "wait"
    assert buffer.due(10) == []
    assert buffer.due(10, everything=True) == [batch_id]
    buffer.adopt(batch_id, slot_us=None, found_again_ms=0)
    assert begin(buffer, batch_id).attempt == 2


def test_a_forgotten_batch_is_found_again(buffer):
    buffer.append(entries(3))
    batch_id = buffer.claim(slot_us=None, found_again_ms=0)

    assert buffer.due(10) == [batch_id]


def test_a_lease_that_runs_out_while_sending_is_taken_over_once(buffer):
    buffer.append(entries(3))
    batch_id = claim(buffer)
    begin(buffer, batch_id, lease_ms=0)

    assert buffer.due(10) == [batch_id]
    assert buffer.lapse(batch_id, lease_ms=60_000) is not None
    assert buffer.lapse(batch_id, lease_ms=60_000) is None


def test_a_slot_is_refused_before_and_after_its_time(redis, buffer):
    buffer.append(entries(3))
    seconds, micros = redis.time()
    now_us = seconds * 1_000_000 + micros
    batch_id = buffer.claim(slot_us=now_us + 60_000_000, found_again_ms=0)

    assert begin(buffer, batch_id, slot="").reason == "wait"
    assert begin(buffer, batch_id, slot=str(now_us - 3_000_000)) == Refused("slot")
    assert isinstance(begin(buffer, batch_id, slot=str(now_us)), Admitted)


def test_a_split_batch_is_in_its_halves_and_nowhere_else(redis, buffer):
    buffer.append(entries(3))
    batch_id = claim(buffer)
    first = begin(buffer, batch_id)

    halves = buffer.split(batch_id, first.token)

    assert begin(buffer, batch_id) == Refused("gone")
    bodies = [body for half in halves for body in begin(buffer, half).bodies]
    assert bodies == [entry.body for entry in entries(3)]
    assert_adds_up(redis)
    for half in halves:
        buffer.ack(half)
    assert counts(redis)["held_bytes"] == 0


def test_a_buried_record_is_kept_verbatim(redis, buffer):
    buffer.append(entries(3))
    batch_id = claim(buffer)
    first = begin(buffer, batch_id)

    buffer.bury(batch_id, first.token, why='{"reason":"rejected"}', outcome="rejected")

    letter = redis.hget(ProjectKeys("p").dead, f"{batch_id}:2")
    assert letter.startswith(b'{"reason":"rejected"}\n1')
    assert letter.endswith(entries(3)[1].body)
    assert_adds_up(redis)


def test_a_fenced_subject_is_refused_at_append_and_counted(redis, buffer):
    redis.sadd(ProjectKeys("p").fence, tag("p", "user", "erased"))

    appended = buffer.append([*entries(1, user_id="erased"), *entries(1, user_id="other")])

    assert appended.suppressed == {0}
    assert counts(redis)["suppressed"] == 1
    assert_adds_up(redis)


@pytest.mark.parametrize("moment", ["waiting", "claimed"])
def test_a_subject_fenced_later_is_not_sent(redis, buffer, moment):
    buffer.append([*entries(1), *entries(1, user_id="erased"), *entries(2)])
    if moment == "claimed":
        batch_id = claim(buffer)
    redis.sadd(ProjectKeys("p").fence, tag("p", "user", "erased"))
    if moment == "waiting":
        batch_id = claim(buffer)

    admitted = begin(buffer, batch_id)

    assert b"erased" not in b"".join(admitted.bodies)
    assert len(admitted.bodies) == (3 if moment == "waiting" else 2)
    assert counts(redis)["erased"] == 1
    assert_adds_up(redis)
    buffer.ack(batch_id)
    assert_adds_up(redis)


def test_erased_records_leave_although_the_rest_lingers(redis, buffer):
    buffer.append([*entries(1), *entries(1, user_id="erased")])
    redis.sadd(ProjectKeys("p").fence, tag("p", "user", "erased"))

    assert claim(buffer) is None
    assert counts(redis)["erased"] == 1
    assert counts(redis)["waiting_bytes"] == 11
    assert_adds_up(redis)


def test_a_paused_project_admits_the_probe_alone(redis, buffer):
    buffer.append(entries(6))
    probe, other = claim(buffer), claim(buffer)
    redis.hset(ProjectKeys("p").pause, mapping={"kind": "unauthorized", "probe": probe})

    assert begin(buffer, other) == Refused("paused")
    assert begin(buffer, probe).is_probe


def test_without_redis_an_append_says_so(unused_port):
    client = Redis(port=unused_port, retry=Retry(NoBackoff(), 0))
    with pytest.raises(BufferUnavailable):
        make(client).append(entries(1))


@pytest.fixture
def unused_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
