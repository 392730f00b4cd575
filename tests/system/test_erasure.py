"""A person is erased while producers, workers and the vendor go on: real processes throughout."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

import pytest
import requests
from redis import Redis

from mm_tasks.erasure.audit.verification import verify
from mm_tasks.monitoring import status
from tests.erasure.stores import KEY as PSEUDONYM_KEY
from tests.erasure.stores import Store

PERSON = "person-4f1c-secret"
FAST = ("--without-gossip", "--without-mingle", "--without-heartbeat")
# Admitted a moment before the fence went up, and on its way through a busy machine.
ON_ITS_WAY_S = 0.5

FORGET = """
import json, time
from mm_tasks import forget
called_at = time.time()
receipt = forget.delay({user_id!r}, "dpo", **{how!r})
print(json.dumps([receipt.id, receipt.fenced, receipt.accepted, called_at, time.time()]))
"""


class Asked(NamedTuple):
    """What `forget.delay` returned in a process of its own, and when."""

    id: str
    fenced: bool
    accepted: bool
    called_at: float
    returned_at: float


class Erasing:
    """The stack, and the audit store as its processes have it."""

    def __init__(self, stack):
        self.stack = stack
        stack.env.update(
            MM_TASKS_PSEUDONYM_KEY=PSEUDONYM_KEY,
            MM_TASKS_REQUEST_TIMEOUT_S="1",
            MM_TASKS_LEASE_S="6",
            MM_TASKS_FLUSH_INTERVAL_S="0.5",
            MM_TASKS_LINGER_S="0.5",
            MM_TASKS_ERASURE_PASSES_S="0",
        )

    @property
    def store(self):
        url = self.stack.env.get(
            "MM_TASKS_AUDIT_URL", f"sqlite:///{self.stack.log_dir}/audit.sqlite"
        )
        return Store(url, self.stack.log_dir, "default")

    def forget(self, user_id=PERSON, **how):
        return Asked(*json.loads(self.stack.produce(FORGET.format(user_id=user_id, how=how))))

    def state(self, erasure):
        return self.store.queries.show(erasure)["state"]

    def wait_until_completed(self, *erasures, within_s=60):
        self.stack.wait(lambda: {self.state(one) for one in erasures} == {"completed"}, within_s)
        verify(self.store.log)

    def entries(self, erasure):
        """Return kind and details of the log's entries, in order."""
        lines = map(json.loads, self.store.entries())
        return [(line["entry"], line["details"]) for line in lines if line["erasure"] == erasure]

    def calls(self, erasure):
        """Return what is known of each attempt: its pass, and its outcome, None without one."""
        found = {}
        for kind, details in self.entries(erasure):
            if kind == "intent":
                found[details["attempt"]] = [details["pass"], None]
            elif kind == "result":
                found[details["attempt"]][1] = details["outcome"]
        return list(map(tuple, found.values()))

    def counts(self):
        """Return where every event is."""
        with Redis.from_url(self.stack.env["MM_TASKS_REDIS_URL"]) as redis:
            return status.read(redis, "default")["counts"]

    def counts_shown(self):
        command = [sys.executable, "-m", "mm_tasks.cli", "status", "--json"]
        done = subprocess.run(command, env=self.stack.env, capture_output=True, check=True)
        return json.loads(done.stdout)["counts"]

    def wait_until_all_is_sent(self, within_s=60):
        """Wait, and return the counts, which must add up."""

        def settled():
            counts = self.counts()
            return None if counts["waiting"] or counts["leased"] else counts

        counts = self.stack.wait(settled, within_s)
        left = ("delivered", "dead", "erased", "discarded")

        assert counts["accepted"] == sum(counts[place] for place in left), counts
        return counts

    def lines(self, name):
        text = requests.get(f"{self.stack.host}/_sandbox/{name}", timeout=60).text
        return list(map(json.loads, text.splitlines()))

    def calls_of_forget(self):
        return [one for one in self.stack.get("requests") if one["route"] == "/v1/forget"]


@pytest.fixture
def erasing(stack):
    return Erasing(stack)


