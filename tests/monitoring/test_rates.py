"""The window of the live view: what it says of the counters it was shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mm_tasks.buffer.snapshot import Lane, Snapshot
from mm_tasks.events.lanes import LANES
from mm_tasks.monitoring.rates import WINDOW_S, RateWindow

NOW_US = 1_800_000_000_000_000


def look(at_s, **counts):
    """A snapshot at a time; `track__delivered=3` counts for `track:delivered`."""
    named = {name.replace("__", ":"): number for name, number in counts.items()}
    return Snapshot(
        project="p",
        now_us=NOW_US + round(at_s * 1e6),
        counts=named,
        pause={},
        fence_tags=0,
        fences_loaded=True,
        fences_why="",
        fences_since_ms=0,
        rate_tat_us=0,
        lanes={name: Lane(name, 0, None, 0, 0, 0, 0, {}) for name in LANES},
    )


def seen(*looks):
    window = RateWindow()
    for one in looks:
        window.add(one)
    return window.rates()


def test_one_look_says_nothing_of_what_happened():
    """The totals of all time are not what happened in the last minute."""
    found = seen(look(0, track__delivered=1000, track__outcome__delivered=2))

    assert found.span_s == found.requests_per_s == found.events_per_s == 0
    assert found.outcomes == {}
    assert found.events_per_batch is None


def test_two_looks_tell_rates_outcomes_and_fill():
    before = look(0, track__delivered=500, track__outcome__delivered=1, identify__delivered=1)
    after = look(
        10,
        track__delivered=15_500,
        track__outcome__delivered=31,
        backfill__delivered=9_000,
        backfill__outcome__delivered=20,
        backfill__outcome__throttled=1,
        backfill__ambiguous=2,
        identify__delivered=4,
        identify__outcome__delivered=3,
    )

    found = seen(before, after)

    assert found.outcomes == {"delivered": 53, "throttled": 1}
    assert found.requests_per_s == 5.1  # an identify takes nothing of the rate
    assert found.events_per_batch == 24_000 / 50
    assert found.events_per_s == 2400.3
    assert found.ambiguous == 2


def test_counters_that_went_back_begin_the_window_anew():
    """Redis lost them: the difference would be less than nothing."""
    found = seen(look(0, track__delivered=900), look(1), look(3, track__delivered=10))

    assert found.span_s == 2
    assert found.events_per_s == 5


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
def test_whatever_the_counters_do_nothing_is_negative_and_no_look_is_old(steps):
    """Also where Redis lost everything in between."""
    window, at_s, counts = RateWindow(), 0.0, {}
    for wait_s, grown, is_lost in steps:
        at_s += wait_s
        counts = (
            {} if is_lost else {n: counts.get(n, 0) + grown.get(n, 0) for n in {*counts, *grown}}
        )
        window.add(look(at_s, **{name.replace(":", "__"): n for name, n in counts.items()}))
        found = window.rates()

        assert 0 <= found.span_s <= WINDOW_S
        assert found.requests_per_s >= 0
        assert found.events_per_s >= 0
        assert found.ambiguous >= 0
        assert all(number > 0 for number in found.outcomes.values())
