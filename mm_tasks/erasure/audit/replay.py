"""Replay: the columns of the work rows that the entries of an erasure determine.

`verification` compares them with the rows, so that a changed row is found. Not determined, and
of no use to somebody who changes them: the claim (`token`, `lease_until`), `warned`, `due_at` of a
pass, the calls of an attempt that has no result yet, and when the next step is due, if the last
entry does not state it or that time has passed.

Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mm_tasks.erasure.audit import protocol
from mm_tasks.erasure.audit.seals import add
from mm_tasks.erasure.deadlines import first_call_at, one_month_after
from mm_tasks.timestamps import moment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from mm_tasks.erasure.audit.protocol import ErasureState

# The entries after which no row of `mm_suppressions` is left.
_UNFENCES = frozenset({"cancelled", "rejected", "duplicate_of", "lifted", "released"})
_REQUESTED = ("project", "mode", "anonymous", "requested_by", "reason")


@dataclass(slots=True)
class ErasureReplay:
    """One erasure, as its entries give it so far.

    `columns` are of `mm_erasures`, and `is_aof_awaited`; `passes` of `mm_erasure_passes` by
    attempt. `fenced` has the time since when each id is fenced, the user first; empty without a
    fence. `fences` is the sum of its weights: None if entries of an earlier release, which had no
    sums, fenced it.
    """

    state: ErasureState | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    passes: dict[int, dict[str, Any]] = field(default_factory=dict)
    fenced: list[datetime] = field(default_factory=list)
    fences: int | None = 0

    def add(self, entry: Mapping[str, Any], change: int | None) -> None:
        """Take the next entry, and the change of the sum that it made; None before sums.

        Raises `IllegalTransition`.
        """
        kind, details, before = entry["entry"], entry["details"], self.state
        self.state = protocol.step(before, kind, details, entry["erasure"])
        at = moment(entry["at"])
        self.columns |= {
            "state": self.state.state,
            "acknowledged": self.state.acknowledged,
            "attempts": self.state.attempts,
            "passes": self.state.passes,
        }
        self._take(kind, details, at)
        self._plan(kind, details)
        if "mac" not in entry:
            # Earlier releases kept no such columns, or otherwise.
            self.columns |= {"is_aof_awaited": False}
            self.columns.pop("next_at", None)
        if kind == "received":
            subject = {"pseudonym": entry["subject"], "epoch": entry["epoch"]}
            self.columns |= {**subject, "accepted_at": at}
        self._fence(kind, at, change)

    def _take(self, kind: str, details: Mapping[str, Any], at: datetime) -> None:
        columns = self.columns
        match kind:
            case "received":
                columns |= _received(details)
            case "ticket_added":
                columns |= _ticket_added(columns, details)
            case "anonymous_added":
                columns["anonymous"] += details["anonymous"]
                columns["fenced_at"] = None
            case "fenced" | "quiesced":
                columns[f"{kind}_at"] = at
                columns["round"] += kind == "quiesced"
                if "passes_s" in details:
                    columns["passes_s"] = details["passes_s"]
            case "purged":
                total = Counter(columns["removed"])
                total.update(details["removed"])
                columns["removed"] = dict(total)
            case "completed" | "cancelled" | "rejected" | "duplicate_of":
                columns |= {"ended_at": at, "duplicate_of": details.get("original")}
            case "intent":
                row = {"n": details["pass"], "round": columns["round"], "sent_at": at}
                self.passes[details["attempt"]] = {**row, "outcome": None}
            case "result":
                answer = {"status": details["status"], "outcome": details["outcome"]}
                ended = {"calls": details.get("calls", 1), "answered_at": at}
                self.passes[details["attempt"]] |= answer | ended

    def _plan(self, kind: str, details: Mapping[str, Any]) -> None:
        """Take the time of the next step, if this entry states it, and what else is awaited.

        What waits for the key may have its time changed at any time.
        """
        assert self.state is not None
        columns, state = self.columns, self.state.state
        if kind in {"completed", "aof_rewritten"}:
            columns["is_aof_awaited"] = kind == "completed"
        if "next_at" in details or state in protocol.ENDED:
            next_at = details.get("next_at")
            columns["next_at"] = None if next_at is None else moment(next_at)
        elif state == protocol.SCHEDULED and "not_before" in details:
            not_before = moment(details["not_before"])
            columns["next_at"] = min(columns.get("next_at", not_before), not_before)
        elif state == "quiesced" and kind != "result" and "passes_s" in columns:
            planned = (columns["quiesced_at"], columns["passes_s"][0], columns["call_after"])
            columns["next_at"] = first_call_at(*planned)
        elif state != protocol.SCHEDULED and kind not in ("intent", "result", "ticket_added"):
            columns.pop("next_at", None)
        if state == protocol.WAITING_KEY:
            columns.pop("next_at", None)

    def _fence(self, kind: str, at: datetime, change: int | None) -> None:
        assert self.state is not None
        before = len(self.fenced)
        if kind in _UNFENCES:
            self.fenced = []
        elif self.state.state in protocol.OPEN - {protocol.SCHEDULED}:
            missing = 1 + self.columns["anonymous"] - before
            self.fenced += [at] * missing
        if change is None:
            self.fences = None if self.fenced else 0
            return
        is_changed = len(self.fenced) != before
        expected = 0 if not is_changed else None
        if not self.fenced and self.fences is not None:
            expected = -self.fences
        if expected is not None and add(expected, -change):
            rule = "its change of the fences is not one of its kind"
            raise protocol.IllegalTransition(rule)
        if not self.fenced:
            self.fences = 0
        elif self.fences is not None:
            self.fences = add(self.fences, change)


def _call_after(details: Mapping[str, Any]) -> datetime | None:
    return moment(details["call_after"]) if "call_after" in details else None


def _received(details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: details[name] for name in _REQUESTED},
        "received_at": moment(details["received_at"]),
        "due_at": moment(details["due_at"]),
        "call_after": _call_after(details),
        "is_aof_awaited": False,
        "tickets": [] if details["ticket"] is None else [details["ticket"]],
        **dict.fromkeys(("fenced_at", "quiesced_at", "ended_at", "duplicate_of")),
        "removed": {},
        "round": 0,
    }


def _ticket_added(columns: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, Any]:
    ticket, tickets = details["ticket"], columns["tickets"]
    is_known = ticket is None or ticket in tickets
    call_after, asked = columns["call_after"], _call_after(details)
    return {
        "call_after": min(call_after, asked) if call_after and asked else None,
        "mode": details["mode"],
        "tickets": tickets if is_known else [*tickets, ticket],
        "due_at": min(columns["due_at"], one_month_after(moment(details["received_at"]))),
    }
