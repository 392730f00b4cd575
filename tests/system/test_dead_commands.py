"""`mm-tasks dead …` as a person types it: its output, its exit codes, and what is left."""

import json
import re
import stat
import time

import pytest

from mm_tasks.buffer.records import HEADER_BYTES, tag
from tests.cli.test_erasure import in_this_process
from tests.system.accounting import KEYS, counts, waiting
from tests.system.dead_letters import EVENT, PARKED, REJECTED, body, bury
from tests.system.processes import run

PERSONAL = ("anna", "plan")


@pytest.fixture
def dead(stack):
    """Run one of the `dead` commands in this process."""
    return lambda *command: in_this_process(stack.env, ("dead", *command), None)


def test_list_shows_each_letter_and_counts_by_reason_but_no_person(redis, dead):
    (rejected,) = bury(redis, REJECTED, EVENT)
    parked = bury(redis, PARKED, {**EVENT, "event": "bought"}, {**EVENT, "event": "[red]\x1b[2J"})
    done = dead("list")
    as_json = dead("list", "--json", "--reason", "ambiguous", "--since", "1h", "--limit", "1")
    listed = json.loads(as_json.stdout)

    assert done.returncode == 0
    assert all(id_ in done.stdout for id_ in (rejected, *parked))
    assert re.search(r"track +│ ambiguous +│ 0 +│ - +│ 2 ", done.stdout)
    assert "3 shown of 3 that match" in done.stdout
    assert "[red]" in done.stdout
    assert "\x1b" not in done.stdout
    assert [letter["id"] for letter in listed["letters"]] == [parked[1]]
    assert listed["letters"][0]["code"] == "-"
    assert listed["matching"] == 2
    assert listed["counts"] == [
        {"lane": "track", "reason": "ambiguous", "status": 0, "code": "-", "events": 2}
    ]
    assert not any(word in done.stdout + done.stderr + as_json.stdout for word in PERSONAL)


def test_show_hides_fields_that_may_be_personal_unless_an_option_shows_them(redis, dead):
    (id_,) = bury(redis, REJECTED, EVENT)
    shown, whole = dead("show", id_), dead("show", id_, "--properties")
    letter = json.loads(dead("show", id_, "--json").stdout)

    assert "invalid_payload" in shown.stdout
    assert "e-1" in shown.stdout
    assert f"…({len(body(EVENT['properties']))} bytes)" in shown.stdout
    assert not any(word in shown.stdout + shown.stderr for word in PERSONAL)
    assert "anna@example.com" in whole.stdout
    assert "12345678901234567" in whole.stdout
    assert letter["id"] == id_
    assert set(letter["fields"]) == {"event", "event_id", "timestamp"}
    assert set(letter["hidden"]) == {"user_id", "url", "properties"}


def test_show_of_an_unknown_id_says_so(dead):
    done = dead("show", "track:anna@example.com:1")

    assert done.returncode == 1
    assert done.stderr.startswith("mm-tasks: no dead letter has this id")
    assert "anna" not in done.stderr


def test_revive_prints_the_result_of_each_letter_and_can_be_repeated(redis, dead):
    ids = bury(redis, REJECTED, EVENT, {**EVENT, "user_id": "bea"})
    record = redis.hget(KEYS.dead, ids[1]).partition(b"\n")[2]
    redis.sadd(KEYS.fence, tag("default", "user", "anna@example.com"))
    first = dead("revive", *ids, "track:none:1")
    again = dead("revive", *ids)

    assert first.returncode == again.returncode == 0
    assert first.stdout == "1 revived, 1 erased because their person is, 1 unknown\n"
    assert again.stdout == "0 revived, 0 erased because their person is, 2 unknown\n"
    assert waiting(redis) == [record]


def test_revive_by_a_filter_leaves_the_others(redis, dead):
    (kept,) = bury(redis, REJECTED, EVENT)
    bury(redis, PARKED, EVENT, EVENT)
    done = dead("revive", "--status", "0", "--until", "2100-01-01", "--limit", "5")

    assert done.stdout.startswith("2 revived")
    assert redis.hkeys(KEYS.dead) == [kept.encode()]


def test_discard_removes_letters_by_id_or_all_and_nothing_without_yes(redis, dead):
    first, second = bury(redis, REJECTED, EVENT, EVENT)
    refused = dead("discard", "--all")

    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "2 would be removed for good; nothing was" in refused.stderr
    assert redis.hlen(KEYS.dead) == 2
    assert dead("discard", first, "track:none:1", "--yes").stdout == "1 discarded, 1 unknown\n"
    assert redis.hkeys(KEYS.dead) == [second.encode()]
    bury(redis, REJECTED, EVENT)
    done = dead("discard", "--all", "--yes")
    assert (done.returncode, done.stdout) == (0, "2 discarded, 0 unknown\n")
    assert redis.hlen(KEYS.dead) == 0
    assert counts(redis)["track:discarded"] == 3
    assert counts(redis)["held_bytes"] == 0


