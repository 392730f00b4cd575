"""Measure the whole way with real processes: Redis, workers, beat and the sandbox.

Each scenario has an embedded Valkey and a sandbox of its own, prints figures
against their bounds, and ends by itself. Exits 1 when a promise is broken.

    scripts/bench flow              all of them, about six minutes
    scripts/bench flow rate stall   some of them
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from bench_report import report
from redis import Redis

from mm_tasks.cli import stack
from mm_tasks.monitoring import status
from mm_tasks.sandbox.client import served_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mm_tasks.cli.stack import Processes

KEY = "sk_test_bench_not-a-real-secret"
# What an event of a shop looks like: about 300 bytes as JSON.
SHOP = """
import sys
events = (
    {"event": "order_placed", "anonymous_id": f"visitor-{i}", "user_id": f"shopper-{i}",
     "url": "https://shop.example/cart?utm_source=news",
     "properties": {"cents": 1999, "currency": "EUR", "row": i, "note": "x" * 60}}
    for i in range(int(sys.argv[1]))
)
"""
MANY = f"""{SHOP}
from mm_tasks import track
track.delay_many(events)
"""
# The same into the lane that yields, as an import does.
IMPORTED = f"""{SHOP}
from mm_tasks.events.encode import encode_track
from mm_tasks.events.lanes import BACKFILL
from mm_tasks.tasks.receipts import entries, parts
from mm_tasks.runtime import current
for part in parts([encode_track(event) for event in events]):
    current().producers[BACKFILL].append(entries(part))
"""
# Each event's id says when it was reported; not in step with beat.
LIVE = """
import sys, time
from mm_tasks import track
for i in range(int(sys.argv[1])):
    time.sleep(1.27)
    track.delay("order_placed", event_id=f"live-{time.time()}", user_id="shopper")
"""
# 0.2 to 8 KB of what JSON and UTF-8 make longer than it looks.
MIXED = """
import random, sys
from mm_tasks import track
random.seed(1)
letters = 'aé"\\\\\\n語😀\\u2028 '
def text():
    return "".join(random.choices(letters, k=random.randrange(1, 1500)))
track.delay_many(
    {"event": "noted", "user_id": f"u{i}", "properties": {"text": text(), "n": i}}
    for i in range(int(sys.argv[1]))
)
"""
IDENTIFIES = """
import sys
from mm_tasks import identify
for i in range(int(sys.argv[1])):
    identify.delay(anonymous_id=f"visitor-{i}", user_id=f"shopper-{i}")
"""

# Of 50 000 events that wait, twenty belong to four people; one of them is forgotten.
BACKLOG = """
import sys
from mm_tasks import track
n = int(sys.argv[1])
track.delay_many([{"event": "visited", "user_id": f"u{i}"} for i in range(n - 20)]
    + [{"event": "visited", "user_id": f"person-{i % 4}"} for i in range(20)])
