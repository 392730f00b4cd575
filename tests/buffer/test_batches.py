"""The buffer on a real server: every event is in exactly one place."""

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mm_tasks.buffer.batches import Admitted, BatchLimits, Rejection
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.records import tag
from mm_tasks.errors import BufferFull, BufferUnavailable
from tests.buffer.lane_buffer import LaneBuffer, assert_adds_up, counts, records_of
from tests.conftest import free_port, load_fences

# Events and bytes of a full batch, and how long one lingers (ms).
LIMITS = (3, 200, 60_000)
KEYS = ProjectKeys("p")


@pytest.fixture
def make(redis):
    """Make a buffer of some limits on a server whose fences are loaded."""
    load_fences(redis)
    made = []

    def make_one(*limits, **more):
        made.append(LaneBuffer(redis, "p", "track", BatchLimits(*limits), **more))
        return made[-1]

    yield make_one
    for buffer in made:
        buffer.close()
    assert_adds_up(redis)


@pytest.fixture
def buffer(make):
    return make(*LIMITS)


def entries(n, size=10, user_id=None):
    return [Record(b"%0*d" % (size, i), user_id, None) for i in range(n)]


def claimed(buffer, n=3):
    """Append so many events; return the id of the batch that is claimed of them."""
    buffer.append(entries(n))
    return buffer.claim(found_again_ms=0)


def test_the_sent_bodies_are_the_appended_ones(buffer):
    admitted = buffer.begin(claimed(buffer))

    assert admitted.bodies == [entry.body for entry in entries(3)]


def test_a_part_full_batch_waits_for_more_until_it_has_lingered(buffer):
    buffer.append(entries(2))

    assert buffer.claim() is None
    assert buffer.claim(linger=False) is not None


@pytest.mark.parametrize("size", [5, 56, 57, 58, 60, 90, 187])
def test_no_body_exceeds_the_byte_limit_and_none_could_take_one_more(make, size):
    """Brackets and commas count: 13 bytes around, one between two events."""
    buffer = make(100, 200, 0)
    buffer.append(entries(50, size))
    admitted = buffer.begin(buffer.claim())
    n = len(admitted.bodies)

    assert 13 + n * size + n - 1 <= 200
    assert n == 50 or 13 + (n + 1) * size + n > 200


def test_a_batch_full_by_bytes_does_not_linger(make):
    buffer = make(100, 200, 60_000)

    assert buffer.append(entries(5, 60)).nudge
    assert buffer.readiness(late_ms=1000, claimed_max=10) == "ready"
    assert buffer.claim() is not None


def test_a_full_batch_asks_for_one_nudge_and_not_for_two(buffer):
    assert [buffer.append(entries(n)).nudge for n in (2, 1, 9)] == [False, True, False]


def test_above_the_cap_nothing_is_stored_and_nothing_dropped(redis, make):
    buffer = make(*LIMITS, held_bytes_max=3 * 56)
    buffer.append(entries(2))
    with pytest.raises(BufferFull):
        buffer.append(entries(2))

    assert counts(redis)["track:accepted"] == 2
    buffer.append(entries(1))


def test_a_released_batch_is_due_at_its_time_and_keeps_its_attempts(buffer):
    batch_id = claimed(buffer)
    first = buffer.begin(batch_id)
    buffer.release(batch_id, first.token, wait_ms=60_000, grace_ms=0)

    assert buffer.begin(batch_id).reason == "wait"
    assert buffer.due(10) == []
    assert buffer.due(10, everything=True) == [batch_id]
    buffer.assign_slot(batch_id, slot_us=None, found_again_ms=0)
    assert buffer.begin(batch_id).attempt == 2


def test_a_forgotten_batch_is_found_again_and_an_expired_lease_is_taken_over_once(buffer):
    batch_id = claimed(buffer)
    assert buffer.due(10) == [batch_id]
    buffer.begin(batch_id, lease_ms=0)

    assert buffer.due(10) == [batch_id]
    assert buffer.take_over(batch_id) is not None
    assert buffer.take_over(batch_id) is None


def test_a_slot_is_refused_before_and_after_its_time(redis, buffer):
    buffer.append(entries(3))
    seconds, micros = redis.time()
    now_us = seconds * 1_000_000 + micros
    batch_id = buffer.claim(slot_us=now_us + 60_000_000, found_again_ms=0)

    assert buffer.begin(batch_id, slot="").reason == "wait"
    assert buffer.begin(batch_id, slot=str(now_us - 3_000_000)) == Rejection("slot")
    assert isinstance(buffer.begin(batch_id, slot=str(now_us)), Admitted)


def refuse(buffer, batch_id, isolation_max=20):
    """Let the vendor refuse the next attempt."""
    return buffer.bisect(batch_id, buffer.begin(batch_id).token, isolation_max=isolation_max)


