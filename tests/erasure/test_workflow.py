"""Erasures step by step, with a clock of the test: from the request to the last response.

After every test the fixtures verify the log and add up the counts.
"""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import event

from mm_tasks.buffer.audit_state import AuditState
from mm_tasks.buffer.batches import Admitted
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.pauses import Pauses
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.purge import Purge
from mm_tasks.buffer.records import tag
from mm_tasks.client.access import vendor_access
from mm_tasks.client.api import Client
from mm_tasks.delivery.send import send
from mm_tasks.erasure.audit.protocol import IllegalTransition
from mm_tasks.erasure.audit.verification import verify
from mm_tasks.erasure.fence_sync import FenceSync
from mm_tasks.erasure.request import ErasureRequest
from mm_tasks.erasure.service import ErasureService
from mm_tasks.erasure.workflow import ErasurePolicy, ErasureWorkflow
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from tests.delivery.conftest import KEYS, SECRET, flush
from tests.erasure.stores import NOW, PASSES_S, USER, VISITOR, Store

OTHER = "other-1b7e"
USER_TAG, VISITOR_TAG = tag("p", "user", USER), tag("p", "anonymous", VISITOR)
LEASE_S = 10
PROBE_S = 60
both = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)


class Erasures:
    """The service and a worker on one audit store and one Redis, with a clock of its own."""

    def __init__(self, flow, store):
        self.flow = flow
        self.store = store
        self.opened = []
        self.fence_sync = self.fence_sync_on(flow.redis, store)
        self.erasure_service = self.service(self.fence_sync, store)
        self.workflow = self.worker()
        # Delivery reads the same fence.
        flow.load = self.fence_sync.try_load

    def service(self, fence_sync, store=None):
        store = store or self.store
        pause = Pauses(self.flow.redis, "p", None)
        return ErasureService(store.steps, store.commands, fence_sync, pause)

    @staticmethod
    def fence_sync_on(redis, store):
        state = AuditState(redis, "p")
        return FenceSync(Fence(redis, "p"), store.queries, store.continuity, state)

    def client(self, url=None, kind=Client):
        return kind(vendor_access(url or self.flow.url, SECRET), request_timeout_s=0.5)

    def worker(self, *, client=None, store=None, redis=None, purge=Purge):
        """Return the workflow of another process."""
        store, redis = store or self.store, redis or Redis.from_url(self.flow.redis_url)
        client = client or self.client()
        self.opened += [redis, client]
        return ErasureWorkflow(
            store.steps,
            store.commands,
            self.fence_sync_on(redis, store),
            purge(redis, "p"),
            Pauses(redis, "p", None),
            client,
            ErasurePolicy(PASSES_S, LEASE_S, PROBE_S),
        )

    @property
    def now(self):
        return self.store.now

    @now.setter
    def now(self, now):
        self.store.now = now

    def request(self, user_id=USER, **how):
        return self.erasure_service.request(ErasureRequest(user_id, "dpo", **how))

    def forget(self, user_id=USER, **how):
        return self.request(user_id, **how).id

    def begun(self, **how):
        """Request an erasure and run it until it waits."""
        erasure = self.forget(**how)
        self.workflow.run(erasure)
        return erasure

    def completed(self, **how):
        erasure = self.forget(**how)
        self.complete(erasure)
        return erasure

    def time_passes(self, **duration):
        self.now += timedelta(**duration)

    def sweep_after(self, **duration):
        self.time_passes(**duration)
        self.workflow.sweep()

    def time_comes(self, erasure):
        """Move the clock to the next step of the erasure; return the seconds until then."""
        due_at = datetime.fromisoformat(self.shown(erasure)["next_at"])
        waited_s = (due_at - self.now).total_seconds()
        # A stamp is truncated to milliseconds.
        self.time_passes(seconds=max(0, waited_s) + 0.001)
        return waited_s

    def complete(self, erasure, steps=30):
        """Run whenever something is due, until the erasure ended."""
        for _ in range(steps):
            self.workflow.run(erasure)
            if self.shown(erasure)["next_at"] is None:
                break
            self.time_comes(erasure)
        assert self.state(erasure) == "completed"

    def shown(self, erasure):
        return self.store.queries.show(erasure)

    def state(self, erasure):
        return self.shown(erasure)["state"]

    def kinds(self, erasure):
        return [line["entry"] for line in self.store.parsed() if line["erasure"] == erasure]

    def is_accepted(self, user_id=USER):
        """Report an event of a person; return whether it was stored."""
        before = self.flow.counts().get("suppressed", 0)
        self.flow.append(1, user_id)
        return self.flow.counts().get("suppressed", 0) == before


@pytest.fixture
def url(request):
    """SQLite, unless a test asks for both."""
    return request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_url")


@pytest.fixture
def erasures_on(flow):
    """Return a function that makes them on a store of the test's own."""
    with ExitStack() as closing:

        def make(store):
            erasures = Erasures(flow, store)
            closing.callback(lambda: [opened.close() for opened in erasures.opened])
            return erasures

        yield make


@pytest.fixture
def erasures(erasures_on, store):
    yield erasures_on(store)
    verify(store.log)