"""
FORGET = """
import sys
from mm_tasks import forget
forget.delay(f"person-{sys.argv[1]}", "dpo")
"""


@dataclass
class Running:
    """The processes of a scenario, and ways to read what they did."""

    redis: Redis
    processes: Processes
    host: str

    def produce(self, program: str, n: int) -> None:
        """Store `n` events from a process of their own."""
        done = self.processes.start("-c", program, str(n))
        assert done.wait(120) == 0

    def workers(self, number: int, concurrency: int, *options: str) -> None:
        """Start workers and one beat, silent unless they warn."""
        for index in range(number):
            name = f"w{index}@%h"
            command = (*stack.WORKER, "-c", str(concurrency), "-n", name, *options)
            self.processes.start(*command, stdout=subprocess.DEVNULL)
        self.processes.start(*stack.BEAT, stdout=subprocess.DEVNULL)

    def counts(self) -> dict[str, int]:
        """Return the counts of `mm-tasks status`."""
        found: dict[str, int] = status.read(self.redis, "default")["counts"]
        return found

    def requests(self, route: str) -> list[dict[str, Any]]:
        """Return every request to a route as the sandbox saw it, in order."""
        found = requests.get(f"{self.host}/_sandbox/requests", timeout=60).json()
        return [request for request in found if request["route"] == route]

    def batches(self) -> list[dict[str, Any]]:
        """Return every request to /v1/batch, in order."""
        return self.requests("/v1/batch")

    def live(self) -> list[float]:
        """Return how long each event of `LIVE` took to the vendor, in seconds."""
        journal = requests.get(f"{self.host}/_sandbox/journal", timeout=60).text.splitlines()
        return [
            arrival["at"] - float(event_id.removeprefix("live-"))
            for arrival in map(json.loads, journal)
            for event_id in arrival["ids"]
            if event_id.startswith("live-")
        ]

    def delivered_a_second(self, expected: int, within_s: float) -> float:
        """Wait until all is delivered; return the pace from the first delivery to the last."""
        first_at = first = 0.0
        ends_at = time.monotonic() + within_s
        while time.monotonic() < ends_at:
            delivered, now = self.counts()["delivered"], time.monotonic()
            if delivered and not first_at:
                first_at, first = now, delivered
            if delivered >= expected:
                return (delivered - first) / max(now - first_at, 0.001)
            time.sleep(0.1)
        return 0.0


@contextmanager
def running(*sandbox: str, **settings: str) -> Iterator[Running]:
    """Start an embedded Valkey and a sandbox; end all that was started on it."""
    with tempfile.TemporaryDirectory() as folder, stack.Processes(**settings) as processes:
        server = processes.start_redis(Path(folder))
        options = ("-m", "mm_tasks.sandbox", "--port", "0", *sandbox)
        host = served_by(processes.start(*options, stdout=subprocess.PIPE)).url
        processes.env |= {
            "MM_TASKS_REDIS_URL": f"redis://127.0.0.1:{server.port}/0",
            "MM_TASKS_STATE_DIR": folder,
            "MILLIMETRIC_KEY": KEY,
            "MILLIMETRIC_HOST": host,
        }
        yield Running(Redis(port=server.port), processes, host)


def throughput() -> list[bool]:
    """One worker of 2 processes, a vendor without limits."""
    limits = {"MM_TASKS_BATCH_RATE_PER_S": "1000", "MM_TASKS_BATCH_BURST": "100"}
    with running("--no-limits", "--unvalidated", **limits) as run:
        run.produce(MANY, 300_000)
        run.workers(1, 2)
        pace = run.delivered_a_second(300_000, within_s=120)
    return [report("events a second, one worker of 2", pace, ">=", 30_000)]


def identify() -> list[bool]:
    """One worker of 2 processes; a request for each identify."""
    with running() as run:
        run.produce(IDENTIFIES, 3_000)
        run.workers(1, 2)
        pace = run.delivered_a_second(3_000, within_s=120)
    return [report("identifies a second, one worker of 2", pace, ">=", 150)]


def rate() -> list[bool]:
    """Use the permitted rate and no more: three workers on a backlog, 20 s of the steady state."""
    with running() as run:
        run.produce(MANY, 90_000)
        run.workers(3, 4)
        wait_for(lambda: len(run.batches()) >= 20)
        time.sleep(22)
        found = run.batches()
    starts = sorted(request["at"] for request in found)
    last = starts[-1]
    steady = sum(last - 20 < start <= last for start in starts) / 20
    full = sum(request["events"] == 500 for request in found) / len(found)
    return [
        report("rate: batches a second over 20 s", steady, ">=", 4.85),
        report("rate: full batches, of 1", full, ">=", 1),
        *limits_kept("rate", found),
    ]


def overtake() -> list[bool]:
    """Report live events beside an import of 100 000: from the call to the vendor's sight."""
    return [
        kept for pool, latency_ms in ((4, 300), (8, 1000)) for kept in _overtaken(pool, latency_ms)
    ]


def _overtaken(pool: int, latency_ms: int) -> list[bool]:
    name = f"overtake, pool {pool}, {latency_ms} ms"
    with running("--latency-ms", str(latency_ms)) as run:
        run.produce(IMPORTED, 100_000)
        run.workers(1, pool)
        wait_for(lambda: len(run.batches()) >= 20)
        run.produce(LIVE, 20)
        wait_for(lambda: len(run.live()) == 20)
        left, found, waits = run.counts()["waiting"], run.batches(), sorted(run.live())
    starts = [request["at"] for request in found]
    steady = sum(max(starts) - 20 < start <= max(starts) for start in starts) / 20
    return [
        report(f"{name}: events that still wait", left, ">=", 10_000),
        report(f"{name}: s to the vendor, median", waits[10], "<=", 3),
        report(f"{name}: s to the vendor, longest", waits[-1], "<=", 3),
        report(f"{name}: batches a second", steady, ">=", 4.9),
        *limits_kept(name, found),
    ]


