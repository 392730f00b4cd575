r"""An append-only, tamper-evident log of every erasure: table `mm_erasure_audit`.

One line of JSON for each entry, stored verbatim beside its `seq`: 1, 2, 3 … without a gap.
A line is UTF-8, its keys sorted, no spaces, no newline; text is escaped only where JSON
demands it, numbers are whole but in `passes_s`. It has exactly these fields, the two marked *
since schema 2:

    at       the time, by the clock of the database: UTC, YYYY-MM-DDTHH:MM:SS.mmmZ
    details  the rest of the entry: fixed words, counts, statuses, times, references
    entry    the kind of the entry, one of `protocol.ENTRIES`
    epoch    the number of the pseudonym key that made `subject`
    erasure  the id of the erasure; of an entry about the store, an id of its own
    fences   * which fences are in force after this entry; see `seals`
    mac      * HMAC-SHA256 of the line without this field, by the pseudonym key; see `seals`
    prev     SHA-256 of the line before, in hex; of the first line 64 zeros
    seq      as in the table
    subject  HMAC-SHA256 of the subject's id, in hex; see `pseudonyms`. Of the store: 64 zeros

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

from sqlalchemy import insert, literal_column, or_, select

from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.checkpoints import Checkpoint, CheckpointSinks
from mm_tasks.erasure.audit.database import Database, lock
from mm_tasks.erasure.audit.seals import add
from mm_tasks.errors import AuditChainBroken
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.audit.pseudonyms import Pseudonyms
    from mm_tasks.erasure.audit.seals import Seals

FIRST_PREV = "0" * 64
# The subject of an entry about the store itself.
NO_SUBJECT = "0" * 64
# Rows fetched at a time: a log is read without holding all of it.
_PAGE = 500
# The expressions of the indexes that the guards create.
_ERASURE: dict[str, ColumnElement[str]] = {
    "sqlite": literal_column("json_extract(line, '$.erasure')"),
    "postgresql": literal_column("""substring(line from '"erasure":"([^"]*)"')"""),
}
_ADDED: dict[str, ColumnElement[bool]] = {
    "sqlite": literal_column("json_extract(line, '$.entry') = 'anonymous_added'"),
    "postgresql": literal_column(
        """substring(line from '"entry":"([^"]*)"') = 'anonymous_added'"""
    ),
}


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


class Tail(NamedTuple):
    """The end of a log whose last line holds; `fences` is the sum of the weights after it."""

    size: int
    head: str
    fences: int


def encode(entry: StoredEntry, end: Tail, fences: int, seals: Seals) -> str:
    """Return the line of an entry that follows this end, with its sum and its MAC."""
    fields = {**entry._asdict(), "seq": end.size + 1, "prev": end.head}
    fields["fences"] = seals.mask(fences, canonical(fields))
    return canonical({**fields, "mac": seals.mac(canonical(fields))})


def object_of(line: object) -> dict[str, Any]:
    """Return the fields of a line; an empty dict unless it is a JSON object."""
    try:
        fields = json.loads(line) if isinstance(line, str) else {}
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def fences_of(fields: Mapping[str, object], seals: Seals) -> int | None:
    """Return the sum of the weights after a line; None if its MAC does not hold."""
    rest = {name: value for name, value in fields.items() if name != "mac"}
    if fields.get("mac") != seals.mac(canonical(rest)):
        return None
    fences = str(rest.pop("fences"))
    return seals.unmask(fences, canonical(rest))


def head(connection: Connection) -> Checkpoint:
    """Return the end of the log, as this transaction sees it; `at` is its last entry's."""
    last = select(tables.log).order_by(tables.log.c.seq.desc()).limit(1)
    row = connection.execute(last).one_or_none()
    if row is None:
        return Checkpoint(0, FIRST_PREV, "")
    return Checkpoint(row.seq, hash_of(row.line), str(object_of(row.line).get("at", "")))


def tail(connection: Connection, seals: Seals) -> Tail:
    """Return the end of the log; raise `AuditChainBroken` unless its last line holds."""
    last = select(tables.log).order_by(tables.log.c.seq.desc()).limit(1)
    row = connection.execute(last).one_or_none()
    if row is None:
        return Tail(0, FIRST_PREV, 0)
    fields = object_of(row.line)
    fences = fences_of(fields, seals)
    if fences is None or fields["seq"] != row.seq or canonical(fields) != row.line:
        rule = "it was changed, or not written with this pseudonym key"
        msg = f"entry {row.seq}: {rule}. Nothing is added to the log; see mm-tasks audit verify"
        raise AuditChainBroken(msg)
    return Tail(row.seq, hash_of(row.line), fences)


