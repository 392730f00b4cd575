"""Verification, against an owner of the database who dropped the guards first."""

import pytest
from sqlalchemy import text

from mm_tasks.erasure.audit.checkpoints import Checkpoint
from mm_tasks.erasure.audit.log import AuditLog, canonical, hash_of
from mm_tasks.erasure.audit.verification import verify, verify_lines
from mm_tasks.erasure.rows import Transition, transaction
from mm_tasks.errors import AuditChainBroken
from tests.erasure.stores import Store
from tests.erasure.test_audit_log import rewritten
from tests.erasure.test_protocol import DETAILS


def change(connection, *changes):
    """Make each change: SQL, or an edit of an entry as its number, old and new text."""
    query = "UPDATE mm_erasure_audit SET line = replace(line, :old, :new) WHERE seq = :seq"
    for step in changes:
        if isinstance(step, str):
            connection.execute(text(step))
        else:
            connection.execute(text(query), dict(zip(("seq", "old", "new"), step, strict=True)))


def tampered(store, *changes):
    """Complete an erasure, then change its log as the owner of the database can."""
    store.completed()
    assert verify(store.log).size == 14
    with store.tampering() as connection:
        change(connection, *changes)


def tampered_by(store, rewrite):
    """Complete an erasure, then write its log anew from a changed list, correctly chained."""
    store.completed()
    entries = store.parsed()
    rewrite(entries)
    query = text("INSERT INTO mm_erasure_audit VALUES (:seq, :line)")
    with store.tampering() as connection:
        change(connection, LOG, CHECKPOINTS)
        for seq, line in enumerate(rewritten(entries)[:-1], 1):
            connection.execute(query, {"seq": seq, "line": line.rstrip("\n")})


def without(entry, nth=0):
    def rewrite(entries):
        places = [n for n, line in enumerate(entries) if line["entry"] == entry]
        del entries[places[nth]]

    return rewrite


LOG, CHECKPOINTS = "DELETE FROM mm_erasure_audit", "DELETE FROM mm_checkpoints"
FIFTH = "SELECT line FROM mm_erasure_audit WHERE seq = 5"
EDIT = (3, '"track:waiting":2', '"track:waiting":1')
TAMPERED = {
    "an edit": ([EDIT], r"entry 3: .*checkpoint"),
    "an edit, checkpoints gone": ([EDIT, CHECKPOINTS], r"entry 3: .*checkpoint"),
    "an edit of the first": ([(1, '"dpo"', '"dpx"')], r"entry 1: .*checkpoint"),
    "an edit of the last": ([(14, "wiped", "wipex")], r"entry 14: .*checkpoint"),
    "an edit of a link": ([(5, '"prev":"', '"prev":"0')], r"entry 5: .*follow"),
    "a deletion in the middle": ([f"{LOG} WHERE seq = 7"], r"entry 7 is missing"),
    "a deletion at the start": ([f"{LOG} WHERE seq = 1"], r"entry 1 is missing"),
    "a deletion, renumbered": (
        [
            f"{LOG} WHERE seq = 14",
            "UPDATE mm_erasure_audit SET seq = 14 WHERE seq = 13",
            "UPDATE mm_erasure_audit SET seq = 13 WHERE seq = 12",
            f"{LOG} WHERE seq = 12",
        ],
        r"entry 12 is missing",
    ),
    "an exchange": (
        [f"UPDATE mm_erasure_audit SET line = ({FIFTH}) WHERE seq = 8"],
        r"entry 8: it is stored under another number",
    ),
    "a cut tail": (
        [f"{LOG} WHERE seq > 10"],
        r"entry 11 is missing: a checkpoint saw 14 entries, and 10 are here",
    ),
    "a cut tail, stored checkpoints too": (
        [f"{LOG} WHERE seq > 10", f"{CHECKPOINTS} WHERE size > 10"],
        r"entry 11 is missing: .* 14",
    ),
    "all gone": ([LOG, CHECKPOINTS], r"entry 1 is missing"),
    "a checkpoint changed": (
        [f"UPDATE mm_checkpoints SET head = '{'0' * 64}' WHERE size = 3"],
        r"entry 3: two checkpoints",
    ),
    "no JSON": (["UPDATE mm_erasure_audit SET line = 'x' WHERE seq = 2"], "entry 2"),
    "deep JSON": ([(2, '"details":{}', f'"details":{"[" * 9999}{"]" * 9999}')], "entry 2"),
    "spaces": ([(2, '":"', '": "')], "entry 2: it is not in the canonical form"),
    "a field more": ([(2, '"details"', '"a":1,"details"')], "entry 2: .*fields"),
    "another type": ([(2, '"epoch":1', '"epoch":true')], "entry 2: .*fields"),
    "a work row gone": (
        [f"DELETE FROM mm_{table}" for table in ("suppressions", "erasure_passes", "erasures")],
        "its work row is gone",
    ),
    "a work row set back": (
        ["UPDATE mm_erasures SET state = 'cancelled'"],
        "state of its work row is not what the log says",
    ),
    "a work row of another": (
        [f"UPDATE mm_erasures SET pseudonym = '{'0' * 64}'"],
        "pseudonym of its work row is not what the log says",
    ),
    "a work row without entries": (
        [
            "CREATE TEMPORARY TABLE other AS SELECT * FROM mm_erasures",
            "UPDATE other SET id = 'made up'",
            "INSERT INTO mm_erasures SELECT * FROM other",
        ],
        "no entry in the log",
    ),
}


