"""The database: alone while it writes, never a value in an error, safe after a fork."""

import logging
import multiprocessing
import timeit
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import event, text

from mm_tasks.erasure.audit.database import Database
from mm_tasks.erasure.audit.log import StoredEntry, append
from mm_tasks.erasure.audit.seals import Seals
from mm_tasks.erasure.audit.verification import verify
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from tests.erasure.stores import KEY, NOW, USER, Store, after, at_once, raw_engine

FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:pass-word@h/d",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite+aiosqlite:////tmp/x",
        "sqlite:////tmp/x?mode=memory&uri=true",
        "pass-word",
        "",
        "postgresql+asyncpg://u:pass-word@h/d",
    ],
)
def test_any_other_database_is_refused_without_its_password(url):
    with pytest.raises(ConfigurationError, match="MM_TASKS_AUDIT_URL") as refused:
        Database(url)

    assert "pass-word" not in str(refused.value)


def test_nothing_is_opened_before_it_is_needed(tmp_path):
    Store(f"sqlite:///{tmp_path}/a.sqlite", tmp_path)
    Store("postgresql://nobody@127.0.0.1:1/none", tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_the_files_are_for_their_owner_alone(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/new/a.sqlite", tmp_path / "new")
    store.ask()
    with store.database.read() as connection:
        connection.execute(text("SELECT 1 FROM mm_store"))
        store.ask("another")
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}

    assert modes == dict.fromkeys(
        ("a.sqlite", "a.sqlite-wal", "a.sqlite-shm", "checkpoints"), 0o600
    )
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_sqlite_is_as_durable_and_as_forgetful_as_it_can_be(sqlite_store):
    wanted = {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1}
    with sqlite_store.database.read() as connection:
        values = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in wanted}

    assert values == wanted


BROKEN = {
    "no server": "postgresql://u:pass-word@127.0.0.1:1/none",
    "no file": "sqlite:///{}/folder",
    "no database": "sqlite:///{}/text",
}


