"""Pauses and throttles on a real server: who may stop a project, and who may end it."""

import pytest

from mm_tasks.buffer.batches import BatchLimits
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.pauses import Pauses
from mm_tasks.buffer.producer import Record
from tests.buffer.lane_buffer import LaneBuffer
from tests.conftest import load_fences

KEYS = ProjectKeys("p")
LANE = KEYS.lane("track")
HOUR_MS = 3_600_000
# Redis's clock goes on between a call and the look at it.
SLACK_MS = 1500


@pytest.fixture
def pauses(redis):
    return Pauses(redis, "p", "track")


def pause(pauses, batch_id, kind="unauthorized", **changed):
    words = {"status": "401", "code": "invalid_api_key", "first_ms": 0, "probe_ms": HOUR_MS}
    return pauses.pause(batch_id, kind, **(words | changed))


def stored(redis):
    fields = redis.hgetall(KEYS.pause) or redis.hgetall(LANE.outage)
    return {name.decode(): value.decode() for name, value in fields.items()}


def now_ms(redis):
    seconds, micros = redis.time()
    return seconds * 1000 + micros // 1000


def assert_next_probe_in(redis, wait_ms):
    fields = stored(redis)
    assert int(fields["wait_ms"]) == wait_ms
    assert abs(int(fields["probe_at_ms"]) - now_ms(redis) - wait_ms) < SLACK_MS


def throttled_ms(redis):
    """Return the time until the end of the lane's wait, within a millisecond."""
    until_us, _ = redis.get(LANE.throttle).split()
    return int(until_us) / 1000 - now_ms(redis)


def test_a_pause_at_once_says_why_and_since_when(redis, pauses):
    """P7: every pause has a reason that `mm-tasks status` shows."""
    assert pause(pauses, "a", first_ms=5000)
    fields = stored(redis)
    since_ms, probe_at_ms = int(fields.pop("since_ms")), int(fields.pop("probe_at_ms"))

    expected = {"kind": "unauthorized", "status": "401", "code": "invalid_api_key"}
    assert fields == {**expected, "wait_ms": "5000", "refused": "a"}
    assert abs(since_ms - now_ms(redis)) < SLACK_MS
    assert probe_at_ms == since_ms + 5000


@pytest.mark.parametrize("failures_max", [1, 2, 5])
def test_only_the_nth_failure_in_a_row_pauses(redis, pauses, failures_max):
    """One refused connection is a restart somewhere; several are an outage."""
    words = {"kind": "unavailable", "failures_max": failures_max}
    result = [pause(pauses, f"b{n}", **words) for n in range(failures_max)]

    assert result == [False] * (failures_max - 1) + [True]
    assert stored(redis)["refused"] == f"b{failures_max - 1}"


def test_a_delivered_batch_ends_the_row_of_failures(redis, pauses):
    load_fences(redis)
    buffer = LaneBuffer(redis, "p", "track", BatchLimits(1, bytes_max=200, linger_ms=0))
    buffer.append([Record(b"{}", None, None)])
    pause(pauses, "a", "unavailable", failures_max=2)
    buffer.ack(buffer.claim(found_again_ms=0), 0)

    assert not pause(pauses, "b", "unavailable", failures_max=2)
    assert pause(pauses, "c", "unavailable", failures_max=2)


@pytest.mark.parametrize("is_paused", [False, True], ids=["not paused", "not due yet"])
def test_no_probe_is_chosen_before_it_is_due(pauses, is_paused):
    if is_paused:
        pause(pauses, "a", first_ms=HOUR_MS)

    assert pauses.probe_due() is None
    assert not pauses.choose_probe("b", lost_ms=0)
    assert not pauses.lift("b")


