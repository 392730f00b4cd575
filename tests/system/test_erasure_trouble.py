"""Erasures while workers die, messages are lost, and Redis or the audit database is away."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from base64 import b64decode
from contextlib import contextmanager

import pytest

from mm_tasks.buffer.keys import ProjectKeys
from tests.system.test_erasure import FAST, PERSON, Erasing, holders
from tests.system.test_shutdown import children

KEYS = ProjectKeys("default")
QUEUES = ("mm.forget", "mm.deliver", "mm.identify")
CLOSED = "postgresql://127.0.0.1:1/none"


@pytest.fixture
def erasing(stack):
    return Erasing(stack)


# Whatever dies, and whatever message is lost.

PEOPLE = """
from mm_tasks import forget, track
for n in range(8):
    track.delay("visited", event_id=f"theirs-{n}", user_id=f"person-{n}")
    track.delay("visited", event_id=f"other-{n}", user_id=f"u{n}")
    print(forget.delay(f"person-{n}", "dpo").id)
"""
KILLED_AT = (
    "purge_waiting.before",
    "purge_waiting.after",
    "purge_fenced_count.after",
    "forget.before",
    "forget.after",
)


@contextmanager
def messages_lost(redis):
    """Delete every Celery message there is, five times a second."""
    ended = threading.Event()

    def lose():
        while not ended.wait(0.2):
            redis.delete(*QUEUES, *redis.scan_iter("unacked*"))

    thread = threading.Thread(target=lose)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def killed(process):
    return process.poll() == -signal.SIGKILL


def solo(stack, failpoint=""):
    armed = f"{failpoint}=1" if failpoint else ""
    return stack.worker("-P", "solo", *FAST, MM_TASKS_FAILPOINTS=armed)


def test_every_erasure_completes_although_workers_die_and_all_messages_are_lost(
    stack, redis, erasing
):
    """P2 holds for erasures as well: SQL says what is due, and a sweep finds it."""
    stack.env["MM_TASKS_ERASURE_PASSES_S"] = "0,0.5,1"
    stack.sandbox()
    # The first one due: its fence is for a worker to raise.
    claim = erasing.store.ask("person-8").claim
    erasing.store.steps.release(claim)
    ids = [claim.id, *stack.produce(PEOPLE).split()]
    with messages_lost(redis):
        stack.beat()
        for failpoint in ("fence_load_commit.before", "fence_add.after"):
            worker = solo(stack, failpoint)
            stack.wait(lambda worker=worker: killed(worker), 20)
        armed = [solo(stack, failpoint) for failpoint in KILLED_AT]
        stack.wait(lambda: all(map(killed, armed)), 30)
        for _ in range(2):
            worker = solo(stack)
            time.sleep(random.uniform(0.5, 2))
            worker.kill()
        solo(stack)
        erasing.wait_until_completed(*ids)
    calls = [erasing.calls(one) for one in ids]
    erasing.wait_until_all_is_sent()

    # A call that was killed has an intent and no result; each pass was acknowledged all the same.
    assert all([n for n, said in found if said == "acknowledged"] == [1, 2, 3] for found in calls)
    assert sum(said is None for found in calls for _, said in found) >= 2
    assert sorted(stack.get("ids")) == [f"other-{n}" for n in range(8)]


# Redis loses its memory.

EMPTIED = """
import os
from redis import Redis
from mm_tasks import track
if {flush}:
    Redis.from_url(os.environ["MM_TASKS_REDIS_URL"]).flushall()
