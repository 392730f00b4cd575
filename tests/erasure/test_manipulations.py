"""What somebody with the workers' role, or the owner, changes in SQL is found, and lowers no fence.

docs/erasure.md, "What an attacker can and cannot do", on PostgreSQL: each manipulation is tried in
a copy of one database, by the role that the page makes; if that is refused, by the owner without
the guards.
"""

import os
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from mm_tasks.erasure.audit import fences, row_evidence
from mm_tasks.erasure.audit.verification import verify
from mm_tasks.errors import AuditChainBroken, ConfigurationError
from tests.erasure.stores import DONE as DONE_ACK
from tests.erasure.stores import NOW, USER, VISITOR, Store, after, raw_engine
from tests.system.processes import ROOT

MOVED = "'2020-01-01T00:00:00.000Z'"
ERASURE_COLUMNS = {
    **dict.fromkeys(("received_at", "due_at", "accepted_at", "call_after"), MOVED),
    **dict.fromkeys(("fenced_at", "quiesced_at", "ended_at", "next_at"), MOVED),
    **dict.fromkeys(("anonymous", "epoch", "round", "acknowledged", "attempts"), "7"),
    **dict.fromkeys(("requested_by", "reason", "project", "mode"), "'other'"),
    "state": "'lifted'",
    "pseudonym": f"'{'0' * 64}'",
    "tickets": "'[]'",
    "removed": "'{}'",
    "passes_s": "'[0, 1, 2]'",
    "duplicate_of": "id",
}
PASS_COLUMNS = {
    **dict.fromkeys(("sent_at", "answered_at"), MOVED),
    **dict.fromkeys(("round", "n", "status", "calls"), "9"),
    "outcome": "'other'",
    "attempt": "attempt + 10",
}
FENCE_COLUMNS = {
    "n": "n + 9",
    "kind": "'other'",
    "project": "'q'",
    "since": MOVED,
    "sealed": "reverse(sealed)",
    "erasure": "reverse(erasure)",
}
OPEN = "WHERE state = 'settling'"
LOG, FENCES, PASSES = "mm_erasure_audit", "mm_suppressions", "mm_erasure_passes"
LAST = f"(SELECT max(seq) FROM {LOG})"
NEXT_PREV = "encode(sha256(convert_to(line, 'UTF8')), 'hex')"
IDS = """UPDATE mm_erasures SET ids = '{"user": "%s", "anonymous": [%s]}' """ + OPEN
# By the short name that the page uses.
MANIPULATIONS = {
    **{f"erasures.{c}": f"UPDATE mm_erasures SET {c} = {to}" for c, to in ERASURE_COLUMNS.items()},
    **{f"passes.{c}": f"UPDATE {PASSES} SET {c} = {to}" for c, to in PASS_COLUMNS.items()},
    **{f"fence.{c}": f"UPDATE {FENCES} SET {c} = {to}" for c, to in FENCE_COLUMNS.items()},
    "all fences removed": f"DELETE FROM {FENCES}",
    "a user's fence removed": f"DELETE FROM {FENCES} WHERE kind = 'user'",
    "a visitor's fence removed": f"DELETE FROM {FENCES} WHERE kind = 'anonymous'",
    "fences copied": f"""INSERT INTO {FENCES}
        SELECT erasure, n + 50, kind, project, since, sealed FROM {FENCES}""",
    "a fence of nobody": f"""INSERT INTO {FENCES}
        SELECT erasure, 99, kind, project, since, reverse(sealed) FROM {FENCES} LIMIT 1""",
    "all calls removed": f"DELETE FROM {PASSES}",
    "a call removed": f"DELETE FROM {PASSES} WHERE attempt = 2",
    "a call added": f"""INSERT INTO {PASSES}
        SELECT erasure, attempt + 10, round, n, due_at, sent_at FROM {PASSES} LIMIT 1""",
    "the erasures removed": f"""WITH gone AS (DELETE FROM {PASSES} RETURNING 1)
        DELETE FROM mm_erasures""",
    "an erasure added": """CREATE TEMPORARY TABLE other AS SELECT * FROM mm_erasures LIMIT 1;
        UPDATE other SET id = 'made up'; INSERT INTO mm_erasures SELECT * FROM other""",
    "the ids wiped": f"UPDATE mm_erasures SET ids = NULL {OPEN}",
    "another person's ids": IDS % ("victim", ""),
    "an id left out": IDS % (USER, ""),
    "an id exchanged": IDS % (USER, '"victim"'),
    "an ended one reopened": f"""UPDATE mm_erasures SET state = 'settling', acknowledged = 1,
        ids = '{{"user": "done", "anonymous": ["a"]}}', next_at = {MOVED}, ended_at = NULL
        WHERE state = 'completed'""",
    "erasures.aof": "UPDATE mm_erasures SET aof = 'x' WHERE aof IS NULL",
    "the store's key": "UPDATE mm_store SET fingerprint = 'x'",
    "the store's epoch": "UPDATE mm_store SET epoch = 2",
    "the store's version": "UPDATE mm_store SET schema_version = 9",
    "the store's row removed": "DELETE FROM mm_store",
    "the tail cut": f"DELETE FROM {LOG} WHERE seq > 10",
    "the last entry cut": f"DELETE FROM {LOG} WHERE seq = {LAST}",
    "an entry removed": f"DELETE FROM {LOG} WHERE seq = 3",
    "the log emptied": f"DELETE FROM {LOG}",
    "an entry changed": f"UPDATE {LOG} SET line = replace(line, 'dpo', 'dpx') WHERE seq = 1",
    "a step renamed": f"UPDATE {LOG} SET line = replace(line, 'purged', 'fenced')",
    "an entry overwritten": f"UPDATE {LOG} SET line = 'x' WHERE seq = 2",
    "the last one overwritten": f"UPDATE {LOG} SET line = 'x' WHERE seq = {LAST}",
    "entries renumbered": f"UPDATE {LOG} SET seq = seq + 100",
    "an entry added": f"""INSERT INTO {LOG} SELECT seq + 1, regexp_replace(regexp_replace(line,
        '"seq":[0-9]+', '"seq":' || seq + 1), '"prev":"[^"]*"', '"prev":"' || {NEXT_PREV} || '"')
        FROM {LOG} WHERE seq = {LAST}""",
    "an entry of no form": f"INSERT INTO {LOG} SELECT max(seq) + 1, 'x' FROM {LOG}",
    "checkpoints changed": "UPDATE mm_checkpoints SET head = 'x'",
    "a checkpoint added": "INSERT INTO mm_checkpoints VALUES (99, 'x', 't')",
}
PAIRS = Random(14).sample(list(combinations(MANIPULATIONS, 2)), 20)
CASES = [*((name,) for name in MANIPULATIONS), *PAIRS]
PAGE = (ROOT / "docs" / "erasure.md").read_text("utf-8")
ROLE = f"mm_tasks_{os.getpid()}"


