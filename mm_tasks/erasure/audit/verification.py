"""Verification: whether the audit log is the one that was written, and says what may be.

Four questions, each answered for every line: is it the line that the next one's hash was
made of; is it written the one way there is; does it agree with each checkpoint, stored and
outside; may it follow what its erasure did before. Then the work rows must be where the log
says they are.

A failure is `AuditChainBroken` with the entry's number and the rule, never what it says.
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
    "at": str,
    "details": dict,
    "entry": str,
    "epoch": int,
    "erasure": str,
    "prev": str,
    "seq": int,
    "subject": str,
}


@dataclass(frozen=True, slots=True)
class Report:
    """What was verified: the log's size and head, its erasures by state, the checkpoints.

    `guards_missing` are triggers that were dropped: the log is whole, and less protected.
    """

    size: int
    head: str
    erasures: Mapping[str, int]
    checkpoints: int
    guards_missing: tuple[str, ...] = ()


@dataclass(slots=True)
class Chain:
    """The lines so far. Feed them in order with `add`, then `finish`."""

    checkpoints: Mapping[int, str]
    size: int = 0
    head: str = FIRST_PREV
    progress: dict[str, ErasureState] = field(default_factory=dict)
    subjects: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, seq: int, line: str) -> None:
        """Take the next line, or raise."""
        expected = self.size + 1
        if seq != expected:
            msg = f"entry {expected} is missing: entry {seq} comes next"
            raise AuditChainBroken(msg)
        fields = _read(seq, line)
        if fields["seq"] != seq:
            raise _broken(seq, "it is stored under another number than its own")
        if fields["prev"] != self.head:
            before = f"entry {seq - 1}" if seq > 1 else "the start of the log"
            raise _broken(seq, f"it does not follow {before}: one of the two was changed")
        self.size, self.head = seq, hash_of(line)
        if self.checkpoints.get(seq, self.head) != self.head:
            raise _broken(seq, "it is not the one that a checkpoint saw: it was changed")
        self._follow(seq, fields)

    def finish(self) -> None:
        """Raise if a checkpoint saw more entries than there are."""
        longest = max(self.checkpoints, default=0)
        if longest > self.size:
            rule = f"a checkpoint saw {longest} entries, and {self.size} are here"
            msg = f"entry {self.size + 1} is missing: {rule}; its tail was cut"
            raise AuditChainBroken(msg)

    def _follow(self, seq: int, fields: Mapping[str, Any]) -> None:
        erasure = fields["erasure"]
        subject = (fields["subject"], fields["epoch"])
        if self.subjects.setdefault(erasure, subject) != subject:
            raise _broken(seq, "it has another subject than its erasure")
        before = self.progress.get(erasure)
        try:
            after = protocol.step(before, fields["entry"], fields["details"], erasure)
        except protocol.IllegalTransition as illegal:
            rule = str(illegal)
        else:
            self.progress[erasure] = after
            return
        raise _broken(seq, rule)


def verify(log: AuditLog) -> Report:
    """Verify the log of a database against its checkpoints and work rows, or raise."""
    # Read before the log: what is published later may be of entries this moment lacks.
    outside = log.outside.read()
    with log.database.read() as connection:
        stored = connection.execute(select(tables.checkpoints)).all()
        pairs = [(row.size, row.head) for row in stored]
        chain = Chain(_agreed([*pairs, *((one.size, one.head) for one in outside)]))
        for seq, line in lines(connection):
            chain.add(seq, line)
        chain.finish()
        work = tables.erasures.c
        rows = connection.execute(select(work.id, work.state, work.pseudonym, work.epoch)).all()
        missing = tuple(tables.guards_missing(connection))
    _compare(chain, rows)
    if missing:
        _log.warning("audit_guards_missing", extra={"guards": ", ".join(missing)})
    return _report(chain, missing)


def verify_lines(exported: Iterable[str], checkpoints: Iterable[Checkpoint] = ()) -> Report:
    """Verify an export, its last line included, against checkpoints from elsewhere."""
    chain = Chain(_agreed((one.size, one.head) for one in checkpoints))
    *entries, last = [*exported] or [""]
    for seq, line in enumerate(entries, 1):
        chain.add(seq, line)
    chain.finish()
    end = _object(last)
    if (end.get("size"), end.get("head")) != (chain.size, chain.head):
        msg = "the checkpoint at the end is not of these entries: a part is gone"
        raise AuditChainBroken(msg)
    return _report(chain, ())


def _report(chain: Chain, missing: tuple[str, ...]) -> Report:
    states = Counter(progress.state for progress in chain.progress.values())
    return Report(chain.size, chain.head, dict(states), len(chain.checkpoints), missing)


def _agreed(pairs: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Return the head at each size; raise where two checkpoints differ."""
    heads: dict[int, str] = {}
    for size, head in pairs:
        if heads.setdefault(size, head) != head:
            raise _broken(size, "two checkpoints saw different entries: the log was written anew")
    return heads


def _compare(chain: Chain, rows: Iterable[Any]) -> None:
    """Raise unless each erasure's work row is there and says the same as the log."""
    states = dict(chain.progress)
    for row in rows:
        logged = states.pop(row.id, None)
        if logged is None:
            msg = f"erasure {row.id} has a work row, and no entry in the log"
            raise AuditChainBroken(msg)
        if logged.state != row.state:
            rule = f"its work row says {row.state}, the log says {logged.state}"
            msg = f"erasure {row.id}: {rule}"
            raise AuditChainBroken(msg)
        if chain.subjects[row.id] != (row.pseudonym, row.epoch):
            msg = f"erasure {row.id}: its work row has another subject"
            raise AuditChainBroken(msg)
    for erasure in states:
        msg = f"erasure {erasure} is in the log, and its work row is gone"
        raise AuditChainBroken(msg)


def _read(seq: int, line: str) -> dict[str, Any]:
    fields = _object(line)
    if fields.keys() != _FIELDS.keys() or any(
        type(fields[name]) is not kind for name, kind in _FIELDS.items()
    ):
        raise _broken(seq, "it does not have the fields of an entry")
    if canonical(fields) != line:
        raise _broken(seq, "it is not written the way this log writes")
    if STAMP.fullmatch(fields["at"]) is None:
        raise _broken(seq, "its time is not a time")
    return fields


def _object(line: object) -> dict[str, Any]:
    """Return the fields of a line; none when it is not an object of JSON."""
    try:
        fields = json.loads(line) if isinstance(line, str) else {}
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _broken(seq: int, rule: str) -> AuditChainBroken:
    return AuditChainBroken(f"entry {seq}: {rule}")