receipts = track.delay_many([
    {{"event": "visited", "event_id": f"{{who}}-{{n}}", "user_id": user_id}}
    for n in range({first}, {first} + 20)
    for who, user_id in (("theirs", "{person}"), ("other", f"u{{n}}"))
])
print(sum(receipt.accepted for receipt in receipts))
"""


@pytest.fixture
def folder(stack, erasing):  # noqa: ARG001 - its settings
    """The folder of the audit database, apart from the logs."""
    path = stack.log_dir / "audit"
    path.mkdir()
    stack.env["MM_TASKS_AUDIT_URL"] = f"sqlite:///{path}/audit.sqlite"
    return path


def assert_only_others_arrived(stack, erasing, n):
    stack.wait_for_events(n)
    counts = erasing.wait_until_all_is_sent()

    assert set(stack.get("ids")) == {f"other-{i}" for i in range(n)}
    assert stack.get("summary")["duplicates"] == 0
    return counts


def test_a_redis_that_forgot_its_fences_sends_nothing_before_it_knows_them_again(
    stack, mortal, erasing, folder
):
    """`append` lets them in, as it knows of no fence; `claim` and `begin` wait for SQL."""
    stack.sandbox()
    worker, beat = stack.worker("-P", "threads", *FAST), stack.beat()
    erasing.wait_until_completed(erasing.forget().id)

    # Emptied.
    stack.produce(EMPTIED.format(flush=True, first=0, person=PERSON))
    counts = assert_only_others_arrived(stack, erasing, 20)
    assert counts["erased"] + counts["suppressed"] == 20

    # Another one in its place, and SQL out of reach as well.
    mortal.terminate()
    shutil.rmtree(mortal.data_dir)
    mortal.data_dir.mkdir()
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    folder.touch()
    mortal.start()
    said = stack.produce(EMPTIED.format(flush=False, first=20, person=PERSON))
    assert int(said) == 40
    stack.wait(lambda: mortal.redis.hget(KEYS.fences, "why") == b"audit_unavailable", 20)
    time.sleep(2)
    assert stack.get("summary")["events"] == 20
    assert mortal.redis.llen(KEYS.lane("track").waiting) == 40

    folder.unlink()
    elsewhere.rename(folder)
    counts = assert_only_others_arrived(stack, erasing, 40)
    assert counts["erased"] == 20
    assert mortal.redis.hget(KEYS.fences, "why") is None
    assert worker.poll() is None
    assert beat.poll() is None


def test_a_request_while_redis_is_away_is_accepted_and_fenced_by_the_next_sweep(
    stack, mortal, erasing
):
    stack.sandbox()
    stack.produce(EMPTIED.format(flush=False, first=0, person=PERSON))
    mortal.terminate()
    worker, beat = stack.worker("-P", "threads", *FAST), stack.beat()
    asked = erasing.forget(anonymous_ids=["visitor-77aa-secret"])
    assert (asked.fenced, asked.accepted) == (False, True)
    assert erasing.state(asked.id) == "received"
    mortal.start()
    erasing.wait_until_completed(asked.id)

    assert_only_others_arrived(stack, erasing, 20)
    assert mortal.redis.scard(KEYS.fence) == 2
    assert worker.poll() is None
    assert beat.poll() is None


AWAY = """
import time
from mm_tasks import forget
from mm_tasks.errors import AuditUnavailable
began_at = time.monotonic()
try:
    forget.delay("person-4f1c-secret", "dpo")
except AuditUnavailable as error:
    print(time.monotonic() - began_at, error)
"""


def test_without_its_database_a_request_is_refused_in_time_and_leaves_nothing(
    stack, redis, erasing
):
    """The caller has to retry: nothing was accepted, fenced or sent."""
    stack.env["MM_TASKS_AUDIT_URL"] = CLOSED
    took_s, _, said = stack.produce(AWAY).partition(" ")

    assert float(took_s) < 15
    assert "; retry" in said
    assert redis.keys() == []
    assert holders(stack, redis, PERSON) == []
    del stack.env["MM_TASKS_AUDIT_URL"]
    assert erasing.store.queries.listed() == []


# Through the broker, and beside a delivery that does not move.

THROUGH_THE_BROKER = """
from mm_tasks import app, forget
def asked(n):
    return {"user_id": f"person-{n}-secret", "requested_by": "dpo"}
