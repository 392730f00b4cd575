"""The window of the live view: rates from snapshots of counters."""

from hypothesis import given
from hypothesis import strategies as st

from mm_tasks.buffer.clock import Clock
from mm_tasks.buffer.snapshot import Lane, Snapshot
from mm_tasks.events.lanes import LANES
from mm_tasks.monitoring.rates import WINDOW_S, RateWindow

NOW_US = 1_800_000_000_000_000


def snapshot(at_s, **counts):
    """Return a snapshot of a time; `track__delivered=3` counts for `track:delivered`."""
    named = {name.replace("__", ":"): number for name, number in counts.items()}
    fences = {"fence_tags": 0, "fences_loaded": True, "fences_why": "", "fences_since_ms": 0}
    lanes = {name: Lane(name, 0, None, 0, 0, 0, 0, {}) for name in LANES}
    now_us = NOW_US + round(at_s * 1e6)
    return Snapshot("p", Clock(now_us, 0), named, pause={}, rate_tat_us=0, lanes=lanes, **fences)


def rates_of(*snapshots):
    window = RateWindow()
    for one in snapshots:
        window.add(one)
    return window.rates()


def test_one_snapshot_gives_no_rates():
    """The totals of all time are not the events of the last minute."""
    rates = rates_of(snapshot(0, track__delivered=1000, track__outcome__delivered=2))

    assert rates.span_s == rates.requests_per_s == rates.events_per_s == 0
    assert rates.outcomes == {}
    assert rates.events_per_batch is None


def test_two_snapshots_give_rates_outcomes_and_fill():
    rates = rates_of(
        snapshot(0, track__delivered=500, track__outcome__delivered=1, identify__delivered=1),
        snapshot(
            10,
            track__delivered=15_500,
            track__outcome__delivered=31,
            backfill__delivered=9_000,
            backfill__outcome__delivered=20,
            backfill__outcome__throttled=1,
            backfill__ambiguous=2,
            identify__delivered=4,
            identify__outcome__delivered=3,
        ),
    )

    assert rates.outcomes == {"delivered": 53, "throttled": 1}
    assert rates.requests_per_s == 5.1  # an identify takes nothing of the rate
    assert rates.events_per_batch == 24_000 / 50
    assert rates.events_per_s == 2400.3
    assert rates.ambiguous == 2


def test_counters_that_decreased_restart_the_window():
    """Redis lost them: the difference would be negative."""
    rates = rates_of(
        snapshot(0, track__delivered=900), snapshot(1), snapshot(3, track__delivered=10)
    )

    assert rates.span_s == 2
    assert rates.events_per_s == 5


STEPS = st.lists(
    st.tuples(
        st.floats(min_value=0.01, max_value=70),
        st.dictionaries(
            st.sampled_from(["track:delivered", "track:outcome:delivered", "track:ambiguous"]),
            st.integers(0, 1000),
        ),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@given(STEPS)
def test_no_rate_is_negative_and_no_snapshot_is_old(steps):
    """Also where Redis lost everything in between."""
    window, at_s, counts = RateWindow(), 0.0, {}
    for wait_s, grown, is_lost in steps:
        at_s += wait_s
        counts = (
            {} if is_lost else {n: counts.get(n, 0) + grown.get(n, 0) for n in {*counts, *grown}}
        )
        window.add(snapshot(at_s, **{name.replace(":", "__"): n for name, n in counts.items()}))
        found = window.rates()

        assert 0 <= found.span_s <= WINDOW_S
        assert found.requests_per_s >= 0
        assert found.events_per_s >= 0
        assert found.ambiguous >= 0
        assert all(number > 0 for number in found.outcomes.values())
