"""No script goes through a whole backlog: a long one takes several calls, and nothing is lost.

Sabotages that turn this file red, each tried on a copy:

- claim does not stop at its bound, returns 0 there, or leaves the others behind or in reverse;
- a draft or a fence is removed with DEL, or replaced by RENAME;
- a heartbeat reads all of the others.
"""

from itertools import pairwise

import pytest
from redis import Redis

from mm_tasks.buffer import heartbeats
from mm_tasks.buffer.batches import BatchLimits
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.records import tag
from tests.buffer.lane_buffer import LaneBuffer, assert_adds_up, counts

KEYS = ProjectKeys("p")
WAITING = KEYS.lane("track").waiting
STORE = "a store"
# As `common.lua` has it.
RECORDS_MAX = 2000


class Watched(Redis):
    """Notes how many records wait after each script."""

    def evalsha(self, *args):
        reply = super().evalsha(*args)
        self.lengths.append(self.llen(WAITING))
        return reply


@pytest.fixture
def watched(redis_url, redis):
    Fence(redis, "p").load(STORE, set)
    client = Watched.from_url(redis_url)
    client.lengths = []
    yield client
    client.close()
    assert_adds_up(redis)


@pytest.fixture
def buffer(watched):
    buffer = LaneBuffer(watched, "p", "track", BatchLimits(500, 256_000, 0))
    yield buffer
    buffer.close()


def fill(buffer, user_id, n, size=10):
    for _ in range(0, n, 1000):
        records = [Record(b"x" * size, user_id, None)] * min(n, 1000)
        for i in range(0, len(records), 100):
            buffer.append(records[i : i + 100])


def claimed(buffer):
    """Claim, and return the records of the batch and how many left with each script."""
    lengths = buffer._redis.lengths  # noqa: SLF001 - the client of this test
    lengths[:] = [buffer._redis.llen(WAITING)]  # noqa: SLF001
    batch_id = buffer.claim()
    left = [before - after for before, after in pairwise(lengths)]
    records = KEYS.lane("track").records(batch_id) if batch_id else WAITING
    return buffer._redis.llen(records), left  # noqa: SLF001


@pytest.mark.parametrize("live", [0, 7, 600])
@pytest.mark.parametrize("size", [10, 4000])
def test_a_claim_removes_the_records_of_an_erased_person_in_bounded_parts(
    redis, buffer, size, live
):
    """One call over 800 000 of them held Redis for two seconds."""
    fill(buffer, "bob", 3, size)
    fill(buffer, "anna", 9000, size)
    fill(buffer, "bob", live, size)
    Fence(redis, "p").add([tag("p", "user", "anna")], STORE)
    events, left = claimed(buffer)

    assert events == min(3 + live, 500, 256_000 // (size + 1))
    assert max(left) <= RECORDS_MAX
    assert max(left) * size <= 2_500_000
    assert counts(redis)["track:erased"] == 9000


def test_a_claim_of_erased_records_alone_makes_no_batch(redis, buffer):
    fill(buffer, "anna", 5000)
    Fence(redis, "p").add([tag("p", "user", "anna")], STORE)

    assert claimed(buffer) == (0, [2000, 2000, 1000])
    assert counts(redis)["track:leased"] == 0


def test_a_claim_keeps_the_order_of_the_others_at_its_bound(redis, buffer):
    """They go back to the head between two calls."""
    for i in range(300):
        buffer.append([Record(b"%d" % i, "bob", None), *[Record(b"a", "anna", None)] * 20])
    Fence(redis, "p").add([tag("p", "user", "anna")], STORE)
    batch_id = buffer.claim()

    bodies = buffer.begin(batch_id).bodies
    assert bodies == [b"%d" % i for i in range(300)]


def cut_off(tags):
    """Yield tags as an audit database does that goes away."""
    yield from tags
    raise ConnectionError


def test_a_large_fence_and_a_draft_are_freed_in_the_background(servers):
    """To free a million tags takes half a second."""
    client = servers().client
    for name in ("user", "server"):
        client.config_set(f"lazyfree-lazy-{name}-del", "no")
    tags, fence = [b"%016d" % i for i in range(3000)], Fence(client, "p")
    fence.load(STORE, lambda: tags[:2000])
    fence.load(STORE, lambda: tags)
    with pytest.raises(ConnectionError):
        fence.load(STORE, lambda: cut_off(tags))
    freed = 0
    for _ in range(10_000):
        freed = client.info("memory")["lazyfreed_objects"]
        if freed == 2:
            break

    assert freed == 2
    assert client.scard(KEYS.fence) == 3000


def test_a_heartbeat_looks_at_few_others(redis):
    """Of containers that were replaced each minute for a day; later ones remove the rest."""
    old = {f"worker:{n}": "1 " for n in range(1000)}
    redis.hset(KEYS.heartbeats, mapping=old)
    heartbeats.write(redis, "p", "worker", "here")
    left = redis.hlen(KEYS.heartbeats)
    for _ in range(200):
        heartbeats.write(redis, "p", "worker", "here")

    assert 890 <= left <= 1000
    assert list(heartbeats.read(redis, "p")) == ["worker:here"]


def test_a_user_of_an_earlier_acl_may_do_all_this_too(servers):
    """Without UNLINK and HRANDFIELD: else a new worker would load no fence, and send nothing."""
    server = servers()
    rights = ["+@all", "-unlink", "-hrandfield"]
    server.client.acl_setuser("tenant", enabled=True, nopass=True, keys=["*"], commands=rights)
    with Redis(port=server.port, username="tenant", password="any") as tenant:
        for _ in range(2):
            Fence(tenant, "p").load(STORE, lambda: [b"%016d" % 1])
            heartbeats.write(tenant, "p", "worker", "here")

        assert tenant.scard(KEYS.fence) == 1
        assert list(heartbeats.read(tenant, "p")) == ["worker:here"]
