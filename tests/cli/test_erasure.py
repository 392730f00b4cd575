"""`mm-tasks erasure …` and `audit …` as typed at a prompt, and the output of status and check."""

import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
import termios
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import tag
from mm_tasks.cli.check import masked
from mm_tasks.erasure.audit.log import canonical
from mm_tasks.erasure.certificate.wording import Language, Wording
from mm_tasks.erasure.models import VendorAck
from mm_tasks.erasure.request import ErasureRequest
from tests.cli.in_process import in_this_process
from tests.erasure.stores import KEY, USER, VISITOR, Store
from tests.system.processes import on_terminal, read_to_end, run

KEYS = ProjectKeys("default")
NOWHERE = "postgresql://127.0.0.1:1/nowhere"
NOW = datetime.now(UTC)
REFUSED = VendorAck(401, "unauthorized:invalid_api_key", "waiting_key", 86_400)
PERSONAL = (USER, VISITOR)
PROGRAM = (sys.executable, "-m", "mm_tasks.cli")
BY_DPO = ("--requested-by", "dpo")
REQUEST = ("erasure", "request", *BY_DPO)


@pytest.fixture
def store(stack, tmp_path):
    """The audit store of the commands, written as a worker does it, at any time."""
    stack.env["MM_TASKS_PSEUDONYM_KEY"] = KEY
    return Store(f"sqlite:///{tmp_path}/audit.sqlite", tmp_path, project="default")


