"""Redis is killed, full, frozen, emptied or replaced while producers, worker and beat go on.

Nobody is restarted. Each test ends with balanced accounts: every accepted event is in exactly
one place, and each call returned to its caller the truth.
"""

import os
import signal
import time

import pytest
from redis.exceptions import OutOfMemoryError

from tests.system.accounting import counts, wait_until_all_is_sent, wait_until_delivered
from tests.system.caller import Caller, assert_all_go_on
from tests.system.processes import BATCH, assert_alive

# About 1 kB each: enough that their delivery makes room for anything else.
LARGE_N = 4000
LARGE = f"""
from mm_tasks import track
track.delay_many({{"event": "noted", "user_id": "u", "properties": {{"text": "x" * 900}}}}
                 for i in range({LARGE_N}))
"""


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_that_holds_messages_outlives_a_restart_of_redis(stack, mortal, pool):
    """Celery 5.7.0 by itself exits here; the guard is `celery_app.Consumer`.

    Nothing is repeated either: an outcome is recorded once Redis is back.
    """
    stack.env["MM_TASKS_LEASE_S"] = "15"
    stack.sandbox("--latency-ms", "300")
    stack.produce_events(15_000)
    processes = stack.worker_and_beat("-P", pool)
    stack.wait_for_batches(5)
    mortal.terminate()
    time.sleep(1)
    mortal.start()
    stack.wait_for_events(15_000, 90)

    assert_alive(*processes)
    stack.wait(lambda: counts(mortal.redis)["track:delivered"] == 15_000, 40)
    assert stack.get("summary")["duplicates"] == 0


@pytest.fixture
def lively(stack):
    stack.sandbox_of_small_batches(100)
    return stack


def fill(redis):
    """Store foreign keys until not even a short one has room."""
    number = 0
    for size in (1 << 16, 1 << 10, 16):
        try:
            while True:
                redis.set(f"foreign:{number}", b"x" * size)
                number += 1
        except OutOfMemoryError:
            pass


@pytest.fixture
def full(lively, servers):
    """The buffer on a server of its own, beside the broker's, with 4 MB of events waiting."""
    lively.env["MM_TASKS_BROKER_URL"] = lively.env["MM_TASKS_REDIS_URL"]
    server = servers(maxmemory="16mb")
    lively.env.update(MM_TASKS_BUFFER_BYTES_MAX="8000000", MM_TASKS_BATCH_EVENTS_MAX="500")
    lively.produce(LARGE)
    return server


def test_a_full_redis_refuses_new_events_delivers_the_old_and_recovers(lively, full):
    """At maxmemory only a script that begins by freeing may write: all but append do."""
    caller = Caller(lively)
    caller.wait_for("stored")
    fill(full.redis)
    caller.wait_for("full", within_s=20)
    processes = lively.worker_and_beat()
    # Delivery makes room, and any writer may take it.
    lively.wait_for_events(LARGE_N)
    caller.wait_for("stored", within_s=20)
    for key in list(full.redis.scan_iter("foreign:*", count=1000)):
        full.redis.unlink(key)
    caller.wait_for("stored", 3 * BATCH)
    results = caller.end()
    account = wait_until_all_is_sent(lively, full.redis)
    summary = lively.get("summary")

    assert_alive(*processes)
    assert not results["maybe"] + results["unavailable"]
    assert account["accepted"] == summary["events"] == LARGE_N + len(results["stored"])
    assert set(results["stored"]) <= set(lively.get("ids"))
    assert summary["duplicates"] == account["ambiguous"] == 0


def test_a_worker_that_runs_when_redis_becomes_full_delivers_the_waiting_events(lively, full):
    """It has its connections and scripts already; nothing that it holds is stuck."""
    worker, _ = lively.worker_and_beat()
    lively.wait_for_batches(1)
    fill(full.redis)
    account = wait_until_delivered(lively, full.redis, LARGE_N)

    assert_alive(worker)
    assert account["ambiguous"] == 0


