"""`mm-tasks erasure …` and `audit …` as a person types them, and what status and check say."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import sqlite3
import stat
import subprocess
import sys
import termios
import time
from contextlib import closing, redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import SecretStr

from mm_tasks import cli, runtime
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import tag
from mm_tasks.cli.check import masked
from mm_tasks.erasure import certificate
from mm_tasks.erasure.audit.checkpoints import Checkpoint
from mm_tasks.erasure.models import VendorAck
from mm_tasks.erasure.request import ErasureRequest
from tests.erasure.stores import KEY, USER, VISITOR, Store
from tests.system.processes import read_to_end, run

KEYS = ProjectKeys("default")
SCRIPT = Path(__file__).parents[2] / "scripts" / "verify_audit.py"
NOWHERE = "postgresql://127.0.0.1:1/nowhere"
NOW = datetime.now(UTC)
REFUSED = VendorAck(401, "unauthorized:invalid_api_key", "waiting_key", NOW + timedelta(days=9))
PERSONAL = (USER, VISITOR)


@pytest.fixture
def store(stack, tmp_path):
    """The audit store of the commands, written as a worker does it, at any time."""
    stack.env["MM_TASKS_PSEUDONYM_KEY"] = KEY
    return Store(f"sqlite:///{tmp_path}/audit.sqlite", tmp_path, project="default")


class Done(NamedTuple):
    """How a command ended; as `subprocess.CompletedProcess` says it."""

    returncode: int
    stdout: str
    stderr: str


def in_this_process(env, words, stdin):
    """Run a command as its process would: a hundred of those would take minutes.

    `test_the_program_itself_does_the_same` and those with a terminal start the real one.
    """
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(env):
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["mm-tasks", *words])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((stdin or "").encode())))
        patch.setattr(sys, "path", [*env.get("PYTHONPATH", "").split(":"), *sys.path])
        patch.setattr(runtime._process, "runtime", None)  # noqa: SLF001 - read once a process
        with redirect_stdout(out), redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
                if isinstance(end.code, str):
                    err.write(f"{end.code}\n")
    out.flush()
    return Done(code, out.buffer.getvalue().decode(), err.getvalue())


@pytest.fixture
def command(stack):
    """Run a command; whatever it says, it names nobody."""

    def told(*words, stdin=None):
        done = in_this_process(stack.env, words, stdin)
        assert not any(one in done.stdout + done.stderr for one in PERSONAL)
        return done

    return told


@pytest.fixture
def ask(command):
    """Ask for an erasure, ids from stdin."""
    asked = ("erasure", "request", "--requested-by", "dpo")
    return lambda *words, stdin=f"{USER}\n": command(*asked, *words, stdin=stdin)


def shown(command, id_):
    done = command("erasure", "show", id_, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def status(command):
    done = command("status", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def verdict(done, what):
    """The line of `check` about something: its state and sentence."""
    return re.search(rf"^(\w+) +{what}: (.*)$", done.stdout, re.MULTILINE).groups()


def test_the_program_itself_does_the_same(redis, stack):  # noqa: ARG001 - empties the server
    """All other tests but those with a terminal run the command in their own process."""

    def program(*words, stdin=""):
        return subprocess.run(
            [sys.executable, "-m", "mm_tasks.cli", *words],
            env=stack.env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    asked = program("erasure", "request", "--requested-by", "dpo", "--json", stdin=f"{USER}\n")
    shown_ = program("erasure", "show", json.loads(asked.stdout)["id"], "--json")
    unknown = program("erasure", "show", "nothing")

    assert json.loads(shown_.stdout)["state"] == "fenced"
    assert program("audit", "verify").returncode == 0
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "Traceback" not in unknown.stderr
    assert USER not in asked.stdout + asked.stderr + shown_.stdout + shown_.stderr


# request


def test_request_takes_the_user_id_from_stdin_and_fences_at_once(redis, command, ask):
    done = ask("--ticket", "GDPR-1", "--reason", "ccpa", "--mode", "once", "--json")
    asked = json.loads(done.stdout)

    assert asked == {"id": asked["id"], "fenced": True}
    assert redis.sismember(KEYS.fence, tag("default", "user", USER))
    found = shown(command, asked["id"])
    assert (found["state"], found["mode"], found["reason"]) == ("fenced", "once", "ccpa")
    assert (found["tickets"], found["passes"], found["removed"]) == (["GDPR-1"], [], {})


def test_request_strips_a_newline_and_nothing_else(redis, ask):
    ask(stdin=f" {USER}\t\n")

    assert redis.smembers(KEYS.fence) == {tag("default", "user", f" {USER}\t")}


def test_request_reads_anonymous_ids_from_further_lines(redis, command, ask):
    done = ask("--anonymous-ids", "--json", stdin=f"{USER}\n{VISITOR}\nv2")

    assert shown(command, json.loads(done.stdout)["id"])["anonymous"] == 2
    assert redis.smembers(KEYS.fence) == {
        tag("default", "user", USER),
        tag("default", "anonymous", VISITOR),
        tag("default", "anonymous", "v2"),
    }


def test_request_prompts_on_a_terminal_and_does_not_echo(stack, redis):
    ours, theirs = pty.openpty()
    words = ("erasure", "request", "--requested-by", "dpo", "--json")
    process = subprocess.Popen(
        [sys.executable, "-m", "mm_tasks.cli", *words],
        env=stack.env,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        start_new_session=True,
    )
    os.close(theirs)
    # Nothing is typed before the echo is off; the prompt may be there sooner.
    while termios.tcgetattr(ours)[3] & termios.ECHO:
        time.sleep(0.01)
    os.write(ours, f"{USER}\n".encode())
    on_screen = read_to_end(ours).decode()
    os.close(ours)
    stdout, _ = process.communicate(timeout=60)

    assert "user id (not shown)" in on_screen
    assert USER not in on_screen + stdout
    assert json.loads(stdout)["fenced"]
    assert redis.sismember(KEYS.fence, tag("default", "user", USER))


def test_request_twice_is_one_erasure_with_both_tickets(command, ask):
    first, second = ask("--ticket", "A-1", "--json"), ask("--ticket", "A-2", "--json")

    assert json.loads(first.stdout)["id"] == json.loads(second.stdout)["id"]
    assert shown(command, json.loads(first.stdout)["id"])["tickets"] == ["A-1", "A-2"]


def test_request_without_redis_is_accepted_and_says_that_the_fence_is_not_up(stack, command, ask):
    stack.env["MM_TASKS_REDIS_URL"] = "redis://127.0.0.1:1/0"
    done = ask("--json")

    assert done.returncode == 0
    assert json.loads(done.stdout)["fenced"] is False
    assert "NOT up yet" in ask().stdout
    assert shown(command, json.loads(done.stdout)["id"])["state"] == "received"


BAD_REQUESTS = {
    "no id": ([], "", "user_id: must be text that is not empty"),
    "an id too long": ([], "x" * 5000, "user_id: must have at most"),
    "two ids": ([], f"{USER}\n{VISITOR}\n", "user_id: must be the only line"),
    "Windows's newline": ([], f"{USER}\r\n", "user_id: must be read from lines that end in"),
    "an empty anonymous id": (["--anonymous-ids"], f"{USER}\n\n{VISITOR}", "anonymous_ids: must"),
    "a reason there is not": (["--reason", "anna"], USER, "reason: must be one of gdpr_17_1_a"),
    "a mode there is not": (["--mode", "anna"], USER, "mode: must be one of suppress, once"),
    "no time": (["--received-at", "anna"], USER, "received_at: must be an aware datetime, or"),
    "no time zone": (["--received-at", "2026-01-01"], USER, "received_at: must have a time zone"),
    "an address": (["--ticket", "anna@example.com"], USER, "ticket: must be an opaque reference"),
    "two words": (["--requested-by", "anna a"], USER, "requested_by: must be an opaque reference"),
    "oneself": (["--ticket", f"of-{USER}"], USER, "ticket: must not hold an id of the subject"),
}


@pytest.mark.parametrize(("words", "stdin", "said"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_is_one_sentence_with_field_and_rule(redis, ask, words, stdin, said):
    done = ask(*words, stdin=stdin)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"mm-tasks: {said}")
    assert "anna" not in done.stderr
    assert redis.scard(KEYS.fence) == 0


def test_an_id_on_the_command_line_is_refused_and_not_repeated(redis, ask):
    """The parser's own message would name it, in a log of cron for example."""
    given, option = ask(USER), ask(f"--user-id={USER}")

    assert given.returncode == option.returncode == 2
    assert "from a prompt" in given.stderr
    assert redis.scard(KEYS.fence) == 0