class Commands:
    """Runs commands. Their output never holds an id of a person."""

    def __init__(self, env):
        self.env = env

    def __call__(self, *words, stdin=None):
        done = in_this_process(self.env, words, stdin)
        assert not any(id_ in done.stdout + done.stderr for id_ in PERSONAL)
        return done

    def ask(self, *words, stdin=f"{USER}\n"):
        """Request an erasure, with the ids on stdin."""
        return self(*REQUEST, *words, stdin=stdin)

    def json(self, *words):
        """Parse the JSON output of a command, which must succeed."""
        done = self(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def shown(self, id_):
        return self.json("erasure", "show", id_)

    def status(self):
        return self.json("status")

    def receipt(self, id_, *options):
        """Return the receipt as one line, since it is wrapped."""
        return " ".join(self("erasure", "show", id_, "--receipt", *options).stdout.split())


@pytest.fixture
def command(stack):
    return Commands(stack.env)


def requested(done):
    """Return the id of the erasure that a request with `--json` opened."""
    return json.loads(done.stdout)["id"]


def verdict(done, subject):
    """Return the state and the sentence of a line of `check`."""
    return re.search(rf"^(\w+) +{subject}: (.*)$", done.stdout, re.MULTILINE).groups()


def test_the_program_itself_does_the_same(redis, stack):  # noqa: ARG001 - empties the server
    """All other tests but those with a terminal run the command in their own process."""

    def program(*words, stdin=""):
        command = [*PROGRAM, *words]
        streams = {"input": stdin, "capture_output": True, "text": True}
        return subprocess.run(command, env=stack.env, timeout=60, check=False, **streams)

    asked = program(*REQUEST, "--json", stdin=f"{USER}\n")
    shown_ = program("erasure", "show", requested(asked), "--json")
    unknown = program("erasure", "show", "nothing")

    assert json.loads(shown_.stdout)["state"] == "fenced"
    assert program("audit", "verify").returncode == 0
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "Traceback" not in unknown.stderr
    assert USER not in asked.stdout + asked.stderr + shown_.stdout + shown_.stderr


# request


def test_request_takes_the_user_id_from_stdin_and_fences_at_once(redis, command):
    done = command.ask("--ticket", "GDPR-1", "--reason", "ccpa", "--mode", "once", "--json")

    call_after = command.shown(requested(done))["call_after"]
    shown = {"id": requested(done), "fenced": True, "seen": False, "call_after": call_after}
    assert json.loads(done.stdout) == shown
    assert redis.sismember(KEYS.fence, tag("default", "user", USER))
    erasure = command.shown(requested(done))
    assert (erasure["state"], erasure["mode"], erasure["reason"]) == ("fenced", "once", "ccpa")
    assert (erasure["tickets"], erasure["passes"], erasure["removed"]) == (["GDPR-1"], [], {})


@pytest.mark.parametrize(
    ("options", "stdin", "ids"),
    [
        (["--exact"], f" {USER}\t\n", {("user", f" {USER}\t")}),
        (
            ["--anonymous-ids"],
            f"{USER}\n{VISITOR}\nv2",
            {("user", USER), ("anonymous", VISITOR), ("anonymous", "v2")},
        ),
    ],
    ids=["a newline is stripped and nothing else", "anonymous ids are read from further lines"],
)
def test_request_reads_ids_by_line(redis, command, options, stdin, ids):
    done = command.ask(*options, "--json", stdin=stdin)

    assert command.shown(requested(done))["anonymous"] == len(ids) - 1
    assert redis.smembers(KEYS.fence) == {tag("default", *id_) for id_ in ids}


@pytest.fixture
def typed(stack):
    """Run a command at a terminal: each answer is typed once its question is there.

    Returns what was on the screen, and stdout.
    """

    def run(*words, answers):
        process, ours = on_terminal([*PROGRAM, *words], stack.env)
        on_screen = b""
        for question, answer in answers:
            while question.encode() not in on_screen:
                on_screen += os.read(ours, 65536)
            before, _, on_screen = on_screen.partition(question.encode())
            # What is typed before the echo is off is shown; the question may be there sooner.
            while question in HIDDEN and termios.tcgetattr(ours)[3] & termios.ECHO:
                time.sleep(0.01)
            os.write(ours, f"{answer}\n".encode())
            shown.append(before + question.encode())
        shown.append(on_screen + read_to_end(ours))
        os.close(ours)
        stdout, _ = process.communicate(timeout=60)
        return b"".join(shown).decode(), stdout

    shown = []
    return run


HIDDEN = {"user id (not shown): ", "again: ", "anonymous id (none: done) (not shown): "}
ONCE, AGAIN = ("user id (not shown): ", USER), ("again: ", USER)
SURE = "erase this person, here and at the vendor? [y/N]:"


def test_request_asks_twice_on_a_terminal_says_what_is_here_and_does_not_echo(
    stack, redis, typed, store
):
    store.completed()
    stack.produce(f"from mm_tasks import track; track.delay('e', user_id={USER!r})")
    other = ("again: ", "a slip")
    screen, stdout = typed(*REQUEST, "--json", answers=[ONCE, other, ONCE, AGAIN, (SURE, "y")])

    assert "the two entries differ" in screen
    assert "events here: 1 (1 track:waiting)" in screen
    assert re.search(r"erasures: [0-9a-f-]{36} completed\r", screen)
    assert USER not in screen + stdout
    assert json.loads(stdout)["fenced"]
    assert redis.sismember(KEYS.fence, tag("default", "user", USER))


def test_request_does_nothing_unless_the_answer_is_yes(redis, typed, command):
    screen, stdout = typed(*REQUEST, answers=[ONCE, AGAIN, (SURE, "")])

    assert "no event of this id is here, and no earlier erasure: check the id" in screen
    assert "mm-tasks: nothing was done" in screen
    assert stdout.strip() == ""
    assert not redis.exists(KEYS.fence)
    assert command.json("erasure", "list")["erasures"] == []


def test_request_shows_the_id_if_that_is_asked_for_and_needs_no_answer_with_yes(redis, typed):
    answers = [
        ("user id (shown):", USER),
        ("anonymous id (none: done) (shown):", VISITOR),
        ("anonymous id (none: done) (shown):", ""),
    ]
    words = ("--show", "--yes", "--anonymous-ids")
    screen, stdout = typed(*REQUEST, *words, answers=answers)

    assert f"user id (shown):{USER}\r\n" in screen.replace(": ", ":")
    assert USER not in stdout
    assert redis.scard(KEYS.fence) == 2


def test_request_without_redis_says_on_a_terminal_that_it_does_not_know(stack, typed):
    stack.env["MM_TASKS_REDIS_URL"] = "redis://127.0.0.1:1/0"
    screen, _ = typed(*REQUEST, answers=[ONCE, AGAIN, (SURE, "n")])

    assert "what waits here of this person is unknown" in screen


SLIPS = {
    "a blank at its end": f"{USER} ",
    "a tab (U+0009) at its end": f"{USER}\t",
    "a no-break space (U+00A0) at its end": f"{USER}\xa0",
    "a zero-width space (U+200B) at character 3": f"{USER[:2]}\u200b{USER[2:]}",
    "a byte order mark (U+FEFF) at its beginning": f"\ufeff{USER}",
}


@pytest.mark.parametrize(("hint", "id_"), SLIPS.items(), ids=SLIPS)
def test_an_id_with_an_invisible_slip_is_refused_with_a_hint(redis, command, hint, id_):
    """It was fenced and acknowledged, and the person went on being tracked."""
    done = command.ask(stdin=f"{id_}\n")
    visitor = command.ask("--anonymous-ids", stdin=f"{USER}\nv\n{id_}\n")
    exact = command.ask("--exact", "--anonymous-ids", stdin=f"{id_}\n{id_}\n")

    rule = f"has {hint}: remove it, or give --exact if the id is really so"
    assert (done.returncode, done.stderr) == (1, f"mm-tasks: user_id: {rule}\n")
    assert visitor.stderr == f"mm-tasks: anonymous_ids (id 2): {rule}\n"
    assert exact.returncode == 0
    ids = {tag("default", kind, id_) for kind in ("user", "anonymous")}
    assert redis.smembers(KEYS.fence) == ids


@pytest.mark.parametrize("name", ["find", "scan"])
def test_no_slip_is_searched_for(command, name):
    done = command("erasure", name, stdin=f"{USER} \n")

    assert done.stderr.startswith("mm-tasks: user_id: has a blank at its end")


@pytest.mark.parametrize(
    ("setting", "words", "grace_s"),
    [("", (), 3600), ("60", (), 60), ("60", ("--grace", "0"), 0), ("", ("--grace", "90"), 90)],
)
def test_the_vendor_is_not_called_for_an_hour_unless_told_otherwise(
    stack, command, setting, words, grace_s
):
    stack.env["MM_TASKS_ERASURE_GRACE_S"] = setting
    done = command.ask(*words)
    shown = command.json("erasure", "list")["erasures"][0]

    assert ("not called before" in done.stdout) == (grace_s > 0)
    if grace_s:
        times = (datetime.fromisoformat(shown[name]) for name in ("call_after", "accepted_at"))
        after, accepted = times
        assert (after - accepted).total_seconds() == grace_s
    assert command("erasure", "cancel", shown["id"], *BY_DPO).returncode == 0


def test_find_lists_the_erasures_of_a_person(store, command):
    done = store.completed()
    store.ask(user_id="someone-else")
    found = command("erasure", "find", "--json", stdin=f"{USER}\n")

    assert [row["id"] for row in json.loads(found.stdout)["erasures"]] == [done.id]
    assert done.id in command("erasure", "find", stdin=USER).stdout
    assert command("erasure", "find", "--json", stdin="no").stdout == '{"erasures": []}\n'


def test_scan_counts_what_is_here_and_removes_nothing(stack, store, redis, command, tmp_path):
    done = store.completed()
    stack.produce(
        "from mm_tasks import track;"
        f"track.delay('first', user_id={USER!r}, properties={{'plan': 'free'}});"
        f"track.delay('second', anonymous_id={VISITOR!r});"
        "track.delay('other', user_id='someone-else')"
    )
    Fence(redis, "default").load(store.queries.store_id, store.queries.fences)
    file, ids = tmp_path / "found.jsonl", f"{USER}\n{VISITOR}\n"
    words = ("erasure", "scan", "--anonymous-ids")
    scanned = command(*words, "--events", str(file), "--json", stdin=ids)
    told = command(*words, stdin=ids)

    assert json.loads(scanned.stdout) == {
        "events": {"track:waiting": 2},
        "fenced": [True, False],
        "erasures": [{"id": done.id, "state": "completed"}],
    }
    assert told.stdout.splitlines() == [
        "events here: 2 (2 track:waiting)",
        "fence: up for the user id, 0 of 1 anonymous ids",
        f"erasures: {done.id} completed",
    ]
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["event"]["event"], row["place"]) for row in found] == [
        ("first", "track:waiting"),
        ("second", "track:waiting"),
    ]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert redis.llen(KEYS.lane("track").waiting) == 3
    assert command(*words, "--events", str(file), stdin=ids).returncode == 2


