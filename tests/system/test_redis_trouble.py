"""Redis is full, frozen, emptied or replaced while producers, worker and beat go on.

Nobody is restarted. Each test ends with the books closed: every accepted event is
in exactly one place, and what callers were told is what happened.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from tests.conftest import embedded
from tests.system.books import BATCH, CALL_S, assert_all_go_on, wait_until_all_is_sent
from tests.system.caller import Caller
from tests.system.proxy import Forwarder

# About 1 kB each: enough that delivering them makes room for anything else.
LARGE = """
from mm_tasks import track
track.delay_many({{"event": "noted", "user_id": "u", "properties": {{"text": "x" * 900}}}}
                 for i in range({n}))
"""
LARGE_N = 4000


@pytest.fixture
def servers(stack):
    """Start servers that refuse rather than evict; end what uses them before them."""
    started = []

    def start(**config):
        config = {"maxmemory-policy": "noeviction", **config}
        server = embedded(config={name.replace("_", "-"): v for name, v in config.items()})
        server.start()
        server.redis = Redis(port=server.port)
        started.append(server)
        return server

    yield start
    stack.end()
    for server in started:
        server.redis.close()
        if server._process is not None:  # noqa: SLF001 - `stop` refuses one that was killed
            server.stop()


@pytest.fixture
def lively(stack):
    """Small batches and short leases, so that much happens in little time."""
    stack.env.update(
        MM_TASKS_LEASE_S="8",
        MM_TASKS_REQUEST_TIMEOUT_S="3",
        MM_TASKS_BATCH_EVENTS_MAX=str(BATCH),
    )
    stack.sandbox("--latency-ms", "100")
    return stack


def fill(redis):
    """Store foreign keys until not even a short one has room; return how many."""
    number = 0
    for size in (1 << 16, 1 << 10, 16):
        try:
            while True:
                redis.set(f"foreign:{number}", b"x" * size)
                number += 1
        except OutOfMemoryError:
            pass
    return number


def assert_all_arrived(stack, stored, maybe):
    """What was said to be stored is with the vendor, and nothing that was said not to be."""
    arrived = set(stack.get("ids"))

    assert not set(stored) - arrived
    assert not arrived - set(stored) - set(maybe)


@pytest.fixture
def full(lively, servers):
    """The buffer on a server of its own, beside the broker's, with 4 MB of events waiting."""
    lively.env["MM_TASKS_BROKER_URL"] = lively.env["MM_TASKS_REDIS_URL"]
    server = servers(maxmemory="16mb")
    lively.env["MM_TASKS_REDIS_URL"] = f"redis://127.0.0.1:{server.port}/0"
    lively.env.update(MM_TASKS_BUFFER_BYTES_MAX="8000000", MM_TASKS_BATCH_EVENTS_MAX="500")
    lively.produce(LARGE.format(n=LARGE_N))
    return server


def test_a_full_redis_refuses_new_events_delivers_the_old_and_recovers(lively, full):
    """At maxmemory only a script that begins by freeing may write: all but append do."""
    caller = Caller(lively)
    caller.wait_for("stored")
    fill(full.redis)
    caller.wait_for("full", 20)
    worker, beat = lively.worker(), lively.beat()
    # Delivery makes room, and whoever comes first takes it.
    lively.wait_for_events(LARGE_N)
    caller.wait_for("stored", 20)
    for key in list(full.redis.scan_iter("foreign:*", count=1000)):
        full.redis.unlink(key)
    caller.wait_for("stored", 3 * BATCH)
    said = caller.end()
    found = wait_until_all_is_sent(lively, full.redis)
    summary = lively.get("summary")

    assert worker.poll() is None
    assert beat.poll() is None
    assert not said["maybe"] + said["unavailable"]
    assert found["accepted"] == summary["events"] == LARGE_N + len(said["stored"])
    assert set(said["stored"]) <= set(lively.get("ids"))
    assert summary["duplicates"] == found["ambiguous"] == 0
    assert caller.longest_s() < CALL_S


def test_a_worker_that_runs_when_redis_becomes_full_delivers_what_waits(lively, full):
    """Its connections and scripts are there already; nothing of what it holds is stuck."""
    worker, _ = lively.worker(), lively.beat()
    lively.wait(lambda: lively.get("summary")["batches"] >= 1)
    fill(full.redis)
    found = wait_until_all_is_sent(lively, full.redis)

    assert worker.poll() is None
    assert found["delivered"] == lively.get("summary")["events"] == LARGE_N
    assert found["ambiguous"] == 0