@pytest.mark.parametrize("name", BROKEN)
def test_without_its_database_a_request_is_not_accepted(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("no database " * 100)
    store = Store(BROKEN[name].format(tmp_path), tmp_path)

    with pytest.raises(AuditUnavailable) as refused:
        store.ask()

    shown = "".join(traceback.format_exception(refused.value))
    assert USER not in shown
    assert "pass-word" not in shown


REFUSE_ROWS = {
    "sqlite": "CREATE TRIGGER no BEFORE INSERT ON mm_erasures BEGIN SELECT RAISE(ABORT, 'no'); END",
    # Its error would say: "Failing row contains (…)".
    "postgresql": "ALTER TABLE mm_erasures ADD CONSTRAINT no CHECK (false) NOT VALID",
}


@pytest.mark.parametrize("kind", REFUSE_ROWS)
def test_no_error_and_no_log_of_the_database_shows_a_value(kind, request, tmp_path, caplog):
    """Not even where the host logs every statement."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "sqlalchemy.engine")
    store = Store(request.getfixturevalue(f"{kind}_url"), tmp_path)
    store.ask("someone-else")
    with store.tampering() as connection:
        connection.execute(text(REFUSE_ROWS[kind]))

    with pytest.raises(AuditUnavailable) as refused:
        store.ask()

    assert USER not in "".join(traceback.format_exception(refused.value))
    assert "INSERT INTO mm_erasures" in caplog.text
    assert USER not in caplog.text
    assert "someone-else" not in caplog.text


def test_a_reader_sees_one_moment(store):
    """A log that is verified grows meanwhile."""
    store.ask()
    query = text("SELECT count(*) FROM mm_erasure_audit")
    with store.database.read() as connection:
        before = connection.execute(query).scalar()
        store.ask("another")

        assert connection.execute(query).scalar() == before


def test_an_append_waits_for_another_in_a_transaction_of_any_kind(postgresql_url, tmp_path):
    """Otherwise both would follow the same line, and one would fail."""
    Store(postgresql_url, tmp_path).ask()
    engine, entry = raw_engine(postgresql_url), StoredEntry("id", "f" * 64, 1, "fenced", {}, "t")

    def second():
        with engine.begin() as connection:
            append(connection, entry, Seals(KEY))

    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as connection:
            append(connection, entry, Seals(KEY))
            waiting = pool.submit(second)
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
        waiting.result()


def test_a_store_of_a_later_release_is_refused(store):
    store.ask()
    with store.database.write() as connection:
        connection.execute(text("UPDATE mm_store SET schema_version = 3"))

    with pytest.raises(ConfigurationError, match="version 3"):
        Store(store.url, store.folder).ask()


IMPATIENT = {"sqlite": ("_SQLITE_PRAGMAS", ("busy_timeout=50",)), "postgresql": ("_WAIT_S", 0.1)}


@pytest.mark.parametrize("kind", IMPATIENT)
def test_a_writer_that_waits_too_long_for_another_fails(kind, request, tmp_path, monkeypatch):
    store = Store(request.getfixturevalue(f"{kind}_url"), tmp_path)
    store.ask()
    name, value = IMPATIENT[kind]
    monkeypatch.setattr(f"mm_tasks.erasure.audit.database.{name}", value)

    with store.database.write(), pytest.raises(AuditUnavailable):
        store.ask("another")
    monkeypatch.undo()
    assert store.ask("another").id


def insist(step, *args):
    """Retry, as the error of a writer that waited too long advises."""
    while True:
        with suppress(AuditUnavailable):
            return step(*args)


def append_some(url, folder, worker, start):
    start.wait(30)
    store = Store(url, folder)
    for n in range(5):
        opened = insist(store.ask, f"user {worker} {n}")
        insist(store.steps.mark_fenced, opened.claim, NOW)
        insist(store.ask, f"shared {n}")


def test_of_eight_processes_that_append_there_is_one_chain_without_a_gap(url, tmp_path):
    """None waits for another to have made the tables, either."""
    start = FORK.Barrier(8)
    workers = [FORK.Process(target=append_some, args=(url, tmp_path, n, start)) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert [worker.exitcode for worker in workers] == [0] * 8
    store = Store(url, tmp_path)
    report = verify(store.log)
    assert report.size == 8 * 5 * 3
    assert report.erasures == {"fenced": 40, "received": 5}
    assert len(store.log.outside.read()) == report.size


def test_of_many_threads_only_one_has_an_erasure(store):
    opened = store.ask()
    store.steps.release(opened.claim)
    claims = at_once(lambda: store.steps.claim(opened.id, NOW, 60))

    assert sum(claim is not None for claim in claims) == 1


def test_a_fork_goes_on_with_connections_of_its_own(store):
    """A worker is forked from a process that has used the store."""
    store.ask()
    child = FORK.Process(target=store.ask, args=("another",))

    child.start()
    store.ask("a third")
    child.join(30)

    assert child.exitcode == 0
    assert verify(store.log).size == 3


def test_a_process_that_died_before_it_published_leaves_that_to_the_next(store):
    """Killed between commit and checkpoint: the next one covers both."""
    published = store.log.outside.publish
    store.log.outside.publish = lambda _checkpoint: None
    store.ask()
    store.log.outside.publish = published

    store.ask("another", now=NOW + timedelta(seconds=1))

    assert [one.size for one in store.log.outside.read()] == [2]
    assert verify(store.log).size == 2


def test_one_step_takes_milliseconds(store):
    """Nobody waits long for `forget.delay`; the bound is wide, for busy machines."""
    store.ask()
    users = iter("abcde")

    assert min(timeit.repeat(lambda: store.ask(next(users)), number=1, repeat=5)) < 0.5


def test_a_query_for_open_erasures_reads_no_ended_one(sqlite_store):
    """After years they are many, and workers ask each second: all goes by an index."""
    asked = []

    def note(_, __, statement, parameters, *___):
        asked.append((statement, parameters))

    event.listen(sqlite_store.database._engine, "before_cursor_execute", note)  # noqa: SLF001
    sqlite_store.completed(anonymous_ids=("a", "b"))
    late = sqlite_store.ask("late")
    sqlite_store.ask("late")
    assert sqlite_store.steps.due(60, after(hours=1)) == [late.id]
    assert len(sqlite_store.commands.newly_overdue(after(days=40))) == 1
    assert sqlite_store.queries.summary(after(days=40))["open"] == 1
    sqlite_store.commands.cancel(late.id, "dpo", NOW)

    ways = set()
    with raw_engine(sqlite_store.url).connect() as connection:
        for statement, parameters in asked:
            if statement.startswith(("SELECT", "UPDATE")):
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                ways.update(row.detail for row in plan)
    # Of the store there is one row, and of the log the last one is read.
    whole = {way for way in ways if way.startswith("SCAN") or "(project=?)" in way}
    assert whole == {"SCAN mm_store", "SCAN mm_erasure_audit"}