def test_a_filter_pause_remembers_every_batch_refused_in_it(pauses):
    """None of them is a probe while another is left. A batch is named once, and 50 at most."""
    ids = [f"{n:036}" for n in range(60)]
    pause(pauses, ids[0], "filtered")
    for batch_id in (*ids[1:], ids[-1]):
        assert pauses.choose_probe(batch_id, lost_ms=0)
        pause(pauses, batch_id, "filtered")

    assert pauses.probe_due() == ids[-50:]


def test_there_is_one_probe_at_a_time(redis, pauses):
    """`probe_due` returns the refused batch, which is the last to be tried, and chooses none."""
    pause(pauses, "a")
    before = stored(redis)

    assert pauses.probe_due() == ["a"]
    assert stored(redis) == before
    assert pauses.choose_probe("b", lost_ms=HOUR_MS)
    assert pauses.probe_due() is None
    assert not pauses.choose_probe("c", lost_ms=HOUR_MS)
    assert not pauses.lift("c")


def test_a_probe_whose_worker_died_is_given_up_in_time(pauses):
    """Otherwise a SIGKILL would pause the project for ever."""
    pause(pauses, "a")
    pauses.choose_probe("b", lost_ms=0)

    assert pauses.choose_probe("c", lost_ms=HOUR_MS)
    assert not pauses.lift("b")
    assert pauses.lift("c")


WAITS = {
    "doubles from the first": (1000, 60_000, [1000, 2000, 4000, 8000, 16_000, 32_000]),
    "stops at the longest": (1000, 3000, [1000, 2000, 3000, 3000]),
    "is the longest from the start": (60_000, 60_000, [60_000, 60_000]),
    "is no longer at first than ever": (5000, 3000, [3000, 3000]),
}


@pytest.mark.parametrize(("first_ms", "probe_ms", "waits"), WAITS.values(), ids=WAITS.keys())
def test_the_wait_between_probes(redis, pauses, first_ms, probe_ms, waits):
    words = {"first_ms": first_ms, "probe_ms": probe_ms}
    pause(pauses, "a", "unavailable", **words)
    assert_next_probe_in(redis, waits[0])
    for wait_ms in waits[1:]:
        redis.hset(LANE.outage, "probe_at_ms", 0)  # as when its time has come
        pauses.choose_probe("a", lost_ms=HOUR_MS)
        pause(pauses, "a", "unavailable", **words)

        assert_next_probe_in(redis, wait_ms)


def test_a_failed_probe_waits_at_once_and_makes_way_for_the_next(redis, pauses):
    """It counts no failures before."""
    pause(pauses, "a", "unavailable")
    pauses.choose_probe("b", lost_ms=HOUR_MS)

    assert pause(pauses, "b", "unavailable", first_ms=1000, failures_max=5)
    assert_next_probe_in(redis, 1000)
    assert not pauses.lift("b")
    redis.hset(LANE.outage, "probe_at_ms", 0)  # as when its time has come
    assert pauses.probe_due() == ["b"]
    assert pauses.choose_probe("c", lost_ms=HOUR_MS)


def test_a_probe_that_fails_differently_changes_the_reason_and_not_the_time(redis, pauses):
    """An outage that turns out to be a revoked key is shown as one; it began when it began."""
    pause(pauses, "a", "unavailable", status="-", code="refused", first_ms=0)
    redis.hset(LANE.outage, mapping={"since_ms": 1, "wait_ms": 32_000})
    pauses.choose_probe("b", lost_ms=HOUR_MS)
    pause(pauses, "b", "unauthorized", first_ms=1000)
    fields = stored(redis)

    names = ("kind", "status", "code", "since_ms")
    assert [fields[name] for name in names] == ["unauthorized", "401", "invalid_api_key", "1"]
    assert_next_probe_in(redis, 1000)


