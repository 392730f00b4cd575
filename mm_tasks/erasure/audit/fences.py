"""The rows of `mm_suppressions`, held against the sum in the log.

The log rules: a tag counts only as part of a table whose weights give the sum of the last line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.seals import Opened, add
from mm_tasks.errors import AuditChainBroken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.audit.seals import Seals

# Rows fetched at a time: there may be a million.
_PAGE = 1000
_NOT_THE_LOG = (
    "mm_suppressions: its rows are not the fences that the log says: a row was added, changed "
    "or removed. The fences in Redis stay as they are; see mm-tasks audit verify"
)


def fenced_tags(connection: Connection, seals: Seals, project: str) -> Iterator[bytes]:
    """Yield the tags of a project's rows; a tag may occur twice.

    Raises `AuditChainBroken` at the end unless the rows of all projects are those that the log
    says: the caller must not use any tag before.
    """
    expected = audit_log.tail(connection, seals).fences
    for row, opened in opened_rows(connection, seals, expected):
        if row.project == project:
            yield opened.tag


def opened_rows(
    connection: Connection, seals: Seals, expected: int | None = None
) -> Iterator[tuple[Any, Opened]]:
    """Yield each row with its opened seal; raise `AuditChainBroken` for one that does not open.

    Raises at the end if the sum of all weights is not the `expected` one.
    """
    sum_, each = 0, tables.suppressions.c
    query = select(each.erasure, each.n, each.kind, each.project, each.since, each.sealed)
    with connection.execute(query.execution_options(yield_per=_PAGE)) as rows:
        for row in rows:
            opened = seals.open(row.sealed, row.project, row.erasure, row.kind)
            if opened is None:
                raise AuditChainBroken(_NOT_THE_LOG)
            sum_ += opened.weight
            yield row, opened
    if expected is not None and add(sum_, -expected):
        raise AuditChainBroken(_NOT_THE_LOG)