def traces(text):
    """Return what shows a text: itself, and in base64 wherever in a longer text it stands."""
    yield text.encode()
    for before in range(3):
        raw = base64.b64encode(b"\0" * before + text.encode())
        yield raw[-(-before * 4 // 3) : len(raw) // 4 * 4 - 4]


def holders(stack, redis, text):
    """Return every key of every database and every file of this test that shows a text."""
    wanted = list(traces(text))
    port = redis.connection_pool.connection_kwargs["port"]
    found = []
    for number in range(int(redis.config_get("databases")["databases"])):
        client = Redis(port=port, db=number)
        for key in client.scan_iter(count=1000):
            raw = key + b"\n" + (client.dump(key) or b"")
            found += [key.decode()] if any(one in raw for one in wanted) else []
        client.close()
    for path in stack.log_dir.rglob("*"):
        raw = path.read_bytes() if path.is_file() else b""
        found += [path.name] if any(one in raw for one in wanted) else []
    return found


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
    """Everything runs; two dead letters of the person and two of others are there."""
    # Else LZF would hide in a dump or an AOF what is looked for.
    mortal.redis.config_set("rdbcompression", "no")
    stack.env.update(
        MM_TASKS_ERASURE_PASSES_S="0,2,4",
        MM_TASKS_REQUEST_TIMEOUT_S="10",
        MM_TASKS_LEASE_S="30",
        MM_TASKS_BATCH_EVENTS_MAX="100",
        MM_TASKS_BATCH_RATE_PER_S="6",
    )
    stack.sandbox("--no-limits", "--forget-lag-s", "1.5")
    refused = '{"error":"invalid_payload"}'
    stack.fault({"kind": "status", "status": 400, "body": refused, "poison": True, "event": "bad"})
    stack.worker(*FAST)
    stack.beat()
    stack.produce(BAD.format(person=PERSON))
    stack.wait(lambda: stack.get("summary")["identifies"])
    stack.wait(lambda: erasing.counts()["dead"] == 4)
    return stack


def test_a_person_is_erased_everywhere_while_everything_goes_on(busy, mortal, erasing):
    """P6, and P1: nobody else's event is lost or doubled, and each is in exactly one count."""
    (busy.log_dir / "live.py").write_text(LIVE)
    live = busy.start("live", "live", PERSON=PERSON)
    busy.produce(BULK.format(person=PERSON))
    held_by = holders(busy, mortal.redis, PERSON)
    busy.fault({"kind": "slow", "latency_s": 9})
    busy.wait(lambda: busy.get("faults")[0]["hits"])
    asked = erasing.forget()
    erasing.wait_until_completed(asked.id)
    (busy.log_dir / "stop").touch()
    live.wait(10)
    erasing.wait_until_all_is_sent()
    counts = erasing.counts_shown()
    journal = erasing.lines("journal")
    said = [line.split() for line in busy.read(live).splitlines()]
    shown = erasing.store.queries.show(asked.id)

    # Being sent when the fence went up, and nothing of theirs after.
    assert asked.fenced
    theirs = [one for one in journal if any(i.startswith("theirs") for i in one["ids"] if i)]
    (slow,) = (one for one in journal if one["fault"] == "slow")
    assert slow in theirs
    assert slow["at"] < asked.returned_at < slow["done_at"]
    assert max(one["at"] for one in theirs) < asked.returned_at + ON_ITS_WAY_S
    refused = [theirs == "0" for _, _, _, theirs in said]
    assert any(refused)
    assert refused == sorted(refused)
    assert all(theirs == "0" for _, at, _, theirs in said if float(at) > asked.returned_at)

    # Every event of the others arrived once.
    others = {f"other-{i}" for i in range(6_000)} | {f"other-live-{one[0]}" for one in said}
    others |= {f"other-good-{i}" for i in range(4)}
    arrived = [i for one in journal if one["stored"] for i in one["ids"] if i.startswith("other")]
    assert set(arrived) == others
    assert len(arrived) == len(others)

    # The counts add up, and what the erasure removed is what is counted as erased.
    assert counts["dead"] == 2
    assert counts["erased"] == sum(shown["removed"].values())
    assert counts["suppressed"] == sum(refused)
    assert shown["removed"]["track:dead"] == 2
    assert shown["removed"]["track:waiting"] + shown["removed"]["fence"] > 100

    # Three passes, each with intent and result, and what they left with a vendor that is late.
    assert erasing.calls(asked.id) == [(n, "acknowledged") for n in (1, 2, 3)]
    called = [one["at"] for one in erasing.calls_of_forget()]
    due = [datetime.fromisoformat(one["due_at"]).timestamp() for one in shown["passes"]]
    assert [round(later - earlier, 3) for earlier, later in pairwise(due)] == [2, 2]
    assert all(at >= due_at for at, due_at in zip(called, due, strict=True))
    assert slow["done_at"] < called[0]
    busy.wait(lambda: time.time() > called[-1] + 1.5)
    assert not [row for row in erasing.lines("rows") if row["user_id"] == PERSON]

    # Nothing here shows the person, and it would be seen if it did.
    assert "{mm:default}:dead" in held_by
    assert any("aof" in one for one in held_by)
    assert erasing.entries(asked.id)[-3][1] == {"outcome": "rewritten"}
    busy.wait(lambda: not holders(busy, mortal.redis, PERSON), 5)


# How soon the vendor is told, with 50 000 events waiting and requests that take 3 s.

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
def test_a_backlog_does_not_delay_the_vendors_being_told(stack, erasing, workers, batches):
    """The purge looks at 50 000 records, and a shared worker's processes are all busy.

    `scripts/bench flow forget` measures how soon it is; here, how many batches go first.
    """
    stack.env.update(
        MM_TASKS_REQUEST_TIMEOUT_S="10", MM_TASKS_LEASE_S="60", MM_TASKS_FLUSH_INTERVAL_S="1"
    )
    stack.sandbox("--latency-ms", "3000")
    stack.produce(BACKLOG)
    started = [stack.worker(*FAST, *options) for options in workers]
    stack.beat()
    stack.wait(lambda: all(" ready." in stack.read(worker) for worker in started))
    stack.wait(lambda: sum(not one["done_at"] for one in stack.get("requests")) == 4)
    for number in range(2):
        asked = erasing.forget(f"person-{number}")
        stack.wait(lambda number=number: len(erasing.calls_of_forget()) > number, 30)
        called_at = erasing.calls_of_forget()[number]["at"]
        assert asked.fenced
        before = [one for one in stack.get("requests") if asked.returned_at < one["at"] < called_at]
        assert len(before) <= batches
    assert erasing.counts()["waiting"] > 500
    erasing.wait_until_completed(asked.id)
    assert erasing.store.queries.show(asked.id)["removed"]["track:waiting"] == 5