@pytest.mark.parametrize("kind", ["filtered", "unavailable"])
def test_a_probe_that_does_not_reach_the_vendor_keeps_the_reason_of_the_key(redis, pauses, kind):
    pause(pauses, "a", first_ms=1000)
    redis.hset(KEYS.pause, "probe_at_ms", 0)
    pauses.choose_probe("b", lost_ms=HOUR_MS)
    pause(pauses, "b", kind, status="404", code="-", first_ms=1000)

    assert (stored(redis)["kind"], stored(redis)["status"]) == ("unauthorized", "401")
    assert_next_probe_in(redis, 2000)


@pytest.mark.parametrize("failures_max", [0, 5], ids=["at once", "one of five failures"])
def test_a_pause_is_left_alone_by_all_but_its_probe(redis, pauses, failures_max):
    """Requests under way when the key was revoked come back one after the other."""
    pause(pauses, "a", first_ms=5000)
    before = stored(redis)

    assert pause(pauses, "b", "unavailable", first_ms=HOUR_MS, failures_max=failures_max)
    assert stored(redis) == before
    assert not redis.exists(LANE.failures)


def test_the_probe_lifts_the_pause_and_nothing_is_left_of_it(redis, pauses):
    """Failures are counted from one again."""
    pause(pauses, "a", "unavailable", failures_max=1)
    pauses.choose_probe("b", lost_ms=HOUR_MS)

    assert pauses.lift("b")
    assert redis.keys() == []
    assert not pauses.lift("b")
    assert not pause(pauses, "b", "unavailable", failures_max=2)


def test_a_throttle_of_two_seconds_cannot_end_a_pause(redis, pauses):
    pause(pauses, "a", first_ms=HOUR_MS)
    before = stored(redis)
    pauses.throttle(2000, keep_ms=0)
    redis.delete(LANE.throttle)  # as when its time is over

    assert stored(redis) == before
    assert pauses.probe_due() is None


@pytest.mark.parametrize(
    "waits_ms", [[2000], [60_000, 2000], [2000, 60_000], [60_000, 2000, 30_000, 1]], ids=str
)
def test_the_longest_of_the_waits_is_in_force(redis, pauses, waits_ms):
    """A shorter wait does not shorten one, and a longer one lengthens it."""
    waits_s = [pauses.throttle(wait_ms, keep_ms=0) for wait_ms in waits_ms]

    assert abs(throttled_ms(redis) - max(waits_ms)) < SLACK_MS
    assert abs(waits_s[-1] * 1000 - max(waits_ms)) < SLACK_MS


@pytest.mark.parametrize("is_over", [False, True])
def test_a_lengthened_wait_began_with_the_first_and_a_later_one_is_new(redis, pauses, is_over):
    until_ms = 1 if is_over else now_ms(redis) + 5000
    redis.set(LANE.throttle, f"{until_ms * 1000} 7")
    pauses.throttle(60_000, keep_ms=0)
    since_ms = int(redis.get(LANE.throttle).split()[1])

    assert (abs(since_ms - now_ms(redis)) < SLACK_MS) if is_over else since_ms == 7


def test_the_key_outlives_the_wait_as_the_limiter_needs_and_is_of_its_lane_alone(redis, pauses):
    """After a 429 the vendor's bucket is empty for `reserve`. `identify` is not limited."""
    pauses.throttle(2000, keep_ms=60_000)

    assert 60_000 < redis.pttl(LANE.throttle) <= 62_000
    assert not redis.exists(KEYS.lane("identify").throttle)


@pytest.mark.parametrize(("kind", "is_shared"), [("unavailable", False), ("unauthorized", True)])
def test_a_refused_key_stops_both_endpoints_and_an_outage_one(redis, pauses, kind, is_shared):
    """Either endpoint may probe a key. Identifies that succeed do not end an outage of `track`."""
    identify = Pauses(redis, "p", "identify")
    pause(pauses, "a", kind)

    assert identify.probe_due() == (["a"] if is_shared else None)
    assert identify.choose_probe("i", lost_ms=HOUR_MS) == is_shared
    assert identify.lift("i") == is_shared
    assert pauses.probe_due() == (None if is_shared else ["a"])
