"""PostgreSQL goes back by some entries while everything runs on, as after a failover."""

import json

import pytest
from sqlalchemy import text

from mm_tasks.erasure.audit import tables
from tests.cli.in_process import in_this_process
from tests.erasure.stores import raw_engine
from tests.system.accounting import KEYS
from tests.system.processes import FAST

TABLES = (
    "mm_erasures",
    "mm_erasure_passes",
    "mm_suppressions",
    "mm_erasure_audit",
    "mm_checkpoints",
)
# The events of the person are sent after each step; all others must arrive.
TRACK = """
from mm_tasks import track
for _ in range(5):
    track.delay("visited", user_id="lost-4f1c")
    track.delay("visited", user_id="somebody else")
"""
REQUESTS = """
from mm_tasks import forget
for n in range({first}, {first} + 20):
    assert forget.delay(f"later-{{n}}", "dpo").fenced
"""


def copy_of(engine):
    """Copy every table but that of the store's identity, at one moment."""
    with engine.begin() as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        for table in TABLES:
            connection.execute(text(f"CREATE TABLE copy_of_{table} AS SELECT * FROM {table}"))


def go_back(engine):
    """Let the tables be as they were; return how many entries are gone."""
    with engine.begin() as connection:
        size = connection.execute(text("SELECT max(seq) FROM mm_erasure_audit")).scalar_one()
        for table in TABLES[3:]:
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        for table in reversed(TABLES):
            connection.execute(text(f"DELETE FROM {table}"))
        for table in TABLES:
            connection.execute(text(f"INSERT INTO {table} SELECT * FROM copy_of_{table}"))
        for table in TABLES[3:]:
            connection.execute(text(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_no_update"))
            connection.execute(text(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_next"))
        assert tables.guards_missing(connection) == []
        left = connection.execute(text("SELECT max(seq) FROM mm_erasure_audit")).scalar_one()
    return size - left


@pytest.mark.timeout(400)
def test_a_failover_that_loses_entries_delivers_nothing_of_a_lost_person(
    stack, redis, erasing, postgresql_url
):
    stack.env["MM_TASKS_AUDIT_URL"] = postgresql_url
    stack.sandbox()
    engine = raw_engine(postgresql_url)
    stack.worker_and_beat("-P", "threads", *FAST)
    erasing.wait_until_completed(erasing.forget("before").id)
    copy_of(engine)
    assert erasing.forget("lost-4f1c").fenced
    assert 1 <= go_back(engine) <= 20
    stack.produce(TRACK)
    for first in range(0, 100, 20):
        stack.produce(REQUESTS.format(first=first))
    stack.produce(TRACK)

    # It is named wherever one looks.
    stack.wait(lambda: problems(stack))
    assert "audit_log_forked" in problems(stack)[0]
    health = command(stack, "health", code=1)
    assert "problem  audit log: audit_log_forked" in health.stdout
    command(stack, "check", code=1)
    # Redis restarts: nothing is sent any more.
    redis.hdel(KEYS.fences, "run_id")
    stack.wait(lambda: redis.hget(KEYS.fences, "why") == b"audit_log_forked")
    stack.produce(TRACK)
    assert redis.scard(KEYS.fence) == 102

    adopted = command(stack, "audit", "adopt", "--restored", "--yes", "--requested-by", "dpo")
    assert "adopted: 1 tags" in adopted.stdout
    assert "should stand meanwhile: beat" in adopted.stderr
    stack.produce(TRACK)
    stack.wait(lambda: len(erasing.rows_of("somebody else")) == 20)
    assert erasing.rows_of("lost-4f1c") == []
    assert problems(stack) == []
    assert redis.scard(KEYS.fence) == 102
    assert in_this_process(stack.env, ("audit", "verify"), "").returncode in {0, 3}


def command(stack, *words, code=0):
    done = in_this_process(stack.env, words, "")
    assert done.returncode == code, done.stdout + done.stderr
    return done


def problems(stack):
    return json.loads(command(stack, "status", "--json").stdout)["problems"]
