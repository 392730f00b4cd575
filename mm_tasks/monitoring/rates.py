"""Rates, outcomes and fill of batches over the last minute, from snapshots of the counters.

Pure: snapshots in, numbers out. Counters only grow. If one shrinks, Redis lost its data, and
the window starts again with the snapshot that shows it.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mm_tasks.events.lanes import TRACK, sharing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mm_tasks.buffer.snapshot import Snapshot

WINDOW_S = 60
# Lanes whose requests carry batches and count against the vendor's rate limit.
BATCHED = sharing(TRACK)


@dataclass(frozen=True, slots=True)
class RecentRates:
    """Rates of the last `span_s` seconds, at most a minute; all are 0 until two snapshots."""

    span_s: float
    outcomes: dict[str, int]  # requests of all lanes
    ambiguous: int  # requests that may have been stored
    requests_per_s: float  # to /v1/batch
    events_per_s: float  # delivered, in all lanes
    events_per_batch: float | None  # None if no batch was delivered


class RateWindow:
    """The snapshots of the last minute, oldest first."""

    def __init__(self) -> None:
        """Start empty."""
        self._snapshots: deque[Snapshot] = deque()

    def add(self, newest: Snapshot) -> None:
        """Add the newest snapshot; remove those more than a minute older."""
        if self._snapshots and _is_reset(self._snapshots[-1], newest):
            self._snapshots.clear()
        self._snapshots.append(newest)
        while newest.now_us - self._snapshots[0].now_us > WINDOW_S * 1_000_000:
            self._snapshots.popleft()

    def rates(self) -> RecentRates:
        """Return the rates between the oldest snapshot and the newest; needs at least one."""
        first, last = self._snapshots[0], self._snapshots[-1]
        span_s = (last.now_us - first.now_us) / 1e6
        grown = Counter(last.counts)
        grown.subtract(first.counts)
        kinds = by_kind(grown, "outcome")
        outcomes: Counter[str] = Counter()
        for (_, outcome), number in kinds.items():
            outcomes[outcome] += number
        requests = sum(number for (lane, _), number in kinds.items() if lane in BATCHED)
        delivered = {lane: grown[f"{lane}:delivered"] for lane in last.lanes}
        in_batches = sum(delivered[lane] for lane in BATCHED)
        batches = sum(kinds.get((lane, "delivered"), 0) for lane in BATCHED)
        return RecentRates(
            span_s=span_s,
            outcomes={outcome: number for outcome, number in outcomes.items() if number},
            ambiguous=sum(grown[f"{lane}:ambiguous"] for lane in last.lanes),
            requests_per_s=requests / span_s if span_s else 0.0,
            events_per_s=sum(delivered.values()) / span_s if span_s else 0.0,
            events_per_batch=in_batches / batches if batches else None,
        )


def by_kind(counts: Mapping[str, int], name: str) -> dict[tuple[str, str], int]:
    """Return the counts `<lane>:<name>:<kind>` by lane and kind."""
    kinds: dict[tuple[str, str], int] = {}
    for field, number in counts.items():
        lane, is_kind, kind = field.partition(f":{name}:")
        if is_kind:
            kinds[lane, kind] = number
    return kinds


def _is_reset(before: Snapshot, after: Snapshot) -> bool:
    return after.now_us < before.now_us or any(
        after.counts.get(name, 0) < number
        for name, number in before.counts.items()
        if ":outcome:" in name or name.endswith((":accepted", ":delivered", ":ambiguous"))
    )
