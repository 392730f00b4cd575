"""The audit database: SQLite or PostgreSQL, opened for each transaction and closed after it.

No two `write` transactions run at once, in any process of any host, so the rows that one
reads cannot change before it commits. A `read` transaction sees one moment.

A process that is stopped in a transaction, or whose host is lost, holds the lock until PostgreSQL
ends its session, after `_IDLE_S`; when it goes on, its transaction fails. SQLite cannot do that:
others fail after `_WAIT_S`, until the process goes on or ends.

Nothing stays open between transactions (a few run a day), so a fork inherits no connection.
Every failure of the database is `AuditUnavailable`, without a value in its text.

Every instant that an erasure stores or compares is of the database's clock, which all hosts share.
On SQLite that is the clock of its host.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from mm_tasks.erasure.audit import tables
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from mm_tasks.timestamps import moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy.engine import Connection, Engine

_SETTING = "MM_TASKS_AUDIT_URL"
# How long a transaction waits for another one, and the longest time of a statement.
_WAIT_S = 10
_CONNECT_S = 5
# How long a session may be idle in a transaction. Between two statements of a write are at most
# milliseconds of work of ours, and less than `_WAIT_S`, so that the next writer gets the lock.
_IDLE_S = 4
# Between two pages of a long read its caller may be slow: a load of the fences writes to Redis.
_READ_IDLE_S = 60
# A server that is gone is noticed within this time, also while we only wait for its answer.
_TCP = {
    "keepalives_idle": 4,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 8000,  # ms
}
# Any constant does, as long as no other program of this database locks the same one.
_LOCK = 0x6D6D5F7461736B73  # "mm_tasks"
_WRITE = "mm_tasks_write"
# The form of `timestamps`. On PostgreSQL not `now()`: a transaction begins before it has the lock.
_NOW = {
    "sqlite": "SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
    "postgresql": "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', "
    """'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')""",
}

_SQLITE_PRAGMAS = (
    f"busy_timeout={_WAIT_S * 1000}",
    "journal_mode=WAL",
    "synchronous=FULL",
    "secure_delete=ON",
    "foreign_keys=ON",
)


def server_time(connection: Connection) -> datetime:
    """Return the time by the clock of the database, to the millisecond."""
    return moment(connection.exec_driver_sql(_NOW[connection.dialect.name]).scalar_one())


class Database:
    """One audit database, and its clock `now`. Opens nothing until the first transaction."""

    def __init__(self, url: str, now: Callable[[Connection], datetime] = server_time) -> None:
        """Take the SQLAlchemy URL of a SQLite file or of PostgreSQL; refuse any other."""
        self.now = now
        self._url = _parsed(url)
        self._engine = _engine(self._url)
        self._is_made = False

    @property
    def is_sqlite(self) -> bool:
        """Return whether this is a file of this host."""
        return self._url.drivername.startswith("sqlite")

    @property
    def is_missing(self) -> bool:
        """Return whether this is a SQLite file that the first transaction will create."""
        return self.is_sqlite and not Path(str(self._url.database)).exists()

    def reach(self) -> bool:
        """Raise `AuditUnavailable` unless the database answers; create nothing.

        Returns False for a SQLite file that does not exist.
        """
        if self.is_missing:
            return False
        with _translated(), self._engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
        return True

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Run a transaction that no other one overlaps, and commit it.

        The first one creates missing tables.
        """
        with self._connected(write=True) as connection:
            if not self._is_made:
                tables.create(connection)
            yield connection
        self._is_made = True

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Run a transaction that sees one moment of the database and changes nothing."""
        if not self._is_made:
            with self.write():
                pass
        with self._connected(write=False) as connection:
            yield connection

    def truncate_wal(self) -> bool:
        """Truncate SQLite's write-ahead log, which has deleted rows; return whether it worked.

        False while another process reads; retry later. True on PostgreSQL, whose server
        recycles its own log.
        """
        if not self.is_sqlite:
            return True
        with _translated(), self._engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            # SQLite allows this only outside of a transaction.
            busy, _, _ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    @contextmanager
    def _connected(self, *, write: bool) -> Iterator[Connection]:
        with _translated():
            if self.is_sqlite:
                self._create_file()
            options: dict[str, Any] = {_WRITE: write}
            if not self.is_sqlite:
                options["isolation_level"] = "READ COMMITTED" if write else "REPEATABLE READ"
            opened = self._engine.connect().execution_options(**options)
            with opened as connection, connection.begin():
                if not self.is_sqlite:
                    _prepare_postgresql(connection, write=write)
                yield connection

    def _create_file(self) -> None:
        """Create SQLite's file for its owner alone; SQLite gives its WAL the same mode.

        Never opens an existing file: closing it would drop the locks of every connection of
        this process.
        """
        path = Path(str(self._url.database))
        if not path.exists():
            create_private_file(path)
        elif path.stat().st_mode & 0o077:
            path.chmod(0o600)


def create_private_file(path: Path, content: bytes = b"") -> None:
    """Create a file that only its owner can read, with all of its content or not at all.

    An existing file stays, also one that another process creates at the same time.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(content)
            os.fsync(file)
        # Unlike a rename, a link never replaces a file.
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    # The new name survives a crash of the machine.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def lock(connection: Connection) -> None:
    """Lock out other writers until the transaction ends. On SQLite `BEGIN IMMEDIATE` did."""
    if connection.dialect.name != "sqlite":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


