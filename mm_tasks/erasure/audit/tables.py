"""Everything this package has in SQL: the tables, the guards of the log, a role's rights.

    mm_erasure_audit   the log: one line a row, verbatim; see `audit` for its format
    mm_checkpoints     size and head of the log, one row for each commit that added to it
    mm_erasures        one row for each erasure: where it is, what is due, the plain ids
    mm_erasure_passes  one row for each attempt of a pass
    mm_suppressions    one row for each tag that an erasure fences
    mm_store           one row: which store this is, and which pseudonym key belongs to it

`mm_erasures.ids` is the only place with plain ids, and is emptied when the erasure ended.
Tags and pseudonyms stay: whoever knows an id can tell that it was erased.

Times are text (see `times`), the same in both databases.

The guards are triggers, and stop mistakes and whoever has only a role's rights; an owner
of the database can drop them. That is what the chain and the outside checkpoints are for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

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
    text,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

SCHEMA_VERSION = 1

_metadata = MetaData()

# INTEGER on SQLite: only that is its row id.
_SEQ = BigInteger().with_variant(Integer, "sqlite")
_ID = String(36)
_TIME = String(24)
_HASH = String(64)

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
    Column("at", _TIME, nullable=False),
)

erasures = Table(
    "mm_erasures",
    _metadata,
    Column("id", _ID, primary_key=True),
    Column("project", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("mode", String(16), nullable=False),
    # JSON {"user": id, "anonymous": [ids]}, ASCII with escapes: an id may hold what
    # PostgreSQL refuses in a text (NUL). NULL once wiped.
    Column("ids", Text),
    Column("anonymous", Integer, nullable=False),
    Column("pseudonym", _HASH, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("requested_by", String(128), nullable=False),
    Column("tickets", Text, nullable=False),  # JSON, a list
    Column("reason", String(64), nullable=False),
    Column("received_at", _TIME, nullable=False),
    Column("due_at", _TIME, nullable=False),
    Column("accepted_at", _TIME, nullable=False),
    Column("fenced_at", _TIME),
    Column("quiesced_at", _TIME),
    Column("ended_at", _TIME),
    # NULL: nothing is due until a person asks for it.
    Column("next_at", _TIME),
    Column("round", Integer, nullable=False),
    Column("passes_s", Text, nullable=False),  # JSON, a list: when, counted from quiesce
    Column("acknowledged", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("removed", Text, nullable=False),  # JSON, counts by place
    Column("duplicate_of", _ID, ForeignKey("mm_erasures.id")),
    Column("lease_until", _TIME),
    Column("token", String(32)),
    # The highest of `times.MARKS` that was warned of.
    Column("warned", Integer, nullable=False),
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
    # NULL while nobody recorded how the attempt ended.
    Column("outcome", String(64)),
)

suppressions = Table(
    "mm_suppressions",
    _metadata,
    Column("erasure", _ID, ForeignKey("mm_erasures.id"), primary_key=True),
    Column("tag", String(32), primary_key=True),  # hex, see `keys.tag`
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

# Statement triggers, so that an upsert or an UPDATE of no row is refused as well; ALWAYS,
# so that `session_replication_role` does not switch them off.
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
_ROLE = re.compile(r"[a-z_][a-z0-9_]{0,62}", re.ASCII)


def create(connection: Connection) -> None:
    """Make the tables and their guards where they are missing. Safe to repeat.

    Asks for no right to change the schema where all is there. The caller holds a lock.
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
    there = set(connection.execute(text(query)).scalars())
    wanted = [f"{table}_{kind}" for table, _ in APPEND_ONLY for kind in kinds]
    return [name for name in wanted if name not in there]


_SQLITE_TRIGGERS = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
_POSTGRESQL_TRIGGERS = "SELECT tgname FROM pg_trigger WHERE tgenabled = 'A'"


def grants(role: str) -> list[str]:
    """Return the SQL that gives a PostgreSQL role what this package needs, and no more.

    Run as the owner of the tables, which must be another role, after they were made:
    `mm-tasks check` with the owner's URL makes them. Of the log and its checkpoints the
    role may read and add rows, and nothing else; it may delete from no table.

        CREATE ROLE mm_tasks LOGIN PASSWORD '…';
        GRANT SELECT, INSERT ON mm_erasure_audit, mm_checkpoints TO mm_tasks;
        GRANT SELECT, INSERT, UPDATE ON mm_erasures, … TO mm_tasks;
    """
    assert _ROLE.fullmatch(role), "the name of a role: small letters, digits and _"
    logs = ", ".join(name for name, _ in APPEND_ONLY)
    work = ", ".join(table.name for table in (erasures, passes, suppressions, store))
    return [
        f"REVOKE ALL ON {logs}, {work} FROM PUBLIC, {role}",
        f"GRANT SELECT, INSERT ON {logs} TO {role}",
        f"GRANT SELECT, INSERT, UPDATE ON {work} TO {role}",
    ]