def test_an_export_is_verbatim_private_and_replaces_a_file_only_with_force(redis, dead, tmp_path):
    """Lua and JavaScript would round 12345678901234567; no code reads it as a number."""
    bury(redis, REJECTED, EVENT)
    bury(redis, PARKED, EVENT)
    file, old = tmp_path / "letters.jsonl", tmp_path / "old.jsonl"
    old.write_text("mine")
    old.chmod(0o644)
    done, refused = dead("export", str(file)), dead("export", str(old))
    lines = file.read_bytes().splitlines()

    assert done.returncode == 0
    assert "personal data" in done.stderr
    assert [json.loads(line)["reason"] for line in lines] == ["rejected", "ambiguous"]
    assert all(line.endswith(b'"record": ' + body(EVENT) + b"}") for line in lines)
    assert set(json.loads(lines[0])) >= {"id", "lane", "buried_at", "status", "code", "attempts"}
    assert redis.hlen(KEYS.dead) == 2
    assert refused.returncode == 2
    assert "FILE" in refused.stderr
    assert old.read_text() == "mine"
    assert dead("export", str(old), "--force").returncode == 0
    assert len(old.read_text().splitlines()) == 2
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, old)] == [0o600, 0o600]


def test_an_export_to_stdout_is_lines_of_json_for_any_record(redis, dead):
    bury(redis, REJECTED, EVENT, b"\xff{", b'{\n"event": "x"}', b'{"event":"y"}')
    bury(redis, PARKED, EVENT)
    done = dead("export", "-", "--reason", "rejected")
    records = [json.loads(line)["record"] for line in done.stdout.splitlines()]

    assert records == [EVENT, "\\xff{", '{\n"event": "x"}', {"event": "y"}]


REFUSED = {
    "a lane there is not": (["list", "--lane", "anna"], "--lane"),
    "a status there is not": (["list", "--status", "4000"], "--status"),
    "no time": (["list", "--since", "yesterday"], "--since"),
    "a time without end": (["discard", "--until", "99999999d"], "--until"),
    "an end before its start": (["revive", "--since", "1h", "--until", "2h"], "--until"),
    "a limit of none": (["list", "--limit", "0"], "--limit"),
    "nothing named": (["revive"], "ID"),
    "nothing named, for good": (["discard", "--yes"], "ID"),
    "a limit alone": (["discard", "--limit", "3", "--yes"], "ID"),
    "ids and a filter": (["discard", "track:a:1", "--lane", "track", "--yes"], "ID"),
    "ids and all": (["revive", "track:a:1", "--all"], "ID"),
    "ids and a limit": (["revive", "track:a:1", "--limit", "1"], "--limit"),
    "a file in no directory": (["export", "/nowhere/letters"], "FILE"),
}


@pytest.mark.parametrize(("command", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_option_is_refused_by_name_and_changes_nothing(redis, dead, command, named):
    bury(redis, REJECTED, EVENT)
    done = dead(*command)

    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert redis.hlen(KEYS.dead) == 1
    assert waiting(redis) == []


def test_a_poison_event_is_listed_revived_in_vain_and_discarded(stack, redis, dead):
    """From the vendor's refusal to the count of discarded events."""
    stack.sandbox()
    stack.produce(
        "from mm_tasks import track\n"
        "track.delay_many({'event': 'signed_up', 'user_id': f'u{i}'} for i in range(9))"
    )
    poison = b"1%d" % (time.time() * 1000) + bytes(32) + b'{"event":7,"user_id":"anna"}'
    redis.rpush(KEYS.lane("track").waiting, poison)
    redis.hincrby(KEYS.counts, "track:accepted", 1)
    redis.hincrby(KEYS.counts, "held_bytes", len(poison))
    redis.hincrby(KEYS.counts, "track:waiting_bytes", len(poison) - HEADER_BYTES + 1)
    stack.worker_and_beat()
    stack.wait(lambda: redis.hlen(KEYS.dead) == 1)
    listed = dead("list")
    letter = json.loads(dead("list", "--json").stdout)["letters"][0]

    assert letter["id"] in listed.stdout
    assert (letter["lane"], letter["reason"], letter["status"]) == ("track", "rejected", 400)
    assert letter["attempts"] >= 1
    assert "anna" not in listed.stdout
    dead("revive", letter["id"])
    stack.wait(lambda: redis.hlen(KEYS.dead) == 1 and not redis.hexists(KEYS.dead, letter["id"]))
    assert dead("discard", "--reason", "rejected", "--yes").stdout == "1 discarded, 0 unknown\n"
    stack.wait(lambda: counts(redis)["track:delivered"] == 9)
    status = json.loads(run(stack.env, "status", "--json").stdout)
    expected = {"accepted": 10, "waiting": 0, "leased": 0, "delivered": 9, "dead": 0}
    assert status["counts"].items() >= {**expected, "erased": 0, "discarded": 1}.items()
    assert counts(redis)["held_bytes"] == 0
