"""Measure how many full batches a second the sandbox takes, with and without validation.

A sandbox slower than this would be what a benchmark of the workers measures.
Starts it as a process for each round and ends it; exits 1 when a promise is broken.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from bench_report import report

EVENTS = 500
EVENT_BYTES = 300
CONNECTIONS = 2
BODIES = 8
SECONDS = 2.0  # the sandbox keeps every body, up to 300 MB a second
KEY = "sk_test_bench_not-a-real-secret"
HEADERS = {
    "Authorization": f"Bearer {KEY}",
    "Content-Type": "application/json",
    "User-Agent": "mm-tasks/bench",
}


def event(number: int) -> dict[str, object]:
    """Return an event of about `EVENT_BYTES`, its id unlike any other."""
    found = {
        "event": "order_completed",
        "event_id": f"00000000-0000-4000-8000-{number:012}",
        "timestamp": "2026-01-14T12:00:00.123Z",
        "anonymous_id": f"visitor-{number}",
        "user_id": f"user-{number}",
        "url": "https://shop.example/cart?utm_source=mail",
        "properties": {"plan": "free", "n": number, "ok": True, "x": 1.5},
    }
    missing = EVENT_BYTES - len(json.dumps(found, separators=(",", ":")))
    return {**found, "referrer": "https://example.com/".ljust(missing - len(',"referrer":""'), "r")}


def bodies() -> list[bytes]:
    """Return full batches."""
    batches = [[event(b * EVENTS + n) for n in range(EVENTS)] for b in range(BODIES)]
    return [json.dumps({"events": batch}, separators=(",", ":")).encode() for batch in batches]


def post(port: int, batches: list[bytes], until: float) -> int:
    """Post over one connection until then; return how many were accepted."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    done = 0
    while time.monotonic() < until:
        connection.request("POST", "/v1/batch", batches[done % len(batches)], HEADERS)
        response = connection.getresponse()
        body = response.read()
        if response.status != http.HTTPStatus.ACCEPTED:
            sys.exit(f"the sandbox answered {response.status}: {body!r}")
        done += 1
    connection.close()
    return done


def measured(*flags: str) -> float:
    """Return the batches a second of a sandbox started with these flags."""
    command = [sys.executable, "-m", "mm_tasks.sandbox", "--port", "0", "--no-limits", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
    assert process.stdout is not None
    port = int(process.stdout.readline().rsplit(":", 1)[1])
    batches = bodies()
    began = time.monotonic()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        posts = [pool.submit(post, port, batches, began + SECONDS) for _ in range(CONNECTIONS)]
        done = sum(future.result() for future in posts)
    took_s = time.monotonic() - began
    process.terminate()
    process.wait(10)
    process.stdout.close()
    return done / took_s


def main() -> int:
    """Measure, print, compare."""
    kept = []
    for name, bound, flags in (("unvalidated", 200, ["--unvalidated"]), ("validated", 60, [])):
        found = measured(*flags)
        what = f"sandbox, {name}, batches a second"
        kept.append(report(what, found, ">=", bound))
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