@pytest.mark.parametrize("delay_s", [0, 60], ids=["at once", "for later"])
def test_the_checkpoint_hook_begins_once_the_fence_is_up(flow, erasures_on, url, tmp_path, delay_s):
    """A slow hook between the commit and the fence would leave the person tracked meanwhile."""
    fenced = []
    store = Store(url, tmp_path, hook=lambda _: fenced.append(flow.redis.scard("{mm:p}:fence")))
    erasures = erasures_on(store)
    erasures.erasure_service.request(ErasureRequest(USER, "dpo"), delay_s=delay_s)
    if delay_s:
        assert fenced == [0]
        erasures.sweep_after(seconds=delay_s + 1)
        del fenced[0]

    assert fenced[0] == 1


def calls(sandbox):
    return [row for row in sandbox.get("requests") if row["route"] == "/v1/forget"]


def fault(sandbox, **how):
    sandbox.fault(how.pop("kind", "status"), route="/v1/forget", **how)


# From the request to the end.


def test_a_scheduled_erasure_fences_and_purges_at_its_time(make_flow, erasures, sandbox):
    """Until then its person is a customer like any other."""
    flow, identifies = erasures.flow, make_flow("identify")
    erasure = erasures.erasure_service.request(ErasureRequest(USER, "dpo"), delay_s=3600).id
    erasures.sweep_after(seconds=3599)
    assert erasures.state(erasure) == "scheduled"
    assert erasures.is_accepted()
    for lane in (flow, identifies):
        lane.buffer.schedule([Record(lane.body(1), USER, None)], 60_000)
    erasures.sweep_after(seconds=1)
    assert not erasures.is_accepted()
    erasures.complete(erasure)
    removed = erasures.shown(erasure)["removed"]

    places = ("track:scheduled", "identify:scheduled", "track:waiting")
    assert [removed[place] for place in places] == [1, 1, 1]
    assert erasures.kinds(erasure)[:3] == ["received", "started", "fenced"]
    assert len(calls(sandbox)) == 3
    assert "scheduled" not in flow.counts()


def test_a_scheduled_erasure_survives_a_redis_that_is_away_at_its_time(erasures):
    erasure = erasures.erasure_service.request(ErasureRequest(USER, "dpo"), delay_s=60).id
    erasures.time_passes(seconds=60)
    away = erasures.worker(redis=Redis(port=1))
    with pytest.raises(RedisConnectionError):
        away.run(erasure)
    assert erasures.state(erasure) == "received"
    erasures.sweep_after(seconds=2)

    assert not erasures.is_accepted()


@both
def test_an_erasure_is_fenced_purged_called_three_times_and_completed(make_flow, erasures, sandbox):
    """Also on PostgreSQL: the steps are the same, and the log verifies."""
    flow, identifies, backfill = erasures.flow, make_flow("identify"), make_flow("backfill")
    backfill.load = flow.load
    backfill.append(4, USER)
    assert len(flush(backfill.delivery())) == 1
    # In a dead letter, in a batch that waits for its slot, and waiting in all lanes.
    flow.append(1, USER)
    sandbox.fault("close_after_store")
    parking = flow.delivery(park_ambiguous=True)
    send(parking, *flush(parking))
    flow.append(1, OTHER)
    flow.append(1, USER)
    assert len(flush(parking)) == 1
    flow.append(3, USER)
    flow.append(2, OTHER)
    identifies.append(2, USER)
    backfill.append(2, USER)
    backfill.append(1, OTHER)
    erasure = erasures.forget(ticket="GDPR-1093")
    assert erasures.state(erasure) == "fenced"
    assert flow.redis.smembers(KEYS.fence) == {USER_TAG}
    erasures.complete(erasure)
    shown = erasures.shown(erasure)

    assert shown["removed"] == {
        "track:scheduled": 0,
        "track:waiting": 3,
        "track:batches": 1,
        "track:dead": 1,
        "identify:scheduled": 0,
        "identify:waiting": 2,
        "identify:batches": 0,
        "identify:dead": 0,
        "backfill:scheduled": 0,
        "backfill:waiting": 2,
        "backfill:batches": 4,
        "backfill:dead": 0,
        "fence": 0,
    }
    assert flow.counts()["erased"] == 5
    assert identifies.counts()["erased"] == 2
    assert backfill.counts()["erased"] == 6
    sent = [datetime.fromisoformat(one["sent_at"]) - NOW for one in shown["passes"]]
    assert [round(at.total_seconds()) for at in sent] == [0, 900, 87_300]
    assert [(one["status"], one["outcome"]) for one in shown["passes"]] == [
        (200, "acknowledged")
    ] * 3
    assert [one["user_id"] for one in sandbox.get("forgets")] == [USER] * 3
    assert shown["is_wiped"]
    assert erasures.kinds(erasure) == [
        *("received", "fenced", "purged", "quiesced"),
        *("intent", "result", "settling") * 2,
        *("intent", "result", "completed", "wiped"),
    ]
    assert not erasures.is_accepted()
    assert erasures.is_accepted(OTHER)


def test_nothing_is_done_before_it_is_due(erasures, sandbox):
    erasure = erasures.begun()
    for seconds in (0, 450, 449):
        erasures.time_passes(seconds=seconds)
        erasures.workflow.run(erasure)
        erasures.workflow.sweep()
    assert len(calls(sandbox)) == 1
    erasures.sweep_after(seconds=2)

    assert len(calls(sandbox)) == 2


@both
def test_a_sweep_alone_completes_every_erasure(erasures, sandbox):
    """All messages may be lost: nothing ever calls `run`."""
    ids = [erasures.forget(f"person-{n}") for n in range(5)]
    for wait_s in PASSES_S:
        erasures.time_passes(seconds=wait_s + 1)
        # One sweep works for a few seconds at most; the next one continues.
        for _ in ids:
            erasures.workflow.sweep()

    assert {erasures.state(one) for one in ids} == {"completed"}
    assert len(calls(sandbox)) == 15