def test_scan_says_that_it_knows_nothing_of_an_id(command):
    lines = command("erasure", "scan", stdin="nobody").stdout.splitlines()

    assert lines[:3] == [
        "events here: 0",
        "fence: unknown, the fences are not loaded",
        "erasures: none",
    ]
    assert lines[3].startswith("no event of this id is here")


def test_request_twice_is_one_erasure_with_both_tickets(command):
    first, second = (
        requested(command.ask("--ticket", ticket, "--json")) for ticket in ("A-1", "A-2")
    )

    assert first == second
    assert command.shown(first)["tickets"] == ["A-1", "A-2"]


def test_request_without_redis_is_accepted_and_reports_a_missing_fence(stack, command):
    stack.env["MM_TASKS_REDIS_URL"] = "redis://127.0.0.1:1/0"
    done = command.ask("--json")

    assert done.returncode == 0
    assert json.loads(done.stdout)["fenced"] is False
    assert "NOT up yet" in command.ask().stdout
    assert command.shown(requested(done))["state"] == "received"


BAD_REQUESTS = {
    "no id": ([], "", "user_id: must be text that is not empty"),
    "an id too long": ([], "x" * 5000, "user_id: must have at most"),
    "two ids": ([], f"{USER}\n{VISITOR}\n", "user_id: must be the only line"),
    "Windows's newline": ([], f"{USER}\r\n", "user_id: must be read from lines that end in"),
    "an empty anonymous id": (["--anonymous-ids"], f"{USER}\n\n{VISITOR}", "anonymous_ids: must"),
    "an unknown reason": (["--reason", "anna"], USER, "reason: must be one of gdpr_17_1_a"),
    "an unknown mode": (["--mode", "anna"], USER, "mode: must be one of suppress, once"),
    "no time": (["--received-at", "anna"], USER, "received_at: must be an aware datetime, or"),
    "no time zone": (["--received-at", "2026-01-01"], USER, "received_at: must have a time zone"),
    "an address": (["--ticket", "anna@example.com"], USER, "ticket: must be an opaque reference"),
    "two words": (["--requested-by", "anna a"], USER, "requested_by: must be an opaque reference"),
    "an id of the subject": (
        ["--ticket", f"of-{USER}"],
        USER,
        "ticket: must not hold an id of the subject",
    ),
}


