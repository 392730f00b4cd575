"""The facts of one erasure, as its entries in the log give them. Pure: no clock, no I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from mm_tasks.erasure.audit import protocol
from mm_tasks.erasure.audit.protocol import ACKNOWLEDGED, BLOCKED, OPEN, SCHEDULED
from mm_tasks.erasure.deadlines import one_month_after
from mm_tasks.errors import AuditChainBroken
from mm_tasks.timestamps import moment, stamp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mm_tasks.erasure.audit.protocol import ErasureState

    Entry = dict[str, Any]
    Entries = Sequence[Entry]

# States that end an erasure before the vendor was called.
UNCALLED = ("cancelled", "rejected", "duplicate_of")
# Entries that end a completed erasure's fence.
_LOWERED = ("lifted", "released")
# Steps that each set of ids needs, in order.
_STEPS = ("fenced", "purged", "quiesced")


@dataclass(frozen=True, slots=True)
class Facts:
    """The entries of one erasure, in order, and the state that they give."""

    entries: Entries
    state: ErasureState

    @classmethod
    def of(cls, entries: Entries) -> Self:
        """Return the facts; raise `AuditChainBroken` if the entries break the protocol."""
        state: ErasureState | None = None
        try:
            for entry in entries:
                state = protocol.step(state, entry["entry"], entry["details"], entry["erasure"])
        except protocol.IllegalTransition:
            msg = "the entries of this erasure break the protocol; see mm-tasks audit verify"
            raise AuditChainBroken(msg) from None
        assert state is not None, "an erasure has entries"
        return cls(entries, state)

    def all(self, *kinds: str) -> Entries:
        """Return the entries of these kinds."""
        return [entry for entry in self.entries if entry["entry"] in kinds]

    def last(self, *kinds: str) -> Entry | None:
        """Return the last entry of these kinds, or None."""
        return next(iter(self.all(*kinds)[::-1]), None)

    def time_of(self, *kinds: str) -> str | None:
        """Return the time of the last entry of these kinds, or None."""
        entry = self.last(*kinds)
        return None if entry is None else str(entry["at"])

    @property
    def first(self) -> Entry:
        """Return the request that began the erasure."""
        return self.entries[0]

    @property
    def requests(self) -> Entries:
        """Return the first request, and each that was added to it."""
        return self.all("received", "ticket_added")

    @property
    def status(self) -> str:
        """Return the state in the four words of OpenDSR."""
        if self.state.state == SCHEDULED:
            return "pending"
        if self.state.state in UNCALLED:
            return "cancelled"
        return "in_progress" if self.is_open else "completed"

    @property
    def is_open(self) -> bool:
        """Return whether the erasure has not ended."""
        return self.state.state in OPEN

    @property
    def is_blocked(self) -> bool:
        """Return whether the erasure waits for an answer of the vendor that it can use."""
        return self.state.state in BLOCKED

    @property
    def due_at(self) -> str:
        """Return the earliest deadline of the requests."""
        repeated = [entry["details"]["received_at"] for entry in self.all("ticket_added")]
        due = [stamp(one_month_after(moment(at))) for at in repeated]
        return str(min([self.first["details"]["due_at"], *due]))

    @property
    def begins_at(self) -> str | None:
        """Return the earliest time at which a scheduled erasure begins; None without one."""
        later = (entry["details"].get("not_before") for entry in self.requests)
        return min((str(at) for at in later if at is not None), default=None)

    @property
    def calls_after(self) -> str | None:
        """Return the time before which the vendor is not called; None if a request has none."""
        later = [entry["details"].get("call_after") for entry in self.requests]
        return None if None in later else str(min(later))

    @property
    def anonymous(self) -> int:
        """Return the number of anonymous ids."""
        return sum(e["details"]["anonymous"] for e in self.all("received", "anonymous_added"))

    @property
    def stopped_at(self) -> str | None:
        """Return since when events with the user id are refused; None before that."""
        return next((str(entry["at"]) for entry in self.all("fenced")), None)

    @property
    def stopped_again_at(self) -> str | None:
        """Return since when events with anonymous ids that were added later are refused."""
        is_later = self.current is not self.entries
        fenced = [entry["at"] for entry in self.current if entry["entry"] == "fenced"]
        return str(fenced[-1]) if is_later and fenced else None

    @property
    def accepted_again_at(self) -> str | None:
        """Return since when events are accepted again; None while they are refused."""
        return self.time_of(*_LOWERED, *UNCALLED)

    @property
    def removed(self) -> dict[str, int]:
        """Return the number of removed records by place; empty before the first search."""
        removed: Counter[str] = Counter()
        for entry in self.all("purged"):
            removed.update(entry["details"]["removed"])
        return dict(removed)

    @property
    def quiesced_at(self) -> str | None:
        """Return when no record with any of the ids was on its way to the vendor any more."""
        times = [str(entry["at"]) for entry in self.current if entry["entry"] == "quiesced"]
        return times[-1] if times else None

    @property
    def acknowledged(self) -> Entries:
        """Return the results of the calls that the vendor acknowledged."""
        results = self.all("result")
        return [entry for entry in results if entry["details"]["outcome"] == ACKNOWLEDGED]

    @property
    def unacknowledged(self) -> Entries:
        """Return the results of the other calls."""
        results = self.all("result")
        return [entry for entry in results if entry["details"]["outcome"] != ACKNOWLEDGED]

    @property
    def failures(self) -> int:
        """Return the number of calls that were not acknowledged; of an attempt only the last is."""
        calls: int = sum(entry["details"].get("calls", 1) for entry in self.all("result"))
        return calls - len(self.acknowledged)

    @property
    def missing(self) -> list[str]:
        """Return the steps on our side that an open erasure still lacks."""
        done = {entry["entry"] for entry in self.current}
        return [step for step in _STEPS if step not in done] if self.is_open else []

    @property
    def current(self) -> Entries:
        """Return the entries since the last new ids: their steps cover every id."""
        kinds = [entry["entry"] for entry in self.entries]
        newest = max((n for n, kind in enumerate(kinds) if kind == "anonymous_added"), default=0)
        return self.entries[newest:] if newest else self.entries

    def call_of(self, result: Entry) -> Entry:
        """Return the intent of a result. The protocol promises it."""
        attempt = result["details"]["attempt"]
        return next(e for e in self.all("intent") if e["details"]["attempt"] == attempt)
