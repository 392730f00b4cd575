"""Continuity: whether the log still has the entries that its witnesses saw.

A witness is a size of the log and the head at that size: the pair that Redis keeps, and each
checkpoint in the file of this host. A log that went back, by a failover or a restored backup, is
shorter at first (`audit_log_cut`). Once it has grown again only its heads differ
(`audit_log_forked`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import select

from mm_tasks.buffer.fence import LogEnd
from mm_tasks.buffer.scripts import pages
from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import tables
from mm_tasks.errors import AuditChainBroken

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.audit.session import AuditSession

CUT, FORKED = "audit_log_cut", "audit_log_forked"
# Of the file of checkpoints, where the whole is not compared: about thirty lines.
_TAIL_BYTES = 4096
_SIZES_MAX = 500
_LOST = (
    "the audit log lacks entries that were in it, by what Redis and the checkpoints of this host "
    "know: its tail is gone, or a backup was put back. The fences stay as they are; see "
    "mm-tasks audit adopt"
)


class Continuity:
    """Compares the log with its witnesses."""

    def __init__(self, session: AuditSession) -> None:
        """Take the store; nothing is opened here."""
        self._session = session
        self._compared_bytes = 0

    def end(self, known: LogEnd, *, whole: bool = False) -> LogEnd:
        """Return the end of the log; raise `AuditChainBroken` unless it has all witnesses.

        `known` is the pair that Redis keeps. Of the file of checkpoints the last ones are
        compared; if `whole`, all that this process has not compared before.
        """
        # The witnesses are read first: a later one may cover entries that this read does not see.
        outside, file_bytes = self._checkpoints(whole=whole)
        with self._session.read() as connection:
            end = audit_log.head(connection)
            if reason := compare(connection, end.size, [known, *outside]).reason:
                raise AuditChainBroken(_LOST, reason)
        if whole:
            self._compared_bytes = file_bytes
        return LogEnd(end.size, end.head)

    def _checkpoints(self, *, whole: bool) -> tuple[list[LogEnd], int]:
        """Return the checkpoints to compare, and the size of the file before they were read."""
        sinks = self._session.log.outside
        try:
            file_bytes = sinks.file_bytes
            # A shorter file is another one. The last lines that were compared are compared again:
            # the log may have gone back since.
            done = self._compared_bytes if self._compared_bytes <= file_bytes else 0
            kept = sinks.read(max(0, (done if whole else file_bytes) - _TAIL_BYTES))
        except OSError:
            return [], 0
        return [LogEnd(checkpoint.size, checkpoint.head) for checkpoint in kept], file_bytes


class Comparison(NamedTuple):
    """A log and its witnesses. `reason` is empty if it has all that they saw.

    Otherwise the entries from `agreed` + 1 to `seen` are gone, or other ones.
    """

    reason: str
    agreed: int
    seen: int


def compare(connection: Connection, size: int, witnesses: Iterable[LogEnd]) -> Comparison:
    """Compare a log of this size with what its witnesses saw."""
    heads: dict[int, set[str]] = {}
    for witness in witnesses:
        heads.setdefault(witness.size, set()).add(witness.head)
    same = {0}
    for page in pages(sorted(seq for seq in heads if 0 < seq <= size), _SIZES_MAX):
        query = select(tables.log.c.seq, tables.log.c.line).where(tables.log.c.seq.in_(page))
        for row in connection.execute(query):
            if not heads[row.seq] - {"", audit_log.hash_of(row.line)}:
                same.add(row.seq)
    differing = heads.keys() - same
    if not differing:
        return Comparison("", size, size)
    reason = CUT if min(differing) > size else FORKED
    agreed = max(seq for seq in same if seq < min(differing))
    return Comparison(reason, agreed, max(differing))
