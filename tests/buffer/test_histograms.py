"""The histograms as they are kept, and as Prometheus reads them."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_tasks.buffer import histograms
from mm_tasks.buffer.histograms import RequestStats

NAMES = st.sampled_from(sorted(histograms.BOUNDS))
VALUES = st.one_of(
    st.sampled_from([bound for bounds in histograms.BOUNDS.values() for bound in bounds]),
    st.floats(0, 1e7),
)


def added(*histogram_counters):
    found = Counter()
    for words in histogram_counters:
        for bucket, total, grows in zip(words[::3], words[1::3], words[2::3], strict=True):
            found[bucket] += 1
            found[total] += grows
    return found


@given(NAMES, st.lists(VALUES, max_size=50))
def test_each_value_is_counted_below_each_bound_that_it_does_not_exceed(name, values):
    """Prometheus: a bucket is cumulative and its bound inclusive; the last one counts all."""
    histogram_counters = Counter()
    for value in values:
        histogram_counters[f"track:{name}:{histograms.bucket(name, value)}"] += 1
    buckets, _ = histograms.read(histogram_counters, "track", name)

    assert buckets == [
        *((str(float(b)), sum(v <= b for v in values)) for b in histograms.BOUNDS[name]),
        ("+Inf", len(values)),
    ]


@pytest.mark.parametrize("bounds", histograms.BOUNDS.values(), ids=histograms.BOUNDS)
def test_bounds_grow(bounds):
    assert list(bounds) == sorted(set(bounds))


def test_a_delivery_adds_a_size_a_fill_and_a_time():
    """As full as the nearer limit: 400 of 500 events, but 90 % of the bytes."""
    stats = RequestStats(0.25, 400, 900)
    histogram_counters = added(histograms.of_delivery("track", stats, 500, 1000))

    assert histogram_counters == {
        "track:request_s:0.25": 1,
        "track:request_s:sum": 250_000,
        "track:batch_events:400": 1,
        "track:batch_events:sum": 400_000_000,
        "track:batch_fill:0.9": 1,
        "track:batch_fill:sum": 900_000,
    }
    assert histograms.read(histogram_counters, "track", histograms.FILL)[1] == 0.9


def test_what_was_never_sent_adds_nothing():
    """A lease that ran out is settled by another process, which knows of no time."""
    assert histograms.of_request("track", None) == ()
    assert histograms.of_delivery("track", None, 500, 1000) == ()
