"""Measure what events take in Redis and in its AOF, with a real server; see docs/operations.md.

    scripts/bench size

Prints bytes for one event by the size of its JSON. Ends by itself.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from redis import Redis

from mm_tasks.buffer.batches import Admitted, Batches, BatchLimits
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.producer import Producer, Record
from mm_tasks.buffer.refusals import Refusals
from mm_tasks.cli import stack
from mm_tasks.connections import redis_client
from mm_tasks.connections.url import parse

EVENTS = 20_000
SIZES = (200, 300, 1000)


def main() -> None:
    """Print a line for each size."""
    print("bytes of JSON   in Redis, for each event   in the AOF, stored / then delivered")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            held, stored, written = measured(size, Path(folder))
            print(f"{size:13}   {held:24.0f}   {stored:17.0f} / {written:.0f}")


def measured(size: int, folder: Path) -> tuple[float, float, float]:
    """Return bytes in memory, in the AOF after storing, and after delivering, for one event."""
    server = stack.embedded(None, folder)
    try:
        redis = Redis(port=server.port)
        Fence(redis, "p").load("a store", frozenset)
        limits = BatchLimits(500, 1 << 20, 0)
        client = redis_client.client(
            parse(f"redis://127.0.0.1:{server.port}/0"), connect_s=5, answer_s=5
        )
        producer = Producer(client, Refusals("p"), "p", "track", limits, held_bytes_max=1 << 40)
        batches = Batches(redis, "p", "track", limits)
        before = redis.info("memory")["used_memory"], aof(folder)
        entry = Record(b"x" * size, "user", "visitor")
        for _ in range(EVENTS // 500):
            producer.append([entry] * 500)
        held, stored = redis.info("memory")["used_memory"] - before[0], aof(folder) - before[1]
        while (batch_id := batches.claim(slot_us=None, found_again_ms=10_000)) is not None:
            begun = batches.begin(batch_id, slot="none", slot_valid_ms=1000, lease_ms=60_000)
            assert isinstance(begun, Admitted)
            assert batches.ack(batch_id, begun) == 500
        return held / EVENTS, stored / EVENTS, (aof(folder) - before[1]) / EVENTS
    finally:
        server.stop()


def aof(folder: Path) -> int:
    """Return the bytes of all files of the AOF."""
    return sum(path.stat().st_size for path in folder.rglob("*.aof"))


if __name__ == "__main__":
    main()
