"""The SQL schema: the tables, and the guards of the log.

    mm_erasure_audit   the log: one line a row, verbatim; see `audit/log` for its format
    mm_checkpoints     size and head of the log, one row for each commit that added to it
    mm_erasures        one row for each erasure: its state, its next step, the plain ids
    mm_erasure_passes  one row for each attempt of a pass, which may be several calls
    mm_suppressions    one row for each tag that an erasure fences now, sealed; see `audit/seals`
    mm_store           one row: the id of this store, and the fingerprint of its pseudonym key

`mm_erasures.ids` is the only place with plain ids, and is emptied when the erasure ends.
A pseudonym and a sealed tag tell nothing without the pseudonym key.

Times are text (see `timestamps`), the same in both databases.

The guards are triggers. They stop mistakes and a role without the owner's rights; an owner of
the database can drop them, which the chain and the outside checkpoints detect.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from mm_tasks.buffer import records
from mm_tasks.timestamps import moment, stamp

if TYPE_CHECKING:
    from collections.abc import Callable


SCHEMA_VERSION = 2

_metadata = sa.MetaData()

# SQLite uses an INTEGER key as the row id.
_SEQ = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_ID = sa.String(36)
_HASH = sa.String(64)


@dataclass(frozen=True, slots=True)
class SubjectIds:
    """The plain ids of a subject, in no `repr`: SQLAlchemy logs rows at level DEBUG."""

    user: str = field(repr=False)
    anonymous: list[str] = field(repr=False)

    def tags(self, project: str) -> list[tuple[str, bytes]]:
        """Return kind and tag of each id: the user's, then the anonymous ones."""
        ids = [("user", self.user), *(("anonymous", id_) for id_ in self.anonymous)]
        return [(kind, records.tag(project, kind, id_)) for kind, id_ in ids]