def test_a_frozen_redis_costs_callers_a_second_and_nobody_a_restart(lively, servers):
    """A write that timed out may be applied when Redis goes on: callers are told so."""
    server = servers()
    lively.env["MM_TASKS_REDIS_URL"] = f"redis://127.0.0.1:{server.port}/0"
    worker, beat, caller = lively.worker(), lively.beat(), Caller(lively)
    lively.wait(lambda: lively.get("summary")["batches"] >= 2)
    pid = server.redis.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        caller.wait_for("maybe", 6)
        time.sleep(3)
    finally:
        os.kill(pid, signal.SIGCONT)
    caller.wait_for("stored", 2 * BATCH)
    said = caller.end()
    found = wait_until_all_is_sent(lively, server.redis)
    summary = lively.get("summary")

    assert worker.poll() is None
    assert beat.poll() is None
    assert not said["full"]
    assert_all_arrived(lively, said["stored"], said["maybe"])
    assert found["delivered"] == summary["distinct"]
    assert summary["duplicates"] <= BATCH * found["ambiguous"]
    assert caller.longest_s() < CALL_S


def test_after_flushall_new_events_flow_and_nothing_hangs(lively, servers):
    """Buffer and broker are emptied at once, Celery's bindings and our rate with them."""
    server = servers()
    lively.env["MM_TASKS_REDIS_URL"] = f"redis://127.0.0.1:{server.port}/0"
    worker, beat, caller = lively.worker(), lively.beat(), Caller(lively)
    for _ in range(3):
        caller.wait_for("stored", BATCH)
        server.redis.flushall()
    before = len(caller.said()["stored"])
    caller.wait_for("stored", 3 * BATCH)
    said = caller.end()
    found = wait_until_all_is_sent(lively, server.redis)
    arrived = lively.get("ids")

    assert worker.poll() is None
    assert beat.poll() is None
    assert set(said) == {"stored"}
    # One call may have been on its way when the last of them was emptied.
    assert set(said["stored"][before + 1 :]) <= set(arrived)
    assert len(arrived) == len(set(arrived))
    assert found["accepted"] == found["delivered"]
    assert caller.longest_s() < CALL_S


@pytest.fixture
def replicated(lively, servers):
    """A primary and its replica behind an address that names the primary."""
    # By default a replica waits 5 s for others to come.
    primary, replica = servers(repl_diskless_sync_delay="0"), servers()
    replica.redis.replicaof("127.0.0.1", primary.port)
    lively.wait(lambda: replica.redis.info("replication").get("master_link_status") == "up")
    forwarder = Forwarder(primary.port)
    lively.env["MM_TASKS_REDIS_URL"] = f"redis://127.0.0.1:{forwarder.port}/0"
    yield primary, replica, forwarder
    lively.end()
    forwarder.end()


def replicated_ids(stack, caller, primary, replica):
    """Return what was stored by now, once the replica has it."""
    stored = caller.said()["stored"]
    offset = primary.redis.info("replication")["master_repl_offset"]
    stack.wait(lambda: replica.redis.info("replication")["slave_repl_offset"] >= offset)
    return stored


@pytest.mark.parametrize("broker", ["the same", "another"])
def test_a_failover_to_a_replica_loses_nothing_that_was_replicated(
    lively, replicated, redis_url, broker
):
    """The primary dies; the address names the replica once that is promoted."""
    primary, replica, forwarder = replicated
    if broker == "another":
        lively.env["MM_TASKS_BROKER_URL"] = redis_url
    worker, beat, caller = lively.worker(), lively.beat(), Caller(lively)
    lively.wait(lambda: lively.get("summary")["batches"] >= 2)
    safe = replicated_ids(lively, caller, primary, replica)
    primary.terminate()
    caller.wait_for("maybe", 5)
    replica.redis.replicaof("NO", "ONE")
    forwarder.target = replica.port
    assert_all_go_on(lively, caller, (worker, beat), replica.redis, safe)


@pytest.mark.parametrize("broker", ["the same", "another"])
def test_a_primary_that_becomes_a_replica_is_left_for_the_new_one(
    lively, replicated, redis_url, broker
):
    """A planned failover: the old one lives, keeps its connections and answers READONLY."""
    primary, replica, forwarder = replicated
    if broker == "another":
        lively.env["MM_TASKS_BROKER_URL"] = redis_url
    worker, beat, caller = lively.worker(), lively.beat(), Caller(lively)
    lively.wait(lambda: lively.get("summary")["batches"] >= 2)
    safe = replicated_ids(lively, caller, primary, replica)
    replica.redis.replicaof("NO", "ONE")
    primary.redis.replicaof("127.0.0.1", replica.port)
    # Long enough for worker and beat to meet it too.
    caller.wait_for("unavailable", 2 * BATCH)
    forwarder.target = replica.port
    assert_all_go_on(lively, caller, (worker, beat), replica.redis, safe)
