"""A person is erased while producers, workers and the vendor go on: real processes throughout."""

import time
from datetime import datetime
from itertools import pairwise

import pytest

from tests.system.erasing import PERSON, holders
from tests.system.processes import FAST

# Admitted a moment before the fence went up, and on its way through a busy machine.
ON_ITS_WAY_S = 0.5

# The person waits, is being sent, is a dead letter, and goes on.

BAD = """
from mm_tasks import identify, track
identify.delay("visitor", "{person}")
track.delay_many([{{"event": "bad", "event_id": f"{{who}}-bad-{{i}}", "user_id": user_id}}
    for i in range(2) for who, user_id in (("theirs", "{person}"), ("other", "u"))])
track.delay_many([{{"event": "good", "event_id": f"{{who}}-good-{{i}}", "user_id": user_id}}
    for i in range(4) for who, user_id in (("theirs", "{person}"), ("other", "u"))])
"""
BULK = """
from mm_tasks import track
track.delay_many([{{"event": "visited", "event_id": f"{{who}}-{{i}}", "user_id": user_id}}
    for i in range(6_000)
    for who, user_id in (("other", f"u{{i}}"), ("theirs", "{person}"))
    if who == "other" or i % 10 == 0])
"""
LIVE = """
import os, time
from pathlib import Path
from mm_tasks import track
n = 0
while not Path("stop").exists():
    at = time.time()
    accepted = [
        track.delay("visited", event_id=f"{who}-live-{n}", user_id=user_id).accepted
        for who, user_id in (("other", f"u{n}"), ("theirs", os.environ["PERSON"]))
    ]
    print(n, at, *map(int, accepted), flush=True)
    n += 1
    time.sleep(0.01)
"""


@pytest.fixture
def busy(stack, mortal, erasing):
    """Everything runs, with two dead letters of the person and two of others."""
    # Otherwise LZF would hide the person's id in a dump or an AOF.
    mortal.redis.config_set("rdbcompression", "no")
    stack.env.update(MM_TASKS_REQUEST_TIMEOUT_S="10", MM_TASKS_LEASE_S="30")
    stack.env.update(MM_TASKS_BATCH_EVENTS_MAX="100", MM_TASKS_BATCH_RATE_PER_S="6")
    stack.env["MM_TASKS_ERASURE_PASSES_S"] = "0,2,4"
    stack.sandbox("--no-limits", "--forget-lag-s", "1.5")
    refused = '{"error":"invalid_payload"}'
    stack.fault({"kind": "status", "status": 400, "body": refused, "poison": True, "event": "bad"})
    stack.worker_and_beat(*FAST)
    stack.produce(BAD.format(person=PERSON))
    stack.wait(lambda: stack.get("summary")["identifies"])
    stack.wait(lambda: erasing.counts()["dead"] == 4)
    return stack


