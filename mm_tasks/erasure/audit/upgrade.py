"""The upgrade of an audit store from version 1 of its tables, in the caller's transaction.

Version 1 kept plain tags and marked lifted ones. The log decides which are in force: it is verified
first, and the tags of each erasure must be as many as it says. They are sealed; the others are
removed. The entry `sealed` begins the sums in the log.

A process of the earlier release fails from then on: its columns are gone, and the log refuses lines
without a MAC.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.log import NO_SUBJECT, StoredEntry, Tail
from mm_tasks.erasure.audit.verification import Chain
from mm_tasks.errors import AuditChainBroken, ConfigurationError
from mm_tasks.events import ids
from mm_tasks.timestamps import moment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.audit.pseudonyms import Pseudonyms
    from mm_tasks.erasure.audit.replay import ErasureReplay

_OLD = "mm_suppressions_1"
_PAGE = 1000
# The user before the anonymous ids, which may have been added later.
_ROWS = sa.text(
    f"SELECT erasure, tag, project, kind, since FROM {_OLD} "  # noqa: S608 - a constant
    "ORDER BY erasure, kind DESC, since, tag"
)
_IS_OWNER = (
    "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'mm_suppressions'::regclass"
)


def upgrade(connection: Connection, key: Pseudonyms, at: str) -> None:
    """Bring the tables of version 1 up to date; `at` is the time, by the database.

    Raises `ConfigurationError` for a role that may not, and `AuditChainBroken` if log and tags
    disagree: nothing is changed then.
    """
    is_sqlite = connection.dialect.name == "sqlite"
    if not is_sqlite and not connection.exec_driver_sql(_IS_OWNER).scalar():
        rule = "its tables are of an earlier release, and this role may not change them"
        msg = (
            f"MM_TASKS_AUDIT_URL: {rule}: run mm-tasks check once as the owner, see docs/erasure.md"
        )
        raise ConfigurationError(msg)
    chain = Chain({})
    for seq, line in audit_log.lines(connection):
        chain.add(seq, line)
    connection.exec_driver_sql(f"ALTER TABLE mm_suppressions RENAME TO {_OLD}")
    connection.exec_driver_sql("DROP INDEX mm_suppressions_tag")
    tables.create_missing(connection)
    rows, fences = _seal(connection, chain.replays, key)
    connection.exec_driver_sql(f"DROP TABLE {_OLD}")
    version = {"schema_version": tables.SCHEMA_VERSION}
    connection.execute(sa.update(tables.store).values(version))
    details: dict[str, object] = {"rows": rows, **version}
    entry = StoredEntry(ids.uuid7(), NO_SUBJECT, key.epoch, "sealed", details, at)
    end = Tail(chain.size, chain.head, 0)
    audit_log.append_to(end, connection, entry, key.seals, fences)


def _seal(
    connection: Connection, replays: dict[str, ErasureReplay], key: Pseudonyms
) -> tuple[int, int]:
    """Seal the tags that are in force; return their number and the sum of their weights."""
    fenced = {erasure for erasure, replay in replays.items() if replay.fenced}
    count = fences = 0
    with connection.execute(_ROWS.execution_options(yield_per=_PAGE)) as old:
        for erasure, rows in groupby(old, lambda row: row.erasure):
            if erasure not in replays or not replays[erasure].fenced:
                continue
            fenced.discard(erasure)
            values, weight = _sealed(rows, key)
            if len(values) != len(replays[erasure].fenced):
                raise _differs(erasure)
            connection.execute(sa.insert(tables.suppressions), values)
            count, fences = count + len(values), fences + weight
    if fenced:
        raise _differs(min(fenced))
    return count, fences


def _sealed(rows: Iterable[Any], key: Pseudonyms) -> tuple[list[dict[str, Any]], int]:
    values, weight = [], 0
    for n, row in enumerate(rows):
        tag = bytes.fromhex(row.tag)
        sealed = key.seals.seal(tag, row.project, row.erasure, row.kind)
        weight += sealed.weight
        same = {name: getattr(row, name) for name in ("erasure", "project", "kind")}
        since = moment(row.since)
        values.append({**same, "n": n, "since": since, "sealed": sealed.text})
    return values, weight


def _differs(erasure: str) -> AuditChainBroken:
    rule = "the tags in mm_suppressions are not as many as the log says"
    return AuditChainBroken(f"erasure {erasure}: {rule}; the store is not upgraded")
