"""Adopt an audit log that lost entries: a backup was put back, or the database failed over.

The persons of the lost entries are still fenced in Redis, by tags that name nobody. Their tags
become rows of `mm_suppressions` under an entry `restored` of the log, so that a load keeps them.
From then on Redis knows this log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mm_tasks.buffer.fence import LogEnd
from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit.continuity import compare
from mm_tasks.erasure.audit.fences import fenced_tags
from mm_tasks.erasure.audit.restored import RestoredFences
from mm_tasks.erasure.request import reference_rule
from mm_tasks.errors import InvalidEvent, Problem
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from pathlib import Path

    from mm_tasks.buffer.audit_state import AuditState
    from mm_tasks.buffer.fence import Fence
    from mm_tasks.erasure.audit.session import AuditSession


class Loss(NamedTuple):
    """What is missing. `hosts` are those that found it, each with its reason.

    `known` is the end of the log that Redis knows, `end` that of the log. The entries from
    `agreed` + 1 to `seen` are gone, or other ones; without a `reason` none is.
    """

    known: LogEnd
    end: LogEnd
    reason: str
    agreed: int
    seen: int
    hosts: dict[str, str]


class Adopted(NamedTuple):
    """The number of tags that only Redis had, and the path of the old file of checkpoints."""

    tags: int
    set_aside: Path | None


class Adoption:
    """The adoption of a restored log for one project."""

    def __init__(self, session: AuditSession, fence: Fence, state: AuditState) -> None:
        """Take the store, the fence in Redis, and the findings; nothing is read here."""
        self._session = session
        self._fence = fence
        self._state = state

    def look(self) -> Loss:
        """Compare the log with what Redis and the checkpoints of this host saw."""
        self._fence.check_store(self._session.store_id)
        known, hosts = self._fence.state().known, self._state.read().differing
        outside = [LogEnd(each.size, each.head) for each in self._session.log.outside.read()]
        with self._session.read() as connection:
            end = audit_log.head(connection)
            found = compare(connection, end.size, [known, *outside])
        return Loss(known, LogEnd(end.size, end.head), *found, hosts)

    def adopt(self, loss: Loss, requested_by: str) -> Adopted:
        """Enter again whom Redis still fences, and let Redis know this log. Safe to repeat.

        Raises `InvalidEvent` if `requested_by` is not a reference, and `AuditChainBroken` if the
        rows of the fences are not those that this log says: `adopt` mends a loss, not a forgery.
        """
        if rule := reference_rule(requested_by, ()):
            raise InvalidEvent([Problem("requested_by", rule)])
        fenced, session, key = self._fence.tags(), self._session, self._session.pseudonyms
        with session.transaction() as connection:
            now = session.log.database.now(connection)
            size = audit_log.head(connection).size
            tags = fenced - set(fenced_tags(connection, key.seals, session.project))
            details = {
                "known_size": loss.known.size,
                "known_head": loss.known.head or audit_log.FIRST_PREV,
                "requested_by": requested_by,
                "size": size,
            }
            parts = (connection, key.seals, key.epoch, session.project, now)
            RestoredFences(*parts).enter(tags, details)
            end = audit_log.head(connection)
            # Before the commit, whose checkpoint begins the new file.
            word = stamp(now).replace(":", "")
            set_aside = session.log.outside.set_aside(word) if loss.reason else None
        self._state.reset()
        self._fence.adopt(LogEnd(end.size, end.head))
        return Adopted(len(tags), set_aside)