@both
def test_two_workers_at_the_same_erasure_make_each_call_once(erasures, sandbox):
    """One has the claim; the other finds it taken."""
    erasure = erasures.forget()
    shared = erasures.store
    others = [Store(shared.url, shared.folder, clock=lambda: erasures.now) for _ in range(3)]
    workers = [erasures.worker(store=other) for other in others]
    with ThreadPoolExecutor() as pool:
        for wait_s in PASSES_S:
            erasures.time_passes(seconds=wait_s + 1)
            list(pool.map(lambda worker: worker.run(erasure), workers))

    assert erasures.state(erasure) == "completed"
    assert len(calls(sandbox)) == 3


# One scan for all that are due.


class CountedPurge(Purge):
    """Notes the persons of each scan, and whether it looked at what waits."""

    scans = ()
    whole = ()

    def scan(self, subjects, keep_alive=lambda: None, **how):
        self.scans += (len(subjects),)
        self.whole += (not how["is_again"],)
        return super().scan(subjects, keep_alive, **how)


@pytest.mark.parametrize("are_fenced", [True, False])
def test_one_scan_serves_all_erasures_that_are_due(erasures, are_fenced):
    """100 erasures beside 600 000 waiting events took 95 s, a scan after the other."""
    flow, service = erasures.flow, erasures.erasure_service
    for n in range(6):
        flow.append(n + 1, f"person-{n}")
    if not are_fenced:
        away = Redis(port=1, retry=None)
        erasures.erasure_service = erasures.service(erasures.fence_sync_on(away, erasures.store))
    ids = [erasures.forget(f"person-{n}") for n in range(6)]
    erasures.erasure_service = service
    worker = erasures.worker(purge=CountedPurge)
    for _ in ids:
        worker.sweep()

    assert worker.purge.scans == (6, 6)
    assert worker.purge.whole == (True, False)
    assert {erasures.state(one) for one in ids} == {"settling"}
    removed = [erasures.shown(one)["removed"]["track:waiting"] for one in ids]
    assert removed == [1, 2, 3, 4, 5, 6]
    entries = ["received", "fenced", "purged", "quiesced", "intent", "result", "settling"]
    assert all(erasures.kinds(one) == entries for one in ids)


def test_a_run_scans_for_the_others_too_and_leaves_their_calls_to_their_own(erasures, sandbox):
    first, second = erasures.forget("person-1"), erasures.forget("person-2")
    worker = erasures.worker(purge=CountedPurge)
    worker.run(first)
    assert (erasures.state(first), erasures.state(second)) == ("settling", "quiesced")
    worker.run(second)

    assert erasures.state(second) == "settling"
    # One scan, since it found nothing of them.
    assert worker.purge.scans == (2,)
    assert len(calls(sandbox)) == 2


def test_an_attempt_of_one_person_does_not_hold_up_the_erasure_of_another(erasures):
    admitted(erasures.flow, OTHER, USER)
    held, free = erasures.forget(USER), erasures.forget("person-2")
    erasures.workflow.sweep()

    assert (erasures.state(held), erasures.state(free)) == ("purged", "settling")


def test_a_scan_does_not_take_an_erasure_that_another_worker_has(erasures):
    first, second = erasures.forget("person-1"), erasures.forget("person-2")
    claim = erasures.store.steps.claim(second, erasures.now, LEASE_S)
    worker = erasures.worker(purge=CountedPurge)
    worker.run(first)

    assert worker.purge.scans == (1,)
    assert erasures.state(second) == "fenced"
    assert erasures.store.steps.extend(claim, erasures.now, LEASE_S)


def test_more_ids_than_one_scan_takes_are_scanned_apart(erasures):
    for n in range(3):
        ids = tuple(f"device-{n}-{i}" for i in range(499))
        erasures.forget(f"person-{n}", anonymous_ids=ids)
    worker = erasures.worker(purge=CountedPurge)
    for _ in range(3):
        worker.sweep()

    assert set(worker.purge.scans) == {1, 2}


def test_when_redis_goes_away_in_a_scan_all_its_erasures_are_due_again_soon(erasures):
    """A claim that was kept would keep them waiting until its lease expires."""
    ids = [erasures.forget(f"person-{n}") for n in range(2)]

    class Away(Purge):
        def scan(self, *_, **__):
            raise RedisConnectionError

    with pytest.raises(RedisConnectionError):
        erasures.worker(purge=Away).run(ids[0])
    erasures.time_passes(seconds=1.1)
    assert sorted(erasures.store.steps.due(LEASE_S, erasures.now)) == sorted(ids)
    erasures.workflow.sweep()

    assert {erasures.state(one) for one in ids} == {"settling"}


def test_a_new_erasure_goes_before_the_later_calls_of_others(erasures, sandbox):
    """Its first call waited for all of them, and for a rewrite of the AOF each."""
    ids = [erasures.forget(f"person-{n}") for n in range(3)]
    swept(erasures)
    erasures.time_passes(seconds=PASSES_S[1] + 1)
    asked = []

    class Busy(Client):
        def forget(self, user_id):
            if not asked:
                asked.append(erasures.forget("new"))
            return super().forget(user_id)

    erasures.worker(client=erasures.client(kind=Busy)).sweep()

    called = [one["user_id"] for one in sandbox.get("forgets")][len(ids) :]
    assert called[1] == "new"
    assert len(called) == 4