class Copies:
    """One made database, and copies of it, each of which ends with its test."""

    def __init__(self, url, folder):
        self.url, self.folder, self.name = make_url(url), folder, f"made_{os.getpid()}"
        self.admin = raw_engine(url, isolation_level="AUTOCOMMIT")
        self.execute(f"CREATE DATABASE {self.name}")
        store = self.store(self.name, folder)
        store.completed(user_id="done", anonymous_ids=("a",), ticket="T-1", aof="off")
        claim = store.quiesced(after(days=2), anonymous_ids=(VISITOR,), ticket="T-2")
        store.call(claim, now=after(days=2))
        store.steps.release(claim)
        assert verify(store.log).checkpoints_host
        self.ids, self.now = {one["erasure"] for one in store.parsed()}, store.now
        self.fenced = set(store.queries.fences())
        sql = re.search(r"```sql\n(CREATE ROLE.*?)```", PAGE, re.DOTALL)[1]
        with raw_engine(store.url).begin() as connection:
            connection.exec_driver_sql(re.sub(r"\bmm_tasks\b", ROLE, sql))

    def execute(self, *statements):
        with self.admin.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def store(self, name, folder, **role):
        url = self.url.set(database=name, **role).render_as_string(hide_password=False)
        return Store(url, folder)

    def copy(self, folder):
        """Return a copy as the workers and as the owner have it."""
        name = f"copy_{os.getpid()}"
        self.execute(
            f"DROP DATABASE IF EXISTS {name} WITH (FORCE)",
            f"CREATE DATABASE {name} TEMPLATE {self.name}",
        )
        shutil.copy(self.folder / "checkpoints", folder)
        workers = self.store(name, folder, username=ROLE, password="…")
        workers.now = self.now
        return workers, self.store(name, folder)


@pytest.fixture(scope="module")
def copies(postgresql, tmp_path_factory):
    made = Copies(postgresql, tmp_path_factory.mktemp("made"))
    yield made
    for name in (f"copy_{os.getpid()}", made.name):
        made.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    made.execute(f"DROP ROLE {ROLE}")


def manipulate(workers, owner, statement):
    """Change rows as the workers' role, else as the owner; return how many."""
    with suppress(DBAPIError), raw_engine(workers.url).begin() as connection:
        return connection.exec_driver_sql(statement).rowcount
    with owner.tampering() as connection:
        return connection.exec_driver_sql(statement).rowcount


