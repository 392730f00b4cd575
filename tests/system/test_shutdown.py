"""Workers and beat are stopped, recycled and killed while batches are in hand."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mm_tasks.cli import stack as our_stack
from tests.system.books import wait_until_all_is_sent
from tests.system.test_main_job import MANY

POOLS = ["prefork", "threads", "solo"]
LEASE_S = 8
# A soft shutdown waits for half a lease; the rest is for a busy machine.
END_S = 20
BATCH = 100


@pytest.fixture
def busy(stack):
    """Batches of 100 events to a vendor that takes its time: some are always in hand."""
    stack.env.update(
        MM_TASKS_LEASE_S=str(LEASE_S),
        MM_TASKS_REQUEST_TIMEOUT_S="3",
        MM_TASKS_BATCH_EVENTS_MAX=str(BATCH),
    )
    stack.sandbox("--latency-ms", "700")
    return stack


def in_hand(redis):
    """Return how many batches are being sent now."""
    keys = list(redis.scan_iter("{mm:default}:track:batch:*"))
    return sum(redis.hget(key, "state") == b"sending" for key in keys)


def children(process):
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def wait_until_ended(worker, pool, asked):
    """Wait as long as a supervisor has to: see docs/operations.md for both exceptions.

    Celery may add 30 s to the end of `prefork`. It stops `threads` inside of its handler of
    SIGQUIT, which may wait for ever for what it interrupted: that alone is killed.
    """
    try:
        worker.wait(our_stack.END_S if pool == "prefork" else END_S)
    except subprocess.TimeoutExpired:
        if (pool, asked) != ("threads", signal.SIGQUIT):
            raise
        worker.kill()
        worker.wait()


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGQUIT], ids=["SIGTERM", "SIGQUIT"])
def test_a_worker_asked_to_stop_finishes_what_is_in_hand(busy, redis, pool, asked):
    """SIGQUIT is a soft shutdown: its time is longer than a request may take.

    But in the pool `solo` Celery waits inside of the task that it interrupted.
    """
    busy.produce(MANY.format(n=20 * BATCH))
    first, _ = busy.worker("-P", pool), busy.beat()
    busy.wait(lambda: busy.get("summary")["batches"] >= 2 and in_hand(redis))
    first.send_signal(asked)
    second = busy.worker("-P", "threads")
    wait_until_ended(first, pool, asked)
    found = wait_until_all_is_sent(busy, redis)
    summary = busy.get("summary")

    assert second.poll() is None
    assert found["delivered"] == summary["distinct"] == 20 * BATCH
    assert summary["duplicates"] <= BATCH * found["ambiguous"]
    assert found["ambiguous"] <= (pool == "solo" and asked == signal.SIGQUIT)


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_told_twice_stops_at_once_and_repeats_only_what_is_counted(busy, redis, pool):
    """The second signal is a cold shutdown: a request in flight has no one to hear its answer."""
    busy.produce(MANY.format(n=12 * BATCH))
    first, _ = busy.worker("-P", pool), busy.beat()
    busy.wait(lambda: busy.get("summary")["batches"] >= 1 and in_hand(redis))
    first.send_signal(signal.SIGQUIT)
    busy.wait(lambda: "shutdown" in busy.read(first).lower(), 10)
    first.send_signal(signal.SIGQUIT)
    wait_until_ended(first, pool, signal.SIGQUIT)
    busy.worker("-P", "threads")
    found = wait_until_all_is_sent(busy, redis)
    summary = busy.get("summary")

    assert found["delivered"] == summary["distinct"] == 12 * BATCH
    assert summary["duplicates"] <= BATCH * found["ambiguous"]


def test_a_signal_to_the_whole_group_loses_nothing_and_repeats_only_what_is_counted(busy, redis):
    """As systemd stops a service: the pool's processes get the signal too, in mid-request."""
    busy.produce(MANY.format(n=12 * BATCH))
    first, _ = busy.worker("-P", "prefork"), busy.beat()
    busy.wait(lambda: busy.get("summary")["batches"] >= 1 and in_hand(redis))
    for pid in [*children(first), first.pid]:
        os.kill(pid, signal.SIGTERM)
    wait_until_ended(first, "prefork", signal.SIGTERM)
    busy.worker("-P", "threads")
    found = wait_until_all_is_sent(busy, redis)
    summary = busy.get("summary")

    assert found["delivered"] == summary["distinct"] == 12 * BATCH
    assert summary["duplicates"] <= BATCH * found["ambiguous"]


