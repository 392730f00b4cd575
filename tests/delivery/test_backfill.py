"""Two lanes of one endpoint, by hand: priority, and the pauses that they share.

Every test ends with the counts of both adding up; the fixture sees to it.
"""

import pytest

from mm_tasks.buffer.records import tag
from mm_tasks.delivery.flush import flush as dispatches
from mm_tasks.delivery.retry import FAILURES_MAX
from mm_tasks.delivery.send import send
from tests.delivery.conftest import BAD, KEYS, flush, flush_and_send, letter_of

LANES = ["track", "backfill"]


class Pair:
    """Both lanes, and a worker that serves the live one first, as a flush does."""

    def __init__(self, make_flow):
        self.flows = {lane: make_flow(lane) for lane in LANES}
        self.live, self.backfill = self.flows.values()
        self.workers = {lane: flow.delivery() for lane, flow in self.flows.items()}

    def flush(self):
        """Return the lane and the id of each batch that is to be sent."""
        return [
            (dispatch.lane, batch_id)
            for worker in self.workers.values()
            for dispatch in dispatches(worker, linger=False)
            for batch_id in dispatch.batch_ids
        ]

    def flush_and_send(self):
        """Return the number of batches."""
        batches = self.flush()
        for lane, batch_id in batches:
            send(self.workers[lane], batch_id)
        return len(batches)

    def settle(self, rounds):
        for _ in range(rounds):
            self.flush_and_send()
            self.time_passes()

    def time_passes(self):
        for flow in self.flows.values():
            flow.time_passes()

    def delivered(self):
        return sum(flow.counts().get("delivered", 0) for flow in self.flows.values())

    def other(self, lane):
        return self.flows["track" if lane == "backfill" else "backfill"]


@pytest.fixture
def pair(make_flow):
    return Pair(make_flow)


def test_a_backfill_goes_to_the_batch_endpoint_as_it_was_appended(pair, sandbox):
    pair.backfill.append(10)
    pair.settle(1)

    assert [row["route"] for row in sandbox.get("requests")] == ["/v1/batch"] * 3
    assert sorted(sandbox.get("ids")) == sorted(f"e{i}" for i in range(10))
    assert pair.backfill.counts()["delivered"] == 10


@pytest.mark.parametrize("kind", ["new", "due for a retry", "forgotten"])
def test_a_backfill_takes_no_slot_while_a_live_batch_is_ready(pair, sandbox, kind):
    """A retry and a batch whose message was lost need a slot as much as a new one does."""
    worker = pair.workers["backfill"]
    pair.backfill.append(4)
    if kind != "new":
        (batch_id,) = flush(worker)
    if kind == "due for a retry":
        sandbox.fault("status", status=500)
        send(worker, batch_id)
    pair.backfill.time_passes()
    pair.live.append(4)

    assert flush(worker) == []
    assert [lane for lane, _ in pair.flush()] == ["track", "backfill"]


def test_a_backfill_waits_for_a_late_live_batch_too(pair):
    """Workers do not keep up then, and more messages would delay it further."""
    pair.backfill.append(4)
    pair.live.append(4)
    ((_, batch_id), *_) = pair.flush()
    pair.backfill.append(4)
    pair.live.redis.zadd(pair.live.keys.claimed, {batch_id: 1})

    assert flush(pair.workers["backfill"]) == []


def test_a_lingering_part_full_live_batch_does_not_delay_a_backfill(pair):
    """It needs no slot yet."""
    pair.live.append(3)
    pair.backfill.append(4)

    assert len(flush(pair.workers["backfill"])) == 1


@pytest.mark.parametrize("lane", LANES)
def test_a_429_of_one_lane_stops_both(pair, sandbox, lane):
    """It is one route of the vendor and one bucket."""
    sandbox.fault("status", status=429, headers={"Retry-After": "60"})
    pair.flows[lane].append(4)
    assert pair.flush_and_send() == 1
    pair.other(lane).append(4)

    assert pair.flush() == []
    pair.settle(2)
    assert pair.delivered() == 8