def test_a_person_is_erased_everywhere_while_everything_goes_on(busy, mortal, erasing):
    """P6, and P1: no event of others is lost or doubled, and each is in exactly one count."""
    (busy.log_dir / "live.py").write_text(LIVE)
    live = busy.start("live", "live", PERSON=PERSON)
    busy.produce(BULK.format(person=PERSON))
    holders_before = holders(busy, mortal.redis, PERSON)
    busy.fault({"kind": "slow", "latency_s": 9})
    busy.wait(lambda: busy.get("faults")[0]["hits"])
    receipt = erasing.forget()
    erasing.wait_until_completed(receipt.id)
    (busy.log_dir / "stop").touch()
    live.wait(10)
    erasing.wait_until_all_is_sent()
    counts = erasing.counts_shown()
    journal = erasing.lines("journal")
    calls = [line.split() for line in busy.read(live).splitlines()]
    shown = erasing.shown(receipt.id)

    # One request was under way when the fence went up; none with the person left after it.
    assert receipt.fenced
    theirs = [row for row in journal if any(i.startswith("theirs") for i in row["ids"] if i)]
    (slow,) = (row for row in journal if row["fault"] == "slow")
    assert slow in theirs
    assert slow["at"] < receipt.returned_at < slow["done_at"]
    assert max(row["at"] for row in theirs) < receipt.returned_at + ON_ITS_WAY_S
    refused = [theirs == "0" for _, _, _, theirs in calls]
    assert any(refused)
    assert refused == sorted(refused)
    assert all(theirs == "0" for _, at, _, theirs in calls if float(at) > receipt.returned_at)

    # Every event of the others arrived once.
    others = {f"other-{i}" for i in range(6_000)} | {f"other-live-{call[0]}" for call in calls}
    others |= {f"other-good-{i}" for i in range(4)}
    arrived = [i for row in journal if row["stored"] for i in row["ids"] if i.startswith("other")]
    assert set(arrived) == others
    assert len(arrived) == len(others)

    # The counts add up, and `erased` counts the events that the erasure removed.
    assert counts["dead"] == 2
    assert counts["erased"] == sum(shown["removed"].values())
    assert counts["suppressed"] == sum(refused)
    assert shown["removed"]["track:dead"] == 2
    assert shown["removed"]["track:waiting"] + shown["removed"]["fence"] > 100

    # Three passes, each with intent and result, leave no row, though the vendor deletes late.
    assert erasing.calls(receipt.id) == [(n, "acknowledged") for n in (1, 2, 3)]
    called = [call["at"] for call in erasing.calls_of_forget()]
    due = [datetime.fromisoformat(row["due_at"]).timestamp() for row in shown["passes"]]
    assert all(b - a >= wait_s for (a, b), wait_s in zip(pairwise(called), (2, 4), strict=True))
    assert all(at >= due_at for at, due_at in zip(called, due, strict=True))
    assert slow["done_at"] < called[0]
    busy.wait(lambda: time.time() > called[-1] + 1.5)
    assert not erasing.rows_of(PERSON)

    # Nothing here shows the person, though before keys and files did.
    assert "{mm:default}:dead" in holders_before
    assert any("aof" in name for name in holders_before)
    busy.wait(lambda: erasing.entries(receipt.id)[-1][1] == {"outcome": "rewritten"})
    busy.wait(lambda: not holders(busy, mortal.redis, PERSON), 5)


# How soon the vendor is called, with 50 000 events waiting and requests that take 3 s.

BACKLOG = """
from mm_tasks import track
track.delay_many([{"event": "visited", "user_id": f"u{i}"} for i in range(49_980)]
    + [{"event": "visited", "user_id": f"person-{i % 4}"} for i in range(20)])
"""


@pytest.mark.parametrize(
    ("workers", "batches"),
    [([()], 8), ([("-Q", "mm.deliver,mm.identify"), ("-Q", "mm.forget", "-c", "2")], 4)],
    ids=["a shared worker", "a worker of its own"],
)
def test_a_backlog_does_not_delay_the_call_to_the_vendor(stack, erasing, workers, batches):
    """The purge reads 50 000 records, and all processes of a shared worker are busy.

    `scripts/bench flow forget` measures the delay; this test counts the batches sent before.
    """
    stack.env.update(MM_TASKS_REQUEST_TIMEOUT_S="10", MM_TASKS_LEASE_S="60")
    stack.env["MM_TASKS_FLUSH_INTERVAL_S"] = "1"
    stack.sandbox("--latency-ms", "3000")
    stack.produce(BACKLOG)
    started = [stack.worker(*FAST, *options) for options in workers]
    stack.beat()
    stack.wait(lambda: all(" ready." in stack.read(worker) for worker in started))
    stack.wait(lambda: sum(not request["done_at"] for request in stack.get("requests")) == 4)
    for number in range(2):
        receipt = erasing.forget(f"person-{number}")
        stack.wait(lambda number=number: len(erasing.calls_of_forget()) > number, 30)
        called_at = erasing.calls_of_forget()[number]["at"]
        sent = [request["at"] for request in stack.get("requests")]
        assert receipt.fenced
        assert sum(receipt.returned_at < at < called_at for at in sent) <= batches
    assert erasing.counts()["waiting"] > 500
    erasing.wait_until_completed(receipt.id)
    assert erasing.shown(receipt.id)["removed"]["track:waiting"] == 5
