"""Hosts whose clocks differ by an hour, at one PostgreSQL: its clock is the only one that counts.

Each host is a process under libfaketime. On SQLite all processes share the clock of their host.

Sabotages that turn this file red, each tried on a copy:

- `ErasureRows.now`, `due` or `open_deadlines` returns the time of its process;
- `server_time` is in the time zone of the server.
"""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from sqlalchemy import text

from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.database import Database
from mm_tasks.erasure.audit.verification import verify
from mm_tasks.erasure.request import ErasureRequest
from mm_tasks.erasure.store import AuditStore
from mm_tasks.timestamps import moment
from tests.erasure.stores import KEY, PASSES_S
from tests.stepping import LIBRARIES

AHEAD, BEHIND, DAY_AHEAD = "+3600s", "-3600s", "+86400s"
HOST = f"""
import json, sys
from datetime import UTC, datetime
from pathlib import Path
from mm_tasks.erasure.models import VendorAck
from mm_tasks.erasure.request import ErasureRequest
from mm_tasks.erasure.store import AuditStore

store = AuditStore(sys.argv[1], "p", Path(sys.argv[2]), {KEY!r})
steps, commands = store.steps, store.commands
def ask(user_id, received_at=None):
    return commands.open_request(ErasureRequest(user_id, "dpo", received_at=received_at))
def quiesced(passes_s):
    claim = steps.mark_purged(steps.mark_fenced(ask("u").claim), {{}})
    claim = steps.mark_quiesced(claim, passes_s)
    steps.release(claim)
    return claim.id
def called(id_):
    claim = steps.claim(id_, 60)
    steps.result(steps.intent(claim), VendorAck(200, "acknowledged"))
    steps.release(claim)
print(json.dumps(eval(sys.argv[3])))
"""


@pytest.fixture
def on_a_host(postgresql_url, tmp_path):
    """Evaluate an expression on a host whose clock differs by this much."""
    if not LIBRARIES:
        assert "CI" not in os.environ
        pytest.skip("no libfaketime: apt-get install libfaketime")

    def run(by, expression):
        words = (sys.executable, "-c", HOST, postgresql_url, str(tmp_path), expression)
        env = {**os.environ, "LD_PRELOAD": str(LIBRARIES[0]), "FAKETIME": by}
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def audit(postgresql_url, tmp_path):
    """The store as this host has it, whose clock is right."""
    return AuditStore(postgresql_url, "p", tmp_path, KEY)


def test_what_a_host_ahead_asks_for_is_due_at_once_on_a_host_behind(on_a_host, audit):
    id_ = on_a_host(AHEAD, "[o := ask('u'), steps.release(o.claim)][0].id")

    assert on_a_host(BEHIND, "steps.due(60)") == [id_]
    assert audit.steps.due(60) == [id_]
    assert on_a_host(BEHIND, f"steps.claim({id_!r}, 60).id") == id_


def test_a_host_ahead_takes_over_no_claim_and_calls_no_earlier(on_a_host, audit):
    opened = on_a_host(BEHIND, "ask('u').id")

    assert on_a_host(AHEAD, "steps.due(60)") == []
    assert on_a_host(AHEAD, f"steps.claim({opened!r}, 60)") is None
    later = on_a_host(BEHIND, "commands.open_request(ErasureRequest('v', 'dpo'), delay_s=1800).id")
    assert on_a_host(AHEAD, f"steps.claim({later!r}, 60)") is None
    assert audit.queries.show(later)["state"] == "scheduled"


def test_passes_are_their_intervals_apart_on_a_host_a_day_ahead(on_a_host, audit):
    """A forget worker a day ahead made three calls in 0.8 s, and wiped the ids."""
    id_ = on_a_host(DAY_AHEAD, f"quiesced({PASSES_S})")
    on_a_host(DAY_AHEAD, f"called({id_!r})")
    assert on_a_host(DAY_AHEAD, "steps.due(60)") == []
    assert on_a_host(DAY_AHEAD, f"steps.claim({id_!r}, 60)") is None
    shown = audit.queries.show(id_)
    answered_at, next_at = shown["passes"][0]["answered_at"], shown["next_at"]

    assert moment(next_at) - moment(answered_at) == timedelta(seconds=PASSES_S[1])
    assert abs(moment(answered_at) - datetime.now(UTC)) < timedelta(minutes=1)


def test_receipt_and_log_are_of_the_database_whichever_host_writes(on_a_host, audit):
    before = datetime.now(UTC) - timedelta(seconds=1)
    for n, by in enumerate((AHEAD, BEHIND, AHEAD)):
        on_a_host(by, f"ask('u{n}').id")
    on_a_host(BEHIND, "ask('u3', datetime.now(UTC)).id")
    on_a_host(AHEAD, "ask('u4', datetime.now(UTC)).id")
    after = datetime.now(UTC)

    shown = audit.queries.listed()
    received = {one["id"]: moment(one["received_at"]) for one in shown}
    *own, behind, ahead = (received[one["id"]] for one in reversed(shown))
    assert all(before <= at <= after for at in (*own, ahead))
    # The caller's statement stays, and can only shorten the month.
    assert before <= behind + timedelta(hours=1) <= after
    times = [moment(json.loads(line)["at"]) for line in audit.log.export()]
    assert all(first <= second for first, second in pairwise([before, *times]))
    verify(audit.log)


@pytest.mark.parametrize(("by", "due_in", "overdue"), [(AHEAD, 30, 0), (BEHIND, -30, 1)])
def test_a_deadline_is_judged_by_the_database(on_a_host, audit, by, due_in, overdue):
    audit.commands.open_request(ErasureRequest("u", "dpo"))
    due_at = datetime.now(UTC) + timedelta(minutes=due_in)
    with audit.log.database.write() as connection:
        connection.execute(tables.erasures.update().values(due_at=due_at))

    assert on_a_host(by, "store.open_erasures()[0]['overdue']") == overdue


def test_the_time_of_the_database_is_aware_and_in_milliseconds(url):
    database = Database(url)
    before = datetime.now(UTC) - timedelta(milliseconds=2)
    with database.read() as connection:
        if not database.is_sqlite:
            connection.execute(text("SET LOCAL TIME ZONE 'Asia/Kathmandu'"))
        now = database.now(connection)

    assert before <= now <= datetime.now(UTC) + timedelta(milliseconds=2)
    assert now.microsecond % 1000 == 0


def test_a_log_whose_clock_was_set_back_still_verifies(store):
    claim = store.ask().claim
    store.steps.mark_fenced(claim, store.now - timedelta(days=400))

    assert verify(store.log).size == 2