@pytest.mark.parametrize("lane", LANES)
def test_an_outage_seen_by_one_lane_stops_both_and_one_probe_is_for_both(pair, sandbox, lane):
    sandbox.fault("status", status=503, times=FAILURES_MAX)
    pair.flows[lane].append(4 * FAILURES_MAX)
    pair.flush_and_send()
    pair.other(lane).append(4)
    assert pair.flush() == []
    pair.time_passes()

    ((probing, probe),) = pair.flush()
    assert pair.flush() == []
    send(pair.workers[probing], probe)
    assert not pair.live.redis.exists(pair.live.keys.outage)
    pair.settle(3)
    assert pair.delivered() == 4 * FAILURES_MAX + 4


@pytest.mark.parametrize("lane", LANES)
def test_consecutive_failures_of_both_lanes_are_counted_together(pair, sandbox, lane):
    sandbox.fault("status", status=503, times=FAILURES_MAX)
    first = pair.flows[lane]
    first.append(4 * (FAILURES_MAX - 1))
    pair.flush_and_send()
    for batch_id in first.redis.zrange(first.keys.leases, 0, -1):
        first.redis.zincrby(first.keys.leases, 5000, batch_id)  # no retry is due meanwhile
    pair.other(lane).append(4)
    assert pair.flush_and_send() == 1

    assert pair.live.redis.exists(pair.live.keys.outage)


@pytest.mark.parametrize("lane", LANES)
def test_an_event_that_a_filter_refuses_is_compared_with_the_other_lane(pair, sandbox, lane):
    """Otherwise a lane with only that event would stop both for ever."""
    pair.flows[lane].append_bodies([BAD])
    sandbox.fault("status", status=404, body="<html>", poison=True, event="bad")
    pair.settle(3)
    assert pair.live.redis.hget(pair.live.keys.outage, "kind") == b"filtered"
    pair.other(lane).append(4)
    pair.settle(1)
    assert not pair.live.redis.exists(pair.live.keys.outage)
    pair.settle(3)
    reason, _, record = letter_of(pair.live.redis)

    assert b'"bad"' in record
    assert reason["reason"] == "filtered"
    assert pair.delivered() == 4
    assert not pair.live.redis.exists(KEYS.pause, pair.live.keys.outage)


@pytest.mark.parametrize(("lane", "wait_ms"), [("track", b"60000"), ("backfill", b"1000")])
def test_an_import_that_is_refused_as_a_whole_stops_live_events_shortly(
    pair, sandbox, lane, wait_ms
):
    """A batch of the live lane tells a new rule of the vendor from a bad import."""
    sandbox.fault("status", status=400, body='{"error":"invalid_payload"}', times=10_000)
    flow, worker = pair.flows[lane], pair.workers[lane]
    flow.append(40)
    for _ in range(60):
        flush_and_send(worker)
        if flow.redis.exists(flow.keys.outage):
            break
        flow.time_passes()

    assert flow.redis.hmget(flow.keys.outage, "kind", "wait_ms") == [b"rejected", wait_ms]
    sandbox.post("faults")
    pair.settle(60)


def test_a_fenced_person_is_in_no_backfill(pair, sandbox):
    """P6 holds for each lane: at append, at claim and when the attempt is admitted."""
    theirs = [b'{"event":"old","event_id":"theirs","user_id":"u"}']
    pair.backfill.append(3)
    pair.backfill.append_bodies(theirs, "u")
    ((lane, claimed),) = pair.flush()
    pair.backfill.append(3)
    pair.backfill.append_bodies(theirs, "u")
    pair.live.redis.sadd(KEYS.fence, tag("p", "user", "u"))
    pair.backfill.append_bodies(theirs, "u")
    send(pair.workers[lane], claimed)
    pair.settle(2)

    assert set(sandbox.get("ids")) == {"e0", "e1", "e2"}
    counts = pair.backfill.counts()
    assert (counts["erased"], counts["suppressed"], counts["delivered"]) == (2, 1, 6)