def test_a_frozen_redis_costs_callers_a_second_and_nobody_a_restart(lively, servers):
    """Redis may apply a write that timed out when it goes on: its caller is told "maybe".

    Only that one waits for an answer. Later calls are refused at once, or as a connection is made.
    """
    redis = servers().redis
    processes, caller = lively.worker_and_beat(), Caller(lively)
    lively.wait_for_batches(2)
    pid = redis.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        caller.wait_for("maybe")
        caller.wait_for("unavailable", 100)
        time.sleep(3)
    finally:
        os.kill(pid, signal.SIGCONT)
    caller.wait_for("stored", 2 * BATCH)
    results = caller.end()
    account = wait_until_all_is_sent(lively, redis)
    summary, arrived = lively.get("summary"), set(lively.get("ids"))

    assert_alive(*processes)
    assert not results["full"]
    assert set(results["stored"]) <= arrived <= {*results["stored"], *results["maybe"]}
    assert account["delivered"] == summary["distinct"]
    assert summary["duplicates"] <= BATCH * account["ambiguous"]


def test_after_flushall_new_events_flow_and_nothing_hangs(lively, servers):
    """Buffer and broker are emptied at once, Celery's bindings and our rate with them."""
    redis = servers().redis
    processes, caller = lively.worker_and_beat(), Caller(lively)
    for _ in range(3):
        caller.wait_for("stored", BATCH)
        redis.flushall()
    before = len(caller.results()["stored"])
    caller.wait_for("stored", 3 * BATCH)
    results = caller.end()
    account = wait_until_all_is_sent(lively, redis)
    arrived = lively.get("ids")

    assert_alive(*processes)
    assert set(results) == {"stored"}
    # One call may have been under way when Redis was emptied for the last time.
    assert set(results["stored"][before + 1 :]) <= set(arrived)
    assert len(arrived) == len(set(arrived))
    assert account["accepted"] == account["delivered"]


@pytest.fixture
def replicated(lively, servers, tmp_path):
    """A primary and its replica, and a socket whose name leads to the primary."""
    # By default a primary waits 5 s for more replicas.
    primary, replica = (
        servers(unixsocket=str(tmp_path / name), repl_diskless_sync_delay="0") for name in "ab"
    )
    replica.redis.replicaof("127.0.0.1", primary.port)
    lively.wait(lambda: replica.redis.info("replication").get("master_link_status") == "up")
    address = tmp_path / "redis"
    address.symlink_to("a")
    lively.env["MM_TASKS_REDIS_URL"] = f"unix://{address}"
    return primary, replica, address


def the_primary_dies(primary, replica, caller):
    """Its address names the replica once that is promoted."""
    primary.terminate()
    caller.wait_for("unavailable", 5)
    replica.redis.replicaof("NO", "ONE")


def the_primary_becomes_a_replica(primary, replica, caller):
    """A planned failover: the old one lives, keeps its connections and answers READONLY."""
    replica.redis.replicaof("NO", "ONE")
    primary.redis.replicaof("127.0.0.1", replica.port)
    # Long enough that worker and beat receive the answer too.
    caller.wait_for("unavailable", 2 * BATCH)


@pytest.mark.parametrize("broker", ["the same", "another"])
@pytest.mark.parametrize("fail_over", [the_primary_dies, the_primary_becomes_a_replica])
def test_a_failover_to_a_replica_loses_nothing_that_was_replicated(
    lively, replicated, redis_url, fail_over, broker
):
    primary, replica, address = replicated
    if broker == "another":
        lively.env["MM_TASKS_BROKER_URL"] = redis_url
    processes, caller = lively.worker_and_beat(), Caller(lively)
    lively.wait_for_batches(2)
    safe = caller.results()["stored"]
    offset = primary.redis.info("replication")["master_repl_offset"]
    lively.wait(lambda: replica.redis.info("replication")["slave_repl_offset"] >= offset)
    fail_over(primary, replica, caller)
    # Connections that are open stay where they are.
    address.unlink()
    address.symlink_to("b")

    assert_all_go_on(lively, caller, processes, replica.redis, safe)
