"""Verification: whether the audit log is unchanged and describes legal erasures.

Of each line four things are checked: its hash is in the next line; it is in canonical form;
it agrees with each checkpoint, stored and outside; `protocol` allows it after the earlier
entries of its erasure. Then the work rows must be in the state that the log gives.

A failure is `AuditChainBroken` with the number of the entry and the rule, never its content.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from logging import getLogger
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from mm_tasks.erasure.audit import protocol, tables
from mm_tasks.erasure.audit.log import FIRST_PREV, canonical, hash_of, lines
from mm_tasks.errors import AuditChainBroken
from mm_tasks.timestamps import STAMP

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mm_tasks.erasure.audit.checkpoints import Checkpoint
    from mm_tasks.erasure.audit.log import AuditLog
    from mm_tasks.erasure.audit.protocol import ErasureState

_log = getLogger(__name__)

_FIELDS = {
    **dict.fromkeys(("at", "entry", "erasure", "prev", "subject"), str),
    **dict.fromkeys(("epoch", "seq"), int),
    "details": dict,
}


@dataclass(frozen=True, slots=True)
class Report:
    """A verified log: its size and head, its erasures by state, the number of checkpoints.

    `guards_missing` are dropped triggers: the log is whole, and less protected.
    """

    size: int
    head: str
    erasures: Mapping[str, int]
    checkpoints: int
    guards_missing: tuple[str, ...] = ()


@dataclass(slots=True)
class Chain:
    """The lines so far. Call `add` for each in order, then `finish`."""

    checkpoints: Mapping[int, str]
    size: int = 0
    head: str = FIRST_PREV
    states: dict[str, ErasureState] = field(default_factory=dict)
    subjects: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, seq: int, line: str) -> None:
        """Verify the next line, or raise `AuditChainBroken`."""
        place = f"entry {seq}"
        if seq != self.size + 1:
            raise _missing(self.size + 1, f"{place} comes next")
        fields = _fields_of(line, place)
        if fields["seq"] != seq:
            raise _broken(place, "it is stored under another number than its own")
        if fields["prev"] != self.head:
            before = f"entry {seq - 1}" if seq > 1 else "the start of the log"
            raise _broken(place, f"it does not follow {before}: one of the two was changed")
        self.size, self.head = seq, hash_of(line)
        if self.checkpoints.get(seq, self.head) != self.head:
            raise _broken(place, "it differs from the entry of a checkpoint: it was changed")
        erasure, subject = fields["erasure"], (fields["subject"], fields["epoch"])
        if self.subjects.setdefault(erasure, subject) != subject:
            raise _broken(place, "it has another subject than its erasure")
        state, kind, details = self.states.get(erasure), fields["entry"], fields["details"]
        try:
            self.states[erasure] = protocol.step(state, kind, details, erasure)
        except protocol.IllegalTransition as illegal:
            raise _broken(place, str(illegal)) from None

    def finish(self, guards_missing: Iterable[str] = ()) -> Report:
        """Return the report; raise `AuditChainBroken` if a checkpoint has more entries."""
        longest = max(self.checkpoints, default=0)
        if longest > self.size:
            rule = f"a checkpoint saw {longest} entries, and {self.size} are here"
            raise _missing(self.size + 1, f"{rule}; its tail was cut")
        states = Counter(state.state for state in self.states.values())
        guards = tuple(guards_missing)
        return Report(self.size, self.head, dict(states), len(self.checkpoints), guards)


def verify(log: AuditLog) -> Report:
    """Verify the log of a database against its checkpoints and work rows, or raise."""
    # Read before the log: a checkpoint published later may cover entries that this read
    # does not see.
    outside = log.outside.read()
    with log.database.read() as connection:
        stored = connection.execute(select(tables.checkpoints)).all()
        chain = Chain(heads_at([*stored, *outside]))
        for seq, line in lines(connection):
            chain.add(seq, line)
        report = chain.finish(tables.guards_missing(connection))
        work = tables.erasures.c
        rows = connection.execute(select(work.id, work.state, work.pseudonym, work.epoch)).all()
    _compare(chain, {row.id: row for row in rows})
    if report.guards_missing:
        _log.warning("audit_guards_missing", extra={"guards": ", ".join(report.guards_missing)})
    return report


def verify_lines(exported: Iterable[str], checkpoints: Iterable[Checkpoint] = ()) -> Report:
    """Verify an export with its last line, against checkpoints from elsewhere, or raise."""
    chain = Chain(heads_at(checkpoints))
    *entries, last = [*exported] or [""]
    for seq, line in enumerate(entries, 1):
        chain.add(seq, line)
    report = chain.finish()
    end = _object(last)
    if (end.get("size"), end.get("head")) != (report.size, report.head):
        msg = "the checkpoint at the end is not of these entries: a part is gone"
        raise AuditChainBroken(msg)
    return report


def heads_at(checkpoints: Iterable[Any]) -> dict[int, str]:
    """Return the head at each size; raise if two checkpoints differ."""
    heads: dict[int, str] = {}
    for checkpoint in checkpoints:
        if heads.setdefault(checkpoint.size, checkpoint.head) != checkpoint.head:
            place, rule = f"entry {checkpoint.size}", "two checkpoints saw different entries"
            raise _broken(place, f"{rule}: the log was written anew")
    return heads


def _compare(chain: Chain, rows: Mapping[str, Any]) -> None:
    """Raise unless each erasure has a work row, with the state and subject of the log."""
    for erasure in sorted(rows.keys() | chain.states.keys()):
        row, logged = rows.get(erasure), chain.states.get(erasure)
        if logged is None:
            rule = "it has a work row, and no entry in the log"
        elif row is None:
            rule = "it is in the log, and its work row is gone"
        elif row.state != logged.state:
            rule = f"its work row says {row.state}, the log says {logged.state}"
        elif chain.subjects[erasure] != (row.pseudonym, row.epoch):
            rule = "its work row has another subject"
        else:
            continue
        place = f"erasure {erasure}"
        raise _broken(place, rule)


def _fields_of(line: str, place: str) -> dict[str, Any]:
    fields = _object(line)
    if {name: type(value) for name, value in fields.items()} != _FIELDS:
        raise _broken(place, "it does not have the fields of an entry")
    if canonical(fields) != line:
        raise _broken(place, "it is not in the canonical form")
    if STAMP.fullmatch(fields["at"]) is None:
        raise _broken(place, "its time is not a time")
    return fields


def _object(line: object) -> dict[str, Any]:
    """Return the fields of a line; an empty dict unless it is a JSON object."""
    try:
        fields = json.loads(line) if isinstance(line, str) else {}
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _broken(place: str, rule: str) -> AuditChainBroken:
    return AuditChainBroken(f"{place}: {rule}")


def _missing(seq: int, rule: str) -> AuditChainBroken:
    return AuditChainBroken(f"entry {seq} is missing: {rule}")
