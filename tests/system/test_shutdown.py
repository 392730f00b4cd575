"""Workers and beat are stopped, recycled and killed while batches are in hand."""

import os
import signal
import subprocess
import time

import pytest

from mm_tasks.cli import stack as our_stack
from tests.system.accounting import wait_until_delivered
from tests.system.processes import BATCH, assert_alive, children

# A soft shutdown waits for half a lease; the rest is for a busy machine.
END_S = 20
POOLS = ["prefork", "threads", "solo"]
each_pool = pytest.mark.parametrize("pool", POOLS)
EVENTS = 20 * BATCH


@pytest.fixture
def busy(stack):
    """A vendor so slow that some batches are always in hand, and events that wait."""
    stack.sandbox_of_small_batches(700)
    stack.produce_events(EVENTS)
    return stack


def worker_in_mid_request(busy, redis, *options, after_batches=1):
    """Start a worker and beat, and wait until some batches are delivered and one is being sent."""
    worker, _ = busy.worker_and_beat("-P", *options)

    def is_sending():
        keys = list(redis.scan_iter("{mm:default}:track:batch:*"))
        return any(redis.hget(key, "state") == b"sending" for key in keys)

    busy.wait(lambda: busy.get("summary")["batches"] >= after_batches and is_sending())
    return worker


def wait_until_ended(worker, pool, signal_number):
    """Wait as long as a supervisor has to; docs/operations.md describes both exceptions.

    Celery may add 30 s to the end of `prefork`. It stops `threads` inside its handler of
    SIGQUIT, which may wait for ever for the code that it interrupted: kill that alone.
    """
    try:
        worker.wait(our_stack.END_S if pool == "prefork" else END_S)
    except subprocess.TimeoutExpired:
        if (pool, signal_number) != ("threads", signal.SIGQUIT):
            raise
        worker.kill()
        worker.wait()


@each_pool
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT], ids=["SIGTERM", "SIGQUIT"])
def test_a_worker_told_to_stop_finishes_the_batches_in_hand(busy, redis, pool, number):
    """SIGQUIT is a soft shutdown, which takes longer than a request may.

    But in the pool `solo` Celery waits inside the task that it interrupted.
    """
    first = worker_in_mid_request(busy, redis, pool, after_batches=2)
    first.send_signal(number)
    second = busy.worker("-P", "threads")
    wait_until_ended(first, pool, number)
    account = wait_until_delivered(busy, redis, EVENTS)

    assert_alive(second)
    assert account["ambiguous"] <= (pool == "solo" and number == signal.SIGQUIT)


def stop_twice(busy, worker):
    """A cold shutdown: nobody receives the answer to a request in flight."""
    worker.send_signal(signal.SIGQUIT)
    busy.wait(lambda: "shutdown" in busy.read(worker).lower(), 10)
    worker.send_signal(signal.SIGQUIT)
    return signal.SIGQUIT


def stop_group(_, worker):
    """As systemd stops a service: processes of the pool get the signal too, in mid-request."""
    for pid in [*children(worker), worker.pid]:
        os.kill(pid, signal.SIGTERM)
    return signal.SIGTERM


def kill(_, worker):
    worker.kill()
    return signal.SIGKILL


STOPS = [(stop_twice, pool) for pool in POOLS] + [(stop_group, "prefork"), (kill, "prefork")]


@pytest.mark.parametrize(("stop", "pool"), STOPS)
def test_a_worker_stopped_at_once_loses_nothing_and_repeats_only_counted_batches(
    busy, redis, stop, pool
):
    worker = worker_in_mid_request(busy, redis, pool)
    wait_until_ended(worker, pool, stop(busy, worker))
    busy.worker("-P", "threads")

    wait_until_delivered(busy, redis, EVENTS)


def test_a_pool_process_killed_in_mid_request_costs_one_counted_repeat(busy, redis):
    """As the OOM killer does it: the worker goes on, and the lease of the batch expires."""
    worker = worker_in_mid_request(busy, redis, "prefork", "-c", "1")
    (child,) = children(worker)
    os.kill(child, signal.SIGKILL)
    account = wait_until_delivered(busy, redis, EVENTS)

    assert_alive(worker)
    assert account["ambiguous"] <= 1


def test_pool_processes_that_are_recycled_lose_and_repeat_nothing(busy, redis):
    """Each process ends after three tasks, and with it its connections and sessions."""
    worker, _ = busy.worker_and_beat("-P", "prefork", "--max-tasks-per-child", "3")
    busy.wait_for_batches(1)
    at_first = set(children(worker))
    account = wait_until_delivered(busy, redis, EVENTS)

    assert not at_first <= set(children(worker))
    assert account["ambiguous"] == 0


@each_pool
def test_every_pool_delivers_everything_once(busy, redis, pool):
    busy.worker_and_beat("-P", pool)
    account = wait_until_delivered(busy, redis, EVENTS)

    assert account["ambiguous"] == 0
    assert set(busy.get("summary")["requests"]) == {"/v1/batch 202"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_second_beat_goes_on_where_the_first_ended(busy, redis, number):
    _, first = busy.worker_and_beat("-P", "threads")
    busy.wait_for_batches(1)
    first.send_signal(number)
    first.wait(10)
    busy.beat()
    busy.produce_events(5 * BATCH)
    account = wait_until_delivered(busy, redis, EVENTS + 5 * BATCH)

    assert account["ambiguous"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_beat_told_to_end_while_it_publishes_ends(stack, redis, number):
    beat = stack.beat()
    stack.wait(lambda: redis.llen("mm.deliver"))
    redis.client_pause(3_000, all=False)
    # Beat publishes each second: by then it has published, or waits in it.
    time.sleep(1.5)
    beat.send_signal(number)

    assert beat.wait(END_S) == 0
    assert "Error" not in stack.read(beat)


def test_two_beats_at_once_do_no_harm(busy, redis):
    """No leader is elected: whichever beat asks for a flush, a record is claimed once."""
    _, *beats = *busy.worker_and_beat("-P", "threads"), busy.beat()
    wait_until_delivered(busy, redis, EVENTS)
    summary = busy.get("summary")

    assert_alive(*beats)
    assert summary["duplicates"] == summary["throttled"] == summary["over_rate"] == 0