@pytest.mark.parametrize(("words", "stdin", "rule"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_is_one_sentence_with_field_and_rule(redis, words, stdin, rule, command):
    done = command.ask(*words, stdin=stdin)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"mm-tasks: {rule}")
    assert "anna" not in done.stderr
    assert redis.scard(KEYS.fence) == 0


@pytest.mark.parametrize("words", [(USER,), (f"--user-id={USER}",)], ids=["argument", "option"])
def test_an_id_on_the_command_line_is_refused_and_not_repeated(redis, words, command):
    """The parser's own message would name it, in a log of cron for example."""
    done = command.ask(*words)

    assert done.returncode == 2
    assert words != (USER,) or "from a prompt" in done.stderr
    assert redis.scard(KEYS.fence) == 0


def test_list_shows_each_erasure_and_takes_states_and_a_limit(store, command):
    done, asked = store.completed(ticket="GDPR-1"), store.ask(user_id="someone-else")

    def ids(*words):
        return [erasure["id"] for erasure in command.json("erasure", "list", *words)["erasures"]]

    table = command("erasure", "list").stdout
    assert re.search(rf"{done.id} +│ completed +│ .* 3/3 +│ GDPR-1 ", table)
    assert re.search(rf"{asked.id} +│ received +│ .* 0/- +│ +│", table)
    assert "someone-else" not in table
    assert set(ids()) == {done.id, asked.id}
    assert ids("--open") == [asked.id]
    assert ids("--state", "completed") == [done.id]
    assert set(ids("--state", "completed", "--open")) == {done.id, asked.id}
    assert len(ids("--limit", "1")) == 1
    assert ids("--ticket", "GDPR-1") == [done.id]
    assert ids("--since", "2026-01-31T13:00:00+01:00", "--ticket", "GDPR-1") == [done.id]
    assert ids("--since", "2026-01-31T12:00:01") == []
    assert command("erasure", "list", "--since", "yesterday").returncode == 2
    refused = command("erasure", "list", "--state", "gone")
    assert refused.returncode == 2
    assert "--state" in refused.stderr


def test_show_lists_removed_events_and_each_pass(store, command):
    id_ = store.completed().id
    erasure, table = command.shown(id_), command("erasure", "show", id_)
    passes = erasure["passes"]

    assert erasure["state"] == "completed"
    assert erasure["removed"] == {"track:waiting": 2, "dead": 0}
    assert [row["n"] for row in passes] == [1, 2, 3]
    assert {(row["status"], row["outcome"]) for row in passes} == {(200, "acknowledged")}
    assert all(row["sent_at"] for row in passes)
    assert erasure["received_at"] < erasure["due_at"]
    assert re.search(r"removed: track:waiting +│ 2", table.stdout)
    assert re.search(r"│ 1 +│ 3 +│ 1 .* acknowledged", table.stdout)


def test_without_an_audit_database_nothing_is_accepted(stack, redis, command):
    stack.env["MM_TASKS_AUDIT_URL"] = NOWHERE
    done = command.ask()

    assert done.returncode == 1
    assert done.stderr.startswith("mm-tasks: audit database error")
    assert redis.scard(KEYS.fence) == 0


# list and show


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("show", options) for options in ([], ["--json"], ["--receipt"])),
        *((name, BY_DPO) for name in ("cancel", "lift", "retry")),
        ("reject", [*BY_DPO, "--outcome", "not_verified"]),
        ("duplicate", ["--of", VISITOR, *BY_DPO]),
    ],
)
def test_an_unknown_erasure_is_one_sentence(store, command, name, options):
    store.ask()
    done = command("erasure", name, USER, *options)

    assert done.returncode == 1
    assert re.fullmatch(r"mm-tasks: there is no such (erasure|original)\n", done.stderr)


# receipt


def at(time, language=Language.EN):
    return Wording(language).precise(time)


def test_the_receipt_of_a_completed_erasure_agrees_with_the_log(store, command):
    asked = {"ticket": "GDPR-1", "reason": "gdpr_17_1_b"}
    id_ = store.completed(now=NOW, aof="rewritten", **asked).id
    text, erasure = command.receipt(id_), command.shown(id_)

    received = Wording(Language.EN).exact(erasure["received_at"])
    assert f"{received} GDPR-1 dpo consent was withdrawn, Article 17(1)(b) GDPR" in text
    assert f"Since {at(erasure['fenced_at'])} at the latest, no event" in text
    assert "track:waiting 2 waiting to be sent" in text
    assert f"At {at(erasure['quiesced_at'])} no request with such an event was on its way" in text
    assert "3 calls were acknowledged by the processor." in text
    answers = (Wording(Language.EN).exact(row["answered_at"]) for row in erasure["passes"])
    assert all(f"{answer} {n} {n} 1 200" in text for n, answer in enumerate(answers, 1))
    assert f"wiped from the audit database at {at(erasure['ended_at'])}" in text
    assert "Redis's append-only file was rewritten at" in text
    assert "SQLite: the IDs were overwritten in the file, and its write-ahead log was" in text
    assert not any(absent in text for absent in ("through the broker", "PostgreSQL", "Not done"))
    sealed = command.json("audit", "checkpoint")
    end = f"The log then had {sealed['size']} entries. The hash of the last one was"
    assert f"{end} {sealed['head']}." in text


def test_the_receipt_of_a_scheduled_erasure_says_when_it_begins(store, command):
    opened = store.ask(now=NOW, delay_s=7200)
    store.ask(now=NOW, delay_s=3600)
    text, erasure = command.receipt(opened.id), command.shown(opened.id)

    assert erasure["state"] == "scheduled"
    begins = at(erasure["not_before"])
    assert f"- It begins at {begins}. Until then nothing is stopped or removed." in text
    assert f"It was not to begin before {begins}." in text


def test_the_receipt_of_an_unfinished_erasure_names_each_missing_step(store, command):
    claim = store.quiesced(now=NOW)
    store.call(claim, now=NOW)
    store.call(claim, REFUSED, now=NOW + timedelta(days=1))
    text = command.receipt(claim.id)

    assert "NOT finished" in text
    assert "1 of 3 passes were acknowledged by the processor." in text
    assert "1 call was acknowledged by the processor." in text
    assert "1 call was not acknowledged, at" in text
    assert "unauthorized:invalid_api_key" in text
    assert "It is blocked (waiting_key). The next call is due at" in text
    assert "The plain IDs are in one row of the audit database until the erasure ends." in text
    assert "append-only file has no rewrite on record" in text


def test_the_receipt_of_a_new_erasure_claims_nothing_and_names_the_broker(store, command):
    request = ErasureRequest("another", "dpo")
    text = command.receipt(store.commands.open_request(request, NOW, via="message").id)

    assert "A request with entry 1 reached us in a message through the broker." in text
    assert "Stopping the events is not on record." in text
    assert "Removing the controller's own copies is not on record." in text
    assert "No call was acknowledged by the processor." in text
    assert "no event with the user ID is accepted" not in text