class _Encoded(sa.TypeDecorator[Any]):
    """A text in the database, converted by `encode` and `decode` unless it is NULL."""

    impl: sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]] = sa.Text
    cache_ok = True

    def __init__(
        self, impl: sa.String, encode: Callable[[Any], str], decode: Callable[[str], Any]
    ) -> None:
        super().__init__()
        self.impl, self.encode, self.decode = impl, encode, decode

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:  # noqa: ARG002 - as its base
        return None if value is None else self.encode(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:  # noqa: ARG002 - as its base
        return None if value is None else self.decode(value)


_TIME = _Encoded(sa.String(24), stamp, moment)
# ASCII with escapes: an id may hold NUL, which PostgreSQL refuses in a text.
_JSON = _Encoded(sa.Text(), json.dumps, json.loads)
_IDS = _Encoded(
    sa.Text(), lambda ids: json.dumps(asdict(ids)), lambda text: SubjectIds(**json.loads(text))
)

log = sa.Table(
    "mm_erasure_audit",
    _metadata,
    sa.Column("seq", _SEQ, primary_key=True, autoincrement=False),
    sa.Column("line", sa.Text, nullable=False),
)

checkpoints = sa.Table(
    "mm_checkpoints",
    _metadata,
    sa.Column("size", _SEQ, primary_key=True, autoincrement=False),
    sa.Column("head", _HASH, nullable=False),
    sa.Column("at", sa.String(24), nullable=False),
)

erasures = sa.Table(
    "mm_erasures",
    _metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("ids", _IDS),  # JSON {"user": id, "anonymous": [ids]}; NULL once wiped
    sa.Column("anonymous", sa.Integer, nullable=False),
    sa.Column("pseudonym", _HASH, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("requested_by", sa.String(128), nullable=False),
    sa.Column("tickets", _JSON, nullable=False),  # a list
    sa.Column("reason", sa.String(64)),  # NULL: nobody stated one
    sa.Column("received_at", _TIME, nullable=False),
    sa.Column("due_at", _TIME, nullable=False),
    sa.Column("accepted_at", _TIME, nullable=False),
    sa.Column("fenced_at", _TIME),
    sa.Column("quiesced_at", _TIME),
    sa.Column("ended_at", _TIME),
    # The vendor is not called before. NULL: it may be called at once.
    sa.Column("call_after", _TIME),
    # When the next step is due, of a scheduled erasure its beginning. NULL: nothing is due until a
    # person calls `retry`.
    sa.Column("next_at", _TIME),
    sa.Column("round", sa.Integer, nullable=False, default=0),
    # A list: the wait before each pass, of the first from quiesce, then from the acknowledged call.
    sa.Column("passes_s", _JSON, nullable=False, default=list),
    sa.Column("acknowledged", sa.Integer, nullable=False, default=0),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("removed", _JSON, nullable=False, default=dict),  # counts by place
    sa.Column("duplicate_of", _ID, sa.ForeignKey("mm_erasures.id")),
    sa.Column("lease_until", _TIME),
    sa.Column("token", sa.String(32)),
    # Of a completed erasure, until the result of a rewrite of Redis's AOF is recorded: the run_id
    # of the server that began one, '' before.
    sa.Column("aof", sa.String(40)),
    # The highest of `deadlines.MARKS` that was logged.
    sa.Column("warned", sa.Integer, nullable=False, default=0),
    sa.Index("mm_erasures_next", "project", "next_at"),
    sa.Index("mm_erasures_state", "project", "state"),
    sa.Index("mm_erasures_pseudonym", "pseudonym"),
    sa.Index("mm_erasures_aof", "project", "aof"),
)

passes = sa.Table(
    "mm_erasure_passes",
    _metadata,
    sa.Column("erasure", _ID, sa.ForeignKey("mm_erasures.id"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("due_at", _TIME, nullable=False),
    # Of the first call.
    sa.Column("sent_at", _TIME, nullable=False),
    # Of the last call. NULL while that is made, or if nobody knows how it ended.
    sa.Column("answered_at", _TIME),
    sa.Column("status", sa.Integer),
    # NULL while each call ended as the call before this attempt did.
    sa.Column("outcome", sa.String(64)),
    # The number of calls, which `result` counts too. Each but the last ended as the one before it.
    sa.Column("calls", sa.Integer, nullable=False, server_default="1"),
)

suppressions = sa.Table(
    "mm_suppressions",
    _metadata,
    # No foreign key: of the kind `restored` it is the id of an entry, see `audit/restored`.
    sa.Column("erasure", _ID, primary_key=True),
    # Which of the erasure's ids: 0 is the user, the anonymous ones follow.
    sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),  # user, anonymous or restored
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("since", _TIME, nullable=False),
    sa.Column("sealed", sa.String(64), nullable=False),  # hex
)

store = sa.Table(
    "mm_store",
    _metadata,
    sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", _ID, nullable=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Integer),
    sa.Column("fingerprint", sa.String(64)),
)

# The names of the guards that are in force.
_TRIGGERS = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT tgname FROM pg_trigger WHERE tgenabled = 'A'",
}


def create(connection: sa.Connection) -> None:
    """Create missing tables and guards. Safe to repeat. The caller holds a lock.

    Needs no right to change the schema if they exist.
    """
    dialect = connection.dialect
    if dialect.has_table(connection, store.name):
        return
    create_tables(connection)
    create_guards(connection)


def create_tables(connection: sa.Connection) -> None:
    """Create missing tables without guards, for a copy of another store."""
    _metadata.create_all(connection)


def create_missing(connection: sa.Connection) -> None:
    """Create the tables, columns, indexes and guards that a store of an earlier release lacks."""
    _metadata.create_all(connection)
    inspector = sa.inspect(connection)
    for table in _metadata.sorted_tables:
        known = {column["name"]: column for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in known:
                _add(connection, column)
            elif column.nullable and not known[column.name]["nullable"]:
                _allow_null(connection, column)
        for index in table.indexes:
            index.create(connection, checkfirst=True)
    create_guards(connection)


def _add(connection: sa.Connection, column: sa.Column[Any]) -> None:
    specification = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
    connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {specification}")


def _allow_null(connection: sa.Connection, column: sa.Column[Any]) -> None:
    """Let a column hold NULL. SQLite cannot alter one, so its content moves to a new one."""
    change, old = f"ALTER TABLE {column.table.name} ", f"{column.name}_1"
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"{change} ALTER COLUMN {column.name} DROP NOT NULL")
        return
    connection.exec_driver_sql(f"{change} RENAME COLUMN {column.name} TO {old}")
    _add(connection, column)
    connection.execute(sa.update(column.table).values({column: sa.literal_column(old)}))
    connection.exec_driver_sql(f"{change} DROP COLUMN {old}")


def create_guards(connection: sa.Connection) -> None:
    """Create the guards and the index of the log, or bring them up to date."""
    for statement in _guards(connection.dialect.name):
        connection.exec_driver_sql(statement)


def guards_missing(connection: sa.Connection) -> list[str]:
    """Return the names of guards that were dropped or switched off, in order."""
    dialect = connection.dialect.name
    present = set(connection.execute(sa.text(_TRIGGERS[dialect])).scalars())
    expected = re.findall(r"CREATE TRIGGER (?:IF NOT EXISTS )?(\w+)", "\n".join(_guards(dialect)))
    return [name for name in expected if name not in present]


def _guards(dialect: str) -> list[str]:
    """Return the statements that create the guards."""
    file = Path(__file__).with_name(f"guards_{dialect}.sql")
    return file.read_text("utf-8").split("\n\n")


def find_erasure(connection: sa.Connection, project: str, erasure: str) -> sa.RowMapping | None:
    """Return the row of an erasure of this project, or None."""
    query = sa.select(erasures).where(erasures.c.id == erasure, erasures.c.project == project)
    return connection.execute(query).mappings().one_or_none()
