"""Track events of people and have the people erased; write down when each was fenced.

    python faults_officer.py FILE NAME COUNT EVERY_MS

For each person a line of JSON: their id, the ids of their events, and the instant at which
`forget.delay` returned with `.fenced`, null if it did not. A person whose request was not
accepted is not written down: the file of their events still says that these were stored.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

from faults_producer import Ledger

from mm_tasks import forget, track
from mm_tasks.errors import AuditUnavailable

EVENTS = 4


def main(path: str, name: str, count: int, every_ms: int) -> None:
    """Track events of `count` people, one each `every_ms`, and forget each a little later."""
    ledger, chance = Ledger(path), random.Random(name)  # noqa: S311 - no secret
    with Path(path).with_suffix(".leavers").open("a", encoding="utf-8") as leavers:
        for number in range(count):
            person = f"{name}-leaver-{number}"
            ids = [f"{person}-{n}" for n in range(EVENTS)]
            for event_id in ids:
                fields = {"event_id": event_id, "user_id": person}
                ledger.call([event_id], lambda fields=fields: track.delay("page_seen", **fields))
            time.sleep(chance.uniform(0, every_ms / 1000))
            try:
                receipt = forget.delay(user_id=person, requested_by="dpo", ticket=f"T-{number}")
            except AuditUnavailable:
                continue
            at = time.time() if receipt.fenced else None
            leavers.write(json.dumps({"person": person, "ids": ids, "fenced_at": at}) + "\n")
            leavers.flush()
            time.sleep(every_ms / 1000)


if __name__ == "__main__":
    given_path, given_name, *numbers = sys.argv[1:]
    main(given_path, given_name, *map(int, numbers))
