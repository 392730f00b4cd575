"""The snapshot of a project, compared with the steps done on a real buffer."""

import pytest

from mm_tasks.buffer import snapshot
from mm_tasks.buffer.batches import BatchLimits
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.pauses import Pauses
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.rate_limiter import Limiter
from mm_tasks.events.lanes import LANES
from mm_tasks.monitoring import status
from tests.buffer.lane_buffer import LaneBuffer
from tests.conftest import held, load_fences

LIMITS = BatchLimits(2, 1000, 0)
KEYS = ProjectKeys("p")


@pytest.fixture
def buffers(redis):
    load_fences(redis)
    return {lane: LaneBuffer(redis, "p", lane, LIMITS) for lane in LANES}


def append(buffer, n):
    buffer.append([Record(b'{"event":"e%d"}' % i, None, None) for i in range(n)])


def bury(buffer, reason, n=2):
    """Make dead letters, as an attempt that read the reason does."""
    append(buffer, n)
    batch_id = buffer.claim()
    token = buffer.begin(batch_id).token
    assert buffer.bury(batch_id, token, why=f'{{"reason": "{reason}"}}', outcome=reason) == n


def test_a_project_that_nobody_used_is_empty_and_not_paused(redis):
    state = snapshot.read(redis, "p")

    assert state.counts == {}
    assert (state.waiting, state.oldest_waiting_s, state.paused) == (0, None, None)
    assert state.slots_ahead_s == 0
    assert list(state.lanes) == list(LANES)


def test_each_lane_shows_its_waiting_and_leased_events(redis, buffers):
    for n, buffer in enumerate(buffers.values(), start=3):
        append(buffer, n)
        assert buffer.claim()
    state = snapshot.read(redis, "p")

    waiting = {name: lane.waiting for name, lane in state.lanes.items()}
    assert waiting == {"track": 1, "identify": 2, "backfill": 3}
    assert all(lane.claimed == lane.batches == 1 for lane in state.lanes.values())
    assert (state.total("leased"), state.total("accepted"), state.waiting) == (6, 12, 6)
    assert 0 <= state.oldest_waiting_s < 60


def test_the_outage_of_an_endpoint_is_shown_by_both_of_its_lanes(redis):
    pauses = Pauses(redis, "p", "backfill")
    assert pauses.pause("b", "unavailable", status="-", code="refused", first_ms=1, probe_ms=1)
    pauses.throttle(60_000, keep_ms=0)
    state = snapshot.read(redis, "p")

    assert state.lanes["track"].outage == state.lanes["backfill"].outage
    assert state.lanes["track"].throttle_until_us > state.now_us
    assert not state.lanes["identify"].outage
    assert state.paused.reason == "unavailable: - refused"
    assert state.paused.kind == "unavailable"


def test_the_quota_that_was_taken_is_ahead_of_now(redis):
    limiter = Limiter(redis, "p", "track", 5, 10)
    while limiter.reserve(1):
        pass

    assert 1.5 < snapshot.read(redis, "p").slots_ahead_s <= 3.2


def test_fences_that_could_not_be_loaded_are_the_first_reason(redis):
    """Before they are loaded nothing is sent at all."""
    Fence(redis, "p").note_failed("AuditUnavailable")
    Pauses(redis, "p", "track").throttle(60_000, keep_ms=0)

    assert snapshot.read(redis, "p").paused.kind == "fences_not_loaded"
    assert status.read(redis, "p")["paused"]["reason"].startswith("fences_not_loaded: - ")


def test_dead_letters_are_counted_by_reason_in_any_number(redis, buffers):
    for _ in range(2):
        bury(buffers["track"], "rejected")
    bury(buffers["backfill"], "ambiguous")
    bury(buffers["identify"], "rejected")

    assert snapshot.read(redis, "p").dead_reasons == {"rejected": 6, "ambiguous": 2}


def test_a_snapshot_changes_nothing(redis, buffers):
    """`top` and the metrics look every second: they may write nothing, not even by expiry."""
    for lane in LANES:
        bury(buffers[lane], "rejected")
        append(buffers[lane], 3)
    Pauses(redis, "p", "track").throttle(60_000, keep_ms=0)
    before = held(redis)
    snapshot.read(redis, "p")

    assert held(redis) == before
