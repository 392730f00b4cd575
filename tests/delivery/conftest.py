"""One process that flushes and sends by hand, and the sandbox as its vendor.

Nothing here sleeps: `Flow.time_passes` moves what Redis holds to the past.
"""

import json
import signal
import subprocess
import sys

import pytest
import requests
from pydantic import SecretStr
from redis import Redis

from mm_tasks.buffer.batches import BatchLimits
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.pauses import Pauses
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.rate_limiter import Limiter
from mm_tasks.client.access import vendor_access
from mm_tasks.client.api import Client
from mm_tasks.delivery.flush import flush as dispatches
from mm_tasks.delivery.send import send
from mm_tasks.delivery.slots import Delivery, Policy
from tests.buffer.lane_buffer import LaneBuffer, assert_adds_up
from tests.conftest import load_fences
from tests.stepping import stepping, stepping_server  # noqa: F401 - fixtures

KEYS = ProjectKeys("p")
SECRET = SecretStr("sk_test_abc_not-a-real-secret")
BAD = b'{"event":"bad","event_id":"x","anonymous_id":"a"}'


class Sandbox:
    """A running sandbox: what it saw, and what goes wrong next."""

    def __init__(self, url):
        self.url = url

    def post(self, name, value=()):
        answer = requests.post(f"{self.url}/_sandbox/{name}", data=json.dumps(value), timeout=5)
        answer.raise_for_status()

    def get(self, name):
        return requests.get(f"{self.url}/_sandbox/{name}", timeout=5).json()

    def fault(self, kind, **how):
        self.post("faults", [{"kind": kind, **how}])

    def bodies(self):
        return [body.encode() for _, body in self.get("bodies")]


class Flow:
    """One lane of project `p` and the workers that serve it."""

    def __init__(self, redis, redis_url, url, lane="track"):
        self.redis = redis
        self.redis_url = redis_url
        self.url = url
        self.lane = lane
        self.keys = KEYS.lane(lane)
        self.opened = []
        self.buffer = self.buffer_on(redis)

    def buffer_on(self, redis, lane=None):
        lane = lane or self.lane
        limits = BatchLimits(1 if lane == "identify" else 4, 1000, linger_ms=60_000)
        return LaneBuffer(redis, "p", lane, limits, held_bytes_max=1 << 20)

    def delivery(self, *, url=None, timeout_s=5.0, **policy):
        """Return the delivery of a worker with connections of its own."""
        redis = Redis.from_url(self.redis_url)
        client = Client(vendor_access(url or self.url, SECRET), request_timeout_s=timeout_s)
        self.opened += [redis, client]
        # So fast that no test waits for a slot; the rate has tests of its own.
        limiter = None if self.lane == "identify" else Limiter(redis, "p", self.lane, 1000, 100)
        sibling = {"track": "backfill", "backfill": "track"}.get(self.lane)
        return Delivery(
            self.buffer_on(redis),
            limiter,
            Pauses(redis, "p", self.lane),
            client,
            Policy(**policy),
            self.load,
            sibling=self.buffer_on(redis, sibling) if sibling else None,
            low_priority=self.lane == "backfill",
        )

    def load(self):
        return load_fences(self.redis)

    def append(self, n, user_id=None):
        self.append_bodies([self.body(i) for i in range(n)], user_id)

    def claim(self, delivery, n=4):
        """Append one batch; return its id once it is claimed."""
        self.append(n)
        (batch_id,) = flush(delivery)
        return batch_id

    def append_bodies(self, bodies, user_id=None):
        self.buffer.append([Record(body, user_id, None) for body in bodies])

    def body(self, i):
        if self.lane == "identify":
            return b'{"anonymous_id":"a%d","user_id":"u%d"}' % (i, i)
        return b'{"event":"signup","event_id":"e%d","anonymous_id":"a"}' % i

    def time_passes(self):
        """Every wait is over: of throttle, pause, retries, leases and lost messages."""
        self.redis.delete(self.keys.throttle)
        for pause in filter(self.redis.exists, (KEYS.pause, self.keys.outage)):
            self.redis.hset(pause, "probe_at_ms", 0)
        for batch_id in map(bytes.decode, self.redis.zrange(self.keys.leases, 0, -1)):
            self.redis.zadd(self.keys.leases, {batch_id: 0})
            self.redis.hdel(self.keys.batch(batch_id), "due_ms")

    def settle(self, delivery, rounds=20):
        """Flush and send until nothing is left to do, with time passing in between."""
        for _ in range(rounds):
            flush_and_send(delivery)
            self.time_passes()

    def counts(self):
        """Return the counts of the lane that are not zero."""
        counts = {name.decode(): int(n) for name, n in self.redis.hgetall(KEYS.counts).items()}
        own = f"{self.lane}:"
        return {k.removeprefix(own): n for k, n in counts.items() if n and k.startswith(own)}

    def close(self):
        for opened in self.opened:
            opened.close()


def flush(delivery):
    """Return the ids of all batches that one flush wants sent, part-full ones too."""
    return [id_ for dispatch in dispatches(delivery, linger=False) for id_ in dispatch.batch_ids]


def flush_and_send(delivery):
    """Return the ids of the batches and the results."""
    ids = flush(delivery)
    return ids, [send(delivery, batch_id) for batch_id in ids]


def letter_of(redis):
    """Return reason, attempts and record of the only dead letter."""
    ((reason, _, record),) = [letter.partition(b"\n") for letter in redis.hvals(KEYS.dead)]
    reason = json.loads(reason)
    return reason, reason.pop("attempts"), record


def requests_seen(sandbox):
    return len(sandbox.get("requests"))


@pytest.fixture(scope="session")
def sandbox_url():
    process = subprocess.Popen(
        [sys.executable, "-m", "mm_tasks.sandbox", "--port", "0", "--no-limits"],
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process.stdout.readline().split()[-1]
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    process.stdout.close()


@pytest.fixture
def sandbox(sandbox_url):
    sandbox = Sandbox(sandbox_url)
    sandbox.post("reset")
    return sandbox


@pytest.fixture
def make_flow(redis, redis_url, sandbox):
    flows = []

    def make(lane="track"):
        flows.append(Flow(redis, redis_url, sandbox.url, lane))
        return flows[-1]

    yield make
    for flow in flows:
        flow.close()
    assert_adds_up(redis)


@pytest.fixture
def flow(make_flow):
    return make_flow()