# Quiesce: batches that are being sent.


def admitted(flow, *user_ids):
    """Return a batch of these persons that is being sent, and its attempt."""
    for user_id in user_ids:
        flow.append(1, user_id)
    (batch_id,) = flush(flow.delivery())
    attempt = flow.buffer.begin(batch_id, slot="none", slot_valid_ms=2000, lease_ms=60_000)
    assert isinstance(attempt, Admitted)
    return batch_id, attempt


def test_the_vendor_is_called_after_a_request_on_its_way_has_ended(erasures, sandbox):
    """Called before, the vendor would store the events after the deletion."""
    flow = erasures.flow
    batch_id, attempt = admitted(flow, OTHER, USER)
    erasure = erasures.forget()
    for _ in range(5):
        erasures.workflow.run(erasure)
        assert erasures.time_comes(erasure) == pytest.approx(0.25, abs=0.01)
    assert (erasures.state(erasure), calls(sandbox)) == ("purged", [])
    flow.buffer.ack(batch_id, attempt.generation, token=attempt.token)
    erasures.complete(erasure)

    assert flow.counts()["delivered"] == 2
    assert len(calls(sandbox)) == 3


def test_an_attempt_that_never_ended_is_waited_for_until_its_lease_runs_out(erasures):
    flow = erasures.flow
    admitted(flow, OTHER, USER)
    erasure = erasures.begun()
    assert erasures.state(erasure) == "purged"
    flow.time_passes()
    erasures.complete(erasure)

    assert erasures.shown(erasure)["removed"]["track:batches"] == 1
    assert flow.counts()["leased"] == 1


def test_a_request_without_the_persons_events_is_not_waited_for(erasures):
    flow = erasures.flow
    admitted(flow, OTHER, OTHER)
    erasure = erasures.begun()

    assert erasures.state(erasure) == "settling"


def test_events_of_a_failed_attempt_are_removed_and_counted(erasures, sandbox):
    """The batch was being sent when the fence was added, and failed: the next purge finds it."""
    flow = erasures.flow
    flow.append(1, OTHER)
    flow.append(1, USER)
    delivery = flow.delivery()
    (batch_id,) = flush(delivery)
    sandbox.fault("status", status=503, latency_s=0.5)
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(send, delivery, batch_id)
        while not sandbox.get("requests"):
            pass
        erasure = erasures.forget()
        assert sending.result() > 0
    flow.settle(delivery)
    erasures.complete(erasure)

    assert erasures.shown(erasure)["removed"]["fence"] == 1
    assert flow.counts()["delivered"] == 1


# The vendor's answers. In each case the fence stays up.


def meets(erasures, sandbox, **how):
    """Ask for an erasure whose first call meets a fault; return it."""
    fault(sandbox, **how)
    erasure = erasures.begun()
    assert not erasures.is_accepted()
    return erasure


def outcome(erasures, erasure):
    (last,) = erasures.shown(erasure)["passes"]
    return last["status"], last["outcome"]


KEY_REFUSED = {
    "a revoked key": (401, "invalid_api_key"),
    "a key of the wrong kind": (403, "forget_requires_secret_key"),
}


@pytest.mark.parametrize(("status", "code"), KEY_REFUSED.values(), ids=KEY_REFUSED)
def test_a_refused_key_is_waited_for_and_tried_again_by_itself(erasures, sandbox, status, code):
    erasure = meets(erasures, sandbox, status=status, body=json.dumps({"error": code}), times=2)
    assert outcome(erasures, erasure) == (status, f"unauthorized:{code}")
    assert erasures.flow.redis.hget(KEYS.pause, "code").decode() == code
    for made in (1, 2):
        assert erasures.state(erasure) == "waiting_key"
        before = erasures.store.entries()
        erasures.workflow.sweep()
        assert len(calls(sandbox)) == made
        assert erasures.store.entries() == before
        probe_comes(erasures)
        erasures.workflow.sweep()
    assert erasures.state(erasure) == "settling"
    assert not erasures.flow.redis.exists(KEYS.pause)
    erasures.complete(erasure)

    assert [one["attempts"] for one in erasures.shown(erasure)["passes"]] == [3, 1, 1]


def probe_comes(erasures):
    """Let the time of the next probe come."""
    assert erasures.flow.redis.hset(KEYS.pause, "probe_at_ms", 0) == 0


REVOKED = {"status": 401, "body": '{"error":"invalid_api_key"}'}


def test_erasures_that_wait_for_the_key_make_one_call_together_and_all_complete(erasures, sandbox):
    """60 erasures and a revoked key: 493 requests in 24 s, and 1 515 entries."""
    ids = [erasures.forget(f"person-{n}") for n in range(12)]
    fault(sandbox, times=6, **REVOKED)
    swept(erasures)
    assert {erasures.state(one) for one in ids} == {"waiting_key"}
    for made in range(1, 6):
        size = len(erasures.store.entries())
        for _ in range(3):
            erasures.workflow.sweep()
        assert len(calls(sandbox)) == made
        assert len(erasures.store.entries()) == size
        probe_comes(erasures)
        erasures.workflow.sweep()
    # The first erasure may call a second time, with an intent; each other one has one entry.
    waits = [one["erasure"] for one in erasures.store.parsed("waiting_key")]
    assert sorted(waits) == sorted(ids)
    assert len(calls(sandbox)) == 6
    probe_comes(erasures)
    swept(erasures)
    assert {erasures.state(one) for one in ids} == {"settling"}
    for wait_s in PASSES_S[1:]:
        erasures.time_passes(seconds=wait_s + 1)
        swept(erasures)

    assert {erasures.state(one) for one in ids} == {"completed"}
    assert len(calls(sandbox)) == 6 + 3 * 12