def test_anonymous_ids_added_later_are_open_until_they_are_done(store, command):
    """The fence of the user id holds; the new ids have none yet."""
    store.quiesced(now=NOW)
    claim = store.ask(now=NOW, anonymous_ids=(VISITOR,)).claim
    before = command.receipt(claim.id)
    store.steps.mark_fenced(claim, NOW + timedelta(hours=1))

    assert "Stopping the events is not on record." in before
    assert "Events may still be on their way to the processor" in before
    assert "was on its way" not in before
    assert "For the anonymous IDs added later, this applies since" in command.receipt(claim.id)


@pytest.mark.parametrize(
    ("aof", "is_readable"),
    [("rewritten", 0), ("off", 0), ("running", 1), ("failed", 1), ("refused", 1), ("", 1)],
)
def test_the_receipt_names_redis_where_it_keeps_removed_data(store, command, aof, is_readable):
    text = command.receipt(store.completed(aof=aof).id)

    assert "Redis's append-only file" in text
    assert ("removed data stays readable there" in text) == is_readable


def test_the_receipt_names_a_wal_that_may_keep_wiped_ids(store, command, tmp_path):
    id_ = store.completed().id
    with closing(sqlite3.connect(tmp_path / "audit.sqlite")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM mm_erasures").fetchone()
        store.ask("another")

        assert "could NOT be emptied yet" in command.receipt(id_)


def test_a_receipt_for_the_person_names_the_controller_in_their_language(
    stack, store, command, tmp_path
):
    """From ticket to a page that can be printed."""
    id_ = store.completed(ticket="GDPR-1093").id
    words = ("erasure", "show", id_, "--receipt", "--for", "person", "--lang", "de")
    refused = command(*words)
    stack.env["MM_TASKS_CONTROLLER"] = "Beispiel GmbH, Berlin\nDatenschutz: 030 1234567"
    (tmp_path / "kept").write_bytes((tmp_path / "checkpoints").read_bytes())
    page = command(*words, "--format", "html", "--outside", str(tmp_path / "kept")).stdout
    receipt = json.loads(command(*words, "--format", "json").stdout)

    assert refused.returncode == 1
    assert refused.stderr.startswith("mm-tasks: MM_TASKS_CONTROLLER: is not set")
    assert page.startswith('<!DOCTYPE html>\n<html lang="de">')
    assert "Beispiel GmbH, Berlin\nDatenschutz: 030 1234567</dd>" in page
    assert "(Aktenzeichen GDPR-1093)" in page
    assert (receipt["receipt"], receipt["lang"], receipt["status"]) == ("person", "de", "completed")


def test_a_receipt_is_not_printed_from_a_log_that_does_not_hold(store, command, tmp_path):
    id_ = store.completed().id
    size = store.log.checkpoint().size
    (tmp_path / "kept").write_text(f"{size + 1} {'a' * 64} 2026-01-14T09:00:00.000Z\n")

    done = command("erasure", "show", id_, "--receipt", "--outside", str(tmp_path / "kept"))

    assert (done.returncode, done.stdout) == (1, "")
    assert "its tail was cut" in done.stderr


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--receipt", "--json"], "see --format"),
        (["--for", "person"], "add --receipt"),
        (["--lang", "de"], "add --receipt"),
        (["--receipt", "--outside", "/nowhere"], "must be a file of checkpoints"),
    ],
)
def test_options_that_do_not_fit_are_refused(store, command, options, rule):
    done = command("erasure", "show", store.completed().id, *options)

    assert done.returncode == 2
    assert rule in done.stderr


# cancel, lift, retry, reject, duplicate


def test_cancel_lowers_the_fence_and_cannot_be_repeated(redis, command):
    id_ = requested(command.ask("--json"))
    first, again = (command("erasure", "cancel", id_, *BY_DPO) for _ in range(2))

    assert (first.returncode, first.stdout) == (0, "cancelled: the vendor was not called\n")
    rule = "mm-tasks: cancelled may not follow the state cancelled\n"
    assert (again.returncode, again.stderr) == (1, rule)
    assert redis.scard(KEYS.fence) == 0
    assert command.shown(id_)["is_wiped"]
    assert "was cancelled at" in command.receipt(id_)
    assert "It was not carried out" in command.receipt(id_)


def test_lift_of_a_completed_erasure_lowers_the_fence(redis, store, command):
    id_ = store.completed().id
    Fence(redis, "default").load(store.queries.store_id, store.queries.fences)
    assert redis.scard(KEYS.fence) == 1

    assert command("erasure", "lift", id_, *BY_DPO).returncode == 0
    assert redis.scard(KEYS.fence) == 0
    assert command.shown(id_)["state"] == "lifted"


def test_retry_makes_a_blocked_erasure_due(store, command):
    claim = store.quiesced(now=NOW)
    store.call(claim, REFUSED, now=NOW)

    assert command("erasure", "retry", claim.id, *BY_DPO).returncode == 0
    assert command.shown(claim.id)["next_at"] <= f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.999Z"


def test_reject_and_duplicate_end_an_erasure_with_their_reason(store, command):
    first, second = store.ask().id, store.ask(user_id="someone-else").id
    doubled = command("erasure", "duplicate", second, "--of", first, *BY_DPO)
    refused = command("erasure", "reject", first, *BY_DPO, "--outcome", "not_verified")

    assert doubled.returncode == refused.returncode == 0
    assert command.shown(second)["duplicate_of"] == first
    assert command.shown(first)["state"] == "rejected"
    assert f"a duplicate of {first}" in command.receipt(second)


