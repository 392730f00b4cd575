"""Redis's clock steps while a worker, beat and a producer go on: a step costs seconds at most."""

import json
import time

import pytest

from tests.stepping import stepping, stepping_server  # noqa: F401 - fixtures
from tests.system.accounting import counts
from tests.system.processes import assert_alive, run

MINUTES_10 = 600
STEPS = (-MINUTES_10, MINUTES_10, -MINUTES_10, -MINUTES_10)


def test_events_arrive_within_seconds_of_each_step_and_the_rate_is_kept(stack, stepping):  # noqa: F811
    """Full batches wait for their slots, and a part-full one waits for more, at each step."""
    stack.env.update(MM_TASKS_REDIS_URL=stepping.url, MM_TASKS_BATCH_EVENTS_MAX="100")
    stack.sandbox("--latency-ms", "100")
    processes = stack.worker_and_beat()
    stack.produce_events(1)
    stack.wait_for_events(1)
    sent = 1
    for by_s in STEPS:
        stack.produce_events(2_050)
        sent += 2_050
        stepping.step(by_s)
        began_s = time.monotonic()
        stack.wait(lambda n=sent: delivered(stepping) >= n, 30)
        # 21 batches take 3 s at 5 requests a second.
        assert time.monotonic() - began_s < 3 + 10

    assert_alive(*processes)
    summary = stack.get("summary")
    assert summary["over_rate"] == 0
    assert not [route for route in summary["requests"] if not route.endswith("202")]
    assert summary["duplicates"] == 0
    shown = json.loads(run(stack.env, "status", "--json").stdout)["clock"]
    assert shown["stepped_s"] == pytest.approx(-MINUTES_10, abs=3)


def delivered(stepping):  # noqa: F811
    return counts(stepping.client)["track:delivered"]