def stall() -> list[bool]:
    """Let the vendor take 3 s an answer for 12 s and recover: no storm, no 429."""
    with running() as run:
        run.produce(MANY, 120_000)
        run.workers(3, 4)
        wait_for(lambda: len(run.batches()) >= 15)
        now = time.time()
        slow = {"kind": "slow", "latency_s": 3, "between": [now, now + 12]}
        requests.post(f"{run.host}/_sandbox/faults", json=[slow], timeout=5).raise_for_status()
        time.sleep(12 + 20)
        found = run.batches()
        hits = requests.get(f"{run.host}/_sandbox/faults", timeout=5).json()[0]["hits"]
    after = [request["at"] for request in found if request["at"] > now + 16]
    pace = (len(after) - 1) / (max(after) - min(after))
    return [
        report("stall: answers that took 3 s", hits, ">=", 12),
        report("stall: batches a second after it", pace, ">=", 4.85),
        *limits_kept("stall", found),
    ]


def fill() -> list[bool]:
    """Events of 0.2 to 8 KB: no body above the limit, and hardly room in any."""
    with running() as run:
        run.produce(MIXED, 4_000)
        run.workers(1, 4)
        run.delivered_a_second(4_000, within_s=60)
        found = run.batches()
        counts = run.counts()
    sizes = [request["bytes"] for request in found]
    return [
        report("fill: events delivered", counts["delivered"], ">=", 4_000),
        report("fill: largest body, bytes", max(sizes), "<=", 256_000),
        # The last one holds what is left.
        report("fill: smallest of the full ones, of 1", min(sizes[:-1]) / 256_000, ">=", 0.95),
        *limits_kept("fill", found),
    ]


def forget() -> list[bool]:
    """Tell the vendor beside a backlog and answers of 3 s: from the call to the vendor's sight."""
    shared, own = (_told_after_s(is_shared=is_shared) for is_shared in (True, False))
    return [
        report("forget: seconds, in a shared worker of 4", shared, "<=", 8),
        report("forget: seconds, with a worker of its own", own, "<=", 2),
    ]


def _told_after_s(*, is_shared: bool) -> float:
    """Return the longer of two waits; it holds the start of the process that asks."""
    settings = {"MM_TASKS_REQUEST_TIMEOUT_S": "10", "MM_TASKS_ERASURE_PASSES_S": "0"}
    with running("--latency-ms", "3000", **settings) as run:
        run.produce(BACKLOG, 50_000)
        if is_shared:
            run.workers(1, 4)
        else:
            run.workers(1, 4, "-Q", "mm.deliver,mm.identify")
            name = ("-n", "forget@%h", "-Q", "mm.forget", "-c", "2")
            run.processes.start(*stack.WORKER, *name, stdout=subprocess.DEVNULL)
        wait_for(lambda: sum(not one["done_at"] for one in run.batches()) == 4)
        time.sleep(5)  # The second worker is ready by now too.
        waits = []
        for number in range(2):
            began_at = time.time()
            run.produce(FORGET, number)
            wait_for(lambda number=number: len(run.requests("/v1/forget")) > number)
            waits.append(run.requests("/v1/forget")[number]["at"] - began_at)
    return max(waits)


def limits_kept(what: str, found: list[dict[str, Any]]) -> list[bool]:
    """Report answers other than 202, and by how much the fullest window exceeds `5 w + 20`."""
    others = sum(request["status"] != 202 for request in found)
    starts = sorted(request["at"] for request in found)
    over = max(
        (j - i + 1) - (5 * (starts[j] - starts[i]) + 20)
        for i in range(len(starts))
        for j in range(i, len(starts))
    )
    return [
        report(f"{what}: answers other than 202", others, "<=", 0),
        report(f"{what}: requests above 5 w + 20 in any window", over, "<=", 0),
    ]


def wait_for(happened: Callable[[], bool], within_s: float = 60) -> None:
    """Wait until it did; raise `TimeoutError` if it does not."""
    ends_at = time.monotonic() + within_s
    while not happened():
        if time.monotonic() > ends_at:
            raise TimeoutError
        time.sleep(0.1)


SCENARIOS: dict[str, Callable[[], list[bool]]] = {
    scenario.__name__: scenario
    for scenario in (throughput, identify, rate, overtake, stall, fill, forget)
}

if __name__ == "__main__":
    verdicts = [kept for name in sys.argv[1:] or SCENARIOS for kept in SCENARIOS[name]()]
    sys.exit(0 if all(verdicts) else 1)