@pytest.mark.parametrize("poison", range(8))
def test_the_one_refused_event_is_found_in_few_requests_and_the_rest_arrives(redis, make, poison):
    """By halves of what is suspect: log2(n) requests, and one for the rest."""
    buffer = make(8, 2000, 60_000)
    batch_id = claimed(buffer, 8)
    bad = entries(8)[poison].body
    requests = 0
    while isinstance(attempt := buffer.begin(batch_id), Admitted):
        requests += 1
        if bad in attempt.bodies:
            buffer.bisect(batch_id, attempt.token, why="{}", isolation_max=20)
        else:
            buffer.ack(batch_id, attempt.generation)
        assert_adds_up(redis)

    assert counts(redis)["track:delivered"] == 7
    assert [record[46:] for record in records_of(redis.hvals(KEYS.dead))] == [bad]
    assert requests <= 6
    assert counts(redis)["held_bytes"] == 46 + len(bad)


def test_a_refusal_of_the_whole_alone_buries_nothing(redis, buffer):
    """A body too large is refused although each of its events would pass."""
    batch_id = claimed(buffer)
    refuse(buffer, batch_id)
    while isinstance(attempt := buffer.begin(batch_id), Admitted):
        buffer.ack(batch_id, attempt.generation)

    assert counts(redis)["track:delivered"] == 3
    assert not redis.exists(KEYS.dead)


def test_a_batch_refused_event_by_event_is_a_new_rule_of_the_vendors(redis, make):
    """Otherwise the dead letters fill with events that were valid when they were accepted."""
    buffer = make(8, 2000, 60_000)
    batch_id = claimed(buffer, 8)
    results = [refuse(buffer, batch_id, isolation_max=3) for _ in range(6)]

    assert results == ["narrowed", "narrowed", "narrowed", "buried", "buried", "systematic"]
    assert redis.hlen(KEYS.dead) == 2
    assert buffer.begin(batch_id).sent == 1


@pytest.mark.parametrize(("is_accepted", "third"), [(False, "systematic"), (True, "buried")])
def test_batches_of_one_that_are_all_refused_are_a_new_rule_too(make, is_accepted, third):
    """Low traffic, and the lane of identifies, never has a batch of twenty."""
    buffer = make(1, 2000, 0)
    buffer.append(entries(4))
    refusals = [refuse(buffer, buffer.claim(), isolation_max=3) for _ in range(2)]
    if is_accepted:
        batch_id = buffer.claim()
        buffer.ack(batch_id, buffer.begin(batch_id).generation)

    refusals.append(refuse(buffer, buffer.claim(), isolation_max=3))
    assert refusals == ["buried", "buried", third]


def test_a_late_success_removes_only_the_records_it_carried(redis, make):
    """The first half was delivered twice; the second must not count as delivered."""
    buffer = make(4, 2000, 60_000)
    batch_id = claimed(buffer, 4)
    refuse(buffer, batch_id)
    first = buffer.begin(batch_id, lease_ms=0)
    second = buffer.take_over(batch_id)
    buffer.release(batch_id, second.token)
    third = buffer.begin(batch_id)

    assert buffer.ack(batch_id, third.generation) == 2
    assert buffer.ack(batch_id, first.generation) == 0
    assert counts(redis)["track:delivered"] == 2


@pytest.mark.parametrize(
    "late",
    [
        lambda buffer, batch_id, token: buffer.release(batch_id, token),
        lambda buffer, batch_id, token: buffer.bisect(batch_id, token) != "old",
        lambda buffer, batch_id, token: buffer.bury(batch_id, token) != 0,
    ],
    ids=["release", "bisect", "bury"],
)
def test_an_old_token_changes_nothing(buffer, late):
    """A lapsed attempt may come back while another worker holds the batch, or after it."""
    batch_id = claimed(buffer)
    first = buffer.begin(batch_id, lease_ms=0)
    second = buffer.take_over(batch_id)

    assert not late(buffer, batch_id, first.token)
    assert buffer.begin(batch_id) == Rejection("held")
    buffer.release(batch_id, second.token, wait_ms=60_000)
    assert not late(buffer, batch_id, first.token)
    assert buffer.begin(batch_id).reason == "wait"
    buffer.assign_slot(batch_id, slot_us=None, found_again_ms=5000)
    assert not late(buffer, batch_id, first.token)
    assert isinstance(buffer.begin(batch_id, slot=""), Admitted)


def test_erased_records_leave_although_the_rest_lingers(redis, buffer):
    buffer.append([*entries(1), *entries(1, user_id="erased")])
    redis.sadd(KEYS.fence, tag("p", "user", "erased"))

    assert buffer.claim() is None
    assert counts(redis)["track:erased"] == 1
    assert counts(redis)["track:waiting_bytes"] == 11


def test_a_paused_project_admits_the_probe_alone(redis, buffer):
    buffer.append(entries(6))
    probe, other = buffer.claim(), buffer.claim()
    redis.hset(KEYS.pause, mapping={"kind": "unauthorized", "probe": probe})

    assert buffer.begin(other) == Rejection("paused")
    assert buffer.begin(probe).paused == "unauthorized"


def test_without_redis_an_append_says_so():
    client = Redis(port=free_port(), retry=Retry(NoBackoff(), 0))
    with pytest.raises(BufferUnavailable):
        LaneBuffer(client, "p", "track", BatchLimits(*LIMITS)).append(entries(1))
