"""Redis dies and comes back while everything runs: nobody is restarted, nothing is lost."""

from __future__ import annotations

import time

import pytest

from tests.system.accounting import counts
from tests.system.processes import assert_alive


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
