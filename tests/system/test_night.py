"""A beat without workers, and hosts whose clocks differ: what is asked for is found at once."""

import time

import pytest

from mm_tasks.buffer import heartbeats
from tests.stepping import LIBRARIES
from tests.system.processes import FAST

QUEUES = ("mm.forget", "mm.deliver", "mm.identify")
CALLS = """
from mm_tasks import forget, track
track.delay("e", user_id="u")
forget.delay(user_id="gone", requested_by="dpo")
"""
MESSAGE = """
from mm_tasks import forget
forget.apply_async(("gone too", "dpo"), queue="mm.forget")
"""
# From the worker's first heartbeat.
SECONDS = 5


def has_worker(redis):
    return any(sign.kind == "worker" for sign in heartbeats.read(redis, "default").values())


def assert_all_leaves(stack, erasures=1):
    began_s = time.monotonic()
    stack.wait(lambda: stack.get("summary")["events"] >= 1, 30)
    stack.wait(lambda: len(stack.get("forgets")) >= erasures, 30)

    assert time.monotonic() - began_s < SECONDS


def test_after_a_night_without_workers_the_first_event_and_erasure_leave_at_once(stack, redis):
    stack.env["MM_TASKS_ERASURE_PASSES_S"] = "0"
    stack.sandbox()
    beat = stack.beat()
    stack.wait(lambda: all(map(redis.llen, QUEUES)))
    time.sleep(5)
    assert [redis.llen(queue) for queue in QUEUES] == [1, 1, 1]
    stack.produce(CALLS)
    redis.delete(*QUEUES)  # the hard case: the broker was emptied during the night
    stack.worker("-P", "threads", *FAST)
    stack.wait(lambda: has_worker(redis))

    assert_all_leaves(stack)
    assert beat.poll() is None


def faketime(by):
    """Return the environment of a process whose clock is wrong."""
    # Not by the program of this name: it starts the process as its child, and outlives no signal.
    if not LIBRARIES:
        pytest.skip("no libfaketime: apt-get install libfaketime")
    return {"LD_PRELOAD": str(LIBRARIES[0]), "FAKETIME": by}


@pytest.mark.parametrize("by", ["+3600s", "-3600s"])
def test_a_worker_whose_clock_differs_by_an_hour_works(stack, redis, postgresql_url, by):
    """Its messages expired, and its erasures were due, by clocks of other hosts."""
    stack.env.update(MM_TASKS_ERASURE_PASSES_S="0", MM_TASKS_AUDIT_URL=postgresql_url)
    stack.sandbox()
    stack.beat()
    stack.worker("-P", "threads", *FAST, **faketime(by))
    stack.wait(lambda: has_worker(redis))
    stack.produce(CALLS)

    assert_all_leaves(stack)

    # Its receipt lies in the future of all others.
    stack.env |= faketime("+7200s")
    stack.produce(MESSAGE)
    assert_all_leaves(stack, 2)
