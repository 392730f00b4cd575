"""The limiter against what it promises, in time that the test chooses."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm_tasks.keys import ProjectKeys
from mm_tasks.limiter import Limiter

NOW = 1_800_000_000_000_000
RATE, BURST, MAX_WAIT_S = 5, 10, 1.0


@pytest.fixture
def limiter(redis):
    return Limiter(redis, "p", "track", RATE, BURST)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(min_value=0, max_value=900_000), min_size=1, max_size=120))
def test_no_window_holds_more_slots_than_rate_and_burst_allow(redis, limiter, steps):
    """Reserved slots, whenever they were asked for, keep `rate x w + burst` in every window."""
    redis.flushdb()
    now, starts = NOW, []
    for step in steps:
        now += step
        slot = limiter.reserve(MAX_WAIT_S, now_us=now)
        if slot:
            starts.append(slot.start_us)

    assert starts == sorted(starts)
    for i, first in enumerate(starts):
        for j in range(i, len(starts)):
            assert j - i + 1 <= BURST + (starts[j] - first) * RATE / 1e6 + 1e-6


def test_the_whole_rate_is_used_under_a_backlog(limiter):
    """A flush each second that takes all it may gets 5 slots a second."""
    limiter.reserve(MAX_WAIT_S, now_us=NOW - 10_000_000)
    taken = 0
    for second in range(60):
        while limiter.reserve(MAX_WAIT_S, now_us=NOW + second * 1_000_000):
            taken += 1

    assert taken == BURST + RATE * 60


def test_a_state_lost_with_redis_grants_no_second_burst(limiter):
    slots = 0
    while limiter.reserve(0.0, now_us=NOW):
        slots += 1
    assert slots == 0

    slot = limiter.reserve(MAX_WAIT_S, now_us=NOW)
    assert slot.start_us == NOW + 200_000


def test_a_slot_too_far_off_changes_nothing(redis, limiter):
    while limiter.reserve(MAX_WAIT_S, now_us=NOW):
        pass
    before = redis.get(ProjectKeys("p").rate)

    assert limiter.reserve(MAX_WAIT_S, now_us=NOW) is None
    assert redis.get(ProjectKeys("p").rate) == before


def test_a_clock_that_steps_back_an_hour_stops_nothing(limiter):
    limiter.reserve(MAX_WAIT_S, now_us=NOW)
    earlier = NOW - 3_600_000_000

    slot = limiter.reserve(MAX_WAIT_S, now_us=earlier)

    assert slot.start_us == earlier + 200_000


def test_after_a_throttle_the_burst_is_used_up(redis, limiter):
    limiter.reserve(MAX_WAIT_S, now_us=NOW - 60_000_000)
    until = NOW + 500_000
    redis.set(ProjectKeys("p").lane("track").throttle, f"{until} 1")

    starts = [limiter.reserve(MAX_WAIT_S, now_us=NOW).start_us for _ in range(3)]

    assert starts == [until, until + 200_000, until + 400_000]