def _prepare_postgresql(connection: Connection, *, write: bool) -> None:
    # Not options of the connection: poolers such as PgBouncer refuse those.
    limits = {
        "lock_timeout": f"{_WAIT_S}s",
        "idle_in_transaction_session_timeout": f"{_IDLE_S if write else _READ_IDLE_S}s",
    }
    if write:
        limits["statement_timeout"] = f"{_WAIT_S}s"
        # A published checkpoint must never be ahead of the log after a crash of the server.
        limits["synchronous_commit"] = "on"
    # One statement, before the lock.
    names = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in limits.items())
    connection.exec_driver_sql(f"SELECT {names}")
    if write:
        lock(connection)


def _parsed(setting: str) -> URL:
    """Return the URL with its driver; raise `ConfigurationError` without the URL."""
    try:
        url = make_url(setting)
    except ArgumentError:
        msg = f"{_SETTING}: must be a URL such as postgresql://host/database"
        raise ConfigurationError(msg) from None
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        msg = f"{_SETTING}: must begin with postgresql:// or sqlite:///"
        raise ConfigurationError(msg)
    if url.database in (None, "", ":memory:") or url.query:
        msg = f"{_SETTING}: must name a file: sqlite:////path/to/file"
        raise ConfigurationError(msg)
    return url


def _engine(url: URL) -> Engine:
    is_sqlite = url.drivername.startswith("sqlite")
    options: dict[str, Any] = {"timeout": _WAIT_S}
    if not is_sqlite:
        # No prepared statements: a pooler gives each transaction another session.
        options = {"connect_timeout": _CONNECT_S, "prepare_threshold": None, **_TCP}
    try:
        engine = create_engine(url, poolclass=NullPool, connect_args=options, hide_parameters=True)
    except ModuleNotFoundError:
        msg = f"{_SETTING}: PostgreSQL needs pip install mm-tasks[postgres]"
        raise ConfigurationError(msg) from None
    if is_sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(raw: sqlite3.Connection, _record: object) -> None:
    # We send BEGIN ourselves: the driver delays it to the first change, too late for the lock.
    raw.isolation_level = None
    for pragma in _SQLITE_PRAGMAS:
        raw.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    """Turn an error of the database into `AuditUnavailable` with its class, never its text."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        kind = type(error).__name__
        msg = f"audit database error ({kind}); retry"
        raise AuditUnavailable(msg) from None