def test_without_an_audit_database_nothing_is_accepted(stack, redis, ask):
    stack.env["MM_TASKS_AUDIT_URL"] = NOWHERE
    done = ask()

    assert done.returncode == 1
    assert done.stderr.startswith("mm-tasks: audit database error")
    assert redis.scard(KEYS.fence) == 0


# list and show


def test_list_shows_each_erasure_by_its_id(store, command):
    done, asked = store.completed(ticket="GDPR-1"), store.ask(user_id="someone-else")
    listed = command("erasure", "list")

    assert re.search(rf"{done.id} +│ completed +│ .* 3/3 +│ GDPR-1 ", listed.stdout)
    assert re.search(rf"{asked.id} +│ received +│ .* 0/- +│ +│", listed.stdout)
    assert "someone-else" not in listed.stdout


def test_list_for_programs_takes_states_and_a_limit(store, command):
    done, asked = store.completed(), store.ask(user_id="someone-else")

    def ids(*words):
        return [
            one["id"]
            for one in json.loads(command("erasure", "list", "--json", *words).stdout)["erasures"]
        ]

    assert set(ids()) == {done.id, asked.id}
    assert ids("--open") == [asked.id]
    assert ids("--state", "completed") == [done.id]
    assert set(ids("--state", "completed", "--open")) == {done.id, asked.id}
    assert len(ids("--limit", "1")) == 1
    refused = command("erasure", "list", "--state", "gone")
    assert refused.returncode == 2
    assert "--state" in refused.stderr


