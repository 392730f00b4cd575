"""Comparison: every column of the work rows against the replay of the log.

A difference is `AuditChainBroken` with the erasure and the column, never a value.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select

from mm_tasks.erasure.audit import protocol, tables
from mm_tasks.erasure.audit.fences import opened_rows
from mm_tasks.erasure.audit.restored import KIND
from mm_tasks.erasure.audit.seals import add
from mm_tasks.erasure.deadlines import BLOCKED_MAX
from mm_tasks.errors import AuditChainBroken

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import RowMapping as Row
    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.audit.pseudonyms import Pseudonyms
    from mm_tasks.erasure.audit.replay import ErasureReplay

    Replays = Mapping[str, ErasureReplay]


class _Fences(NamedTuple):
    """The rows of `mm_suppressions` of one erasure: kind, time and tag by ordinal, and the sum."""

    rows: dict[int, tuple[str, Any, bytes]]
    weights: list[int]


def compare(
    connection: Connection,
    replays: Replays,
    restored: Mapping[str, tuple[int, int]],
    key: Pseudonyms | None,
    now: datetime,
) -> None:
    """Raise unless the work rows are those that the log says.

    `restored` has number and sum of the rows of each entry `restored`. Without the key the tags
    and the ids cannot be looked at.
    """
    _compare_store(connection, key)
    found = {} if key is None else _fences(connection, key)
    rows = tables.erasures
    query = select(rows)
    missing = set(replays)
    for row in connection.execute(query).mappings().all():
        replay = replays.get(row["id"])
        if replay is None:
            raise _differs(row["id"], "it has a work row, and no entry in the log")
        missing.discard(row["id"])
        _compare_erasure(row, replay, key, now)
        if key is not None:
            _compare_fences(row, replay, found.pop(row["id"], _Fences({}, [])))
    for erasure in sorted(missing):
        raise _differs(erasure, "it is in the log, and its work row is gone")
    if key is not None:
        _compare_restored(restored, found)
    _compare_passes(connection, replays)


def _compare_restored(
    restored: Mapping[str, tuple[int, int]], found: Mapping[str, _Fences]
) -> None:
    """Raise unless the rows that belong to no erasure are the restored ones."""
    expected = {group: (rows, sum_) for group, (rows, sum_) in restored.items() if rows}
    for group in sorted(expected.keys() | found.keys()):
        fences = found.get(group, _Fences({}, []))
        kinds = {kind for kind, *_ in fences.rows.values()}
        actual = (len(fences.rows), add(sum(fences.weights), 0))
        if group not in expected or kinds != {KIND} or actual != expected[group]:
            raise _differs(group, "its fences are not what the log says")


def _compare_store(connection: Connection, key: Pseudonyms | None) -> None:
    rows = connection.execute(select(tables.store)).all()
    known = [(row.one, row.schema_version) for row in rows]
    if known != [(1, tables.SCHEMA_VERSION)]:
        msg = "mm_store: it is not the one row of this version"
        raise AuditChainBroken(msg)
    if key is not None and (rows[0].epoch, rows[0].fingerprint) != (key.epoch, key.fingerprint):
        msg = "mm_store: it has another pseudonym key"
        raise AuditChainBroken(msg)


def _compare_erasure(
    row: Row, replay: ErasureReplay, key: Pseudonyms | None, now: datetime
) -> None:
    derived = {"passes": len(row["passes_s"]), "is_aof_awaited": row["aof"] is not None}
    actual = {**row, **derived}
    for name, value in replay.columns.items():
        if name == "next_at" and value is not None and _may_be_begun(row["state"], value, now):
            continue
        if actual[name] != value:
            raise _differs(row["id"], f"{name} of its work row is not what the log says")
    assert replay.state is not None
    ids = row["ids"]
    if (ids is None) != replay.state.wiped:
        raise _differs(row["id"], "its ids are here, or gone, otherwise than the log says")
    if ids is not None and len(ids.anonymous) != row["anonymous"]:
        raise _differs(row["id"], "its ids are not as many as the log says")
    if ids is not None and key is not None and key.of(ids.user) != row["pseudonym"]:
        raise _differs(row["id"], "its ids are not those of its subject")


def _may_be_begun(state: str, next_at: datetime, now: datetime) -> bool:
    """Return whether a step was due, as `Erasure.is_due` tells: that may put off the next one."""
    wait = next_at - now
    return wait <= timedelta() or (state in protocol.BLOCKED and wait > BLOCKED_MAX)


def _fences(connection: Connection, key: Pseudonyms) -> dict[str, _Fences]:
    found: dict[str, _Fences] = defaultdict(lambda: _Fences({}, []))
    for row, opened in opened_rows(connection, key.seals):
        fences = found[row.erasure]
        fences.rows[row.n] = (row.kind, row.since, opened.tag)
        fences.weights.append(opened.weight)
    return found


def _compare_fences(row: Row, replay: ErasureReplay, found: _Fences) -> None:
    expected = {n: ("anonymous" if n else "user", at) for n, at in enumerate(replay.fenced)}
    if {n: found.rows[n][:2] for n in found.rows} != expected:
        raise _differs(row["id"], "its fence is not what the log says")
    if replay.fences is not None and add(replay.fences, -sum(found.weights)):
        raise _differs(row["id"], "its tags are not those that the log says")
    if row["ids"] is not None and replay.fenced:
        tags = sorted(tag for _, tag in row["ids"].tags(row["project"]))
        if tags != sorted(tag for *_, tag in found.rows.values()):
            raise _differs(row["id"], "its tags are not those of its ids")


def _compare_passes(connection: Connection, replays: Replays) -> None:
    missing = {(erasure, n) for erasure, replay in replays.items() for n in replay.passes}
    query = select(tables.passes)
    for row in connection.execute(query).mappings().all():
        erasure, attempt = row["erasure"], row["attempt"]
        expected = replays[erasure].passes.get(attempt) if erasure in replays else None
        if expected is None:
            raise _differs(erasure, f"attempt {attempt} has a row, and no entry in the log")
        missing.discard((erasure, attempt))
        for name, value in expected.items():
            if row[name] != value:
                raise _differs(erasure, f"{name} of attempt {attempt} is not what the log says")
    for erasure, attempt in sorted(missing):
        raise _differs(erasure, f"attempt {attempt} is in the log, and its row is gone")


def _differs(erasure: str, rule: str) -> AuditChainBroken:
    return AuditChainBroken(f"erasure {erasure}: {rule}")