def swept(erasures):
    """Sweep until nothing is due: one sweep works for a few seconds at most."""
    for _ in range(20):
        erasures.workflow.sweep()


def test_an_erasure_that_waits_is_not_written(erasures, sandbox):
    meets(erasures, sandbox, **REVOKED)
    written = []
    engine = erasures.store.database._engine  # noqa: SLF001 - sees each statement

    def note(_, __, statement, *___):
        written.extend([statement] * statement.startswith(("UPDATE", "INSERT")))

    event.listen(engine, "before_cursor_execute", note)
    erasures.workflow.sweep()

    assert written == []


def test_a_batch_that_probes_ends_the_wait_of_the_erasures(erasures, sandbox):
    erasure = meets(erasures, sandbox, **REVOKED)
    flow = erasures.flow
    flow.append(4, OTHER)
    assert sent_once(flow) == []
    probe_comes(erasures)
    assert len(sent_once(flow)) == 1
    assert len(sandbox.get("ids")) == 1
    erasures.workflow.sweep()

    assert erasures.state(erasure) == "settling"


def test_an_erasure_probes_for_the_deliveries(erasures, sandbox):
    """Without a worker for deliveries, or without events, nothing else would."""
    flow = erasures.flow
    flow.append(4, OTHER)
    sandbox.fault("status", route="/v1/batch", **REVOKED)
    sent_once(flow)
    assert flow.redis.exists(KEYS.pause)
    erasure = erasures.begun()
    assert (erasures.state(erasure), calls(sandbox)) == ("waiting_key", [])
    probe_comes(erasures)
    erasures.workflow.sweep()
    assert erasures.state(erasure) == "settling"
    sent_once(flow)

    assert len(sandbox.get("ids")) == 4


def sent_once(flow):
    """Flush once, and send what that yields; return the batches."""
    delivery = flow.delivery()
    batches = flush(delivery)
    for batch_id in batches:
        send(delivery, batch_id)
    return batches


def test_a_worker_that_dies_while_it_probes_is_followed_by_another_probe(erasures, sandbox):
    erasure = meets(erasures, sandbox, **REVOKED)
    probe_comes(erasures)
    dying = erasures.worker(client=erasures.client(kind=Dying))
    with pytest.raises(KeyboardInterrupt):
        dying.sweep()
    erasures.time_passes(seconds=LEASE_S + 1)
    erasures.workflow.sweep()
    assert len(calls(sandbox)) == 1
    probe_comes(erasures)
    erasures.workflow.sweep()

    assert erasures.state(erasure) == "settling"


def test_retry_calls_now_although_the_key_is_paused(erasures, sandbox):
    first = meets(erasures, sandbox, **REVOKED)
    second = erasures.begun(user_id=OTHER)
    assert {erasures.state(one) for one in (first, second)} == {"waiting_key"}
    erasures.erasure_service.retry(second, "dpo")
    swept(erasures)

    assert calls(sandbox)[1]["status"] == 200
    assert {erasures.state(one) for one in (first, second)} == {"settling"}


def test_a_probe_that_meets_no_vendor_shows_nothing_about_the_key(erasures, sandbox):
    erasure = meets(erasures, sandbox, **REVOKED)
    probe_comes(erasures)
    erasures.worker(client=erasures.client("http://127.0.0.1:1")).sweep()

    assert erasures.flow.redis.hget(KEYS.pause, "kind") == b"unauthorized"
    assert (erasures.state(erasure), erasures.shown(erasure)["next_at"]) == ("waiting_key", None)
    assert outcome(erasures, erasure) == (None, "unavailable:refused")


def test_the_page_of_a_proxy_does_not_stop_the_deliveries(erasures, sandbox):
    erasure = meets(erasures, sandbox, status=403, body="<html>")

    assert erasures.state(erasure) == "retrying"
    assert not erasures.flow.redis.exists(KEYS.pause)
    erasures.time_comes(erasure)
    erasures.complete(erasure)


PASSING = {
    "500": ({"status": 500, "body": '{"error":"forget_failed"}'}, (500, "ambiguous:forget_failed")),
    "502": ({"status": 502, "body": '{"error":"upstream"}'}, (502, "ambiguous:upstream")),
    "a proxy's page": ({"status": 522, "body": "<html>"}, (522, "ambiguous:522")),
    "408": ({"status": 408, "body": "{}"}, (408, "ambiguous:408")),
    "no answer in time": ({"kind": "hang", "for_s": 2}, (None, "ambiguous:timeout")),
    "a connection that ends": ({"kind": "close_before_read"}, (None, "ambiguous:cut")),
    "an answer that ends": ({"kind": "cut_body"}, None),
    "an answer that ends in its headers": ({"kind": "cut_headers"}, None),
}