def test_show_says_what_was_removed_and_how_each_pass_went(store, command):
    id_ = store.completed().id
    found, table = shown(command, id_), command("erasure", "show", id_)

    assert found["state"] == "completed"
    assert found["removed"] == {"track:waiting": 2, "dead": 0}
    assert [one["n"] for one in found["passes"]] == [1, 2, 3]
    assert {(one["status"], one["outcome"]) for one in found["passes"]} == {(200, "acknowledged")}
    assert all(one["sent_at"] for one in found["passes"])
    assert found["received_at"] < found["due_at"]
    assert re.search(r"removed: track:waiting +│ 2", table.stdout)
    assert re.search(r"│ 1 +│ 3 +│ 1 .* acknowledged", table.stdout)


@pytest.mark.parametrize(
    "words",
    [
        ["show", USER],
        ["show", USER, "--json"],
        ["show", USER, "--receipt"],
        ["cancel", USER, "--requested-by", "dpo"],
        ["lift", USER, "--requested-by", "dpo"],
        ["retry", USER, "--requested-by", "dpo"],
        ["reject", USER, "--requested-by", "dpo", "--outcome", "not_verified"],
        ["duplicate", USER, "--of", VISITOR, "--requested-by", "dpo"],
    ],
    ids=" ".join,
)
def test_an_unknown_erasure_is_one_sentence(store, command, words):
    store.ask()
    done = command("erasure", *words)

    assert done.returncode == 1
    assert re.fullmatch(r"mm-tasks: there is no such (erasure|original)\n", done.stderr)


# receipt


def test_the_receipt_tells_a_request_that_came_in_a_message(store, command):
    request = ErasureRequest("another", "dpo")
    id_ = store.commands.open_request(request, NOW, via="message").id

    assert (
        "requested by dpo, in a message through the broker"
        in command("erasure", "show", id_, "--receipt").stdout
    )


def test_the_receipt_of_a_completed_erasure_claims_what_the_log_says(store, command):
    id_ = store.completed(now=NOW, aof="rewritten", ticket="GDPR-1").id
    text = command("erasure", "show", id_, "--receipt").stdout
    found = shown(command, id_)

    assert f"received {found['received_at']}, on the ground gdpr_17_1_b, ticket GDPR-1" in text
    assert f"Since {found['fenced_at']} at the latest, no event" in text
    assert re.search(r" 2 track:waiting: waiting to be sent", text)
    assert f"At {found['quiesced_at']} none was on its way to the vendor any more." in text
    assert "Acknowledged by the vendor 3 times:" in text
    assert all(f"at {one['answered_at']}, call {one['n']} " in text for one in found["passes"])
    assert f"Wiped from our records at {found['ended_at']}" in text
    assert "Redis's AOF was rewritten at" in text
    assert "through the broker" not in text
    assert "SQLite file; its write-ahead log was emptied" in text
    assert "PostgreSQL" not in text
    assert "Not done" not in text
    assert "delete" not in text.lower()


