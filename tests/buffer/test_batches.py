"""The buffer on a real server: every event is in exactly one place."""

from __future__ import annotations

import socket

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mm_tasks.buffer.attempt import Admitted, Rejection
from mm_tasks.buffer.batches import BatchLimits
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.records import tag
from mm_tasks.errors import BufferFull, BufferUnavailable
from tests.buffer.lane_buffer import LaneBuffer
from tests.conftest import load_fences

LIMITS = BatchLimits(events_max=3, bytes_max=200, linger_ms=60_000)
KEYS = ProjectKeys("p")
PLACES = ("leased", "delivered", "dead", "erased", "discarded")


def make(redis, limits=LIMITS, held_bytes_max=1 << 20):
    return LaneBuffer(redis, "p", "track", limits, held_bytes_max=held_bytes_max)


@pytest.fixture
def buffer(redis):
    load_fences(redis)
    return make(redis)


def entries(n, size=10, user_id=None):
    return [Record(b"%0*d" % (size, i), user_id, None) for i in range(n)]


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
    load_fences(redis)
    buffer = make(redis, BatchLimits(events_max=100, bytes_max=200, linger_ms=0))
    buffer.append(entries(50, size))
    admitted = begin(buffer, claim(buffer))
    n = len(admitted.bodies)

    assert 13 + n * size + n - 1 <= 200
    assert n == 50 or 13 + (n + 1) * size + n > 200


def test_a_batch_full_by_bytes_does_not_linger(redis):
    load_fences(redis)
    buffer = make(redis, BatchLimits(events_max=100, bytes_max=200, linger_ms=60_000))
    appended = buffer.append(entries(5, 60))

    assert appended.nudge
    assert buffer.readiness(late_ms=1000, claimed_max=10) == "ready"
    assert claim(buffer) is not None
    assert_adds_up(redis)


def test_a_full_batch_asks_for_one_nudge_and_not_for_two(buffer):
    assert not buffer.append(entries(2)).nudge
    assert buffer.append(entries(1)).nudge
    assert not buffer.append(entries(9)).nudge


def test_above_the_cap_nothing_is_stored_and_nothing_dropped(redis):
    load_fences(redis)
    buffer = make(redis, held_bytes_max=3 * 56)
    buffer.append(entries(2))

    with pytest.raises(BufferFull):
        buffer.append(entries(2))

    assert counts(redis)["accepted"] == 2
    buffer.append(entries(1))
    assert_adds_up(redis)


def test_an_acknowledged_batch_makes_room(redis):
    load_fences(redis)
    buffer = make(redis, held_bytes_max=3 * 56)
    buffer.append(entries(3))
    batch_id = claim(buffer)
    begin(buffer, batch_id)

    assert buffer.ack(batch_id, 0) == 3
    assert counts(redis)["held_bytes"] == 0
    assert counts(redis)["waiting_bytes"] == 0
    buffer.append(entries(3))
    assert_adds_up(redis)


def test_only_one_attempt_holds_a_batch(buffer):
    buffer.append(entries(3))
    batch_id = claim(buffer)

    assert isinstance(begin(buffer, batch_id), Admitted)
    assert begin(buffer, batch_id) == Rejection("held")


def test_a_late_success_removes_the_batch_whoever_holds_it(redis, buffer):
    buffer.append(entries(3))
    batch_id = claim(buffer)
    begin(buffer, batch_id, lease_ms=0)
    second = buffer.take_over(batch_id, lease_ms=60_000)
    assert second is not None

    assert buffer.ack(batch_id, 0) == 3
    assert not buffer.release(batch_id, second.token, wait_ms=0, grace_ms=0)
    assert_adds_up(redis)


def test_a_release_with_an_old_token_changes_nothing(redis, buffer):
    buffer.append(entries(3))
    batch_id = claim(buffer)
    first = begin(buffer, batch_id, lease_ms=0)
    buffer.take_over(batch_id, lease_ms=60_000)

    assert not buffer.release(batch_id, first.token, wait_ms=0, grace_ms=0)
    assert buffer.bisect(batch_id, first.token, why="{}", isolation_max=20) == "old"
    assert buffer.bury(batch_id, first.token, why="{}", outcome="rejected") == 0
    assert begin(buffer, batch_id) == Rejection("held")
    assert_adds_up(redis)


