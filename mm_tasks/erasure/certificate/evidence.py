"""The entries of an erasure, read from a log that was verified in the same transaction."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select

from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.log import canonical, lines
from mm_tasks.erasure.audit.verification import Chain, heads_at
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mm_tasks.erasure.audit.checkpoints import Checkpoint
    from mm_tasks.erasure.audit.session import AuditSession


class Evidence(NamedTuple):
    """The entries of one erasure, and the verified log that they are from.

    `database`, `host` and `outside` are the numbers of checkpoints that were compared, by their
    place; `apart` counts those outside of the database, each size once. `restored` are the times
    at which the log was restored from a backup after the request.
    """

    entries: Sequence[dict[str, Any]]
    restored: Sequence[str]
    read_at: str
    size: int
    head: str
    database: int
    host: int
    outside: int
    apart: int


def read(session: AuditSession, erasure: str, outside: Sequence[Checkpoint]) -> Evidence | None:
    """Verify the whole log and return the entries of an erasure of this project, or None.

    Raises `AuditChainBroken` if the log does not hold.
    """
    # Before the log: a checkpoint published later may cover entries that this read does not see.
    host = session.log.outside.read()
    texts = (canonical({"erasure": erasure})[1:-1], canonical({"entry": "restored"})[1:-1])
    found = []
    with session.read() as connection:
        stored = connection.execute(select(tables.checkpoints)).all()
        chain = Chain(heads_at([*stored, *host, *outside]), session.pseudonyms)
        for seq, line in lines(connection):
            chain.add(seq, line)
            if any(text in line for text in texts):
                found.append(json.loads(line))
        report = chain.finish()
        read_at = stamp(session.log.database.now(connection))
    entries = [entry for entry in found if entry["erasure"] == erasure]
    if not entries or entries[0]["details"].get("project") != session.project:
        return None
    restored = [
        entry["at"]
        for entry in found
        if entry["entry"] == "restored" and entry["seq"] > entries[0]["seq"]
    ]
    apart = {checkpoint.size for checkpoint in (*host, *outside)}
    counts = map(len, (stored, host, outside, apart))
    return Evidence(entries, restored, read_at, report.size, report.head, *counts)
