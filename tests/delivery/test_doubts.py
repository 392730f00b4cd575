"""P3 with batches of 500: what an outage repeats that stores everything and says nothing clear."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from mm_tasks.buffer.batches import BatchLimits
from mm_tasks.delivery.send import send
from tests.buffer.lane_buffer import LaneBuffer
from tests.delivery.conftest import Flow, flush, flush_and_send, requests_seen

EVENTS, UNDER_WAY, LATER = 20_000, 4, 59


class FullBatches(Flow):
    """A lane with batches of 500 events."""

    def buffer_on(self, redis, lane=None):
        limits = BatchLimits(500, 256_000, linger_ms=60_000)
        return LaneBuffer(redis, "p", lane or self.lane, limits)


def test_an_outage_repeats_the_batches_under_way_and_one_event_a_request(redis, redis_url, sandbox):
    """Before, each probe stored its batch again: 31 500 copies, one event 32 times."""
    flow = FullBatches(redis, redis_url, sandbox.url)
    workers = [flow.delivery() for _ in range(UNDER_WAY)]
    for first in range(0, EVENTS, 500):
        flow.append_bodies([flow.body(i) for i in range(first, first + 500)])
    sandbox.fault("status", status=202, body="<html>", store=True, times=10_000)
    with ThreadPoolExecutor(UNDER_WAY) as pool:
        list(pool.map(send, workers, flush(workers[0])[:UNDER_WAY]))
    while requests_seen(sandbox) < UNDER_WAY + LATER:
        flow.time_passes()
        for batch_id in flush(workers[0])[:1]:
            send(workers[0], batch_id)
    sandbox.post("faults")
    while flow.counts().get("leased", 0) + redis.llen(flow.keys.waiting):
        flow.time_passes()
        flush_and_send(workers[0])
    flow.close()

    summary = sandbox.get("summary")
    assert (summary["distinct"], flow.counts()["delivered"]) == (EVENTS, EVENTS)
    assert summary["duplicates"] <= UNDER_WAY * 500 + LATER
    assert max(Counter(sandbox.get("ids")).values()) <= 3
