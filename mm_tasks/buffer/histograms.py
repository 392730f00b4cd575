"""Histograms that the scripts keep in Redis, so that one exporter shows the whole fleet.

They are fields of the hash `histogram_counters`, whole numbers that only grow:

    <lane>:<histogram>:<bound>  how many values were at most that, and above the bound before;
                                `inf` for those above the last one
    <lane>:<histogram>:sum      the sum of all values, in millionths

The script that settles an attempt adds to them. What the process knows (how long a request
took, how large the batch was) is put into its bucket here; how old the events are is known to
the script alone, which is given the bounds. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mm_tasks.buffer.attempt import RequestStats

EVENTS, FILL, SECONDS, AGE = "batch_events", "batch_fill", "request_s", "age_s"
# Of erasures; not in Redis: see `progress`.
STEP = "step_s"

# Upper bounds, inclusive, as Prometheus has them. Ages reach from a linger to a long outage.
BOUNDS: Mapping[str, tuple[float, ...]] = {
    EVENTS: (1, 10, 50, 100, 200, 300, 400, 499, 500, 1000),
    FILL: (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1),
    SECONDS: (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 30),
    AGE: (0.5, 1, 2, 3, 5, 10, 30, 60, 300, 1800, 7200, 21_600, 86_400, 604_800),
    STEP: (0.1, 1, 5, 15, 60, 300, 1800, 7200, 86_400, 172_800, 604_800, 2_592_000),
}
_MILLION = 1_000_000

# As `batch_ack.lua` is given them.
AGES = ",".join(map(repr, BOUNDS[AGE]))

One = tuple[str, str, int]
Tally = tuple[str | int, ...]


def bucket(name: str, value: float) -> str:
    """Return the bound whose bucket a value is in."""
    bounds = BOUNDS[name]
    position = bisect_left(bounds, value)
    return repr(bounds[position]) if position < len(bounds) else "inf"


def of_request(lane: str, exchange: RequestStats | None) -> Tally:
    """Return what a request adds: none where there was no exchange."""
    return () if exchange is None else _tally(lane, SECONDS, exchange.took_s)


def of_delivery(lane: str, exchange: RequestStats | None, events_max: int, bytes_max: int) -> Tally:
    """Return what a request adds whose batch was delivered; the rest is what it might hold.

    A batch is as full as the nearer of the two limits says.
    """
    if exchange is None:
        return ()
    events, body_bytes = exchange.events, exchange.body_bytes
    fill = min(1.0, max(events / events_max, body_bytes / bytes_max))
    return (
        *of_request(lane, exchange),
        *_tally(lane, EVENTS, events),
        *_tally(lane, FILL, fill),
    )


def of_step(step: str, seconds: float) -> One:
    """Return what a step of an erasure adds."""
    return _tally(step, STEP, max(0.0, seconds))


def read(
    histogram_counters: Mapping[str, int], lane: str, name: str
) -> tuple[list[tuple[str, int]], float]:
    """Return cumulative buckets, as Prometheus has them, up to `+Inf`; and the sum."""
    found, so_far = [], 0
    for bound in BOUNDS[name]:
        so_far += histogram_counters.get(f"{lane}:{name}:{bound!r}", 0)
        found.append((str(float(bound)), so_far))
    so_far += histogram_counters.get(f"{lane}:{name}:inf", 0)
    found.append(("+Inf", so_far))
    return found, histogram_counters.get(f"{lane}:{name}:sum", 0) / _MILLION


def _tally(lane: str, name: str, value: float) -> One:
    at = f"{lane}:{name}:"
    return at + bucket(name, value), at + "sum", round(value * _MILLION)
