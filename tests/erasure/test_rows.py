"""After the end no id of a subject is in any file of the audit store."""

import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.database import _SQLITE_PRAGMAS, Database
from tests.erasure.stores import NOW, USER, VISITOR, Store


def holding(folder, needle):
    """Names of files that hold the text, as it is or as JSON escapes it."""
    # In another process: to close a file of SQLite's here would drop this process's locks.
    command = ["grep", "--recursive", "--files-with-matches", "--text", "-F", "-e", needle, "."]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return [Path(name).name for name in found.stdout.splitlines()]


def end(store, claim, how):
    if how == "cancel":
        store.commands.cancel(claim.id, "dpo", NOW)
    else:
        assert store.complete(claim).ids is None


@pytest.mark.parametrize("how", ["cancel", "complete"])
def test_ids_leave_all_files_while_other_processes_are_connected(sqlite_url, tmp_path, how):
    """The end of the last connection would empty the log; workers are always connected."""
    other = Database(sqlite_url)
    with other.read() as connection:
        pass
    with other._engine.connect() as connection:  # noqa: SLF001 - a connection between two uses
        connection.execute(text("SELECT 1"))
        connection.rollback()
        store = Store(sqlite_url, tmp_path)
        claim = store.quiesced(anonymous_ids=(VISITOR,))
        assert "audit.sqlite-wal" in holding(tmp_path, USER)
        end(store, claim, how)

        assert holding(tmp_path, USER) == holding(tmp_path, VISITOR) == []
        assert (tmp_path / "audit.sqlite-wal").stat().st_size == 0


def test_a_reader_that_blocks_the_truncation_of_the_wal_is_logged(
    sqlite_store, tmp_path, caplog, monkeypatch
):
    impatient = ("busy_timeout=50", *_SQLITE_PRAGMAS[1:])
    monkeypatch.setattr("mm_tasks.erasure.audit.database._SQLITE_PRAGMAS", impatient)
    store = sqlite_store
    claim = store.ask().claim
    with store.database.read() as connection:
        connection.execute(text("SELECT count(*) FROM mm_erasures")).scalar()
        store.commands.cancel(claim.id, "dpo", NOW)
        assert "wal_not_truncated" in caplog.text
        assert not store.session.truncate_wal()

    assert store.session.truncate_wal()
    assert holding(tmp_path, USER) == []


@settings(max_examples=4)
@given(st.integers(0, 1 << 32))
def test_no_remains_are_left_in_pages_that_were_split_or_merged(tmp_path_factory, seed):
    """Rows of all sizes, wiped in any order, between others that stay."""
    rng, folder = random.Random(seed), tmp_path_factory.mktemp("wipe")
    store = Store(f"sqlite:///{folder}/a.sqlite", folder)
    claims = []
    for n in range(25):
        visitors = tuple(
            f"v-wiped-{n}-{'y' * rng.randint(1, 100)}" for _ in range(rng.randint(0, 60))
        )
        claims.append(
            store.ask(f"u-wiped-{n}-{'x' * rng.randint(0, 240)}", anonymous_ids=visitors).claim
        )
        if rng.random() < 0.3:
            store.ask(f"kept-{n}")
        if rng.random() < 0.3:
            store.commands.cancel(claims.pop(rng.randrange(len(claims))).id, "dpo", NOW)
    rng.shuffle(claims)
    for claim in claims:
        store.commands.cancel(claim.id, "dpo", NOW)

    assert holding(folder, "-wiped-") == []


@pytest.mark.parametrize("how", ["cancel", "complete"])
def test_only_one_column_ever_holds_an_id_and_none_does_after_the_end(store, how):
    """All columns of all tables are searched."""

    def columns_with_ids():
        with store.database.read() as connection:
            return {
                (table, name)
                for table in tables.log.metadata.tables
                for row in connection.execute(text(f"SELECT * FROM {table}")).mappings()
                for name, value in row.items()
                if USER in str(value) or VISITOR in str(value)
            }

    claim = store.quiesced(anonymous_ids=(VISITOR,), ticket="T-1")
    assert columns_with_ids() == {("mm_erasures", "ids")}
    end(store, claim, how)

    assert columns_with_ids() == set()
    with store.database.read() as connection:
        assert connection.execute(text("SELECT ids FROM mm_erasures")).scalars().all() == [None]
