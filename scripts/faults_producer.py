"""Report events without pause, and write down what became of each call.

    python faults_producer.py FILE NAME COUNT EVERY_MS POISON_EVERY

Before a call a line `i <id>` for each of its events; after it `a <id>` where a
receipt came back, `m <id>` where the call said that it may be stored, `n <id>` where
nothing was stored. An event of the name POISON is one that the vendor will refuse.
Each line is written before the next step, so it outlives a SIGKILL.
"""

from __future__ import annotations

import os
import random
import sys
import time
from typing import TYPE_CHECKING

from mm_tasks import identify, runtime, track
from mm_tasks.errors import BufferFull, BufferUnavailable
from mm_tasks.events.encode import encode_track
from mm_tasks.events.lanes import BACKFILL
from mm_tasks.tasks.receipts import entries

if TYPE_CHECKING:
    from collections.abc import Callable

POISON = "poison_pill"
# Soon enough for a producer that is killed young.
POISON_FIRST = 19
# Of a hundred calls, so many report several events, a person, or an event for later.
MANY_PERCENT, IDENTIFY_PERCENT, LATER_PERCENT = 5, 3, 5
MANY = 10


class Ledger:
    """The file of one producer."""

    def __init__(self, path: str) -> None:
        """Open it; nothing is buffered."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, mark: str, ids: list[str]) -> None:
        """Write a line for each id."""
        os.write(self._file, "".join(f"{mark} {event_id}\n" for event_id in ids).encode())

    def call(self, ids: list[str], report: Callable[[], object]) -> None:
        """Make one call and note how it ended."""
        self.note("i", ids)
        try:
            report()
        except (BufferFull, BufferUnavailable) as error:
            self.note("m" if error.maybe_stored else "n", ids)
            time.sleep(0.05)
        else:
            self.note("a", ids)


def event(event_id: str, number: int, poison_every: int) -> dict[str, object]:
    """Return the fields of one event."""
    is_poison = poison_every and number % poison_every == min(POISON_FIRST, poison_every - 1)
    return {
        "event": POISON if is_poison else "order_placed",
        "event_id": f"{event_id}-poison" if is_poison else event_id,
        "user_id": f"shopper-{number % 97}",
        "properties": {"row": number},
    }


def import_many(fields: list[dict[str, object]]) -> None:
    """Store events in the lane that yields."""
    encoded = [encode_track(each) for each in fields]
    runtime.current().producers[BACKFILL].append(entries(encoded))


def main(path: str, name: str, count: int, every_ms: int, poison_every: int) -> None:
    """Report `count` events, one call each `every_ms`."""
    steps, chance = Ledger(path), random.Random(name)  # noqa: S311 - no secret
    number, next_at = 0, time.monotonic()
    while number < count:
        lot = chance.randrange(100)
        size = min(MANY if lot < MANY_PERCENT else 1, count - number)
        fields = [event(f"{name}-{n}", n, poison_every) for n in range(number, number + size)]
        ids = [str(each["event_id"]) for each in fields]
        number += size
        if size > 1 and lot % 2:
            steps.call(ids, lambda fields=fields: import_many(fields))
        elif size > 1:
            steps.call(ids, lambda fields=fields: track.delay_many(fields))
        elif lot >= 100 - IDENTIFY_PERCENT - LATER_PERCENT and lot < 100 - IDENTIFY_PERCENT:
            later = {"countdown": chance.uniform(0.2, 4)}
            steps.call(ids, lambda f=fields, later=later: track.apply_async((), f[0], **later))
        elif lot >= 100 - IDENTIFY_PERCENT:
            who = {"anonymous_id": f"visitor-{ids[0]}", "user_id": "shopper"}
            steps.call([f"{who['anonymous_id']}|shopper"], lambda who=who: identify.delay(**who))
        else:
            steps.call(ids, lambda fields=fields: track.delay(**fields[0]))
        next_at += every_ms / 1000
        time.sleep(max(0.0, next_at - time.monotonic()))


if __name__ == "__main__":
    given_path, given_name, *numbers = sys.argv[1:]
    main(given_path, given_name, *map(int, numbers))
