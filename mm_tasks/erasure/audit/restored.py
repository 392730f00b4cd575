"""Fences of persons whom a restored log forgot: tags that only Redis had.

Nobody knows whose they are, so they belong to no erasure. Their rows in `mm_suppressions` have the
kind `restored` and, as `erasure`, the id of the entry `restored`. When an erasure of such a person
is lifted or released, the entry `restored_lifted` of the same id removes the tag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import delete, insert, select

from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import protocol, tables
from mm_tasks.events import ids
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.audit.seals import Seals

KIND = "restored"


class RestoredFences(NamedTuple):
    """The restored fences of one project within a transaction, at a time of the database."""

    connection: Connection
    seals: Seals
    epoch: int
    project: str
    now: datetime

    def enter(self, tags: Collection[bytes], details: Mapping[str, object]) -> None:
        """Fence these tags, and append the entry `restored` with its details."""
        group = ids.uuid7()
        shared = {"erasure": group, "project": self.project, "kind": KIND, "since": self.now}
        change = 0
        for n, tag in enumerate(sorted(tags)):
            sealed = self.seals.seal(tag, self.project, group, KIND)
            values = {**shared, "n": n, "sealed": sealed.text}
            self.connection.execute(insert(tables.suppressions).values(values))
            change += sealed.weight
        about = {"project": self.project, "tags": len(tags)}
        self._append(group, "restored", {**details, **about}, change)

    def leave(self, tags: Collection[bytes], erasure: str) -> None:
        """Lift these tags, because an erasure of their person is lifted or released."""
        row = tables.suppressions.c
        ours = (row.kind == KIND, row.project == self.project)
        groups = self.connection.execute(select(row.erasure).where(*ours).distinct())
        for group in sorted(groups.scalars()):
            change = removed = 0
            for tag in tags:
                sealed = self.seals.seal(tag, self.project, group, KIND)
                query = delete(tables.suppressions)
                query = query.where(row.erasure == group, row.sealed == sealed.text)
                if self.connection.execute(query).rowcount:
                    change, removed = change - sealed.weight, removed + 1
            if removed:
                details = {"original": erasure, "tags": removed}
                self._append(group, "restored_lifted", details, change)

    def _append(self, group: str, kind: str, details: dict[str, object], change: int) -> None:
        protocol.check_store_entry(kind, details)
        subject = (group, audit_log.NO_SUBJECT, self.epoch)
        entry = audit_log.StoredEntry(*subject, kind, details, stamp(self.now))
        audit_log.append(self.connection, entry, self.seals, change)