@pytest.mark.parametrize(("how", "said"), PASSING.values(), ids=PASSING)
def test_a_temporary_failure_is_retried_until_the_vendor_acknowledges(erasures, sandbox, how, said):
    erasure = meets(erasures, sandbox, times=3, **how)
    assert said is None or outcome(erasures, erasure) == said
    waits_s = []
    while erasures.state(erasure) == "retrying":
        waits_s.append(erasures.time_comes(erasure))
        erasures.workflow.sweep()
    erasures.complete(erasure)

    assert len(waits_s) == 3
    assert all(1 <= wait_s <= most for wait_s, most in zip(waits_s, (2, 4, 8), strict=True))
    assert [one["attempts"] for one in erasures.shown(erasure)["passes"]] == [4, 1, 1]


def test_a_vendor_that_refuses_connections_is_tried_again(erasures):
    erasure = erasures.forget()
    erasures.worker(client=erasures.client("http://127.0.0.1:1")).run(erasure)
    assert erasures.state(erasure) == "retrying"
    assert outcome(erasures, erasure) == (None, "unavailable:refused")
    erasures.time_comes(erasure)
    erasures.complete(erasure)


def test_the_delay_of_a_429_is_kept(erasures, sandbox):
    erasure = meets(erasures, sandbox, status=429, headers={"Retry-After": "120"})

    assert erasures.state(erasure) == "retrying"
    assert 120 <= erasures.time_comes(erasure) <= 240


SPOILED = {
    "a page": {"body": "<!doctype html><title>Sign in</title>"},
    "a page with 202": {"status": 202, "body": "<html>"},
    "a body that nobody can decode": {
        "body": '{"ok":true,"queued":true}',
        "headers": {"Content-Encoding": "gzip"},
    },
}


@pytest.mark.parametrize("how", SPOILED.values(), ids=SPOILED)
def test_an_answer_that_a_hop_spoiled_is_asked_for_again_soon(erasures, sandbox, how):
    """It says nothing that a person could judge, and an hour is long for somebody's erasure."""
    erasure = meets(erasures, sandbox, **{"status": 200, **how})

    assert erasures.state(erasure) == "retrying"
    assert erasures.time_comes(erasure) <= 16
    erasures.complete(erasure)


ELSEWHERE = {"Location": "http://127.0.0.1:1/"}
UNEXPECTED = {
    "200 that queued nothing": ({"status": 200, "body": '{"ok":true}'}, "unusable"),
    "200 that says not queued": ({"status": 200, "body": '{"ok":true,"queued":false}'}, "unusable"),
    "200 that is not ok": ({"status": 200, "body": '{"ok":false,"queued":true}'}, "unusable"),
    "202": ({"status": 202, "body": '{"ok":true,"queued":true}'}, "unusable"),
    "404": ({"status": 404, "body": "{}"}, "misdirected:-"),
    "a redirect": ({"status": 308, "body": "{}", "headers": ELSEWHERE}, "misdirected:-"),
    "400": ({"status": 400, "body": '{"error":"invalid_payload"}'}, "rejected:invalid_payload"),
}


@pytest.mark.parametrize(("how", "said"), UNEXPECTED.values(), ids=UNEXPECTED)
def test_an_unexpected_response_waits_for_a_person_or_an_hour(erasures, sandbox, how, said):
    erasure = meets(erasures, sandbox, times=2, **how)
    assert erasures.state(erasure) == "attention"
    assert outcome(erasures, erasure) == (how["status"], said)
    erasures.sweep_after(minutes=30)
    assert erasures.shown(erasure)["passes"][0]["attempts"] == 1
    erasures.sweep_after(minutes=31)
    assert erasures.shown(erasure)["passes"][0]["attempts"] == 2
    assert erasures.state(erasure) == "attention"
    erasures.erasure_service.retry(erasure, "ops")
    erasures.complete(erasure)

    assert erasures.kinds(erasure).count("retried") == 1


def test_a_later_pass_that_fails_is_repeated_and_the_others_are_not(erasures, sandbox):
    erasure = erasures.begun()
    fault(sandbox, status=500)
    erasures.complete(erasure)

    assert [one["attempts"] for one in erasures.shown(erasure)["passes"]] == [1, 2, 1]


@both
def test_a_call_without_a_recorded_result_is_made_again(erasures, sandbox):
    """The worker was killed after the intent; the result of that attempt is unknown."""
    erasure = erasures.forget()
    erasures.time_passes(seconds=1)
    dying = erasures.worker(client=erasures.client(kind=Dying))
    with pytest.raises(KeyboardInterrupt):
        dying.run(erasure)
    assert erasures.store.steps.due(LEASE_S, erasures.now) == []
    erasures.time_passes(seconds=LEASE_S + 1)
    erasures.complete(erasure)

    assert erasures.shown(erasure)["passes"][0]["attempts"] == 2
    assert erasures.kinds(erasure).count("intent") == 4
    assert erasures.kinds(erasure).count("result") == 3
    assert len(calls(sandbox)) == 3


class Dying(Client):
    """Its process ends at the instant of the call."""

    def forget(self, user_id):  # noqa: ARG002 - as its base
        raise KeyboardInterrupt


class Unlucky(Client):
    """The audit database is unavailable for a second while the vendor answers."""

    def forget(self, user_id):
        answer = super().forget(user_id)
        aside = self.path.with_name("aside")
        self.path.rename(aside)
        self.path.mkdir()
        threading.Timer(1, lambda: (self.path.rmdir(), aside.rename(self.path))).start()
        return answer


