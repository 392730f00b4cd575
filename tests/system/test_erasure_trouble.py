"""Erasures while workers die, messages are lost, and Redis or the audit database is away."""

import json
import os
import random
import shutil
import signal
import threading
import time
from base64 import b64decode
from contextlib import contextmanager
from itertools import pairwise

import pytest

from mm_tasks.timestamps import moment
from tests.system.accounting import KEYS, waiting
from tests.system.erasing import PERSON, holders
from tests.system.processes import FAST, assert_alive, children

QUEUES = ("mm.forget", "mm.deliver", "mm.identify")
CLOSED = "postgresql://127.0.0.1:1/none"


# Workers die, and messages are lost.

PEOPLE = """
from mm_tasks import forget, track
for n in range(8):
    track.delay("visited", event_id=f"theirs-{n}", user_id=f"person-{n}")
    track.delay("visited", event_id=f"other-{n}", user_id=f"u{n}")
    print(forget.delay(f"person-{n}", "dpo").id)
"""
KILLED_AT = (
    "fence_load_commit.before",
    "fence_add.after",
    "purge_waiting.before",
    "purge_waiting.after",
    "purge_fenced_count.after",
    "forget.before",
    "forget.after",
)


@contextmanager
def messages_lost(redis):
    """Delete every Celery message, five times a second."""
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
    """P2 holds for erasures as well: SQL holds the due steps, and a sweep finds them."""
    stack.env["MM_TASKS_ERASURE_PASSES_S"] = "0,0.5,1"
    stack.sandbox()
    # The first one due: a worker has to raise its fence.
    claim = erasing.store.ask("person-8").claim
    erasing.store.steps.release(claim)
    ids = [claim.id, *stack.produce(PEOPLE).split()]
    with messages_lost(redis):
        stack.beat()
        # One at a time: work that another had done would leave an armed worker alive for ever.
        for failpoint in KILLED_AT:
            worker = solo(stack, failpoint)
            stack.wait(lambda worker=worker: killed(worker), 30)
        for _ in range(2):
            worker = solo(stack)
            time.sleep(random.uniform(0.5, 2))
            worker.kill()
        solo(stack)
        erasing.wait_until_completed(*ids)
    calls = [erasing.calls(id_) for id_ in ids]
    erasing.wait_until_all_is_sent()

    # A call that was killed has an intent and no result; each pass was acknowledged all the same.
    for of_one in calls:
        assert [n for n, outcome in of_one if outcome == "acknowledged"] == [1, 2, 3]
    assert sum(outcome is None for of_one in calls for _, outcome in of_one) >= 2
    assert sorted(stack.get("ids")) == [f"other-{n}" for n in range(8)]


# The vendor refuses the key.

MANY = """
from mm_tasks import forget, track
track.delay_many([{"event": "visited", "user_id": "somebody"}] * 1000)
for n in range(20):
    print(forget.delay(f"person-{n}", "dpo").id)
"""
PROBE_S = 2
# One worker, so that no second call is under way when the first one is refused.
WORKERS = {
    "erasures alone": ("mm.forget",),
    "deliveries too": ("mm.forget,mm.deliver,mm.identify",),
}


@pytest.mark.parametrize("queues", WORKERS.values(), ids=WORKERS)
def test_a_refused_key_is_tried_once_in_an_interval_by_all_together(stack, erasing, queues):
    """60 erasures and a revoked key: 493 requests in 24 s where 15 were promised."""
    stack.env.update(MM_TASKS_PROBE_INTERVAL_S=str(PROBE_S), MM_TASKS_ERASURE_PASSES_S="0,1,2")
    stack.sandbox("--no-limits")
    revoked = {"kind": "status", "status": 401, "body": '{"error":"invalid_api_key"}'}
    routes = ("/v1/forget", "/v1/batch")
    stack.fault(*({**revoked, "route": route, "times": 1000} for route in routes))
    ids = stack.produce(MANY).split()
    stack.worker("-P", "solo", "-Q", *queues, *FAST)
    stack.beat()
    stack.wait(lambda: {erasing.state(one) for one in ids} == {"waiting_key"})
    stack.wait(lambda: len(stack.get("requests")) >= 4)
    entries = len(erasing.store.entries())
    refused = len(stack.get("requests"))
    stack.wait(lambda: len(stack.get("requests")) >= refused + 2)
    assert len(erasing.store.entries()) <= entries + 2
    refused_at = [row["at"] for row in erasing.lines("journal")]
    stack.fault()
    erasing.wait_until_completed(*ids)

    # Of one worker with one process even the first refusal is seen before the next call.
    assert all(later - earlier > 0.9 * PROBE_S for earlier, later in pairwise(refused_at))
    for one in ids:
        first, second, third = erasing.shown(one)["passes"]
        assert apart_s(first, second) >= 1
        assert apart_s(second, third) >= 2


def apart_s(before, after):
    """Return the time from the acknowledgement of a pass to the call of the next one."""
    return (moment(after["sent_at"]) - moment(before["answered_at"])).total_seconds()


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


def assert_only_others_arrived(stack, erasing, n):
    stack.wait_for_events(n)
    counts = erasing.wait_until_all_is_sent()

    assert set(stack.get("ids")) == {f"other-{i}" for i in range(n)}
    assert stack.get("summary")["duplicates"] == 0
    return counts