def append(connection: Connection, entry: StoredEntry, seals: Seals, change: int = 0) -> None:
    """Append an entry in the caller's transaction, which is one of `AuditLog.transaction`.

    `change` is the change of the sum of the weights of `mm_suppressions`, which this transaction
    made. Takes a lock until the transaction ends: a second transaction that appends waits for it.
    Raises `AuditChainBroken` as `tail`.
    """
    lock(connection)
    append_to(tail(connection, seals), connection, entry, seals, change)


def append_to(
    end: Tail, connection: Connection, entry: StoredEntry, seals: Seals, change: int
) -> None:
    """Append an entry after this end of the log: see `append`."""
    line = encode(entry, end, add(end.fences, change), seals)
    connection.execute(insert(tables.log).values(seq=end.size + 1, line=line))


def lines(
    connection: Connection, *, after: int = 0, limit: int | None = None
) -> Iterator[tuple[int, str]]:
    """Yield `seq` and line of each stored entry in order, from the one `after` that `seq`."""
    seq = tables.log.c.seq
    query = select(seq, tables.log.c.line).where(seq > after).order_by(seq).limit(limit)
    # Not an option of the connection, which would keep it.
    with connection.execute(query.execution_options(yield_per=_PAGE)) as rows:
        for row in rows:
            yield row.seq, row.line


def entries(connection: Connection, erasure: str) -> list[dict[str, Any]]:
    """Return the fields of each entry of an erasure, in order."""
    return _found(connection, _of(connection, erasure).order_by(tables.log.c.seq))


def naming(connection: Connection, erasure: str) -> list[dict[str, Any]]:
    """Return the fields of the entries of an erasure that named ids: its first one, and others."""
    lines_of = _of(connection, erasure).order_by(tables.log.c.seq)
    first = _found(connection, lines_of.limit(1))
    return first + _found(connection, lines_of.where(_ADDED[connection.dialect.name]))


def last(connection: Connection, erasure: str, kinds: Iterable[str]) -> list[dict[str, Any]]:
    """Return the fields of the last entry of an erasure that is of these kinds; none without."""
    # A quote inside of a text is escaped, so that no detail looks like this.
    texts = [canonical({"entry": kind})[1:-1] for kind in kinds]
    are_of = (tables.log.c.line.contains(text, autoescape=True) for text in texts)
    query = _of(connection, erasure).where(or_(*are_of)).order_by(tables.log.c.seq.desc())
    return _found(connection, query.limit(1))


def _of(connection: Connection, erasure: str) -> Select[tuple[str]]:
    return select(tables.log.c.line).where(_ERASURE[connection.dialect.name] == erasure)


def _found(connection: Connection, query: Select[tuple[str]]) -> list[dict[str, Any]]:
    return [object_of(line) for line in connection.execute(query).scalars()]


class AuditLog:
    """The log in one database, and its checkpoints outside."""

    def __init__(
        self,
        database: Database,
        outside: CheckpointSinks,
        find_key: Callable[[], Pseudonyms | None] = lambda: None,
    ) -> None:
        """Take the parts; nothing is opened here. `find_key` returns the key if there is one."""
        self.database = database
        self.outside = outside
        self.find_key = find_key

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Run a transaction that no other one overlaps; after its commit, publish a checkpoint.

        If the process dies in between, the next transaction that appends publishes: a
        checkpoint is a lower bound. An entry that another program wrote has none.
        """
        with self.database.write() as connection:
            before = head(connection).size
            yield connection
            checkpoint = _seal(connection, before)
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


def _seal(connection: Connection, before: int) -> Checkpoint | None:
    """Store a checkpoint if this transaction added to the log."""
    end = head(connection)
    if end.size <= before:
        return None
    # A row that somebody else made for this size is for `verify` to find, and stops nothing.
    stored = select(tables.checkpoints.c.size).where(tables.checkpoints.c.size == end.size)
    if connection.execute(stored).first() is None:
        connection.execute(insert(tables.checkpoints).values(end._asdict()))
    return end
