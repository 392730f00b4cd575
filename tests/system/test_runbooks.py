"""The recoveries of docs/erasure.md, done step by step as they stand there."""

import json
import re
import shutil
import sqlite3
import textwrap
from contextlib import closing
from datetime import UTC, datetime

import pytest

from mm_tasks.cli.stack import END_S
from tests.cli.in_process import in_this_process
from tests.system.accounting import KEYS
from tests.system.dead_letters import EVENT, REJECTED, bury
from tests.system.erasing import Erasing
from tests.system.processes import FAST, ROOT

DOCS = ROOT / "docs" / "erasure.md"
BEFORE, OPEN, LATER, ONCE, NEVER = (
    f"{word}-4f1c" for word in ("before", "open", "later", "once", "never")
)
BY = ("--requested-by", "dpo")
MODES = {LATER: "suppress", ONCE: "once"}
TRACK = """
import json
from mm_tasks import track
print(json.dumps([track.delay("seen", user_id=id_).accepted for id_ in {!r}]))
"""


class Desk:
    """Follows the steps: runs commands, and starts and stops workers."""

    def __init__(self, stack):
        self.stack, self.erasing = stack, Erasing(stack)
        self.running = []
        stack.sandbox()

    def run(self, *words, stdin="", code=0):
        """Run one of our commands, and return what it printed."""
        done = in_this_process(self.stack.env, words, stdin)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def request(self, person, *words):
        words = ("erasure", "request", "--requested-by", "dpo", "--json", *words)
        return json.loads(self.run(*words, stdin=f"{person}\n"))["id"]

    def erased(self):
        return json.loads(self.run("erasure", "list", "--limit", "1000", "--json"))["erasures"]

    def problems(self):
        return json.loads(self.run("status", "--json"))["problems"]

    def start(self):
        self.running = self.stack.worker_and_beat(*FAST)

    def stop(self):
        for process in self.running:
            process.terminate()
        assert [process.wait(END_S) for process in self.running] == [0, 0]
        self.running = []

    def wait_until_completed(self, *ids):
        ended = {"completed", "lifted"}  # in mode `once` the second follows the first
        self.stack.wait(lambda: set(map(self.erasing.state, ids)) <= ended)

    def are_accepted(self, *persons):
        return json.loads(self.stack.produce(TRACK.format(persons)))

    def arrived_of(self, *persons):
        return [row for person in persons for row in self.erasing.rows_of(person)]


@pytest.fixture
def desk(stack):
    return Desk(stack)