def test_a_redis_that_forgot_its_fences_sends_nothing_before_it_knows_them_again(
    stack, mortal, erasing
):
    """`append` accepts their events, since it has no fence; `claim` and `begin` wait for SQL."""
    folder = stack.log_dir / "audit"
    folder.mkdir()
    stack.env["MM_TASKS_AUDIT_URL"] = f"sqlite:///{folder}/audit.sqlite"
    stack.sandbox()
    processes = stack.worker_and_beat("-P", "threads", *FAST)
    erasing.wait_until_completed(erasing.forget().id)

    # Emptied.
    stack.produce(EMPTIED.format(flush=True, first=0, person=PERSON))
    counts = assert_only_others_arrived(stack, erasing, 20)
    assert counts["erased"] + counts["suppressed"] == 20

    # An empty server replaces it, and SQL is out of reach as well.
    mortal.terminate()
    shutil.rmtree(mortal.data_dir)
    mortal.data_dir.mkdir()
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    folder.touch()
    mortal.start()
    assert int(stack.produce(EMPTIED.format(flush=False, first=20, person=PERSON))) == 40
    stack.wait(lambda: mortal.redis.hget(KEYS.fences, "why") == b"audit_unavailable", 20)
    time.sleep(2)
    assert stack.get("summary")["events"] == 20
    assert len(waiting(mortal.redis)) == 40

    folder.unlink()
    elsewhere.rename(folder)
    counts = assert_only_others_arrived(stack, erasing, 40)
    assert counts["erased"] == 20
    assert mortal.redis.hget(KEYS.fences, "why") is None
    assert_alive(*processes)


def test_a_request_while_redis_is_away_is_accepted_and_fenced_by_the_next_sweep(
    stack, mortal, erasing
):
    stack.sandbox()
    stack.produce(EMPTIED.format(flush=False, first=0, person=PERSON))
    mortal.terminate()
    processes = stack.worker_and_beat("-P", "threads", *FAST)
    receipt = erasing.forget(anonymous_ids=["visitor-77aa-secret"])
    assert (receipt.fenced, receipt.accepted) == (False, True)
    assert erasing.state(receipt.id) == "received"
    mortal.start()
    erasing.wait_until_completed(receipt.id)

    assert_only_others_arrived(stack, erasing, 20)
    assert mortal.redis.scard(KEYS.fence) == 2
    assert_alive(*processes)


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
    took_s, _, message = stack.produce(AWAY).partition(" ")

    assert float(took_s) < 15
    assert "; retry" in message
    assert redis.keys() == []
    assert holders(stack, redis, PERSON) == []
    del stack.env["MM_TASKS_AUDIT_URL"]
    assert erasing.listed() == []


# Through the broker, and beside a delivery that does not move.

THROUGH_THE_BROKER = """
from mm_tasks import app, forget
def request(n):
    return {"user_id": f"person-{n}-secret", "requested_by": "dpo"}
forget.delay(**request(0))
forget.s(**request(1)).delay()
forget.apply_async(kwargs=request(2), countdown=1, queue="mm.forget")
forget.s(**request(3)).apply_async(countdown=1)
app.send_task("mm_tasks.forget", kwargs=request(4))
with app.producer_pool.acquire() as producer:  # as beat does
    forget.apply_async((), request(5), producer=producer, expires=60)
"""


def messages(redis):
    """Return task, arguments, and headers of each message that waits for the forget worker."""
    for raw in redis.lrange("mm.forget", 0, -1):
        message = json.loads(raw)
        body = json.loads(b64decode(message["body"]))
        yield message["headers"]["task"], body, message["headers"]


def test_requests_by_every_way_of_celery_are_done_and_our_messages_carry_no_data(
    stack, redis, erasing
):
    """Only a call with Celery's options sends ids through the broker, and they do not stay."""
    stack.sandbox()
    stack.produce(THROUGH_THE_BROKER)
    sent = list(messages(redis))
    ours = [body for task, body, _ in sent if task == "mm_tasks.run_erasure"]
    theirs = [headers for task, _, headers in sent if task == "mm_tasks.forget"]
    open_ids = {row["id"] for row in erasing.listed()}
    [scheduled] = [row["id"] for row in erasing.listed() if row["state"] == "scheduled"]
    assert redis.llen("mm.deliver") == redis.llen("mm.identify") == 0
    assert {args[0] for args, _, _ in ours} == open_ids - {scheduled}
    assert [(len(args), kwargs) for args, kwargs, _ in ours] == [(1, {}), (1, {})]
    assert len(theirs) == 3
    redacted = [headers["kwargsrepr"] for headers in theirs if headers["eta"]]
    assert redacted == ["{...}"]

    worker, beat = stack.worker_and_beat("-Q", "mm.forget", "-P", "threads", *FAST)
    stack.wait(lambda: len(erasing.listed()) == 6)
    erasing.wait_until_completed(*(row["id"] for row in erasing.listed()))
    assert stack.get("summary")["forgotten"] == 6
    received = [json.loads(line) for line in erasing.store.entries() if '"received"' in line]
    via = {entry["erasure"]: entry["details"]["via"] for entry in received}
    assert {id_ for id_, way in via.items() if way == "call"} == open_ids
    assert list(via.values()).count("message") == 3
    assert "person-" not in stack.read(worker) + stack.read(beat)
    assert [name for n in range(6) for name in holders(stack, redis, f"person-{n}-secret")] == []


def test_an_erasure_completes_although_every_delivery_worker_hangs(stack, erasing):
    """It waits for a request of a stopped process until its lease expires, no longer."""
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
        receipt = erasing.forget()
        erasing.wait_until_completed(receipt.id, within_s=20)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    removed = erasing.shown(receipt.id)["removed"]
    counts = erasing.wait_until_all_is_sent()

    assert removed["track:batches"] == 20
    assert removed["track:waiting"] == 20
    assert counts["erased"] == 40
    assert_alive(beat)
    # The vendor stored the request that got no answer before the first call to forget.
    stack.wait(lambda: not erasing.rows_of(PERSON), 5)