def test_a_released_batch_is_due_at_its_time_and_keeps_its_attempts(buffer):
    buffer.append(entries(3))
    batch_id = claim(buffer)
    first = begin(buffer, batch_id)
    buffer.release(batch_id, first.token, wait_ms=60_000, grace_ms=0)

    assert begin(buffer, batch_id).reason == "wait"
    assert buffer.due(10) == []
    assert buffer.due(10, everything=True) == [batch_id]
    buffer.assign_slot(batch_id, slot_us=None, found_again_ms=0)
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
    assert buffer.take_over(batch_id, lease_ms=60_000) is not None
    assert buffer.take_over(batch_id, lease_ms=60_000) is None


def test_a_slot_is_refused_before_and_after_its_time(redis, buffer):
    buffer.append(entries(3))
    seconds, micros = redis.time()
    now_us = seconds * 1_000_000 + micros
    batch_id = buffer.claim(slot_us=now_us + 60_000_000, found_again_ms=0)

    assert begin(buffer, batch_id, slot="").reason == "wait"
    assert begin(buffer, batch_id, slot=str(now_us - 3_000_000)) == Rejection("slot")
    assert isinstance(begin(buffer, batch_id, slot=str(now_us)), Admitted)


def refuse(buffer, batch_id, isolation_max=20):
    """Let the vendor refuse the next attempt."""
    attempt = begin(buffer, batch_id)
    return buffer.bisect(
        batch_id, attempt.token, why='{"reason":"rejected"}', isolation_max=isolation_max
    )


@pytest.mark.parametrize("poison", range(8))
def test_the_one_refused_event_is_found_in_few_requests_and_the_rest_arrives(redis, poison):
    """By halves of what is suspect: log2(n) requests, and one for the rest."""
    load_fences(redis)
    buffer = make(redis, BatchLimits(events_max=8, bytes_max=2000, linger_ms=60_000))
    buffer.append(entries(8))
    batch_id = claim(buffer)
    bad = entries(8)[poison].body
    requests = 0
    while isinstance(attempt := begin(buffer, batch_id), Admitted):
        requests += 1
        if bad in attempt.bodies:
            buffer.bisect(batch_id, attempt.token, why="{}", isolation_max=20)
        else:
            buffer.ack(batch_id, attempt.generation)
        assert_adds_up(redis)

    assert counts(redis)["delivered"] == 7
    assert [letter.partition(b"\n")[2][46:] for letter in redis.hvals(KEYS.dead)] == [bad]
    assert requests <= 6
    assert counts(redis)["held_bytes"] == 46 + len(bad)


def test_a_refusal_of_the_whole_alone_buries_nothing(redis, buffer):
    """A body too large is refused although each of its events would pass."""
    buffer.append(entries(3))
    batch_id = claim(buffer)
    refuse(buffer, batch_id)
    while isinstance(attempt := begin(buffer, batch_id), Admitted):
        buffer.ack(batch_id, attempt.generation)

    assert counts(redis)["delivered"] == 3
    assert not redis.exists(KEYS.dead)


def test_a_batch_refused_event_by_event_is_a_new_rule_of_the_vendors(redis):
    """Else the dead letters fill with what was right when it was accepted."""
    load_fences(redis)
    buffer = make(redis, BatchLimits(events_max=8, bytes_max=2000, linger_ms=60_000))
    buffer.append(entries(8))
    batch_id = claim(buffer)
    said = [refuse(buffer, batch_id, isolation_max=3) for _ in range(6)]

    assert said == ["narrowed", "narrowed", "narrowed", "buried", "buried", "systematic"]
    assert redis.hlen(KEYS.dead) == 2
    assert begin(buffer, batch_id).sent == 1
    assert_adds_up(redis)


