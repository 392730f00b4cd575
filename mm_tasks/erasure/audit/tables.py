"""The SQL schema: the tables, and the guards of the log.

    mm_erasure_audit   the log: one line a row, verbatim; see `audit/log` for its format
    mm_checkpoints     size and head of the log, one row for each commit that added to it
    mm_erasures        one row for each erasure: its state, its next step, the plain ids
    mm_erasure_passes  one row for each attempt of a pass
    mm_suppressions    one row for each tag that an erasure fences
    mm_store           one row: the id of this store, and the fingerprint of its pseudonym key

`mm_erasures.ids` is the only place with plain ids, and is emptied when the erasure ends.
Tags and pseudonyms stay: a person who knows an id can find out that it was erased.

Times are text (see `timestamps`), the same in both databases.

The guards are triggers. They stop mistakes and a role without the owner's rights; an owner of
the database can drop them, which the chain and the outside checkpoints detect.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    select,
    text,
)

from mm_tasks.timestamps import moment, stamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect, RowMapping
    from sqlalchemy.engine import Connection
    from sqlalchemy.types import TypeEngine

SCHEMA_VERSION = 1

_metadata = MetaData()

# SQLite uses an INTEGER key as the row id.
_SEQ = BigInteger().with_variant(Integer, "sqlite")
_ID = String(36)
_HASH = String(64)


@dataclass(frozen=True, slots=True)
class SubjectIds:
    """The plain ids of a subject, in no `repr`: SQLAlchemy logs rows at level DEBUG."""

    user: str = field(repr=False)
    anonymous: list[str] = field(repr=False)


class _Encoded(TypeDecorator[Any]):
    """A text in the database, converted by `encode` and `decode` unless it is NULL."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = Text
    cache_ok = True

    def __init__(
        self, impl: String, encode: Callable[[Any], str], decode: Callable[[str], Any]
    ) -> None:
        super().__init__()
        self.impl, self.encode, self.decode = impl, encode, decode

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - as its base
        return None if value is None else self.encode(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002 - as its base
        return None if value is None else self.decode(value)


_TIME = _Encoded(String(24), stamp, moment)
# ASCII with escapes: an id may hold NUL, which PostgreSQL refuses in a text.
_JSON = _Encoded(Text(), json.dumps, json.loads)
_IDS = _Encoded(
    Text(), lambda ids: json.dumps(asdict(ids)), lambda text: SubjectIds(**json.loads(text))
)

log = Table(
    "mm_erasure_audit",
    _metadata,
    Column("seq", _SEQ, primary_key=True, autoincrement=False),
    Column("line", Text, nullable=False),
)

checkpoints = Table(
    "mm_checkpoints",
    _metadata,
    Column("size", _SEQ, primary_key=True, autoincrement=False),
    Column("head", _HASH, nullable=False),
    Column("at", String(24), nullable=False),
)

erasures = Table(
    "mm_erasures",
    _metadata,
    Column("id", _ID, primary_key=True),
    Column("project", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("mode", String(16), nullable=False),
    Column("ids", _IDS),  # JSON {"user": id, "anonymous": [ids]}; NULL once wiped
    Column("anonymous", Integer, nullable=False),
    Column("pseudonym", _HASH, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("requested_by", String(128), nullable=False),
    Column("tickets", _JSON, nullable=False),  # a list
    Column("reason", String(64), nullable=False),
    Column("received_at", _TIME, nullable=False),
    Column("due_at", _TIME, nullable=False),
    Column("accepted_at", _TIME, nullable=False),
    Column("fenced_at", _TIME),
    Column("quiesced_at", _TIME),
    Column("ended_at", _TIME),
    # NULL: nothing is due until a person calls `retry`.
    Column("next_at", _TIME),
    Column("round", Integer, nullable=False, default=0),
    # A list: when each pass is due, counted from quiesce.
    Column("passes_s", _JSON, nullable=False, default=list),
    Column("acknowledged", Integer, nullable=False, default=0),
    Column("attempts", Integer, nullable=False, default=0),
    Column("removed", _JSON, nullable=False, default=dict),  # counts by place
    Column("duplicate_of", _ID, ForeignKey("mm_erasures.id")),
    Column("lease_until", _TIME),
    Column("token", String(32)),
    # The highest of `deadlines.MARKS` that was logged.
    Column("warned", Integer, nullable=False, default=0),
    Index("mm_erasures_next", "project", "next_at"),
    Index("mm_erasures_state", "project", "state"),
)

passes = Table(
    "mm_erasure_passes",
    _metadata,
    Column("erasure", _ID, ForeignKey("mm_erasures.id"), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("round", Integer, nullable=False),
    Column("n", Integer, nullable=False),
    Column("due_at", _TIME, nullable=False),
    Column("sent_at", _TIME, nullable=False),
    Column("answered_at", _TIME),
    Column("status", Integer),
    # NULL while the attempt has no recorded result.
    Column("outcome", String(64)),
)

suppressions = Table(
    "mm_suppressions",
    _metadata,
    Column("erasure", _ID, ForeignKey("mm_erasures.id"), primary_key=True),
    Column("tag", String(32), primary_key=True),  # hex, see `buffer/records`
    Column("project", String(64), nullable=False),
    Column("kind", String(16), nullable=False),  # user or anonymous
    Column("since", _TIME, nullable=False),
    Column("lifted_at", _TIME),
    Index("mm_suppressions_tag", "project", "tag"),
)

store = Table(
    "mm_store",
    _metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("id", _ID, nullable=False),
    Column("schema_version", Integer, nullable=False),
    Column("epoch", Integer),
    Column("fingerprint", String(64)),
)

# The log and its checkpoints, and the column that counts them.
APPEND_ONLY = ((log.name, "seq"), (checkpoints.name, "size"))

_SQLITE_GUARDS = """
CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table}
BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;

CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table}
BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;

CREATE TRIGGER {table}_next BEFORE INSERT ON {table} WHEN {wrong}
BEGIN SELECT RAISE(ABORT, '{table} is append-only: {rule}'); END;
"""

# Statement triggers also refuse an upsert or an UPDATE of no row. With ALWAYS,
# `session_replication_role` does not switch them off.
_POSTGRESQL_GUARDS = """
CREATE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '{table} is append-only'; END $$;

CREATE FUNCTION {table}_follow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF {wrong} THEN RAISE EXCEPTION '{table} is append-only: {rule}'; END IF;
  RETURN NEW;
END $$;

CREATE TRIGGER {table}_no_update BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION {table}_refuse();

CREATE TRIGGER {table}_next BEFORE INSERT ON {table}
FOR EACH ROW EXECUTE FUNCTION {table}_follow();

ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_no_update;

ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_next;
"""

# `IS DISTINCT FROM` is unknown to older SQLite; NEW.seq is never NULL there, but -1.
_WRONG = {
    "seq": "NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM mm_erasure_audit)",
    "size": "NEW.size <= (SELECT coalesce(max(size), 0) FROM mm_checkpoints)",
}
_RULE = {"seq": "seq must be the next", "size": "size must grow"}


def create(connection: Connection) -> None:
    """Create missing tables and guards. Safe to repeat. The caller holds a lock.

    Needs no right to change the schema if they exist.
    """
    dialect = connection.dialect
    if dialect.has_table(connection, store.name):
        return
    _metadata.create_all(connection)
    guards = _SQLITE_GUARDS if dialect.name == "sqlite" else _POSTGRESQL_GUARDS
    for table, counter in APPEND_ONLY:
        filled = guards.format(table=table, wrong=_WRONG[counter], rule=_RULE[counter])
        for statement in filled.strip().split("\n\n"):
            connection.exec_driver_sql(statement)


def guards_missing(connection: Connection) -> list[str]:
    """Return the names of guards that were dropped or switched off, in order."""
    is_sqlite = connection.dialect.name == "sqlite"
    query = _SQLITE_TRIGGERS if is_sqlite else _POSTGRESQL_TRIGGERS
    kinds = ["no_update", "no_delete", "next"] if is_sqlite else ["no_update", "next"]
    present = set(connection.execute(text(query)).scalars())
    expected = [f"{table}_{kind}" for table, _ in APPEND_ONLY for kind in kinds]
    return [name for name in expected if name not in present]


def find_erasure(connection: Connection, project: str, erasure: str) -> RowMapping | None:
    """Return the row of an erasure of this project, or None."""
    query = select(erasures).where(erasures.c.id == erasure, erasures.c.project == project)
    return connection.execute(query).mappings().one_or_none()


_SQLITE_TRIGGERS = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
_POSTGRESQL_TRIGGERS = "SELECT tgname FROM pg_trigger WHERE tgenabled = 'A'"