BY = "requested_by: must be an opaque reference: 1-128 characters, no @, no spaces"


@pytest.mark.parametrize(
    ("name", "options", "rule"),
    [
        ("cancel", ["--requested-by", "anna@example.com"], BY),
        ("lift", ["--requested-by", "anna a"], BY),
        ("retry", ["--requested-by", ""], BY),
        ("reject", ["--requested-by", "anna\n", "--outcome", "x"], BY),
        ("reject", [*BY_DPO, "--outcome", "anna A"], "outcome: must be a fixed"),
        ("duplicate", ["--requested-by", "anna@", "--of", "x"], BY),
        ("duplicate", [*BY_DPO, "--of", "anna@"], "of: must be an opaque"),
    ],
)
def test_each_option_that_the_log_keeps_is_a_reference(store, command, name, options, rule):
    """The log outlives the erasure, so no entry may identify a person."""
    id_ = store.ask().id
    done = command("erasure", name, id_, *options)

    assert done.returncode == 1
    assert done.stderr.startswith(f"mm-tasks: {rule}")
    assert "anna" not in done.stderr
    assert command.shown(id_)["state"] == "received"


# audit


def test_verify_reports_size_head_states_and_checkpoints(store, command):
    store.completed()
    store.ask(user_id="someone-else")
    done, report = command("audit", "verify"), command.json("audit", "verify")

    assert done.returncode == 0
    assert report["size"] == len(store.entries())
    assert report["erasures"] == {"completed": 1, "received": 1}
    assert report["guards_missing"] == []
    assert report["head"] in done.stdout
    assert f"checkpoints: {report['checkpoints']} compared" in done.stdout
    assert "erasures: completed 1, received 1" in done.stdout


def test_verify_warns_of_missing_guards_and_refuses_a_changed_entry(store, command):
    store.completed()
    with store.tampering():
        pass
    warned, checked = command("audit", "verify"), command("check")
    with closing(sqlite3.connect(store.folder / "audit.sqlite")) as raw, raw:
        raw.execute("UPDATE mm_erasure_audit SET line = replace(line, 'dpo', 'ceo') WHERE seq = 1")
    broken, listed = command("audit", "verify", "--json"), command("audit", "verify")

    assert warned.returncode == 0
    assert "warning: guards of the log are missing: mm_erasure_audit_no_update" in warned.stderr
    assert verdict(checked, "audit guards")[0] == "warning"
    assert broken.returncode == listed.returncode == 1
    assert broken.stdout == ""
    assert broken.stderr.startswith("mm-tasks: entry 1: it differs from the entry of a checkpoint")


def test_verify_exits_with_3_unless_something_from_outside_was_compared(store, command, tmp_path):
    store.completed()
    export, kept, short = (tmp_path / name for name in ("export.jsonl", "checkpoints", "elsewhere"))
    assert command("audit", "export", str(export)).returncode == 0
    kept.rename(short)
    verify, elsewhere = ("audit", "verify"), ("--outside", str(short))

    for words in (verify, (*verify, str(export))):
        alone, compared = command(*words), command(*words, *elsewhere)
        assert (alone.returncode, compared.returncode) == (3, 0)
        assert "no checkpoint from outside" in alone.stderr
        assert compared.stderr == ""
        count = len(short.read_text().splitlines())
        assert f"0 of this host, {count} from elsewhere" in compared.stdout
    short.write_text(f"99 {'0' * 64} {NOW:%Y-%m-%dT%H:%M:%S.000Z}\n")
    for words in (verify, (*verify, str(export))):
        assert command(*words, *elsewhere).returncode == 1
    assert command(*verify, "--outside", str(tmp_path / "none")).returncode == 1


@pytest.fixture
def file(store, command, tmp_path):
    """An export of the log of one erasure."""
    store.completed(now=NOW - timedelta(days=9))
    file = tmp_path / "audit.jsonl"
    done = command("audit", "export", str(file))
    assert (done.returncode, done.stderr) == (0, f"{len(store.entries())} entries written\n")
    return file


def test_an_export_is_private_and_verified_by_both_programs(store, command, tmp_path, file):
    printed, report = command("audit", "export"), command.json("audit", "verify", str(file))
    script = [sys.executable, "-m", "mm_tasks.verify_export", file, tmp_path / "checkpoints"]
    theirs = subprocess.run(script, capture_output=True, text=True, check=False)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().splitlines()[:-1] == printed.stdout.splitlines()[:-1]
    assert report["size"] == len(store.entries())
    assert report["checkpoints"] > 1
    assert theirs.stdout.startswith(f"verified: {len(store.entries())} entries")
    store.ask(user_id="someone-else", now=NOW + timedelta(hours=1))
    older = command("audit", "verify", str(file))
    assert older.returncode == 1
    assert "the export was cut, or is older: export again" in older.stderr
    assert command("audit", "export", str(file)).returncode == 2
    assert command("audit", "export", str(file), "--force").returncode == 0