# Changes that PostgreSQL could answer differently.
ON_BOTH = ["an edit", "a deletion in the middle", "a cut tail", "all gone", "a work row gone"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("sqlite", name) for name in TAMPERED), *(("postgresql", name) for name in ON_BOTH)],
)
def test_tampering_is_detected_and_its_entry_named(request, tmp_path, kind, name):
    """Must hold 5: without the guards, the chain and the checkpoints still disagree."""
    store = Store(request.getfixturevalue(f"{kind}_url"), tmp_path)
    changes, rule = TAMPERED[name]
    tampered(store, *changes)

    with pytest.raises(AuditChainBroken, match=rule) as broken:
        verify(store.log)
    assert store.session.pseudonyms.of("x") not in str(broken.value)


ILLEGAL = {
    "a result without its intent": (without("intent", 1), "a result must have its intent"),
    "a pass without its result": (without("result", 1), "the last call was not acknowledged"),
    "a step left out": (without("purged"), "quiesced may not follow the state fenced"),
    "the start left out": (without("received"), "fenced comes before received"),
    "completed too early": (
        lambda entries: entries.__delitem__(slice(6, 12)),
        "not every pass was acknowledged",
    ),
    "free text": (
        lambda entries: entries[0]["details"].update(ticket="ask Jane Doe"),
        "its ticket is not of the allowed form",
    ),
    "another subject": (
        lambda entries: entries[3].update(subject="0" * 64),
        "another subject than its erasure",
    ),
    "no time": (lambda entries: entries[3].update(at="yesterday"), "its time is not a time"),
}


@pytest.mark.parametrize(("rewrite", "rule"), ILLEGAL.values(), ids=ILLEGAL)
def test_a_log_with_correct_hashes_must_also_follow_the_protocol(sqlite_store, rewrite, rule):
    """A forger who controls every checkpoint must not get away with gaps, nor if he has the key."""
    tampered_by(sqlite_store, rewrite)
    (sqlite_store.folder / "checkpoints").unlink()

    with pytest.raises(AuditChainBroken, match=rule):
        verify(AuditLog(sqlite_store.database, sqlite_store.log.outside))
    with pytest.raises(AuditChainBroken):
        verify(sqlite_store.log)


def test_a_log_written_anew_disagrees_with_the_checkpoints_outside(store):
    tampered_by(store, lambda entries: entries[0]["details"].update(ticket="other"))

    with pytest.raises(AuditChainBroken, match=r"entry 1: .*checkpoint"):
        verify(store.log)


def test_an_edit_is_found_by_its_mac_and_by_the_next_link_alone(store):
    """Also where every checkpoint was lost, and without the key."""
    tampered(store, EDIT, CHECKPOINTS)
    (store.folder / "checkpoints").unlink()

    with pytest.raises(AuditChainBroken, match="entry 3: its MAC does not hold"):
        verify(store.log)
    with pytest.raises(AuditChainBroken, match="entry 4: it does not follow entry 3"):
        verify(AuditLog(store.database, store.log.outside))


def test_missing_guards_are_reported_and_do_not_break_a_whole_log(store, caplog):
    store.completed()
    assert verify(store.log).guards_missing == ()
    with store.tampering():
        pass
    missing = verify(store.log).guards_missing

    assert {name.rsplit("_", 1)[0] for name in missing} >= {"mm_erasure_audit_no"}
    assert "audit_guards_missing" in caplog.text


def test_a_disabled_guard_is_reported(postgresql_url, tmp_path):
    store, guard = Store(postgresql_url, tmp_path), "mm_erasure_audit_no_update"
    store.ask()
    with store.database.write() as connection:
        change(connection, f"ALTER TABLE mm_erasure_audit DISABLE TRIGGER {guard}")

    assert verify(store.log).guards_missing == (guard,)


def test_a_checkpoint_kept_by_another_person_is_enough(sqlite_store):
    """The log output, or the officer's mailbox."""
    sqlite_store.completed()
    lines, kept = list(sqlite_store.log.export()), sqlite_store.log.checkpoint()
    short = [*lines[:5], canonical({"at": "t", "head": hash_of(lines[4]), "size": 5})]

    assert verify_lines(lines, [kept]).size == 14
    assert verify_lines(short).size == 5
    with pytest.raises(AuditChainBroken, match="entry 6 is missing"):
        verify_lines(short, [kept])
    with pytest.raises(AuditChainBroken, match="checkpoint at the end"):
        verify_lines(lines[:5])
    with pytest.raises(AuditChainBroken):
        verify_lines(lines, [Checkpoint(3, "0" * 64, "t")])


def test_a_verification_during_appends_sees_one_moment(store):
    """The checkpoint of a later commit is no proof of a cut tail."""
    store.ask()

    class Busy:
        """As `CheckpointSinks`, with an append between the reads of the file and of the log."""

        def read(self):
            found = store.log.outside.read()
            store.ask("another")
            return found

        publish = store.log.outside.publish

    log = type(store.log)(store.database, Busy())

    assert verify(log).size == 2


def test_a_log_of_thousands_is_verified_in_pages(sqlite_store):
    claim = sqlite_store.ask().claim
    with transaction(sqlite_store.session) as rows:
        row = rows.get(claim.id)
        details = DETAILS["ticket_added"]
        added = Transition("ticket_added", details, {"tickets": [details["ticket"]]})
        rows.advance(row, [added] * 2000)

    assert verify_lines(list(sqlite_store.log.export())).size == 2001