forget.delay(**asked(0))
forget.s(**asked(1)).delay()
forget.apply_async(kwargs=asked(2), countdown=1)
forget.s(**asked(3)).apply_async(countdown=1)
app.send_task("mm_tasks.forget", kwargs=asked(4))
with app.producer_pool.acquire() as producer:  # as beat does
    forget.apply_async((), asked(5), producer=producer, expires=60)
"""


def messages(redis):
    """Return task, arguments, and headers of each message that waits for the forget worker."""
    for raw in redis.lrange("mm.forget", 0, -1):
        message = json.loads(raw)
        body = json.loads(b64decode(message["body"]))
        yield message["headers"]["task"], body, message["headers"]


def test_requests_by_every_way_of_celery_are_done_and_ours_carry_no_data(stack, redis, erasing):
    """Only a call that asks for the broker sends ids through it, and they are gone at the end."""
    stack.sandbox()
    stack.produce(THROUGH_THE_BROKER)
    found = list(messages(redis))
    ours = [body for task, body, _ in found if task == "mm_tasks.run_erasure"]
    theirs = [(body, headers) for task, body, headers in found if task == "mm_tasks.forget"]
    open_ids = {one["id"] for one in erasing.store.queries.listed()}
    assert redis.llen("mm.deliver") == redis.llen("mm.identify") == 0
    assert {args[0] for args, _, _ in ours} == open_ids
    assert [(len(args), kwargs) for args, kwargs, _ in ours] == [(1, {}), (1, {})]
    assert len(theirs) == 4
    redacted = [headers["kwargsrepr"] for _, headers in theirs if headers["eta"]]
    assert redacted == ["{...}", "{...}"]

    worker, beat = stack.worker("-Q", "mm.forget", "-P", "threads", *FAST), stack.beat()
    stack.wait(lambda: len(erasing.store.queries.listed()) == 6)
    erasing.wait_until_completed(*(one["id"] for one in erasing.store.queries.listed()))
    assert stack.get("summary")["forgotten"] == 6
    received = [json.loads(line) for line in erasing.store.entries() if '"received"' in line]
    via = {one["erasure"]: one["details"]["via"] for one in received}
    assert {one for one, way in via.items() if way == "call"} == open_ids
    assert list(via.values()).count("message") == 4
    assert "person-" not in stack.read(worker) + stack.read(beat)
    assert [held for n in range(6) for held in holders(stack, redis, f"person-{n}-secret")] == []


def test_an_erasure_completes_although_every_delivery_worker_hangs(stack, erasing):
    """What a stopped process was sending is waited for until its lease runs out, no longer."""
    stack.env.update(MM_TASKS_REQUEST_TIMEOUT_S="2", MM_TASKS_LEASE_S="7")
    stack.sandbox()
    stack.fault({"kind": "slow", "latency_s": 1.8})
    delivery = stack.worker("-Q", "mm.deliver,mm.identify", "-c", "2", *FAST)
    stack.worker("-Q", "mm.forget", "-P", "threads", *FAST)
    beat = stack.beat()
    stack.produce(EMPTIED.format(flush=False, first=0, person=PERSON))
    stack.wait(lambda: stack.get("faults")[0]["hits"])
    stopped = [*children(delivery), delivery.pid]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        stack.produce(EMPTIED.format(flush=False, first=20, person=PERSON))
        asked = erasing.forget()
        erasing.wait_until_completed(asked.id, within_s=20)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    removed = erasing.store.queries.show(asked.id)["removed"]
    counts = erasing.wait_until_all_is_sent()

    assert removed["track:batches"] == 20
    assert removed["track:waiting"] == 20
    assert counts["erased"] == 40
    assert beat.poll() is None
    # The answer that nobody heard was stored, before the first call told the vendor.
    stack.wait(lambda: all(row["user_id"] != PERSON for row in erasing.lines("rows")), 5)
