"""Adopt an audit log that lost entries: a backup was put back, or the database failed over.

The persons of the lost entries are still fenced in Redis, by tags that name nobody. Their tags
become rows of `mm_suppressions` under an entry `restored` of the log, so that a load keeps them.
From then on Redis knows this log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import insert

from mm_tasks.buffer.fence import LogEnd
from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.continuity import compare
from mm_tasks.erasure.audit.fences import fenced_tags
from mm_tasks.erasure.audit.protocol import check_store_entry
from mm_tasks.erasure.request import reference_rule
from mm_tasks.errors import InvalidEvent, Problem
from mm_tasks.events import ids
from mm_tasks.timestamps import moment, stamp

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.engine import Connection

    from mm_tasks.buffer.audit_state import AuditState
    from mm_tasks.buffer.fence import Fence
    from mm_tasks.erasure.audit.session import AuditSession

RESTORED = "restored"


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
        fenced = set(self._fence.tags())
        at, set_aside = None, None
        with self._session.transaction() as connection:
            at = stamp(self._session.log.database.now(connection))
            tags = fenced - set(self._stored(connection))
            details: dict[str, object] = {
                "known_size": loss.known.size,
                "known_head": loss.known.head or audit_log.FIRST_PREV,
                "project": self._session.project,
                "requested_by": requested_by,
                "size": audit_log.head(connection).size,
                "tags": len(tags),
            }
            self._enter(connection, tags, details, at)
            end = audit_log.head(connection)
            if loss.reason:
                set_aside = self._session.log.outside.set_aside(at.replace(":", ""))
        self._state.reset()
        self._fence.adopt(LogEnd(end.size, end.head))
        return Adopted(len(tags), set_aside)

    def _stored(self, connection: Connection) -> set[bytes]:
        seals, project = self._session.pseudonyms.seals, self._session.project
        return set(fenced_tags(connection, seals, project))

    def _enter(
        self, connection: Connection, tags: set[bytes], details: dict[str, object], at: str
    ) -> None:
        """Append the entry, with a row for each tag under its id."""
        check_store_entry(RESTORED, details)
        seals, project, entry = self._session.pseudonyms.seals, self._session.project, ids.uuid7()
        shared = {"erasure": entry, "project": project, "kind": RESTORED, "since": moment(at)}
        sum_ = 0
        for n, tag in enumerate(sorted(tags)):
            sealed = seals.seal(tag, project, entry, RESTORED)
            values = {**shared, "n": n, "sealed": sealed.text}
            connection.execute(insert(tables.suppressions).values(values))
            sum_ += sealed.weight
        subject = (entry, audit_log.NO_SUBJECT, self._session.pseudonyms.epoch)
        stored = audit_log.StoredEntry(*subject, RESTORED, details, at)
        audit_log.append(connection, stored, seals, sum_)
