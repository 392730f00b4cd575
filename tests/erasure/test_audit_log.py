"""The log: one line a step, append-only for everyone but its owner, checked by strangers.

Sabotages that turn this folder red, each tried on a copy:

- `prev` is of the line two before, or of the line with its newline; keys are not sorted;
- `append` does not lock; `write` begins without IMMEDIATE;
- a guard is left out, or is not ALWAYS; the role may UPDATE;
- verification skips `prev`, the checkpoints (stored or outside), the protocol, or the rows;
- the sealed checkpoint is published before the commit.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit.log import StoredEntry, Tail, canonical, encode, hash_of
from mm_tasks.erasure.audit.protocol import ACKNOWLEDGED
from mm_tasks.erasure.audit.seals import Seals
from mm_tasks.erasure.audit.verification import verify, verify_lines
from mm_tasks.erasure.rows import transaction
from tests.erasure.stores import KEY, NOW, USER, VISITOR, Store, raw_engine

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "verify_audit.py"
DOCS = ROOT / "docs" / "erasure.md"


def exported(store, path):
    path.write_text("".join(f"{line}\n" for line in store.log.export()), "utf-8")
    return path


def check_with_script(*paths):
    command = [sys.executable, "-O", str(SCRIPT), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none()))
def test_there_is_one_text_for_the_same_fields(fields):
    line = canonical(fields)

    assert canonical(dict(reversed(fields.items()))) == line
    assert json.loads(line) == fields
    assert "\n" not in line


@given(st.lists(st.dictionaries(st.text("abc:_", min_size=1), st.integers(0)), max_size=8))
def test_each_line_names_the_hash_of_the_one_before(removed):
    lines, prev = [], audit_log.FIRST_PREV
    for seq, counts in enumerate(removed, 1):
        entry = StoredEntry("id", "f" * 64, 1, "purged", {"removed": counts}, "t")
        lines.append(encode(entry, Tail(seq - 1, prev, 0), 0, Seals(KEY)))
        prev = hash_of(lines[-1])

    parsed = [json.loads(line) for line in lines]
    assert [one["prev"] for one in parsed[1:]] == [hash_of(line) for line in lines[:-1]]
    assert [one["seq"] for one in parsed] == list(range(1, len(lines) + 1))


def test_an_erasure_leaves_one_line_for_each_step_without_an_id(store):
    """The log outlives the erasure by years; its reader looks for one word of success."""
    erasure = store.completed(ticket="GDPR-1", anonymous_ids=(VISITOR,))
    exported_text = "\n".join(store.log.export())

    called = ["intent", "result"]
    assert store.kinds() == [
        *("received", "fenced", "purged", "quiesced"),
        *(*called, "settling", *called, "settling", *called),
        *("completed", "wiped"),
    ]
    assert {line["erasure"] for line in store.parsed()} == {erasure.id}
    assert {line["details"]["outcome"] for line in store.parsed("result")} == {ACKNOWLEDGED}
    assert verify(store.log).erasures == {"completed": 1}
    assert USER not in exported_text
    assert VISITOR not in exported_text
    assert store.session.pseudonyms.of(USER) in exported_text


def test_a_step_that_fails_leaves_neither_row_nor_line(store):
    """Entry and state change commit together."""
    claim = store.quiesced()
    before = store.entries()

    def fail():
        with transaction(store.session) as rows:
            row = rows.advance(rows.get(claim.id), [])
            entry = StoredEntry(claim.id, row["pseudonym"], 1, "ticket_added", {}, "t")
            audit_log.append(rows.connection, entry, Seals(KEY))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.entries() == before
    assert len(store.log.outside.read()) == len(before)


# A stranger's tools.


@pytest.fixture
def documented_shell():
    """The indented lines of the docstring that are Bash."""
    lines = audit_log.__doc__.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("    prev=$(printf"))
    end = lines.index("", start)
    return "\n".join(line[4:] for line in lines[start:end])


@pytest.fixture
def jq():
    if shutil.which("jq") is None and not os.environ.get("CI"):
        pytest.skip("jq is not installed")


def run_shell(script, folder):
    command = ["bash", "-euo", "pipefail", "-c", script]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return found.stdout


@pytest.mark.usefixtures("jq")
def test_the_documented_shell_finds_the_same_head(store, tmp_path, documented_shell):
    """The format is described well enough when this passes."""
    store.completed()
    store.ask("Zoë \x00 \u2028 \U0001f600", requested_by="büro", ticket="№-7\u00a0"[:3])
    exported(store, tmp_path / "audit.jsonl")

    report = verify(store.log)
    assert run_shell(documented_shell, tmp_path) == f"size {report.size} head {report.head}\n"


@pytest.fixture
def changed_export(sqlite_store, tmp_path, change):
    sqlite_store.completed()
    path = exported(sqlite_store, tmp_path / "audit.jsonl")
    path.write_text(changed(path.read_text(), change))
    return path


@pytest.mark.usefixtures("jq", "changed_export")
@pytest.mark.parametrize("change", ["edit", "delete", "cut"])
def test_the_documented_shell_finds_a_change(tmp_path, documented_shell):
    assert "broken" in run_shell(documented_shell, tmp_path)


@pytest.mark.parametrize(
    "change", ["edit", "delete", "cut", "no checkpoint", "spaces", "anew", "no intent"]
)
def test_the_script_finds_a_change(tmp_path, changed_export):
    """With assertions switched off, as anyone may run it."""
    done = check_with_script(changed_export, tmp_path / "checkpoints")

    assert done.returncode == 1
    assert done.stderr.startswith("broken")


def changed(content, change):
    *lines, end = content.splitlines(keepends=True)
    entries = list(map(json.loads, lines))
    match change:
        case "edit":
            lines[1] = lines[1].replace('"fenced"', '"purged"')
        case "delete":
            del lines[1]
        case "cut":
            del lines[-1]
        case "no checkpoint":
            end = ""
        case "spaces":
            lines[1] = lines[1].replace(":", ": ")
        case "anew":
            entries[0]["details"]["requested_by"] = "nobody"
            return "".join(rewritten(entries))
        case "no intent":
            return "".join(rewritten(entry for entry in entries if entry["entry"] != "intent"))
    return "".join([*lines, end])


def rewritten(entries):
    """Return a forged log of a person who knows the format: only checkpoints disagree."""
    lines, prev = [], audit_log.FIRST_PREV
    for seq, entry in enumerate(entries, 1):
        lines.append(canonical({**entry, "seq": seq, "prev": prev}))
        prev = hash_of(lines[-1])
    end = canonical({"at": "t", "head": prev, "size": len(lines)})
    return [f"{line}\n" for line in (*lines, end)]


def test_the_script_is_short_and_needs_nothing_of_ours():
    """Sixty lines can be read before they are trusted."""
    lines = SCRIPT.read_text().splitlines()

    assert len(lines) <= 60
    assert [line for line in lines if line.startswith(("import ", "from "))] == [
        "import hashlib",
        "import json",
        "import sys",
        "from pathlib import Path",
    ]


def test_the_script_verifies_an_empty_and_a_whole_export(store, tmp_path):
    path = exported(store, tmp_path / "audit.jsonl")
    assert verify_lines(path.read_text().splitlines()).size == 0
    assert check_with_script(path).returncode == 0
    assert store.log.checkpoint().size == 0
    assert store.log.outside.read() == []
    store.completed()

    done = check_with_script(exported(store, path), tmp_path / "checkpoints")
    assert done.returncode == 0, done.stderr
    assert verify(store.log).head in done.stdout


def test_a_checkpoint_names_the_size_and_the_head_of_the_log(store):
    store.ask()

    assert verify(store.log).checkpoints == 1
    assert store.log.checkpoint()[:2] == (1, hash_of(store.entries()[-1]))


# Refused by the database itself.

REFUSED = {
    "update": "UPDATE mm_erasure_audit SET line = 'x'",
    "renumber": "UPDATE mm_erasure_audit SET seq = seq + 5",
    "delete": "DELETE FROM mm_erasure_audit WHERE seq = 1",
    "delete all": "DELETE FROM mm_erasure_audit",
    "again": "INSERT INTO mm_erasure_audit VALUES (1, 'x')",
    "gap": "INSERT INTO mm_erasure_audit VALUES (99, 'x')",
    "zero": "INSERT INTO mm_erasure_audit VALUES (0, 'x')",
    "null": "INSERT INTO mm_erasure_audit VALUES (NULL, 'x')",
    "upsert": "INSERT INTO mm_erasure_audit VALUES (1, 'x')"
    " ON CONFLICT (seq) DO UPDATE SET line = 'x'",
    "upsert that would insert": "INSERT INTO mm_erasure_audit VALUES (9, 'x')"
    " ON CONFLICT (seq) DO UPDATE SET line = 'x'",
    "insert or nothing": "INSERT INTO mm_erasure_audit VALUES (1, 'x') ON CONFLICT DO NOTHING",
    "checkpoint update": "UPDATE mm_checkpoints SET head = 'x'",
    "checkpoint delete": "DELETE FROM mm_checkpoints",
    "checkpoint before": "INSERT INTO mm_checkpoints VALUES (0, 'x', 't')",
}
ONLY_SQLITE = {
    "replace": "INSERT OR REPLACE INTO mm_erasure_audit VALUES (1, 'x')",
    "replace into": "REPLACE INTO mm_erasure_audit (seq, line) VALUES (1, 'x')",
    "ignore": "INSERT OR IGNORE INTO mm_erasure_audit VALUES (1, 'x')",
    "update or replace": "UPDATE OR REPLACE mm_erasure_audit SET seq = 1",
    "row id": "INSERT INTO mm_erasure_audit (rowid, line) VALUES (1, 'x')",
    "checkpoint replace": "REPLACE INTO mm_checkpoints VALUES (1, 'x', 't')",
}
REPLICA = "SET session_replication_role = replica; "
ONLY_POSTGRESQL = {
    "update nothing": "UPDATE mm_erasure_audit SET line = 'x' WHERE seq = 99",
    "truncate": "TRUNCATE mm_erasure_audit",
    "truncate cascade": "TRUNCATE mm_erasure_audit, mm_checkpoints CASCADE",
    "as a replica": f"{REPLICA}UPDATE mm_erasure_audit SET line = 'x'",
    "truncate as a replica": f"{REPLICA}TRUNCATE mm_erasure_audit",
    "insert as a replica": f"{REPLICA}INSERT INTO mm_erasure_audit VALUES (99, 'x')",
    "merge": "MERGE INTO mm_erasure_audit USING (SELECT 1 AS n) s ON seq = n"
    " WHEN MATCHED THEN UPDATE SET line = 'x'",
    "delete from only": "DELETE FROM ONLY mm_erasure_audit",
}


def attempt_all(url, statements):
    """What a client of our own can do, in an order where one that succeeds shows itself."""
    engine, refused = raw_engine(url), {}
    for name, sql in statements.items():
        try:
            with engine.begin() as connection:
                connection.exec_driver_sql(sql)
        except SQLAlchemyError as error:
            refused[name] = str(error.orig)
    return refused


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_log_refuses_every_change_but_the_next_line(kind, request, tmp_path):
    """Must hold 5. Each by our own rule, not by chance."""
    url = request.getfixturevalue(f"{kind}_url")
    store = Store(url, tmp_path)
    store.completed()
    before = store.entries()
    statements = REFUSED | (ONLY_SQLITE if kind == "sqlite" else ONLY_POSTGRESQL)

    refused = attempt_all(url, statements)

    assert statements.keys() - refused.keys() == set()
    assert store.entries() == before
    by_other_rules = {name for name, why in refused.items() if "append-only" not in why}
    assert by_other_rules <= {"null"}
    verify(store.log)


# A PostgreSQL role that cannot do more than it needs.


@pytest.fixture
def role_url(postgresql_url, tmp_path):
    """The tables are made by their owner; the role then gets the documented rights."""
    _, rights, *_ = re.split(r"```sql\n|```", DOCS.read_text("utf-8"))
    Store(postgresql_url, tmp_path).ask("someone before")
    engine = raw_engine(postgresql_url)
    with engine.begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS mm_tasks"))
        for statement in rights.split(";\n"):
            connection.exec_driver_sql(statement)
    yield engine.url.set(username="mm_tasks").render_as_string(hide_password=False)
    with engine.begin() as connection:
        connection.execute(text("DROP OWNED BY mm_tasks"))
        connection.execute(text("DROP ROLE mm_tasks"))


def test_the_documented_role_can_do_all_the_work(role_url, tmp_path):
    store = Store(role_url, tmp_path)

    erasure = store.completed(anonymous_ids=(VISITOR,))
    store.commands.lift(erasure.id, "dpo", NOW)

    assert verify(store.log).erasures == {"received": 1, "lifted": 1}
    assert not store.commands.newly_overdue(NOW)


def test_the_documented_role_can_do_no_more(role_url):
    """Not by the guards, which an owner can drop, but by its rights."""
    statements = {
        "update": REFUSED["update"],
        "delete": REFUSED["delete all"],
        "truncate": ONLY_POSTGRESQL["truncate"],
        "drop guard": "DROP TRIGGER mm_erasure_audit_no_update ON mm_erasure_audit",
        "disable guard": "ALTER TABLE mm_erasure_audit DISABLE TRIGGER ALL",
        "drop": "DROP TABLE mm_erasure_audit",
        "replica": "SET session_replication_role = replica",
        "rewrite guard": "CREATE OR REPLACE FUNCTION mm_erasure_audit_refuse() RETURNS trigger"
        " LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
        "checkpoints": REFUSED["checkpoint delete"],
        "forget an erasure": "DELETE FROM mm_erasures",
        "change a fence": "UPDATE mm_suppressions SET sealed = 'x'",
        "another receipt": "UPDATE mm_erasures SET received_at = due_at",
        "another person": "UPDATE mm_erasures SET pseudonym = 'x'",
        "another call": "UPDATE mm_erasure_passes SET sent_at = due_at",
        "another key": "UPDATE mm_store SET fingerprint = 'x'",
    }
    refused = attempt_all(role_url, statements)

    assert statements.keys() == refused.keys()
    assert all("permission denied" in why or "must be owner" in why for why in refused.values())
