"""The upgrade from version 1 of the tables, from a database as the release before made it."""

from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.log import AuditLog, canonical, hash_of
from mm_tasks.erasure.audit.verification import verify
from mm_tasks.errors import AuditChainBroken, ConfigurationError
from tests.erasure.stores import NOW, USER, VISITOR, Store, after, raw_engine

DDL = Path(__file__).with_name("version_1")


def as_version_1(store):
    """Turn a store into one of version 1: the same entries, without sums, and plain tags."""
    seals, prev = store.session.pseudonyms.seals, "0" * 64
    entries, kind = store.parsed(), "sqlite" if store.database.is_sqlite else "postgresql"
    with raw_engine(store.url).begin() as connection:
        rows = connection.execute(text("SELECT * FROM mm_suppressions ORDER BY n")).mappings().all()
        connection.exec_driver_sql("DROP TABLE mm_suppressions")
        connection.exec_driver_sql("DROP INDEX mm_erasures_pseudonym")
        connection.exec_driver_sql("DROP INDEX mm_erasures_aof")
        connection.exec_driver_sql("ALTER TABLE mm_erasures DROP COLUMN aof")
        connection.exec_driver_sql("ALTER TABLE mm_erasures DROP COLUMN call_after")
        _require_reason(connection, kind)
        connection.exec_driver_sql("ALTER TABLE mm_erasure_passes DROP COLUMN calls")
        connection.exec_driver_sql("UPDATE mm_store SET schema_version = 1")
        for table in ("mm_checkpoints", "mm_erasure_audit"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        if kind == "postgresql":
            for name in ("mm_erasure_audit", "mm_checkpoints"):
                connection.exec_driver_sql(f"DROP FUNCTION {name}_refuse, {name}_follow")
        for statement in (DDL / f"{kind}.sql").read_text().split("\n\n"):
            connection.exec_driver_sql(statement)
        for row in rows:
            tag = seals.open(row["sealed"], row["project"], row["erasure"], row["kind"]).tag
            values = {**row, "tag": tag.hex(), "lifted_at": None}
            connection.execute(
                text(
                    "INSERT INTO mm_suppressions VALUES"
                    " (:erasure, :tag, :project, :kind, :since, :lifted_at)"
                ),
                values,
            )
        for entry in entries:
            del entry["fences"], entry["mac"]
            line = canonical({**entry, "prev": prev})
            prev = hash_of(line)
            connection.execute(
                text("INSERT INTO mm_erasure_audit VALUES (:seq, :line)"),
                {"seq": entry["seq"], "line": line},
            )
    (store.folder / "checkpoints").unlink()
    return type(store)(store.url, store.folder)


def _require_reason(connection, kind):
    """Version 1 knew no erasure without a ground."""
    if kind == "postgresql":
        connection.exec_driver_sql("ALTER TABLE mm_erasures ALTER COLUMN reason SET NOT NULL")
        return
    change = "ALTER TABLE mm_erasures"
    connection.exec_driver_sql(f"{change} RENAME COLUMN reason TO stated")
    connection.exec_driver_sql(f"{change} ADD COLUMN reason VARCHAR(64) NOT NULL DEFAULT ''")
    connection.exec_driver_sql("UPDATE mm_erasures SET reason = stated")
    connection.exec_driver_sql(f"{change} DROP COLUMN stated")


@pytest.fixture
def old(store):
    """An open, a scheduled, a completed and a lifted erasure of version 1."""
    store.completed(user_id="done", anonymous_ids=("a", "b"), reason="internal")
    lifted = store.completed(user_id="lifted", reason="internal")
    store.commands.lift(lifted.id, "dpo", NOW)
    store.ask("later", delay_s=3600, reason="internal")
    store.ask(USER, anonymous_ids=(VISITOR,), reason="internal")
    store.ask(USER, after(hours=1), anonymous_ids=("another",), reason="internal")
    store.fences = set(store.queries.fences())
    before = as_version_1(store)
    before.fences = store.fences
    return before


def test_an_old_store_is_upgraded_with_its_fences(old):
    verify_old = AuditLog(old.database, old.log.outside)
    assert set(old.queries.fences()) == old.fences
    report = verify(old.log)

    assert report.erasures == {"completed": 1, "lifted": 1, "scheduled": 1, "received": 1}
    assert old.kinds()[-1] == "sealed"
    assert old.parsed("sealed")[0]["details"] == {"rows": 6, "schema_version": 2}
    assert report.guards_missing == ()
    assert verify(verify_old).size == report.size


def test_erasures_of_an_old_store_go_on_after_the_upgrade(old):
    old.ask("of whom nobody states a ground", after(hours=2))
    again = old.ask(USER, after(hours=2), anonymous_ids=("a fourth",))
    old.commands.cancel(again.id, "dpo", after(hours=2))

    assert len(set(old.queries.fences())) == 4
    verify(old.log)


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM mm_suppressions WHERE kind = 'user'",
        "DELETE FROM mm_suppressions",
    ],
)
def test_an_old_store_whose_tags_are_not_the_logs_is_not_upgraded(old, change):
    with raw_engine(old.url).begin() as connection:
        connection.exec_driver_sql(change)

    with pytest.raises(AuditChainBroken, match="not upgraded"):
        old.ask("somebody")
    with raw_engine(old.url).connect() as connection:
        assert connection.exec_driver_sql("SELECT schema_version FROM mm_store").scalar() == 1
    assert tables.SCHEMA_VERSION == 2


def test_a_role_without_the_rights_is_told_to_upgrade_as_the_owner(postgresql_url, tmp_path):
    made = Store(postgresql_url, tmp_path)
    made.ask(reason="gdpr_17_1_b")
    old, role = as_version_1(made), "mm_tasks_upgrade_test"
    with raw_engine(postgresql_url).begin() as connection:
        connection.exec_driver_sql(f"DROP ROLE IF EXISTS {role}")
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
        connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    url = make_url(postgresql_url).set(username=role, password="p")
    restricted = Store(url.render_as_string(hide_password=False), tmp_path)

    with pytest.raises(ConfigurationError, match="run mm-tasks check once as the owner"):
        _ = restricted.session.store_id
    assert len(old.entries()) == 1
    with raw_engine(postgresql_url).begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {role}")
        connection.exec_driver_sql(f"DROP ROLE {role}")
