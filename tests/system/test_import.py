"""`mm-tasks import` as a person types it, also killed at any moment: each row arrives once."""

import gzip
import json
import os
import pty
import random
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mm_tasks.buffer.records import tag
from tests.cli.test_erasure import in_this_process
from tests.system.accounting import KEYS, waiting
from tests.system.processes import ROOT, read_to_end

DOCS = ROOT / "docs" / "import.md"
ROWS = 20_000


def rows(*numbers, **fields):
    events = ({"event": "e", "user_id": f"u{n}", "properties": {"n": n}, **fields} for n in numbers)
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def lines_done(redis, name):
    stored = redis.hget(KEYS.imports, name)
    return int(stored.split()[0]) if stored else 0


def started(stack, *command, stdin=None, stderr=subprocess.PIPE, **env):
    return subprocess.Popen(
        [sys.executable, "-m", "mm_tasks.cli", "import", *command],
        env={**stack.env, **env},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


@pytest.fixture
def import_(stack):
    """Run the command in this process."""
    return lambda *words: in_this_process(stack.env, ("import", *map(str, words)), None)


@pytest.mark.timeout(180)
def test_an_import_killed_at_random_moments_delivers_each_row_once(stack, redis, import_, tmp_path):
    """Before and after the script that stores, and at moments between that the clock picks."""
    file = tmp_path / "events.jsonl.gz"
    file.write_bytes(gzip.compress(rows(*range(ROWS)), 1))
    stack.env["MM_TASKS_BATCH_RATE_PER_S"] = "50"
    stack.sandbox("--no-limits")
    stack.worker_and_beat()
    kills = []
    for chances in ("append.before=0.3", "append.after=0.3", "") * 2:
        process = started(stack, str(file), "--json", MM_TASKS_FAILPOINTS=chances)
        began = lines_done(redis, file.name)
        if not chances:
            # Not `stack.wait`: between two of its polls the import would end.
            while lines_done(redis, file.name) == began and process.poll() is None:
                time.sleep(0.002)
            time.sleep(random.uniform(0, 0.1))
            process.kill()
        process.communicate(timeout=60)
        kills.append(process.returncode)
    done = import_(file, "--json")
    stack.wait_for_events(ROWS, 90)

    (file_report,) = json.loads(done.stdout)["files"]
    assert kills.count(-signal.SIGKILL) >= 2
    assert (file_report["lines"], file_report["end"]) == (ROWS, "finished")
    assert done.returncode == 0
    stack.wait(lambda: not waiting(redis))
    summary = stack.get("summary")
    assert summary["events"] == summary["distinct"] == ROWS


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_after_the_chunk_in_hand_and_prints_how_far(stack, redis, number, code):
    """Through a pipe that stays open, so that the import is surely in the middle."""
    process = started(stack, "-", "--name", "p", "--format", "jsonl", stdin=subprocess.PIPE)
    process.stdin.write(rows(*range(1500)).decode())
    process.stdin.flush()
    stack.wait(lambda: lines_done(redis, "p") == 1000)
    process.send_signal(number)
    process.stdin.write(rows(1500).decode())
    out, err = process.communicate(timeout=60)

    assert process.returncode == code
    done = lines_done(redis, "p")
    assert out == (
        f"p: {done} rows stored, {done} had no timestamp and have the moment of import."
        f" Stopped after line {done}; run it again to go on\n"
    )
    assert len(waiting(redis)) == done
    assert "Traceback" not in err


def test_a_bad_row_ends_it_with_exit_1_and_no_value_is_printed(import_, redis, tmp_path):
    file = tmp_path / "events.jsonl"
    stamp = {"timestamp": "2026-01-14T12:00:00.000Z"}
    file.write_bytes(rows(1, **stamp) + b'{"event": "e", "user_id": ["anna"]}\n' + rows(2, **stamp))
    bad = import_(file)
    file.write_bytes(rows(1, 2, 3, **stamp))
    good = import_(file)
    again = import_(file)

    assert bad.returncode == 1
    assert bad.stderr == "line 2: user_id: must be a string\n"
    assert bad.stdout.startswith("events.jsonl: 1 rows stored, 1 bad. Nothing is stored behind")
    assert "anna" not in bad.stdout + bad.stderr
    assert good.stdout == (
        "events.jsonl: 2 rows stored, from line 2 on, where an earlier run ended\n"
    )
    assert again.stdout == "events.jsonl: nothing new: its 3 lines were imported before\n"
    assert (good.returncode, again.returncode, len(waiting(redis))) == (0, 0, 3)


def test_skipped_rows_go_verbatim_into_a_private_file_under_their_header(import_, redis, tmp_path):
    first, second, rejects = (tmp_path / name for name in ("a.csv", "b.csv", "bad.csv"))
    first.write_text("event;properties.n\ne;1\ne;x\ne;3;4\n")
    second.write_text("event;properties.n\n;2\nf;5")
    redis.sadd(KEYS.fence, tag("default", "user", "u"))
    command = (first, second, "--delimiter", ";", "--skip-bad", "--rejects", rejects)
    options = ("--map", "properties.n:int=properties.n", "--set", "user_id=v", "--json")
    done = import_(*command, *options)
    refused = import_(*command, *options)

    files = [(row["name"], row["stored"], row["bad"]) for row in json.loads(done.stdout)["files"]]
    assert done.returncode == 0
    assert files == [("a.csv", 1, 2), ("b.csv", 1, 1)]
    assert done.stderr.splitlines() == [
        "a.csv: line 3: properties: must be a whole number (column 2)",
        "a.csv: line 4: row: has 3 cells; the header has 2",
        "b.csv: line 2: event: is required",
    ]
    assert rejects.read_text() == "event;properties.n\ne;x\ne;3;4\n;2\n"
    assert stat.S_IMODE(rejects.stat().st_mode) == 0o600
    assert refused.returncode == 2


def test_a_dry_run_names_every_bad_row_and_needs_no_redis(stack, import_, tmp_path):
    file = tmp_path / "events.ndjson"
    file.write_bytes((rows(*range(1200)) + b"{}\n") * 2)
    stack.env["MM_TASKS_REDIS_URL"] = "redis://127.0.0.1:1/0"
    checked = import_("--dry-run", file)

    assert checked.returncode == 1
    assert checked.stderr.splitlines() == [
        "line 1201: event: is required",
        "line 2402: event: is required",
    ]
    assert checked.stdout.startswith("events.ndjson: 2400 rows would be stored, 2 bad")


def test_another_file_of_the_same_name_is_refused_in_one_sentence(import_, redis, tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_bytes(rows(1, 2))
    import_(file)
    file.write_bytes(rows(3, 4))
    refused = import_(file)
    named = import_(file, "--name", "second")

    assert refused.returncode == 1
    assert refused.stderr.startswith("mm-tasks: the first 2 lines are not those")
    assert (named.returncode, len(waiting(redis))) == (0, 4)


REFUSED = {
    "stdin without a name": (["-"], "--name"),
    "an unknown ending": (["x.txt"], "--format"),
    "two of one name": (["x.jsonl", "below/x.jsonl"], "same name"),
    "a name for two": (["x.jsonl", "y.csv", "--name", "n"], "--name"),
    "a mapping of JSON": (["x.jsonl", "--set", "event=e"], "CSV only"),
    "a delimiter of two": (["y.csv", "--delimiter", "ab"], "--delimiter"),
    "rejects without skipping": (["x.jsonl", "--rejects", "r"], "--skip-bad"),
    "a file that is not there": (["z.jsonl"], "z.jsonl: is no file"),
    "no field": (["y.csv", "--map", "anna=b"], "is not a field"),
}


@pytest.mark.parametrize(("command", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_command_that_contradicts_itself_is_refused_before_it_reads_a_file(
    import_, tmp_path, monkeypatch, command, message
):
    monkeypatch.chdir(tmp_path)
    Path("below").mkdir()
    for name in ("x.jsonl", "x.txt", "y.csv", "below/x.jsonl"):
        Path(name).touch()
    done = import_(*command)

    assert done.returncode != 0
    assert message in done.stderr


def test_a_terminal_sees_a_bar_and_bad_rows_above_it(stack, tmp_path):
    """A log holds neither: the tests above compare all of stderr."""
    file = tmp_path / "events.jsonl"
    file.write_bytes(rows(*range(1500)) + b"{}\n")
    near, far = pty.openpty()
    process = started(stack, str(file), "--skip-bad", stderr=far, TERM="xterm", COLUMNS="120")
    os.close(far)
    shown = read_to_end(near).decode()
    os.close(near)
    out, _ = process.communicate(timeout=60)

    assert "line 1501: event: is required" in shown
    assert "1,501 rows" in shown
    assert "100%" in shown
    assert out.startswith("events.jsonl: 1500 rows stored, 1 bad")


def test_the_docs_examples_can_be_imported(import_, tmp_path, monkeypatch):
    blocks = dict(re.findall(r"```(json|csv)\n(.*?)```", DOCS.read_text(), re.DOTALL))
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text(blocks["json"])
    Path("a.csv").write_text(blocks["csv"])
    Path("orders.csv").write_text("Customer,Created,Amount\nuser_42,1768392000,1999\n")
    command = re.search(r"mm-tasks import (orders.csv .*?)\n```", DOCS.read_text(), re.DOTALL)
    words = shlex.split(command[1].replace("\\\n", ""))
    for command in (["a.jsonl", "a.csv"], words):
        done = import_(*command, "--dry-run", "--json")

        assert done.returncode == 0, done.stderr
        for row in json.loads(done.stdout)["files"]:
            assert (row["stored"], row["undated"]) == (1, 0)


def test_rows_of_low_priority_wait_in_the_lane_of_backfills(import_, redis, tmp_path):
    """Every other event overtakes them: see docs/import.md."""
    file = tmp_path / "events.jsonl"
    file.write_bytes(rows(1, 2))
    done = import_(file, "--priority", "low")

    assert done.returncode == 0
    assert (waiting(redis), len(waiting(redis, "backfill"))) == ([], 2)
