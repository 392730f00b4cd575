r"""An append-only, tamper-evident log of every erasure: table `mm_erasure_audit`.

One line of JSON for each entry, stored verbatim beside its `seq`: 1, 2, 3 … without a gap.
A line is UTF-8, its keys sorted, no spaces, no newline; text is escaped only where JSON
demands it, numbers are whole. It has exactly these fields:

    at       the time, by the clock of the database: UTC, YYYY-MM-DDTHH:MM:SS.mmmZ
    details  the rest of the entry: fixed words, counts, statuses, times, references
    entry    the kind of the entry, one of `protocol.ENTRIES`
    epoch    the number of the pseudonym key that made `subject`
    erasure  the id of the erasure
    prev     SHA-256 of the line before, in hex; of the first line 64 zeros
    seq      as in the table
    subject  HMAC-SHA256 of the subject's id, in hex; see `pseudonyms`

The hash of the last line is the *head*. An export is all lines, each ending in a newline,
and at the end a checkpoint: a line with `at`, `head` and `size`, the number of entries.
Bash and `jq` verify one without our code:

    prev=$(printf '%064d' 0); size=0; end=missing
    while IFS= read -r line; do
      if [ "$(jq -r 'has("size")' <<<"$line")" = true ]; then
        end=$(jq -r '"\(.size) \(.head)"' <<<"$line"); continue
      fi
      size=$((size + 1))
      [ "$(jq -r '"\(.seq) \(.prev)"' <<<"$line")" = "$size $prev" ] || echo "broken: entry $size"
      prev=$(printf %s "$line" | sha256sum | cut -c1-64)
    done < audit.jsonl
    [ "$end" = "$size $prev" ] || echo "broken: the checkpoint"
    echo "size $size head $prev"

This detects a change inside the log. Only a checkpoint kept elsewhere detects a tail that was
cut off, or a log written anew: compare the last line with the state directory (`checkpoints`).
`verification` does both, and also checks the order of the entries by `protocol`.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import func, insert, select

from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.checkpoints import Checkpoint, CheckpointSinks
from mm_tasks.erasure.audit.database import Database, lock
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy.engine import Connection

FIRST_PREV = "0" * 64
# Rows fetched at a time: a log is read without holding all of it.
_PAGE = 500


class StoredEntry(NamedTuple):
    """The fields of a line, without its place in the chain."""

    erasure: str
    subject: str
    epoch: int
    entry: str
    details: dict[str, object]
    at: str


def canonical(fields: Mapping[str, object]) -> str:
    """Return the canonical line of these fields."""
    return json.dumps(
        fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def hash_of(line: str) -> str:
    """Return the SHA-256 of a line without its newline, in hex."""
    return hashlib.sha256(line.encode()).hexdigest()


def encode(entry: StoredEntry, seq: int, prev: str) -> str:
    """Return the line of an entry at its place."""
    return canonical({**entry._asdict(), "seq": seq, "prev": prev})


def head(connection: Connection) -> Checkpoint:
    """Return the end of the log, as this transaction sees it; `at` is its last entry's."""
    last = select(tables.log).order_by(tables.log.c.seq.desc()).limit(1)
    row = connection.execute(last).one_or_none()
    if row is None:
        return Checkpoint(0, FIRST_PREV, "")
    return Checkpoint(row.seq, hash_of(row.line), str(json.loads(row.line).get("at", "")))


def append(connection: Connection, entry: StoredEntry) -> None:
    """Append an entry in the caller's transaction, which is one of `AuditLog.transaction`.

    Takes a lock until the transaction ends: a second transaction that appends waits for it.
    """
    lock(connection)
    end = head(connection)
    line = encode(entry, end.size + 1, end.head)
    connection.execute(insert(tables.log).values(seq=end.size + 1, line=line))


def lines(
    connection: Connection, *, after: int = 0, limit: int | None = None
) -> Iterator[tuple[int, str]]:
    """Yield `seq` and line of each stored entry in order, from the one `after` that `seq`."""
    seq = tables.log.c.seq
    query = select(seq, tables.log.c.line).where(seq > after).order_by(seq).limit(limit)
    with connection.execution_options(yield_per=_PAGE).execute(query) as rows:
        for row in rows:
            yield row.seq, row.line


def entries(connection: Connection, erasure: str) -> list[dict[str, Any]]:
    """Return the fields of each entry of an erasure, in order."""
    mine = tables.log.c.line.contains(canonical({"erasure": erasure})[1:-1], autoescape=True)
    query = select(tables.log.c.line).where(mine).order_by(tables.log.c.seq)
    parsed = map(json.loads, connection.execute(query).scalars())
    return [fields for fields in parsed if fields["erasure"] == erasure]


class AuditLog:
    """The log in one database, and its checkpoints outside."""

    def __init__(self, database: Database, outside: CheckpointSinks) -> None:
        """Take both; nothing is opened here."""
        self.database = database
        self.outside = outside

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Run a transaction that no other one overlaps; after its commit, publish a checkpoint.

        If the process dies in between, the next transaction publishes: a checkpoint is a
        lower bound.
        """
        with self.database.write() as connection:
            yield connection
            checkpoint = _seal(connection)
        if checkpoint is not None:
            self.outside.publish(checkpoint)

    def checkpoint(self) -> Checkpoint:
        """Return the end of the log, and publish it again unless the log is empty."""
        with self.database.read() as connection:
            checkpoint = head(connection)._replace(at=stamp(self.database.now(connection)))
        if checkpoint.size:
            self.outside.publish(checkpoint)
        return checkpoint

    def export(self) -> Iterator[str]:
        """Yield each line of an export without its newline, read at one moment."""
        size, last = 0, FIRST_PREV
        with self.database.read() as connection:
            at = stamp(self.database.now(connection))
            for _, line in lines(connection):
                size, last = size + 1, hash_of(line)
                yield line
        yield canonical({"at": at, "head": last, "size": size})


def _seal(connection: Connection) -> Checkpoint | None:
    """Store a checkpoint if this transaction, or one before it, added to the log."""
    stored = connection.execute(select(func.max(tables.checkpoints.c.size))).scalar() or 0
    end = head(connection)
    if end.size <= stored:
        return None
    connection.execute(insert(tables.checkpoints).values(end._asdict()))
    return end