def test_batches_of_one_that_are_all_refused_are_a_new_rule_too(redis):
    """Low traffic, and the lane of identifies, never has a batch of twenty."""
    load_fences(redis)
    buffer = make(redis, BatchLimits(events_max=1, bytes_max=2000, linger_ms=0))
    buffer.append(entries(4))
    said = [refuse(buffer, claim(buffer), isolation_max=3) for _ in range(3)]

    assert said == ["buried", "buried", "systematic"]


def test_an_accepted_event_ends_a_row_of_refused_ones(redis):
    load_fences(redis)
    buffer = make(redis, BatchLimits(events_max=1, bytes_max=2000, linger_ms=0))
    buffer.append(entries(4))
    refuse(buffer, claim(buffer), isolation_max=3)
    refuse(buffer, claim(buffer), isolation_max=3)
    batch_id = claim(buffer)
    buffer.ack(batch_id, begin(buffer, batch_id).generation)

    assert refuse(buffer, claim(buffer), isolation_max=3) == "buried"


def test_a_success_told_late_takes_what_it_carried_and_no_more(redis):
    """The first half was delivered twice; the second must not count as delivered."""
    load_fences(redis)
    buffer = make(redis, BatchLimits(events_max=4, bytes_max=2000, linger_ms=60_000))
    buffer.append(entries(4))
    batch_id = claim(buffer)
    refuse(buffer, batch_id)
    first = begin(buffer, batch_id, lease_ms=0)
    second = buffer.take_over(batch_id, lease_ms=60_000)
    buffer.release(batch_id, second.token, wait_ms=0, grace_ms=0)
    third = begin(buffer, batch_id)

    assert buffer.ack(batch_id, third.generation) == 2
    assert buffer.ack(batch_id, first.generation) == 0
    assert counts(redis)["delivered"] == 2
    assert_adds_up(redis)


def test_a_buried_record_is_kept_verbatim(redis, buffer):
    buffer.append(entries(3))
    batch_id = claim(buffer)
    first = begin(buffer, batch_id)

    buffer.bury(batch_id, first.token, why='{"reason":"ambiguous"}', outcome="ambiguous")

    letter = redis.hget(KEYS.dead, f"track:{batch_id}:2")
    assert letter.startswith(b'{"reason":"ambiguous"}\n1')
    assert letter.endswith(entries(3)[1].body)
    assert_adds_up(redis)


@pytest.mark.parametrize("how", ["release", "narrow", "bury"])
def test_a_late_outcome_leaves_the_slot_and_the_wait_of_another_alone(buffer, how):
    """A lapsed attempt may come back after its batch was given a new time."""
    buffer.append(entries(3))
    batch_id = claim(buffer)
    first = begin(buffer, batch_id, lease_ms=0)
    second = buffer.take_over(batch_id, lease_ms=60_000)
    buffer.release(batch_id, second.token, wait_ms=60_000, grace_ms=0)
    late = {
        "release": lambda: buffer.release(batch_id, first.token, wait_ms=0, grace_ms=0),
        "narrow": lambda: buffer.bisect(batch_id, first.token, why="{}", isolation_max=0) != "old",
        "bury": lambda: buffer.bury(batch_id, first.token, why="{}", outcome="rejected"),
    }

    assert not late[how]()
    assert begin(buffer, batch_id).reason == "wait"
    buffer.assign_slot(batch_id, slot_us=None, found_again_ms=5000)
    assert not late[how]()
    assert isinstance(begin(buffer, batch_id, slot=""), Admitted)


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
    buffer.ack(batch_id, admitted.generation)
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

    assert begin(buffer, other) == Rejection("paused")
    assert begin(buffer, probe).paused == "unauthorized"


def test_without_redis_an_append_says_so(unused_port):
    client = Redis(port=unused_port, retry=Retry(NoBackoff(), 0))
    with pytest.raises(BufferUnavailable):
        make(client).append(entries(1))


@pytest.fixture
def unused_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
