"""Redis's clock is set forward or back: all arrives within seconds, at the permitted rate.

On a real server whose clock steps; a sandbox is the vendor, and a flush runs every 50 ms.
"""

import time

import pytest

from mm_tasks.buffer import clock, heartbeats
from mm_tasks.buffer.batches import BatchLimits
from mm_tasks.buffer.dead_letters import DeadLetters, Filter
from mm_tasks.buffer.purge import Purge
from mm_tasks.buffer.rate_limiter import Limiter
from mm_tasks.buffer.records import tag
from mm_tasks.delivery.flush import flush as dispatches
from mm_tasks.delivery.send import send
from mm_tasks.monitoring import status
from mm_tasks.sandbox.quota import over_rate
from tests.buffer.lane_buffer import LaneBuffer, assert_adds_up
from tests.delivery.conftest import KEYS, Flow

MINUTES_10 = 600
# A test that waits for 600 s would say so.
SOON_S = 6
STEPS = {
    "back": [-MINUTES_10],
    "forward": [MINUTES_10],
    "forward and back": [MINUTES_10, -MINUTES_10],
    "back, back and back": [-MINUTES_10] * 3,
    "a day forward and back": [86_400, -86_400],
}


class SteppingFlow(Flow):
    """A lane on the server whose clock steps; a part-full batch waits for half a second."""

    def __init__(self, server, url):
        super().__init__(server.client, server.url, url)
        self.server = server
        self.worker = self.delivery(lease_s=2, probe_interval_s=60)

    def buffer_on(self, redis, lane=None):
        limits = BatchLimits(4, 1000, linger_ms=500)
        return LaneBuffer(redis, "p", lane or self.lane, limits)

    def flush_and_send(self):
        """Flush once as beat does, with linger, and send what it yields."""
        for dispatch in dispatches(self.worker):
            for batch_id in dispatch.batch_ids:
                send(self.worker, batch_id)

    def step(self, steps):
        """Take the steps, with a flush before and after each."""
        for by_s in steps:
            self.flush_and_send()
            self.server.step(by_s)
            self.flush_and_send()

    def arrives(self, n):
        """Flush until n events were delivered; return in how many seconds."""
        began_s = time.monotonic()
        while self.counts().get("delivered", 0) < n:
            self.flush_and_send()
            assert time.monotonic() - began_s < 2 * SOON_S, "it waits for Redis's clock"
            time.sleep(0.05)
        return time.monotonic() - began_s


@pytest.fixture
def flow(stepping, sandbox):
    flow = SteppingFlow(stepping, sandbox.url)
    flow.flush_and_send()
    yield flow
    flow.close()
    assert_adds_up(stepping.client)


def waiting(flow, _):
    flow.append(1)
    return 1


def claimed(flow, _):
    flow.append(4)
    list(dispatches(flow.worker))
    return 4


def retried(flow, sandbox):
    sandbox.fault("status", status=500)
    flow.append(4)
    flow.flush_and_send()
    return 4


def paused(flow, sandbox):
    sandbox.fault("status", status=403, body="<html>", times=3)
    flow.append(4)
    while not flow.redis.exists(flow.keys.outage):
        flow.flush_and_send()
    return 4


def throttled(flow, sandbox):
    sandbox.fault("status", status=429, headers={"Retry-After": "1"})
    flow.append(4)
    flow.flush_and_send()
    return 4


def in_doubt(flow, _):
    """Its worker was killed while it sent."""
    flow.append(4)
    ((_, (batch_id,), _),) = dispatches(flow.worker)
    flow.worker.buffer.begin(batch_id, slot="none", lease_ms=2000)
    return 4


PLACES = [waiting, claimed, retried, paused, throttled, in_doubt]


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_whatever_waits_arrives_within_seconds_of_a_step(flow, sandbox, place, steps):
    """Nothing waits for Redis's clock to come back."""
    n = place(flow, sandbox)
    flow.step(steps)

    assert flow.arrives(n) < SOON_S
    assert sorted(set(sandbox.get("ids"))) == [f"e{i}" for i in range(n)]


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_no_step_lets_more_requests_start_than_rate_and_burst(flow, steps):
    """P4 in real time: a full burst, a step, and all that the limiter then allows."""
    rate, burst, starts = 20, 10, []
    limiter, slots = Limiter(flow.redis, "p", "track", rate, burst), []
    limiter.reserve(1)
    time.sleep(burst / rate + 0.1)
    for by_s in (0, *steps, 0):
        flow.server.step(by_s)
        ends_s = time.monotonic() + 0.8
        while time.monotonic() < ends_s:
            slot = limiter.reserve(1)
            slots += [] if slot is None else [slot.start_us]
            now_us = clock.read(flow.redis, "p").now_us
            # `begin` admits an attempt in its slot and up to 2 s later.
            starts += [
                time.monotonic() for start_us in slots if start_us <= now_us < start_us + 2e6
            ]
            slots = [start_us for start_us in slots if start_us > now_us]

    assert len(starts) > burst + rate * 0.8
    assert over_rate(starts, rate, burst + 1) == 0


