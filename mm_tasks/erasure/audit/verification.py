"""Verification: whether the audit log is unchanged and describes legal erasures.

Of each line these things are checked: its hash is in the next line; it is in canonical form;
it agrees with each checkpoint, stored and outside; `protocol` allows it after the earlier
entries of its erasure; with the pseudonym key, its MAC holds and the fences change as its kind
says. Then the work rows must be what `replay` makes of the entries: see `comparison`.

A failure is `AuditChainBroken` with the number of the entry and the rule, never its content.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from logging import getLogger
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from mm_tasks.erasure.audit import protocol, tables
from mm_tasks.erasure.audit.comparison import compare
from mm_tasks.erasure.audit.log import (
    FIRST_PREV,
    NO_SUBJECT,
    canonical,
    fences_of,
    hash_of,
    lines,
    object_of,
)
from mm_tasks.erasure.audit.replay import ErasureReplay
from mm_tasks.erasure.audit.seals import add
from mm_tasks.errors import AuditChainBroken
from mm_tasks.timestamps import STAMP

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mm_tasks.erasure.audit.checkpoints import Checkpoint
    from mm_tasks.erasure.audit.log import AuditLog
    from mm_tasks.erasure.audit.pseudonyms import Pseudonyms

_log = getLogger(__name__)

_FIELDS = {
    **dict.fromkeys(("at", "entry", "erasure", "prev", "subject"), str),
    **dict.fromkeys(("epoch", "seq"), int),
    "details": dict,
}
# Lines of an earlier release have neither.
_SEALED_FIELDS = {**_FIELDS, "fences": str, "mac": str}


@dataclass(frozen=True, slots=True)
class Report:
    """A verified log: its size and head, its erasures by state, the number of checkpoints.

    `checkpoints` are all sizes that were compared; then the numbers by place: the database, the
    state directory, and the files given. `is_keyed`: MACs, tags and ids were compared too.
    `guards_missing` are dropped triggers: the log is whole, and less protected.
    """

    size: int
    head: str
    erasures: Mapping[str, int]
    checkpoints: int
    guards_missing: tuple[str, ...] = ()
    checkpoints_database: int = 0
    checkpoints_host: int = 0
    checkpoints_outside: int = 0
    is_keyed: bool = False


@dataclass(slots=True)
class Chain:
    """The lines so far. Call `add` for each in order, then `finish`."""

    checkpoints: Mapping[int, str]
    key: Pseudonyms | None = None
    size: int = 0
    head: str = FIRST_PREV
    # The sum of the weights after the last line; None before the first line that has one.
    fences: int | None = None
    replays: dict[str, ErasureReplay] = field(default_factory=dict)
    # Of each entry `restored` the rows that are left, and the sum of their weights.
    restored: dict[str, tuple[int, int]] = field(default_factory=dict)
    _is_sealed: bool = False

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
        change = self._change(fields, place)
        try:
            self._take(fields, change, place)
        except protocol.IllegalTransition as illegal:
            raise _broken(place, str(illegal)) from None

    def _change(self, fields: Mapping[str, Any], place: str) -> int | None:
        """Return the change of the fences by an entry; None if nothing says it."""
        if "mac" not in fields:
            if self._is_sealed:
                raise _broken(place, "it has no MAC, and entries before it have one")
            return None
        was_sealed, self._is_sealed = self._is_sealed or self.size == 1, True
        if self.key is None:
            return None
        before, self.fences = self.fences or 0, fences_of(fields, self.key.seals)
        if self.fences is None:
            raise _broken(place, "its MAC does not hold: it was not written with this key")
        if not was_sealed and fields["entry"] != "sealed":
            raise _broken(place, "the first entry with a MAC must be the one of the upgrade")
        return add(self.fences, -before) if was_sealed else None

    def _take(self, fields: Mapping[str, Any], change: int | None, place: str) -> None:
        kind, erasure = fields["entry"], fields["erasure"]
        if kind in protocol.STORE_ENTRIES:
            protocol.check_store_entry(kind, fields["details"])
            if fields["subject"] != NO_SUBJECT or erasure in self.replays:
                raise _broken(place, "an entry about the store is about no erasure")
            self._restore(fields, change or 0, place)
            return
        replay = self.replays.setdefault(erasure, ErasureReplay())
        replay.add(fields, change)
        subject = (replay.columns["pseudonym"], replay.columns["epoch"])
        if subject != (fields["subject"], fields["epoch"]):
            raise _broken(place, "it has another subject than its erasure")

    def _restore(self, fields: Mapping[str, Any], change: int, place: str) -> None:
        """Take an entry about the store; `restored` and `restored_lifted` change the fences."""
        group, kind, tags = fields["erasure"], fields["entry"], fields["details"].get("tags", 0)
        rows, sum_ = self.restored.get(group, (0, 0))
        rows += -tags if kind == "restored_lifted" else tags
        is_new = group not in self.restored
        if rows < 0 or is_new != (kind != "restored_lifted") or (change != 0 and not tags):
            raise _broken(place, "it does not change the restored fences as its kind does")
        self.restored[group] = (rows, add(sum_, change))

    def finish(self, guards_missing: Iterable[str] = (), cut: str = "its tail was cut") -> Report:
        """Return the report; raise `AuditChainBroken` if a checkpoint has more entries."""
        longest = max(self.checkpoints, default=0)
        if longest > self.size:
            rule = f"a checkpoint saw {longest} entries, and {self.size} are here"
            raise _missing(self.size + 1, f"{rule}; {cut}")
        states = Counter(str(replay.columns["state"]) for replay in self.replays.values())
        guards = tuple(guards_missing)
        return Report(self.size, self.head, dict(states), len(self.checkpoints), guards)


def verify(log: AuditLog, elsewhere: Iterable[Checkpoint] = ()) -> Report:
    """Verify the log of a database against its checkpoints and work rows, or raise.

    `elsewhere` are checkpoints that were kept out of this host.
    """
    key = log.find_key()
    # Read before the log: a checkpoint published later may cover entries that this read
    # does not see.
    host, outside = log.outside.read(), list(elsewhere)
    with log.database.read() as connection:
        stored = connection.execute(select(tables.checkpoints)).all()
        chain = Chain(heads_at([*stored, *host, *outside]), key)
        for seq, line in lines(connection):
            chain.add(seq, line)
        report = chain.finish(tables.guards_missing(connection))
        now = log.database.now(connection)
        compare(connection, chain.replays, chain.restored, key, now)
    if report.guards_missing:
        _log.warning("audit_guards_missing", extra={"guards": ", ".join(report.guards_missing)})
    return replace(
        report,
        checkpoints_database=len(stored),
        checkpoints_host=len(host),
        checkpoints_outside=len(outside),
        is_keyed=key is not None,
    )


def verify_lines(
    exported: Iterable[str],
    checkpoints: Iterable[Checkpoint] = (),
    key: Pseudonyms | None = None,
) -> Report:
    """Verify an export with its last line, against checkpoints from elsewhere, or raise.

    Those with more entries than the export count too: it may have been cut.
    """
    chain = Chain(heads_at(checkpoints), key)
    *entries, last = [*exported] or [""]
    for seq, line in enumerate(entries, 1):
        chain.add(seq, line)
    report = chain.finish(cut="the export was cut, or is older: export again")
    end = object_of(last)
    if (end.get("size"), end.get("head")) != (report.size, report.head):
        msg = "the checkpoint at the end is not of these entries: a part is gone"
        raise AuditChainBroken(msg)
    return replace(report, is_keyed=key is not None)


def heads_at(checkpoints: Iterable[Any]) -> dict[int, str]:
    """Return the head at each size; raise if two checkpoints differ."""
    heads: dict[int, str] = {}
    for checkpoint in checkpoints:
        if heads.setdefault(checkpoint.size, checkpoint.head) != checkpoint.head:
            place, rule = f"entry {checkpoint.size}", "two checkpoints saw different entries"
            raise _broken(place, f"{rule}: the log was written anew")
    return heads


def _fields_of(line: str, place: str) -> dict[str, Any]:
    fields = object_of(line)
    if {name: type(value) for name, value in fields.items()} not in (_FIELDS, _SEALED_FIELDS):
        raise _broken(place, "it does not have the fields of an entry")
    if canonical(fields) != line:
        raise _broken(place, "it is not in the canonical form")
    if STAMP.fullmatch(fields["at"]) is None:
        raise _broken(place, "its time is not a time")
    return fields


def _broken(place: str, rule: str) -> AuditChainBroken:
    return AuditChainBroken(f"{place}: {rule}")


def _missing(seq: int, rule: str) -> AuditChainBroken:
    return AuditChainBroken(f"entry {seq} is missing: {rule}")