def test_an_answer_is_noted_although_the_database_was_away_for_a_while(erasures, sandbox, store):
    """Real time: an intent without a result is a call with an unknown end."""
    erasure = erasures.forget()
    client = erasures.client(kind=Unlucky)
    client.path = store.folder / "audit.sqlite"
    erasures.worker(client=client).run(erasure)

    assert erasures.state(erasure) == "settling"
    assert len(calls(sandbox)) == 1


# What people may do.


def test_events_of_a_person_are_accepted_again_after_lift(erasures):
    erasure = erasures.forget(anonymous_ids=(VISITOR,))
    with pytest.raises(IllegalTransition):
        erasures.erasure_service.lift(erasure, "dpo")
    erasures.complete(erasure)
    assert not erasures.is_accepted()
    erasures.erasure_service.lift(erasure, "dpo")

    assert erasures.is_accepted()
    assert erasures.flow.redis.scard(KEYS.fence) == 0
    assert erasures.state(erasure) == "lifted"


def test_in_mode_once_events_are_accepted_again_after_completion(erasures):
    erasure = erasures.begun(mode="once")
    assert not erasures.is_accepted()
    for _ in PASSES_S[1:]:
        erasures.time_comes(erasure)
        assert not erasures.is_accepted()
        erasures.workflow.run(erasure)

    assert erasures.state(erasure) == "completed_once"
    assert erasures.is_accepted()


def test_a_sweep_lowers_the_fence_once_for_all_that_completed_in_mode_once(erasures, caplog):
    """30 completions loaded the whole fence 30 times."""
    caplog.set_level(logging.INFO)
    ids = [erasures.forget(f"person-{n}", mode="once") for n in range(3)]
    erasures.workflow.sweep()
    for wait_s in PASSES_S[1:]:
        caplog.clear()
        erasures.sweep_after(seconds=wait_s + 1)

    assert {erasures.state(one) for one in ids} == {"completed_once"}
    assert erasures.flow.redis.scard(KEYS.fence) == 0
    assert caplog.messages.count("fences_loaded") == 1


ENDS = {
    "cancelled": lambda service, erasure, _: service.cancel(erasure, "dpo"),
    "rejected": lambda service, erasure, _: service.cancel(
        erasure, "dpo", "rejected", outcome="not_verified"
    ),
    "duplicate_of": lambda service, erasure, of: service.cancel(
        erasure, "dpo", "duplicate_of", original=of
    ),
}


@pytest.mark.parametrize(("state", "end"), ENDS.items(), ids=ENDS)
def test_an_erasure_that_ends_before_the_first_call_lowers_the_fence(erasures, sandbox, state, end):
    original = erasures.forget("another")
    erasure = erasures.forget()
    assert not erasures.is_accepted()
    end(erasures.erasure_service, erasure, original)
    erasures.workflow.run(erasure)

    assert erasures.state(erasure) == state
    assert erasures.shown(erasure)["is_wiped"]
    assert erasures.is_accepted()
    assert not erasures.is_accepted("another")
    assert calls(sandbox) == []


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_after_the_first_call_an_erasure_cannot_be_cancelled(erasures, sandbox, end):
    """The vendor may be deleting already; the fence must stay for the passes to come."""
    original = erasures.forget("another")
    erasure = meets(erasures, sandbox, status=500)
    with pytest.raises(IllegalTransition):
        end(erasures.erasure_service, erasure, original)

    assert not erasures.is_accepted()
    erasures.time_comes(erasure)
    erasures.complete(erasure)


@both
def test_two_requests_while_open_are_one_erasure_with_both_tickets(erasures, sandbox):
    first, second = erasures.request(ticket="T-1"), erasures.request(ticket="T-2")
    erasures.complete(first.id)

    assert second[:2] == (first.id, True)
    assert erasures.shown(first.id)["tickets"] == ["T-1", "T-2"]
    assert erasures.forget(ticket="T-3") != first.id
    assert len(calls(sandbox)) == 3


def test_new_anonymous_ids_are_fenced_purged_and_followed_by_all_passes_again(erasures, sandbox):
    """Their events may have reached the vendor under the user's id as well."""
    erasure = erasures.begun()
    assert erasures.state(erasure) == "settling"
    flow = erasures.flow
    flow.buffer.append([Record(flow.body(n), None, VISITOR) for n in range(3)])
    assert erasures.request(anonymous_ids=(VISITOR,))[:2] == (erasure, True)
    assert flow.redis.smembers(KEYS.fence) == {USER_TAG, VISITOR_TAG}
    erasures.complete(erasure)
    passes = erasures.shown(erasure)["passes"]

    assert erasures.shown(erasure)["removed"]["track:waiting"] == 3
    assert [(one["round"], one["n"]) for one in passes] == [(1, 1), (2, 1), (2, 2), (2, 3)]
    assert len(calls(sandbox)) == 4


@pytest.mark.parametrize(("percent", "days"), [(50, 15), (80, 23), (100, 29)])
def test_each_mark_of_a_deadline_is_logged_once(erasures, sandbox, caplog, percent, days):
    """February has 28 days: an erasure of 31 January is due on the 28th."""
    erasure = meets(erasures, sandbox, status=404, body="{}", times=9)
    erasures.time_passes(days=days)
    with caplog.at_level(logging.WARNING):
        erasures.workflow.sweep()
        erasures.workflow.sweep()
    found = [one for one in caplog.records if one.getMessage().startswith("erasure_deadline")]

    assert [(one.erasure, one.percent) for one in found] == [(erasure, percent)]
    assert USER not in caplog.text


# Redis and SQL, each without the other.


