"""What happened lately, from looks at the counters: rates, outcomes and how full batches are.

Pure: snapshots in, numbers out. The counters only grow, unless Redis lost them; then what was
seen before says nothing any more, and the window begins anew.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mm_tasks.events.lanes import TRACK, sharing

if TYPE_CHECKING:
    from mm_tasks.buffer.snapshot import Snapshot

WINDOW_S = 60
# Lanes whose requests the vendor limits, which carry batches.
BATCHED = sharing(TRACK)
_OUTCOME = ":outcome:"


@dataclass(frozen=True, slots=True)
class RecentRates:
    """The last `span_s` seconds, at most a minute; with one look alone it is 0, and all is."""

    span_s: float
    outcomes: dict[str, int]  # requests of all lanes
    ambiguous: int  # requests that may have been stored
    requests_per_s: float  # to /v1/batch
    events_per_s: float  # delivered, in all lanes
    events_per_batch: float | None  # None where none was delivered


class RateWindow:
    """The looks of the last minute, oldest first."""

    def __init__(self) -> None:
        """Begin without any."""
        self._looks: deque[Snapshot] = deque()

    def add(self, look: Snapshot) -> None:
        """Take the newest look; forget what is more than a minute older than it."""
        if self._looks and _went_back(self._looks[-1], look):
            self._looks.clear()
        self._looks.append(look)
        while look.now_us - self._looks[0].now_us > WINDOW_S * 1_000_000:
            self._looks.popleft()

    def lately(self) -> RecentRates:
        """Return what happened between the oldest look and the newest, of which there is one."""
        first, last = self._looks[0], self._looks[-1]
        span_s = (last.now_us - first.now_us) / 1e6
        grown = {
            name: grew
            for name, number in last.counts.items()
            if (grew := number - first.counts.get(name, 0))
        }
        outcomes: dict[str, int] = {}
        for name, number in grown.items():
            _, is_outcome, outcome = name.partition(_OUTCOME)
            if is_outcome:
                outcomes[outcome] = outcomes.get(outcome, 0) + number
        requests = sum(number for name, number in grown.items() if _lane(name, _OUTCOME) in BATCHED)
        batches = sum(grown.get(f"{lane}{_OUTCOME}delivered", 0) for lane in BATCHED)
        in_batches = sum(grown.get(f"{lane}:delivered", 0) for lane in BATCHED)
        delivered = sum(grown.get(f"{lane}:delivered", 0) for lane in last.lanes)
        return RecentRates(
            span_s=span_s,
            outcomes=outcomes,
            ambiguous=sum(grown.get(f"{lane}:ambiguous", 0) for lane in last.lanes),
            requests_per_s=requests / span_s if span_s else 0.0,
            events_per_s=delivered / span_s if span_s else 0.0,
            events_per_batch=in_batches / batches if batches else None,
        )


def _went_back(before: Snapshot, after: Snapshot) -> bool:
    if after.now_us < before.now_us:
        return True
    return any(
        after.counts.get(name, 0) < number
        for name, number in before.counts.items()
        if _only_grows(name)
    )


def _only_grows(name: str) -> bool:
    return _OUTCOME in name or name.endswith((":accepted", ":delivered", ":ambiguous"))


def _lane(name: str, kind: str) -> str:
    lane, is_kind, _ = name.partition(kind)
    return lane if is_kind else ""