def test_an_export_that_was_cut_or_changed_is_refused(command, tmp_path, file):
    whole = file.read_text()
    *entries, end = whole.splitlines(keepends=True)
    last = json.loads(entries[-1])
    forged = {"at": json.loads(end)["at"], "head": last["prev"], "size": len(entries) - 1}
    for text, rule in (
        (whole[:-5], ""),
        ("".join(entries), ""),
        ("".join(entries[1:]) + end, ""),
        ("", ""),
        ("{}\n", ""),
        ("no\n", ""),
        # Only a checkpoint outside disagrees with a new last line.
        ("".join(entries[:-1]) + f"{canonical(forged)}\n", "the export was cut"),
    ):
        file.write_text(text)
        done = command("audit", "verify", str(file))
        assert done.returncode == 1
        assert done.stderr.startswith("mm-tasks: ")
        assert rule in done.stderr
    assert command("audit", "verify", str(tmp_path / "none")).returncode == 1


def test_checkpoint_publishes_and_reports_a_failure(stack, store, command, tmp_path, caplog):
    store.ask()
    sealed = command.json("audit", "checkpoint")

    assert sealed["size"] == 1
    assert f"1 {sealed['head']} {sealed['at']}\n" in (tmp_path / "checkpoints").read_text()
    stack.env["MM_TASKS_STATE_DIR"] = str(tmp_path / "checkpoints")
    stack.env["MM_TASKS_AUDIT_URL"] = store.url
    failed, checked = command("audit", "checkpoint"), command("check")
    assert failed.returncode == 1
    assert "checkpoint_not_written size=1 errno=" in caplog.text
    assert "could not be written" in failed.stderr
    assert checked.returncode == 0
    assert verdict(checked, "checkpoints")[0] == "warning"


def test_a_hook_is_called_with_each_checkpoint(stack, tmp_path, command):
    (tmp_path / "ours.py").write_text(
        "from pathlib import Path\n"
        "def keep(one):\n"
        "    Path(__file__).with_name('told').write_text(f'{one.size} {one.head}')\n"
    )
    stack.env |= {"PYTHONPATH": str(tmp_path), "MM_TASKS_CHECKPOINT_HOOK": "ours:keep"}
    command.ask()

    assert (tmp_path / "told").read_text().startswith("2 ")


@pytest.mark.parametrize("hook", ["nothing_there:keep", "os:nothing", "os.path:sep", "os"])
def test_a_hook_that_cannot_be_imported_is_refused(stack, command, hook):
    stack.env["MM_TASKS_CHECKPOINT_HOOK"] = hook
    done, checked = command.ask(), command("check")

    assert done.returncode == checked.returncode == 1
    assert "MM_TASKS_CHECKPOINT_HOOK: must be package.module:function" in done.stderr
    assert "MM_TASKS_CHECKPOINT_HOOK" in verdict(checked, "audit store")[1]


# status


def test_status_counts_erasures_and_creates_no_file(tmp_path, command):
    empty = command.status()

    assert empty["erasures"] == {"open": 0, "overdue": 0, "blocked": 0, "blocked_reasons": {}}
    assert empty["fence"] == {"tags": 0, "loaded": False}
    assert set(empty) == {
        *("project", "paused", "counts", "oldest_waiting_s", "next_due_s", "clock", "problems"),
        *("fence", "erasures", "left_out", "refused", "unanswered"),
    }
    assert not list(tmp_path.iterdir())
    command.ask()
    assert command.status()["erasures"]["open"] == 1
    assert command.status()["fence"]["tags"] == 1


def test_status_counts_dropped_fields_of_web_requests(command, redis):
    assert "left out" not in command("status").stdout
    redis.hset(KEYS.counts, "track:left_out", 2)

    assert "dropped: 2 unusable fields of web requests" in command("status").stdout


def test_status_counts_refused_events_by_reason(command, redis):
    assert "refused" not in command("status").stdout.partition("not paused")[2]
    redis.hset(KEYS.counts, mapping={"track:refused:full": 2, "identify:refused:invalid": 3})
    redis.hset(KEYS.counts, mapping={"track:refused:unavailable": 4, "track:unanswered": 1})
    shown = command.status()

    assert shown["refused"] == {"full": 2, "unavailable": 4, "invalid": 3}
    assert (shown["counts"]["refused"], shown["unanswered"]) == (9, 1)
    line = "refused: 9 events were not stored: 2 full, 4 unavailable, 3 invalid; 1 may be stored"
    assert line in command("status").stdout


def test_status_lists_overdue_and_blocked_erasures(store, command):
    late = store.ask(now=NOW - timedelta(days=40))
    half = store.ask(user_id="half", now=NOW - timedelta(days=20))
    claim = store.quiesced(user_id="blocked", now=NOW)
    store.call(claim, REFUSED, now=NOW)
    text, checked, erasures = (
        command("status").stdout,
        command("check"),
        command.status()["erasures"],
    )
    counts = "3 open, 1 overdue, 1 blocked (waiting_key 1)"

    assert erasures.pop("blocked_reasons") == {"waiting_key": 1}
    assert erasures == {"open": 3, "overdue": 1, "blocked": 1}
    assert f"erasures: {counts}" in text
    assert f"{late.id} (received): 100 % of its time is used up" in text
    assert f"{half.id} (received): 50 % of its time" in text
    assert claim.id not in text
    assert checked.returncode == 0
    assert verdict(checked, "erasures") == ("warning", counts)


def test_status_without_the_audit_database_still_shows_events(stack, command, tmp_path):
    stack.env |= {"MM_TASKS_AUDIT_URL": NOWHERE, "MM_TASKS_PSEUDONYM_KEY": KEY}
    done = command("status")

    assert command.status()["erasures"] is None
    assert done.returncode == 0
    assert "erasures: unknown: audit database error" in done.stdout
    del stack.env["MM_TASKS_PSEUDONYM_KEY"]
    assert "unknown: MM_TASKS_PSEUDONYM_KEY: not set" in command("status").stdout
    assert not list(tmp_path.iterdir())


