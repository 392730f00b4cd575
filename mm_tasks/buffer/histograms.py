"""Histograms that the scripts keep in Redis, so that one exporter shows the whole fleet.

They are fields of the hash `histogram_counters`, whole numbers that only grow:

    <lane>:<histogram>:<bound>  number of values in the bucket: at most this bound, and above
                                the bound before; `inf` is the bucket above the last bound
    <lane>:<histogram>:sum      the sum of all values, in millionths

The script that settles an attempt adds to them. The process knows the duration of a request
and the size of its batch, and chooses their buckets here. Only the script knows the age of
the events; it takes the bounds as an argument. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

EVENTS, FILL, SECONDS, AGE = "batch_events", "batch_fill", "request_s", "age_s"
# Of erasures; not in Redis: see `erasure_durations`.
STEP = "step_s"

# Upper bounds, inclusive, as in Prometheus. Ages reach from a linger to a long outage.
BOUNDS: Mapping[str, tuple[float, ...]] = {
    EVENTS: (1, 10, 50, 100, 200, 300, 400, 499, 500, 1000),
    FILL: (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1),
    SECONDS: (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 30),
    AGE: (0.5, 1, 2, 3, 5, 10, 30, 60, 300, 1800, 7200, 21_600, 86_400, 604_800),
    STEP: (0.1, 1, 5, 15, 60, 300, 1800, 7200, 86_400, 172_800, 604_800, 2_592_000),
}
_MILLION = 1_000_000

# The argument of `batch_ack.lua`.
AGES = ",".join(map(repr, BOUNDS[AGE]))

# A bucket to increment, the field of its sum, and the value in millionths.
Increment = tuple[str, str, int]
Increments = tuple[str | int, ...]


class RequestStats(NamedTuple):
    """One request as its sender measured it: its duration and the content of its body."""

    took_s: float
    events: int
    body_bytes: int


def bucket(name: str, value: float) -> str:
    """Return the bound of the bucket that holds a value."""
    bounds = BOUNDS[name]
    position = bisect_left(bounds, value)
    return repr(bounds[position]) if position < len(bounds) else "inf"


def of_request(lane: str, stats: RequestStats | None) -> Increments:
    """Return the increments for one request; none if no request was made."""
    return () if stats is None else _increment(lane, SECONDS, stats.took_s)


def of_delivery(
    lane: str, stats: RequestStats | None, events_max: int, bytes_max: int
) -> Increments:
    """Return the increments for one delivered batch. The other arguments are its limits.

    The fill ratio is that of the nearer limit.
    """
    if stats is None:
        return ()
    fill = min(1.0, max(stats.events / events_max, stats.body_bytes / bytes_max))
    sizes = (*_increment(lane, EVENTS, stats.events), *_increment(lane, FILL, fill))
    return (*of_request(lane, stats), *sizes)


def of_step(step: str, seconds: float) -> Increment:
    """Return the increment for one step of an erasure."""
    return _increment(step, STEP, max(0.0, seconds))


def read(
    histogram_counters: Mapping[str, int], lane: str, name: str
) -> tuple[list[tuple[str, int]], float]:
    """Return cumulative buckets, as in Prometheus, up to `+Inf`; and the sum."""
    buckets, total = [], 0
    for bound in BOUNDS[name]:
        total += histogram_counters.get(f"{lane}:{name}:{bound!r}", 0)
        buckets.append((str(float(bound)), total))
    total += histogram_counters.get(f"{lane}:{name}:inf", 0)
    buckets.append(("+Inf", total))
    return buckets, histogram_counters.get(f"{lane}:{name}:sum", 0) / _MILLION


def _increment(lane: str, name: str, value: float) -> Increment:
    prefix = f"{lane}:{name}:"
    return prefix + bucket(name, value), prefix + "sum", round(value * _MILLION)