def test_status_shows_a_step_back(flow):
    before = status.read(flow.redis, "p")
    assert before["clock"] is None
    flow.step([-MINUTES_10])
    shown = status.read(flow.redis, "p")

    assert shown["clock"]["stepped_s"] == pytest.approx(-MINUTES_10, abs=3)
    assert shown["clock"]["at"] == pytest.approx(flow.redis.time()[0], abs=3)


def test_the_age_of_a_waiting_event_goes_on_after_a_step_back(flow):
    flow.append(1)
    time.sleep(0.3)
    flow.step([-MINUTES_10])

    assert 0.3 <= status.read(flow.redis, "p")["oldest_waiting_s"] < SOON_S


def test_a_purge_waits_for_a_stray_request_until_its_lease_ends_and_no_longer(flow):
    """Its batch is gone, since an earlier attempt succeeded late."""
    flow.append(4)
    ((_, (batch_id,), _),) = dispatches(flow.worker)
    first = flow.buffer.begin(batch_id, slot="none", lease_ms=0)
    lapsed = flow.buffer.take_over(batch_id, lease_ms=1000)
    flow.buffer.release(batch_id, lapsed.token, outcome="ambiguous", ambiguous="lease")
    flow.buffer.begin(batch_id, slot="none", lease_ms=1500)
    assert flow.buffer.ack(batch_id, first) == 4
    flow.step([-MINUTES_10])
    person = [tag("p", "user", "u")]

    assert 0 < Purge(flow.redis, "p").scan(person).sending_ms <= 2000
    time.sleep(2)
    assert Purge(flow.redis, "p").scan(person).sending_ms <= 0


def test_heartbeats_keep_their_age_through_a_step(flow):
    heartbeats.write(flow.redis, "p", "worker", "w")
    flow.step([-MINUTES_10])

    assert heartbeats.read(flow.redis, "p")["worker:w"].age_s < SOON_S


def test_a_letter_shows_the_time_of_redis_also_after_a_step(flow):
    flow.server.step(-MINUTES_10)
    flow.append(1)
    ((_, (batch_id,), _),) = dispatches(flow.worker, linger=False)
    attempt = flow.buffer.begin(batch_id, slot="none")
    flow.buffer.bury(batch_id, attempt)
    now_ms = flow.redis.time()[0] * 1000
    chosen = Filter(since_ms=now_ms - 3000, until_ms=now_ms + 3000)
    (letter,) = DeadLetters(flow.redis, "p").letters(chosen)

    assert letter.buried_at_ms == pytest.approx(now_ms, abs=3000)
    assert letter.accepted_at_ms == pytest.approx(now_ms, abs=3000)


def test_status_shows_a_step_forward_that_a_worker_noticed(flow):
    heartbeats.write(flow.redis, "p", "worker", "w")
    flow.step([MINUTES_10])
    heartbeats.write(flow.redis, "p", "worker", "w", elapsed_s=1)

    shown = status.read(flow.redis, "p")["clock"]
    assert shown["stepped_s"] == pytest.approx(MINUTES_10, abs=3)
    assert shown["at"] == pytest.approx(flow.redis.time()[0], abs=3)


def test_a_process_that_wrote_no_heartbeat_for_an_hour_is_no_step(flow):
    heartbeats.write(flow.redis, "p", "worker", "w")
    flow.step([3600])
    for elapsed_s in (None, 3600):
        heartbeats.write(flow.redis, "p", "worker", "w", elapsed_s=elapsed_s)

    assert status.read(flow.redis, "p")["clock"] is None


def test_a_clock_that_is_wrong_for_a_moment_trims_no_dead_letter(flow):
    """A year ahead by mistake, every letter would be older than its bound."""
    flow.append(1)
    ((_, (batch_id,), _),) = dispatches(flow.worker, linger=False)
    flow.buffer.bury(batch_id, flow.buffer.begin(batch_id, slot="none"))
    letters, day_ms = DeadLetters(flow.redis, "p"), 86_400_000
    flow.step([365 * 86_400])
    assert letters.trim(100, 90 * day_ms) == 0
    flow.step([-365 * 86_400])
    assert letters.trim(100, 90 * day_ms) == 0

    flow.redis.hset(KEYS.clock, "leapt_us", 0)
    assert letters.trim(100, 90 * day_ms) == 1