@pytest.fixture
def away():
    """A client of a server that does not run."""
    client = Redis(port=1, retry=None)
    yield client
    client.close()


def test_without_redis_a_request_is_accepted_and_the_next_sweep_adds_the_fence(erasures, away):
    service = erasures.service(erasures.fence_sync_on(away, erasures.store))
    accepted = service.request(ErasureRequest(USER, "dpo"))
    assert not accepted.is_fenced
    assert erasures.flow.redis.scard(KEYS.fence) == 0
    erasures.workflow.sweep()

    assert not erasures.is_accepted()
    assert erasures.state(accepted.id) == "settling"


def test_a_worker_without_redis_gives_the_erasure_back_for_a_second_later(erasures, away, sandbox):
    erasure = erasures.forget()
    lost = erasures.worker(redis=away)
    with pytest.raises(RedisConnectionError):
        lost.run(erasure)
    assert erasures.time_comes(erasure) == pytest.approx(1, abs=0.01)
    lost.sweep()
    assert calls(sandbox) == []
    erasures.sweep_after(seconds=2)

    assert erasures.state(erasure) == "settling"


def test_a_fence_that_could_not_be_lowered_is_lowered_by_the_next_sweep(erasures, away):
    erasure = erasures.forget()
    service = erasures.service(erasures.fence_sync_on(away, erasures.store))
    service.cancel(erasure, "dpo")
    assert not erasures.is_accepted()
    erasures.workflow.sweep()

    assert erasures.is_accepted()


def test_a_sweep_repairs_a_changed_fence_and_removes_the_draft_of_a_dead_load(erasures):
    """A draft holds tags of persons whose events may be accepted again by then."""
    erasures.completed()
    redis, fence = erasures.flow.redis, erasures.flow.redis.smembers(KEYS.fence)

    def die_while_loading():
        redis.sadd(KEYS.fence_draft, *fence)
        redis.hset(KEYS.fences, mapping={"loading": "of the dead", "loading_ms": 1})

    for change in (
        die_while_loading,
        lambda: redis.delete(KEYS.fence),
        lambda: redis.sadd(KEYS.fence, "x" * 16),
    ):
        erasures.workflow.sweep()
        change()
        erasures.workflow.sweep()

        assert not redis.exists(KEYS.fence_draft)
        assert redis.smembers(KEYS.fence) == fence


def test_an_emptied_redis_sends_nothing_before_the_fences_are_back(erasures, sandbox):
    flow = erasures.flow
    erasures.completed()
    flow.redis.flushdb()
    assert erasures.is_accepted()
    flow.append(2, OTHER)
    flow.settle(flow.delivery())

    assert len(sandbox.get("ids")) == flow.counts()["delivered"] == 2
    assert flow.counts()["erased"] == 1


def test_a_flush_waits_for_the_load_of_another_and_not_for_long(erasures):
    """A flush that finds no fences loaded sends nothing."""
    flow = erasures.flow
    flow.redis.flushdb()
    flow.append(2, OTHER)
    reading, read_on = threading.Event(), threading.Event()

    def read():
        reading.set()
        read_on.wait(30)
        return ()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(Fence(flow.redis, "p").load, erasures.store.session.store_id, read)
        assert reading.wait(30)
        flow.load = partial(erasures.fence_sync.try_load, 0.2)
        assert flush(flow.delivery()) == []
        flow.load = partial(erasures.fence_sync.try_load, 30)
        threading.Timer(0.2, read_on.set).start()

        assert len(flush(flow.delivery())) == 1
        assert other.result()


def test_without_sql_nothing_is_sent_and_the_reason_is_noted(erasures, sandbox, tmp_path):
    flow, store = erasures.flow, erasures.store
    (tmp_path / "file").touch()
    broken = Store(f"sqlite:///{tmp_path}/file/audit.sqlite", tmp_path)
    flow.load = erasures.fence_sync_on(flow.redis, broken).try_load
    flow.append(2, OTHER)
    flow.settle(flow.delivery())
    assert flow.redis.hget(KEYS.fences, "why") == b"audit_unavailable"
    assert sandbox.get("requests") == []
    with pytest.raises(AuditUnavailable):
        erasures.service(erasures.fence_sync, broken).request(ErasureRequest(USER, "dpo"))
    flow.load = erasures.fence_sync_on(flow.redis, store).try_load
    flow.settle(flow.delivery())

    assert flow.redis.hget(KEYS.fences, "why") is None
    assert len(sandbox.get("ids")) == 2


def test_another_audit_store_is_refused_and_changes_no_fence(erasures, sandbox, tmp_path):
    """Two hosts with a file each would each lack the fences of the other."""
    erasures.forget()
    (tmp_path / "b").mkdir()
    other = Store(f"sqlite:///{tmp_path}/b/audit.sqlite", tmp_path / "b")
    fence_sync = erasures.fence_sync_on(erasures.flow.redis, other)
    with pytest.raises(ConfigurationError):
        erasures.service(fence_sync, other).request(ErasureRequest("another", "dpo"))
    assert other.queries.listed() == []
    assert not fence_sync.try_load()
    erasures.flow.load = fence_sync.try_load
    erasures.flow.append(1, OTHER)
    erasures.flow.settle(erasures.flow.delivery())

    assert erasures.flow.redis.hget(KEYS.fences, "why") == b"audit_refused"
    assert sandbox.get("ids") == []
    assert erasures.flow.redis.smembers(KEYS.fence) == {USER_TAG}