def test_a_receipt_ends_with_what_the_log_can_be_matched_with(store, command):
    id_ = store.completed().id
    text = command("erasure", "show", id_, "--receipt").stdout
    sealed = json.loads(command("audit", "checkpoint", "--json").stdout)

    assert text.endswith(f"the audit log of {sealed['size']} entries, head {sealed['head']}\n")


def test_the_receipt_of_an_unfinished_erasure_says_what_was_not_done(store, command):
    claim = store.quiesced(now=NOW)
    store.call(claim, now=NOW)
    store.call(claim, REFUSED, now=NOW + timedelta(days=1))
    text = command("erasure", "show", claim.id, "--receipt").stdout

    assert "NOT finished" in text
    assert "of 3 passes, 1 were acknowledged" in text
    assert "Acknowledged by the vendor 1 time:" in text
    assert "unauthorized:invalid_api_key" in text
    assert "It is blocked (waiting_key): the next call is due" in text
    assert "Not wiped yet" in text
    assert "AOF has no rewrite on record" in text


def test_the_receipt_of_a_new_erasure_claims_nothing(store, command):
    text = command("erasure", "show", store.ask().id, "--receipt").stdout

    assert "stopping the events is not recorded" in text
    assert "removing our own copies is not recorded" in text
    assert "Nothing was acknowledged by the vendor." in text
    assert "no event of this person is accepted" not in text


def test_anonymous_ids_added_later_are_open_until_they_are_done(store, command):
    """The person's events are stopped still; those of the new ids are not yet."""
    store.quiesced(now=NOW)
    claim = store.ask(now=NOW, anonymous_ids=(VISITOR,)).claim
    before = command("erasure", "show", claim.id, "--receipt").stdout
    store.steps.mark_fenced(claim, NOW + timedelta(hours=1))
    after = command("erasure", "show", claim.id, "--receipt").stdout

    assert "stopping the events is not recorded" in before
    assert "events may still be on their way to the vendor" in before
    assert "none was on its way" not in before
    assert "For the anonymous ids added later, this applies since" in after


@pytest.mark.parametrize("word", ["rewritten", "off", "running", "failed", "refused"])
def test_the_receipt_says_what_became_of_the_aof(sqlite_receipt, word):
    text = sqlite_receipt(word)

    assert "Redis's AOF" in text
    assert ("stays readable there" in text) == (word not in {"rewritten", "off"})


@pytest.fixture
def sqlite_receipt(store):
    def text(word, **where):
        id_ = store.completed(aof=word).id
        entries, end = store.queries.history(id_)
        assert isinstance(end, Checkpoint)
        return certificate.text(entries, end, **{"is_sqlite": True, "is_wal_empty": True, **where})

    return text


def test_the_receipt_says_where_the_audit_database_keeps_what_was_wiped(sqlite_receipt):
    assert "could NOT be emptied yet" in sqlite_receipt("off", is_wal_empty=False)
    assert "dead tuple until it is vacuumed" in sqlite_receipt("off", is_sqlite=False)


def test_a_receipt_is_text_alone(store, command):
    done = command("erasure", "show", store.ask().id, "--receipt", "--json")

    assert done.returncode == 2
    assert "--receipt" in done.stderr


# cancel, lift, retry, reject, duplicate


def test_cancel_lowers_the_fence_and_cannot_be_repeated(redis, command, ask):
    id_ = json.loads(ask("--json").stdout)["id"]
    first = command("erasure", "cancel", id_, "--requested-by", "dpo")
    again = command("erasure", "cancel", id_, "--requested-by", "dpo")
    text = command("erasure", "show", id_, "--receipt").stdout

    assert (first.returncode, first.stdout) == (0, "cancelled: the vendor was not called\n")
    assert (again.returncode, again.stderr) == (
        1,
        "mm-tasks: cancelled may not follow the state cancelled\n",
    )
    assert redis.scard(KEYS.fence) == 0
    assert shown(command, id_)["is_wiped"]
    assert "cancelled at" in text
    assert "It was not carried out" in text


