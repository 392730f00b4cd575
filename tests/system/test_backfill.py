"""Live events beside a backlog that yields to them."""

from __future__ import annotations

from mm_tasks.monitoring import status

BACKLOG = """
from mm_tasks.events.encode import encode_track
from mm_tasks.events.lanes import BACKFILL
from mm_tasks.tasks.receipts import entries, parts
from mm_tasks.runtime import current
events = [encode_track({"event": "imported", "user_id": f"u{i}"}) for i in range(20_000)]
for part in parts(events):
    current().producers[BACKFILL].append(entries(part))
"""
LIVE = """
import time
from mm_tasks import track
for i in range(3):
    track.delay("signed_up", event_id=f"live-{i}", user_id="u")
    time.sleep(1)
"""


def test_live_events_overtake_a_backlog(stack, redis):
    """A hundred batches wait: 20 s at the permitted rate. `scripts/bench` measures the delay."""
    stack.env["MM_TASKS_BATCH_EVENTS_MAX"] = "200"
    stack.sandbox()
    stack.produce(BACKLOG)
    stack.worker_and_beat()
    stack.wait_for_batches(5)
    stack.produce(LIVE)
    stack.wait(lambda: sum(str(id_).startswith("live-") for id_ in stack.get("ids")) == 3)
    counts = status.read(redis, "default")["counts"]
    summary = stack.get("summary")

    assert counts["waiting"] > 0
    assert counts["accepted"] == 20_003
    assert counts["accepted"] == sum(counts[place] for place in ("waiting", "leased", "delivered"))
    assert (summary["duplicates"], summary["over_rate"], summary["throttled"]) == (0, 0, 0)