def copied(source, target):
    """Back up a database of SQLite that is in use."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def test_the_audit_database_was_restored_from_a_backup(desk, redis, tmp_path):
    log, checkpoints = tmp_path / "audit.sqlite", tmp_path / "checkpoints"
    desk.start()
    desk.wait_until_completed(desk.request(BEFORE))
    copied(log, tmp_path / "backup")
    received_at = datetime.now(UTC).isoformat()
    desk.wait_until_completed(desk.request(LATER))
    desk.stop()
    gone = desk.request(OPEN)  # nobody has called the vendor for it

    for name in ("audit.sqlite", "audit.sqlite-wal", "audit.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup", log)

    # Before the first step every fence still holds, and `verify` reports the loss.
    assert "checkpoint" in desk.run("audit", "verify", code=1)
    assert desk.are_accepted(BEFORE, LATER, OPEN, NEVER) == [False, False, False, True]
    redis.hdel(KEYS.fences, "run_id")  # as after a restart of Redis
    desk.start()
    worker = desk.running[0]
    desk.stack.wait(lambda: "why=audit_log_cut" in desk.stack.read(worker))
    assert any("audit_log_cut" in problem for problem in desk.problems())
    # 1.
    desk.stop()
    assert not desk.arrived_of(NEVER)
    # 3.
    told = desk.run("audit", "adopt", "--restored", "--yes", *BY)
    assert "adopted: 2 tags" in told
    (aside,) = tmp_path.glob("checkpoints.*")
    assert str(aside) in told
    assert len(checkpoints.read_text().splitlines()) == 1
    # 5.
    again = [desk.request(person, "--received-at", received_at) for person in (LATER, OPEN)]
    assert gone not in again
    # 6.
    desk.start()
    desk.wait_until_completed(*again)
    # 7.
    desk.run("audit", "verify")

    desk.stack.wait(lambda: desk.arrived_of(NEVER))
    assert not desk.arrived_of(BEFORE, LATER, OPEN)
    assert desk.problems() == []
    # A lift works for a person who was entered again.
    desk.run("erasure", "lift", again[0], *BY)
    assert desk.are_accepted(LATER, OPEN) == [True, False]
    assert "nothing is missing" in desk.run("audit", "adopt", "--restored", "--yes", *BY)
    desk.run("audit", "verify")


def test_redis_was_restored_from_a_backup(desk, servers, tmp_path):
    redis = servers(tmp_path / "first").redis
    dead = bury(redis, REJECTED, {**EVENT, "user_id": LATER})
    redis.delete(KEYS.fences)  # `bury` loaded them from another store
    desk.start()
    desk.wait_until_completed(desk.request(BEFORE))
    desk.stop()
    assert all(desk.are_accepted(LATER, ONCE, NEVER))
    redis.save()
    backup_at = datetime.now(UTC)
    requested = {desk.request(person, "--mode", mode): person for person, mode in MODES.items()}
    desk.start()
    desk.wait_until_completed(*requested)
    desk.stack.wait(lambda: desk.arrived_of(NEVER))
    desk.stop()
    assert not redis.hlen(KEYS.dead)

    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "first" / "dump.rdb", tmp_path / "second")
    redis = servers(tmp_path / "second").redis
    assert [id_.decode() for id_ in redis.hkeys(KEYS.dead)] == dead
    # 2.
    ended = [row for row in desk.erased() if row["state"] in ("completed", "lifted")]
    later = [row for row in ended if datetime.fromisoformat(row["quiesced_at"]) > backup_at]
    assert {row["id"] for row in later} == set(requested)
    again = [desk.request(requested[row["id"]], "--mode", row["mode"]) for row in later]
    # 3.
    desk.start()
    desk.wait_until_completed(*again)
    desk.stack.wait(lambda: len(desk.arrived_of(NEVER)) == 2)  # as the docs say

    assert not redis.hlen(KEYS.dead)
    assert not desk.arrived_of(*MODES)
    assert desk.are_accepted(BEFORE, LATER, ONCE) == [False, False, True]
    desk.run("audit", "verify")


def test_from_sqlite_to_postgresql(desk, postgresql_url, tmp_path):
    old, new = f"sqlite:///{tmp_path}/audit.sqlite", postgresql_url
    desk.start()
    desk.wait_until_completed(desk.request(BEFORE))
    desk.request(BEFORE, "--mode", "once")
    # 1.
    desk.stop()
    gone = desk.request(OPEN)
    desk.run("audit", "verify")
    # 2.
    pattern = r"```python\n(   from sqlalchemy import create_engine.*?)```"
    code = re.search(pattern, DOCS.read_text(), re.DOTALL)[1]
    named = {
        "sqlite:////path/to/audit.sqlite": old,
        "postgresql+psycopg://owner:…@db/audit": new.replace("postgresql:", "postgresql+psycopg:"),
    }
    for there, here in named.items():
        assert there in code
        code = code.replace(there, here)
    desk.stack.produce(textwrap.dedent(code))
    # 3.
    desk.stack.env["MM_TASKS_AUDIT_URL"] = new
    # 4.
    desk.run("audit", "verify")
    desk.start()
    desk.wait_until_completed(gone)

    desk.run("audit", "verify")
    assert desk.are_accepted(BEFORE) == [False]