def test_a_pool_process_killed_in_mid_request_costs_one_counted_repeat(busy, redis):
    """As the OOM killer does it: the worker goes on, and the batch is found by its lease."""
    busy.produce(MANY.format(n=12 * BATCH))
    worker, _ = busy.worker("-P", "prefork", "-c", "1"), busy.beat()
    busy.wait(lambda: busy.get("summary")["batches"] >= 1 and in_hand(redis))
    (child,) = children(worker)
    os.kill(child, signal.SIGKILL)
    found = wait_until_all_is_sent(busy, redis)
    summary = busy.get("summary")

    assert worker.poll() is None
    assert found["delivered"] == summary["distinct"] == 12 * BATCH
    assert summary["duplicates"] <= BATCH * found["ambiguous"] <= BATCH


def test_pool_processes_that_are_recycled_lose_and_repeat_nothing(busy, redis):
    """Each process ends after three tasks, its connections and sessions with it."""
    busy.produce(MANY.format(n=20 * BATCH))
    worker, _ = busy.worker("-P", "prefork", "--max-tasks-per-child", "3"), busy.beat()
    busy.wait(lambda: busy.get("summary")["batches"] >= 1)
    at_first = set(children(worker))
    found = wait_until_all_is_sent(busy, redis)

    assert not at_first <= set(children(worker))
    assert found["delivered"] == busy.get("summary")["events"] == 20 * BATCH
    assert found["ambiguous"] == 0


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_delivers_everything_once(busy, redis, pool):
    busy.produce(MANY.format(n=10 * BATCH))
    busy.worker("-P", pool)
    busy.beat()
    found = wait_until_all_is_sent(busy, redis)
    summary = busy.get("summary")

    assert found["delivered"] == summary["events"] == summary["distinct"] == 10 * BATCH
    assert found["ambiguous"] == 0
    assert set(summary["requests"]) == {"/v1/batch 202"}


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_second_beat_goes_on_where_the_first_ended(busy, redis, asked):
    busy.produce(MANY.format(n=10 * BATCH))
    busy.worker("-P", "threads")
    first = busy.beat()
    busy.wait(lambda: busy.get("summary")["batches"] >= 1)
    first.send_signal(asked)
    first.wait(10)
    busy.beat()
    busy.produce(MANY.format(n=5 * BATCH))
    found = wait_until_all_is_sent(busy, redis)

    assert found["delivered"] == busy.get("summary")["events"] == 15 * BATCH
    assert found["ambiguous"] == 0


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_beat_that_is_told_to_end_while_it_publishes_ends(stack, redis, asked):
    beat = stack.beat()
    stack.wait(lambda: redis.llen("mm.deliver"))
    redis.client_pause(3_000, all=False)
    # By then it has published, or waits in it: it does so each second.
    time.sleep(1.5)
    beat.send_signal(asked)

    assert beat.wait(END_S) == 0
    assert "Error" not in stack.read(beat)


def test_two_beats_at_once_do_no_harm(busy, redis):
    """No leader is elected: whoever flushes, a record is claimed once."""
    busy.produce(MANY.format(n=12 * BATCH))
    busy.worker("-P", "threads")
    beats = [busy.beat(), busy.beat()]
    found = wait_until_all_is_sent(busy, redis)
    summary = busy.get("summary")

    assert all(beat.poll() is None for beat in beats)
    assert found["delivered"] == summary["events"] == 12 * BATCH
    assert summary["throttled"] == summary["over_rate"] == 0