def called(store, ids):
    """Return whom the workers' next calls would name."""
    for erasure in ids:
        with suppress(AuditChainBroken, ConfigurationError):
            store.now = after(days=9)
            claim = store.steps.claim(erasure, 60)
            if claim and claim.erasure.step == "call" and store.steps.intent(claim):
                yield claim.erasure.user_id


@pytest.mark.parametrize("case", CASES, ids=" + ".join)
def test_a_manipulation_is_found_lowers_no_fence_and_names_nobody_else(copies, tmp_path, case):
    workers, owner = copies.copy(tmp_path)
    for name in case:
        changed = manipulate(workers, owner, MANIPULATIONS[name])
        assert changed or len(case) > 1, "the manipulation did nothing"

    with pytest.raises(AuditChainBroken):
        verify(workers.log)
    with suppress(AuditChainBroken, ConfigurationError):
        assert set(workers.queries.fences()) >= copies.fenced
    assert set(called(workers, copies.ids)) <= {USER}


def test_a_load_that_ignored_the_sum_would_be_reported(copies, tmp_path, monkeypatch):
    """Without this bug nobody knows whether the test above can find it."""
    monkeypatch.setattr(fences, "add", lambda *_: 0)
    workers, owner = copies.copy(tmp_path)
    manipulate(workers, owner, MANIPULATIONS["all fences removed"])

    assert set(workers.queries.fences()) == set()


def test_a_call_for_a_row_that_was_changed_would_be_reported(copies, tmp_path, monkeypatch):
    monkeypatch.setattr(row_evidence, "holds", lambda *_: True)
    workers, owner = copies.copy(tmp_path)
    manipulate(workers, owner, MANIPULATIONS["another person's ids"])

    assert list(called(workers, copies.ids)) == ["victim"]


def test_without_a_manipulation_the_call_is_made(copies, tmp_path):
    workers, _ = copies.copy(tmp_path)

    verify(workers.log)
    assert set(workers.queries.fences()) == copies.fenced
    assert list(called(workers, copies.ids)) == [USER]


def test_the_page_lists_each_manipulation():
    section = PAGE.partition("## What an attacker can and cannot do")[2].partition("\n##")[0]
    listed = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| found:.*", section, re.MULTILINE)))

    assert len(MANIPULATIONS) >= 60
    assert sorted(listed) == sorted(MANIPULATIONS)


def test_no_call_is_made_for_a_row_that_was_changed(sqlite_store):
    claim = sqlite_store.quiesced()
    with sqlite_store.tampering() as connection:
        ids = '{"user": "victim", "anonymous": []}'
        connection.exec_driver_sql(f"UPDATE mm_erasures SET ids = '{ids}'")

    assert sqlite_store.steps.intent(claim, NOW) is None
    assert sqlite_store.queries.show(claim.id)["state"] == "attention"
    assert sqlite_store.kinds()[-1] == "attention"
    assert sqlite_store.steps.due(60, after(days=9)) == []


def test_no_call_is_made_for_an_erasure_that_ended_although_a_late_result_followed(store):
    claim = store.quiesced()
    lost = store.steps.intent(claim, NOW)
    store.complete(claim)
    store.steps.result(lost, DONE_ACK, NOW)
    assert store.kinds()[-1] == "result"
    with store.database.write() as connection:
        ids = f'{{"user": "{USER}", "anonymous": []}}'
        reopened = f"state = 'settling', acknowledged = 1, ids = '{ids}', next_at = {MOVED}"
        connection.exec_driver_sql(f"UPDATE mm_erasures SET {reopened}, token = 'x'")

    assert store.steps.intent(replace(claim, token="x"), NOW) is None


CHANGES = {
    "a state": "UPDATE mm_erasures SET state = 'attention'",
    "an id less": """UPDATE mm_erasures SET ids = '{"user": "USER", "anonymous": []}'""",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_call_is_made_unless_state_and_number_of_ids_are_the_logs(store, change):
    claim = store.quiesced(anonymous_ids=(VISITOR,))
    with store.database.write() as connection:
        if "ids" in change:
            connection.exec_driver_sql("DELETE FROM mm_suppressions WHERE n > 0")
        connection.exec_driver_sql(change.replace("USER", USER))

    assert store.steps.intent(claim, NOW) is None


def test_no_call_is_made_with_ids_that_were_changed_only_while_they_were_claimed(store):
    claim = store.quiesced()
    ids = replace(claim.erasure.ids, user="victim")
    claim = replace(claim, erasure=replace(claim.erasure, ids=ids))

    assert store.steps.intent(claim, NOW) is None