def test_lift_of_a_completed_erasure_lowers_the_fence(redis, store, command):
    id_ = store.completed().id
    Fence(redis, "default").load(store.queries.store_id, store.queries.fences)
    assert redis.scard(KEYS.fence) == 1
    done = command("erasure", "lift", id_, "--requested-by", "dpo")

    assert done.returncode == 0
    assert redis.scard(KEYS.fence) == 0
    assert shown(command, id_)["state"] == "lifted"


def test_retry_makes_a_blocked_erasure_due(store, command):
    claim = store.quiesced(now=NOW)
    store.call(claim, REFUSED, now=NOW)
    done = command("erasure", "retry", claim.id, "--requested-by", "dpo")

    assert done.returncode == 0
    assert shown(command, claim.id)["next_at"] <= f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.999Z"


def test_reject_and_duplicate_end_an_erasure_with_their_reason(store, command):
    first, second = store.ask(), store.ask(user_id="someone-else")
    by = ("--requested-by", "dpo")
    doubled = command("erasure", "duplicate", second.id, "--of", first.id, *by)
    refused = command("erasure", "reject", first.id, *by, "--outcome", "not_verified")
    text = command("erasure", "show", second.id, "--receipt").stdout

    assert doubled.returncode == refused.returncode == 0
    assert shown(command, second.id)["duplicate_of"] == first.id
    assert shown(command, first.id)["state"] == "rejected"
    assert f"a duplicate of {first.id}" in text


BY = "requested_by: must be an opaque reference: 1-128 characters, no @, no spaces"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cancel", "--requested-by", "anna@example.com"], BY),
        (["lift", "--requested-by", "anna a"], BY),
        (["retry", "--requested-by", ""], BY),
        (["reject", "--requested-by", "anna\n", "--outcome", "x"], BY),
        (["reject", "--requested-by", "dpo", "--outcome", "anna A"], "outcome: must be a fixed"),
        (["duplicate", "--requested-by", "anna@", "--of", "x"], BY),
        (["duplicate", "--requested-by", "dpo", "--of", "anna@"], "of: must be an opaque"),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_who_asks_must_be_a_reference(store, command, words, said):
    """It stays in the log for ever, so it must not say who somebody is."""
    name, *options = words
    id_ = store.ask().id
    done = command("erasure", name, id_, *options)

    assert done.returncode == 1
    assert done.stderr.startswith(f"mm-tasks: {said}")
    assert "anna" not in done.stderr
    assert shown(command, id_)["state"] == "received"


# audit


def test_verify_tells_size_head_states_and_checkpoints(store, command):
    store.completed()
    store.ask(user_id="someone-else")
    done, report = command("audit", "verify"), command("audit", "verify", "--json")
    found = json.loads(report.stdout)

    assert done.returncode == report.returncode == 0
    assert found["size"] == len(store.entries())
    assert found["erasures"] == {"completed": 1, "received": 1}
    assert found["guards_missing"] == []
    assert found["head"] in done.stdout
    assert f"checkpoints: {found['checkpoints']} compared" in done.stdout
    assert "erasures: completed 1, received 1" in done.stdout


def test_verify_warns_of_guards_and_refuses_what_was_changed_behind_them(store, command):
    store.completed()
    with store.tampering():
        pass
    warned = command("audit", "verify")
    checked = command("check")
    with closing(sqlite3.connect(store.folder / "audit.sqlite")) as raw, raw:
        raw.execute("UPDATE mm_erasure_audit SET line = replace(line, 'dpo', 'ceo') WHERE seq = 1")
    broken, listed = command("audit", "verify", "--json"), command("audit", "verify")

    assert warned.returncode == 0
    assert "warning: guards of the log are missing: mm_erasure_audit_no_update" in warned.stderr
    assert verdict(checked, "audit guards")[0] == "warning"
    assert broken.returncode == listed.returncode == 1
    assert broken.stdout == ""
    assert broken.stderr.startswith("mm-tasks: entry 1: it differs from the entry of a checkpoint")


