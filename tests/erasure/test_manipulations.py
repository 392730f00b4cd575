"""What somebody with the workers' role, or the owner, changes in SQL is found, and lowers no fence.

docs/erasure.md, "What an attacker can and cannot do". One store is made for each database; each
manipulation is made in a copy of the file, or in a transaction that is rolled back.
"""

import shutil
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest
from sqlalchemy import text

from mm_tasks.erasure.audit.verification import verify
from mm_tasks.errors import MMTasksError
from tests.erasure.stores import DONE as DONE_ACK
from tests.erasure.stores import NOW, USER, VISITOR, Store, after

FENCED = ("mm_suppressions", ("n = n + 9", "kind = 'other'", "project = 'q'"))
MOVED = "'2020-01-01T00:00:00.000Z'"
ERASURE_COLUMNS = {
    **dict.fromkeys(("received_at", "due_at", "accepted_at"), MOVED),
    **dict.fromkeys(("fenced_at", "quiesced_at", "ended_at"), MOVED),
    **dict.fromkeys(("anonymous", "epoch", "round", "acknowledged", "attempts"), "7"),
    **dict.fromkeys(("requested_by", "reason", "project", "mode"), "'other'"),
    **dict.fromkeys(("state",), "'lifted'"),
    "pseudonym": f"'{'0' * 64}'",
    "tickets": "'[]'",
    "removed": "'{}'",
    "passes_s": "'[0]'",
    "duplicate_of": "id",
}
DONE, OPEN = "state = 'completed'", "state = 'quiesced'"
PASS_COLUMNS = {
    **dict.fromkeys(("sent_at", "answered_at"), MOVED),
    **dict.fromkeys(("round", "n", "status", "calls"), "9"),
    "outcome": "'other'",
}
MANIPULATIONS = [
    *(
        f"UPDATE mm_erasures SET {column} = {value} WHERE {which}"
        for column, value in ERASURE_COLUMNS.items()
        for which in (DONE, OPEN)
    ),
    *(f"UPDATE mm_erasure_passes SET {name} = {to}" for name, to in PASS_COLUMNS.items()),
    *(f"UPDATE mm_suppressions SET {change}" for change in FENCED[1]),
    f"UPDATE mm_suppressions SET since = {MOVED}",
    "UPDATE mm_suppressions SET sealed = 'x'",
    "UPDATE mm_suppressions SET sealed = (SELECT max(sealed) FROM mm_suppressions)",
    "DELETE FROM mm_suppressions",
    "DELETE FROM mm_suppressions WHERE kind = 'user'",
    "DELETE FROM mm_suppressions WHERE kind = 'anonymous'",
    """INSERT INTO mm_suppressions SELECT erasure, n + 50, kind, project, since, sealed
    FROM mm_suppressions""",
    "DELETE FROM mm_erasure_passes",
    "DELETE FROM mm_erasure_passes WHERE attempt = 2",
    "UPDATE mm_erasure_passes SET attempt = attempt + 10",
    f"UPDATE mm_erasures SET ids = NULL WHERE {OPEN}",
    """UPDATE mm_erasures SET ids = '{"user": "other", "anonymous": []}'""",
    f"""UPDATE mm_erasures SET ids = '{{"user": "{USER}", "anonymous": []}}' WHERE {OPEN}""",
    f"""UPDATE mm_erasures SET ids = '{{"user": "{USER}", "anonymous": ["x"]}}' WHERE {OPEN}""",
    "UPDATE mm_store SET fingerprint = 'x'",
    "UPDATE mm_store SET epoch = 2",
    "UPDATE mm_store SET schema_version = 9",
    "DELETE FROM mm_erasure_audit WHERE seq > 10",
    "DELETE FROM mm_erasure_audit WHERE seq > (SELECT max(seq) - 1 FROM mm_erasure_audit)",
    "DELETE FROM mm_erasure_audit WHERE seq = 3",
    "DELETE FROM mm_erasure_audit",
    "UPDATE mm_erasure_audit SET line = replace(line, 'dpo', 'dpx') WHERE seq = 1",
    "UPDATE mm_erasure_audit SET line = replace(line, 'purged', 'fenced')",
    "UPDATE mm_erasure_audit SET line = 'x' WHERE seq = 2",
    "UPDATE mm_erasure_audit SET line = 'x' WHERE seq = (SELECT max(seq) FROM mm_erasure_audit)",
    "UPDATE mm_erasure_audit SET seq = seq + 100",
    "UPDATE mm_checkpoints SET head = 'x'",
    "INSERT INTO mm_checkpoints VALUES (99, 'x', 't')",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A completed and an open erasure, both fenced, and their tags."""
    folder = tmp_path_factory.mktemp("made")
    store = Store(f"sqlite:///{folder}/audit.sqlite", folder)
    store.completed(user_id="done", anonymous_ids=("a",), ticket="T-1")
    store.quiesced(after(hours=1), anonymous_ids=(VISITOR,), ticket="T-2")
    assert verify(store.log).checkpoints_host
    return store, set(store.queries.fences())


PAIRS = Random(14).sample(list(combinations(range(len(MANIPULATIONS)), 2)), 60)
CASES = [(n,) for n in range(len(MANIPULATIONS))] + PAIRS


def test_there_are_sixty_manipulations():
    assert len(set(MANIPULATIONS)) >= 60


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_manipulation_is_found_and_lowers_no_fence(made, tmp_path, case):
    original, fenced = made
    for name in ("audit.sqlite", "audit.sqlite-wal", "checkpoints"):
        if (original.folder / name).exists():
            shutil.copy(original.folder / name, tmp_path / name)
    store = Store(f"sqlite:///{tmp_path}/audit.sqlite", tmp_path)
    with store.tampering() as connection:
        connection.exec_driver_sql("PRAGMA ignore_check_constraints=ON")
        for n in case:
            changed = connection.execute(text(MANIPULATIONS[n].replace(":", "\\:")))
            assert changed.rowcount or len(case) > 1, "the manipulation did nothing"

    with pytest.raises(MMTasksError):
        verify(store.log)
    try:
        loaded = set(store.queries.fences())
    except MMTasksError:
        return
    assert loaded >= fenced


def test_no_call_is_made_for_a_row_that_was_changed(sqlite_store):
    claim = sqlite_store.quiesced()
    with sqlite_store.tampering() as connection:
        ids = '{"user"\\: "victim", "anonymous"\\: []}'
        connection.execute(text(f"UPDATE mm_erasures SET ids = '{ids}'"))

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
            connection.execute(text("DELETE FROM mm_suppressions WHERE n > 0"))
        connection.exec_driver_sql(change.replace("USER", USER))

    assert store.steps.intent(claim, NOW) is None