def test_status_shows_a_failed_load_of_fences_before_any_other_pause(redis, command):
    pause = {"kind": "unauthorized", "status": 401, "code": "x", "since_ms": 1}
    redis.hset(KEYS.pause, mapping=pause)
    Fence(redis, "default").note_failed("audit_unavailable")
    paused = command.status()["paused"]

    assert paused["reason"] == "fences_not_loaded: - audit_unavailable"
    assert abs(paused["since"] - time.time()) < 60
    Fence(redis, "default").load("a store", lambda: [b"x" * 16])
    assert command.status()["paused"]["reason"] == "unauthorized: 401 x"
    assert command.status()["fence"] == {"tags": 1, "loaded": True}


# check


def test_check_makes_the_tables_and_reports_on_the_store(stack, command, tmp_path):
    done = command("check")

    assert done.returncode == 0
    state, sentence = verdict(done, "audit store")
    assert state == "ok"
    assert re.fullmatch(r"SQLite, id [0-9a-f-]{36}", sentence)
    assert verdict(done, "fence")[0] == "warning"
    assert verdict(done, "audit guards")[0] == verdict(done, "checkpoints")[0] == "ok"
    assert verdict(done, "erasures") == ("ok", "0 open, 0 overdue, 0 blocked")
    assert (tmp_path / "audit.sqlite").exists()
    stack.env["MM_TASKS_PSEUDONYM_KEY"] = KEY
    assert KEY not in command("check").stdout


WRONG_STORES = {
    "another key": (
        {"MM_TASKS_PSEUDONYM_KEY": "another key than that of the store"},
        "MM_TASKS_PSEUDONYM_KEY: is not the key of this audit store",
    ),
    "another store": (
        {},
        "MM_TASKS_AUDIT_URL: this Redis has the fences of another audit store",
    ),
    "a bad URL": (
        {"MM_TASKS_AUDIT_URL": "mysql://anna:secret@host/audit"},
        "MM_TASKS_AUDIT_URL: must begin with postgresql:// or sqlite:///",
    ),
}


@pytest.mark.parametrize("kind", WRONG_STORES)
def test_check_and_a_worker_refuse_an_audit_store(stack, redis, store, command, kind):
    env, rule = WRONG_STORES[kind]
    store.ask()
    if kind == "another store":
        Fence(redis, "default").load("another store", list)
    stack.env |= {"MILLIMETRIC_HOST": "http://127.0.0.1:1", **env}
    checked, worker = command("check"), stack.worker()
    stack.wait(lambda: worker.poll() is not None, 30)

    assert checked.returncode == worker.returncode == 1
    assert verdict(checked, "audit store")[1].startswith(rule)
    assert f"mm_tasks: {rule}" in stack.read(worker)
    assert "secret@" not in checked.stdout + stack.read(worker)


def test_check_refuses_a_file_of_each_host(stack, command):
    stack.env["MM_TASKS_REDIS_URL"] = "redis://192.0.2.1:6379/0"
    done = command("check")

    assert done.returncode == 1
    rule = "MM_TASKS_AUDIT_URL: is required where Redis is on another host"
    assert verdict(done, "audit store")[1].startswith(rule)


def test_an_unreachable_database_is_a_problem_for_check_and_a_worker_waits(stack, command):
    """Until it is back nothing is sent, and `status` shows the reason."""
    stack.env["MM_TASKS_AUDIT_URL"] = NOWHERE
    stack.sandbox()
    checked, worker = command("check"), stack.worker()
    stack.beat()

    assert checked.returncode == 1
    assert "the audit database does not answer" in verdict(checked, "audit database")[1]
    paused = stack.wait(lambda: command.status()["paused"])
    assert paused["reason"] == "fences_not_loaded: - audit_unavailable"
    assert worker.poll() is None


def test_check_finds_a_log_that_is_shorter_than_a_published_checkpoint(store, command, tmp_path):
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
def test_check_shows_a_url_without_its_password(url, seen):
    """Also a URL that is refused because of a mistake in it."""
    assert masked("audit_url", SecretStr(url)) == seen
    assert masked("pseudonym_key", SecretStr(url)) == "…"


# all of it


def test_an_erasure_from_request_to_receipt(stack, redis, command):
    """With a worker: acknowledged twice, wiped, receipted, verified and lifted."""
    stack.env |= {"MM_TASKS_ERASURE_PASSES_S": "0,1", "MM_TASKS_ERASURE_GRACE_S": "0"}
    stack.sandbox()
    worker = stack.worker()
    stack.beat()
    stack.produce(f"from mm_tasks import track; track.delay('signup', user_id={USER!r})")
    id_ = requested(command.ask("--ticket", "GDPR-1", "--json"))
    stack.wait(lambda: command.shown(id_)["state"] == "completed")
    text = command.receipt(id_)

    assert "2 calls were acknowledged by the processor." in text
    assert "Redis's append-only file was off" in text
    assert command("audit", "verify").returncode == 0
    assert command.status()["erasures"]["open"] == 0
    assert command("erasure", "lift", id_, *BY_DPO).returncode == 0
    assert redis.scard(KEYS.fence) == 0
    assert verdict(run(stack.env, "check"), "fence") == ("ok", "tags: 0, loaded for this server")
    assert re.search(rf"erasure_entry erasure={id_} entry=wiped", stack.read(worker))
    assert not any(id_ in stack.read(worker) for id_ in PERSONAL)