def test_an_export_is_private_and_is_verified_by_ours_and_by_a_strangers_program(
    store, command, tmp_path
):
    store.completed()
    file = tmp_path / "audit.jsonl"
    done, printed = command("audit", "export", str(file)), command("audit", "export")
    ours = command("audit", "verify", str(file), "--json")
    checkpoints = tmp_path / "checkpoints"
    theirs = subprocess.run(
        [sys.executable, SCRIPT, file, checkpoints], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, f"{len(store.entries())} entries written\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().splitlines()[:-1] == printed.stdout.splitlines()[:-1]
    assert json.loads(ours.stdout)["size"] == len(store.entries())
    assert json.loads(ours.stdout)["checkpoints"] > 1
    assert theirs.stdout.startswith(f"verified: {len(store.entries())} entries")
    assert command("audit", "export", str(file)).returncode == 2
    assert command("audit", "export", str(file), "--force").returncode == 0


def test_an_export_that_was_cut_or_changed_is_refused(store, command, tmp_path):
    store.completed()
    file = tmp_path / "audit.jsonl"
    command("audit", "export", str(file))
    whole = file.read_text()
    *entries, end = whole.splitlines(keepends=True)
    for text in (whole[:-5], "".join(entries), "".join(entries[1:]) + end, "", "{}\n", "no\n"):
        file.write_text(text)
        done = command("audit", "verify", str(file))
        assert done.returncode == 1
        assert done.stderr.startswith("mm-tasks: ")
    assert command("audit", "verify", str(tmp_path / "none")).returncode == 1


def test_an_export_cut_and_sealed_anew_is_found_by_the_checkpoints_outside(
    store, command, tmp_path
):
    """Whoever cuts the tail writes the last line anew; what was published before knows."""
    store.completed(now=NOW - timedelta(days=9))
    file = tmp_path / "audit.jsonl"
    command("audit", "export", str(file))
    end = json.loads(file.read_text().splitlines()[-1])
    lines = store.entries()[:-1]
    head = json.loads(store.entries()[-1])["prev"]
    sealed = json.dumps({"at": end["at"], "head": head, "size": len(lines)}, sort_keys=True)
    file.write_text("\n".join([*lines, sealed.replace(" ", "")]) + "\n")
    done = command("audit", "verify", str(file))

    assert done.returncode == 1
    assert "its tail was cut" in done.stderr


def test_an_older_export_holds_although_the_log_went_on(store, command, tmp_path):
    store.completed()
    file = tmp_path / "audit.jsonl"
    command("audit", "export", str(file))
    store.ask(user_id="someone-else", now=NOW + timedelta(hours=1))

    assert command("audit", "verify", str(file)).returncode == 0


def test_checkpoint_publishes_and_says_so_when_it_could_not(
    stack, store, command, tmp_path, caplog
):
    store.ask()
    sealed = json.loads(command("audit", "checkpoint", "--json").stdout)

    assert sealed["size"] == 1
    assert f"1 {sealed['head']} {sealed['at']}\n" in (tmp_path / "checkpoints").read_text()
    stack.env["MM_TASKS_STATE_DIR"] = str(tmp_path / "checkpoints")
    stack.env["MM_TASKS_AUDIT_URL"] = store.url
    failed = command("audit", "checkpoint")
    assert failed.returncode == 1
    assert "checkpoint_not_written size=1 errno=" in caplog.text
    assert "could not be written" in failed.stderr
    checked = command("check")
    assert checked.returncode == 0
    assert verdict(checked, "checkpoints")[0] == "warning"


def test_a_hook_is_told_of_each_checkpoint(stack, ask, tmp_path):
    (tmp_path / "ours.py").write_text(
        "from pathlib import Path\n"
        "def keep(one):\n"
        "    Path(__file__).with_name('told').write_text(f'{one.size} {one.head}')\n"
    )
    stack.env |= {"PYTHONPATH": str(tmp_path), "MM_TASKS_CHECKPOINT_HOOK": "ours:keep"}
    ask()

    assert (tmp_path / "told").read_text().startswith("2 ")


@pytest.mark.parametrize("hook", ["nothing_there:keep", "os:nothing", "os.path:sep", "os"])
def test_a_hook_that_cannot_be_imported_is_refused(stack, ask, command, hook):
    stack.env["MM_TASKS_CHECKPOINT_HOOK"] = hook
    done, checked = ask(), command("check")

    assert done.returncode == checked.returncode == 1
    assert "MM_TASKS_CHECKPOINT_HOOK: must be package.module:function" in done.stderr
    assert "MM_TASKS_CHECKPOINT_HOOK" in verdict(checked, "audit store")[1]


# status


def test_status_counts_erasures_and_makes_nothing_by_looking(command, ask, tmp_path):
    empty = status(command)

    assert empty["erasures"] == {"open": 0, "overdue": 0, "blocked": 0, "blocked_reasons": {}}
    assert empty["fence"] == {"tags": 0, "loaded": False}
    assert set(empty) == {
        *("project", "paused", "counts", "oldest_waiting_s"),
        *("fence", "erasures", "left_out"),
    }
    assert not list(tmp_path.iterdir())
    ask()
    assert status(command)["erasures"]["open"] == 1
    assert status(command)["fence"]["tags"] == 1


def test_status_tells_what_events_of_web_requests_went_without(command, redis):
    assert "left out" not in command("status").stdout
    redis.hset(KEYS.counts, "track:left_out", 2)

    assert "dropped: 2 unusable fields of web requests" in command("status").stdout


def test_status_tells_the_overdue_and_the_blocked(store, command):
    late = store.ask(now=NOW - timedelta(days=40))
    half = store.ask(user_id="half", now=NOW - timedelta(days=20))
    claim = store.quiesced(user_id="blocked", now=NOW)
    store.call(claim, REFUSED, now=NOW)
    said = command("status").stdout

    assert status(command)["erasures"] == {
        "open": 3,
        "overdue": 1,
        "blocked": 1,
        "blocked_reasons": {"waiting_key": 1},
    }
    assert "erasures: 3 open, 1 overdue, 1 blocked (waiting_key 1)" in said
    assert f"{late.id} (received): 100 % of its time is used up" in said
    assert f"{half.id} (received): 50 % of its time" in said
    assert claim.id not in said
    checked = command("check")
    assert checked.returncode == 0
    assert verdict(checked, "erasures") == (
        "warning",
        "3 open, 1 overdue, 1 blocked (waiting_key 1)",
    )


def test_status_without_the_audit_database_still_tells_of_events(stack, command, tmp_path):
    stack.env["MM_TASKS_AUDIT_URL"] = NOWHERE
    stack.env["MM_TASKS_PSEUDONYM_KEY"] = KEY
    said = command("status")

    assert status(command)["erasures"] is None
    assert said.returncode == 0
    assert "erasures: unknown: audit database error" in said.stdout
    del stack.env["MM_TASKS_PSEUDONYM_KEY"]
    assert "unknown: MM_TASKS_PSEUDONYM_KEY: not set" in command("status").stdout
    assert not list(tmp_path.iterdir())


def test_status_says_why_fences_could_not_be_loaded_before_any_other_pause(redis, command):
    redis.hset(KEYS.pause, mapping={"kind": "unauthorized", "status": 401, "code": "x"})
    redis.hset(KEYS.pause, "since_ms", 1)
    Fence(redis, "default").note_failed("audit_unavailable")
    paused = status(command)["paused"]

    assert paused["reason"] == "fences_not_loaded: - audit_unavailable"
    assert abs(paused["since"] - time.time()) < 60
    Fence(redis, "default").load("a store", lambda: [b"x" * 16])
    assert status(command)["paused"]["reason"] == "unauthorized: 401 x"
    assert status(command)["fence"] == {"tags": 1, "loaded": True}


# check


def test_check_makes_the_tables_and_judges_the_store(stack, command, tmp_path):
    done = command("check")

    assert done.returncode == 0
    assert verdict(done, "audit store")[0] == "ok"
    assert re.fullmatch(r"SQLite, id [0-9a-f-]{36}", verdict(done, "audit store")[1])
    assert verdict(done, "fence")[0] == "warning"
    assert verdict(done, "audit guards")[0] == "ok"
    assert verdict(done, "checkpoints")[0] == "ok"
    assert verdict(done, "erasures") == ("ok", "0 open, 0 overdue, 0 blocked")
    assert (tmp_path / "audit.sqlite").exists()
    stack.env["MM_TASKS_PSEUDONYM_KEY"] = KEY
    assert KEY not in command("check").stdout


def other_key(stack, redis):  # noqa: ARG001
    stack.env["MM_TASKS_PSEUDONYM_KEY"] = "another key than that of the store"
    return "MM_TASKS_PSEUDONYM_KEY: is not the key of this audit store"


def other_store(stack, redis):  # noqa: ARG001
    Fence(redis, "default").load("another store", list)
    return "MM_TASKS_AUDIT_URL: this Redis has the fences of another audit store"


def bad_url(stack, redis):  # noqa: ARG001
    stack.env["MM_TASKS_AUDIT_URL"] = "mysql://anna:secret@host/audit"
    return "MM_TASKS_AUDIT_URL: must begin with postgresql:// or sqlite:///"


def own_file_of_each_host(stack, redis):  # noqa: ARG001
    stack.env["MM_TASKS_REDIS_URL"] = "redis://192.0.2.1:6379/0"
    return "MM_TASKS_AUDIT_URL: is required where Redis is on another host"


@pytest.mark.parametrize("broken", [other_key, other_store, bad_url])
def test_check_and_a_worker_refuse_an_audit_store(stack, redis, store, command, broken):
    store.ask()
    said = broken(stack, redis)
    stack.env["MILLIMETRIC_HOST"] = "http://127.0.0.1:1"
    checked, worker = command("check"), stack.worker()
    stack.wait(lambda: worker.poll() is not None, 30)

    assert checked.returncode == worker.returncode == 1
    assert verdict(checked, "audit store")[1].startswith(said)
    assert f"mm_tasks: {said}" in stack.read(worker)
    assert "secret@" not in checked.stdout + stack.read(worker)


def test_check_refuses_a_file_of_each_host(stack, redis, command):
    said = own_file_of_each_host(stack, redis)
    done = command("check")

    assert done.returncode == 1
    assert verdict(done, "audit store")[1].startswith(said)


def test_a_database_that_is_away_is_a_problem_for_check_and_a_worker_waits(stack, command):
    """It comes back; until then nothing is sent, and status says why."""
    stack.env["MM_TASKS_AUDIT_URL"] = NOWHERE
    stack.sandbox()
    checked, worker = command("check"), stack.worker()
    stack.beat()

    assert checked.returncode == 1
    assert "the audit database does not answer" in verdict(checked, "audit database")[1]
    paused = stack.wait(lambda: status(command)["paused"])
    assert paused["reason"] == "fences_not_loaded: - audit_unavailable"
    assert worker.poll() is None


def test_check_finds_a_log_that_is_shorter_than_what_was_published(store, command, tmp_path):
    store.ask()
    with (tmp_path / "checkpoints").open("a") as file:
        file.write(f"9 {'a' * 64} 2026-01-31T12:00:00.000Z\n")
    done = command("check")

    assert done.returncode == 1
    assert verdict(done, "checkpoints")[0] == "problem"


URLS = {
    "postgresql://anna:secret@host/audit?password=secret": "postgresql://host/audit",
    "sqlite:////var/lib/audit.sqlite": "sqlite:////var/lib/audit.sqlite",
    "unix:///run/redis.sock": "unix:///run/redis.sock",
    "postgresql://anna:sec/ret@host/audit": "…",
    "redis://:sec?ret@host": "…",
    "redis://[": "…",
    "anna:secret@host": "…",
    "secret": "…",
}


@pytest.mark.parametrize(("url", "seen"), URLS.items(), ids=lambda text: text)
def test_check_shows_a_url_without_its_password_whatever_it_holds(url, seen):
    """A URL that is refused is one that somebody wrote wrongly."""
    assert masked("audit_url", SecretStr(url)) == seen
    assert masked("pseudonym_key", SecretStr(url)) == "…"


# all of it


def test_an_erasure_from_request_to_receipt(stack, redis, command, ask):
    """With a worker: acknowledged twice, wiped, receipted, verified and lifted."""
    stack.env["MM_TASKS_ERASURE_PASSES_S"] = "0,1"
    stack.sandbox()
    worker = stack.worker()
    stack.beat()
    stack.produce(f"from mm_tasks import track; track.delay('signup', user_id={USER!r})")
    id_ = json.loads(ask("--ticket", "GDPR-1", "--json").stdout)["id"]
    stack.wait(lambda: shown(command, id_)["state"] == "completed")
    text = command("erasure", "show", id_, "--receipt").stdout

    assert "Acknowledged by the vendor 2 times:" in text
    assert "Redis's AOF was off" in text
    assert command("audit", "verify").returncode == 0
    assert status(command)["erasures"]["open"] == 0
    assert command("erasure", "lift", id_, "--requested-by", "dpo").returncode == 0
    assert redis.scard(KEYS.fence) == 0
    assert verdict(run(stack.env, "check"), "fence") == ("ok", "tags: 0, loaded for this server")
    assert re.search(rf"erasure_entry erasure={id_} entry=wiped", stack.read(worker))
    assert not any(one in stack.read(worker) for one in PERSONAL)
