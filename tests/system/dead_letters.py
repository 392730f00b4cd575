"""Dead letters made without a vendor, and the events in them."""

import json

from mm_tasks.buffer.producer import Record
from tests.buffer.test_dead_letters import opened
from tests.system.accounting import KEYS

REJECTED = {"reason": "rejected", "status": 400, "code": "invalid_payload", "attempts": 3}
PARKED = {"reason": "ambiguous", "status": 0, "code": "-", "attempts": 1, "kind": "timeout"}
EVENT = {
    "event": "signed_up",
    "event_id": "e-1",
    "timestamp": "2026-01-14T12:00:00.000Z",
    "user_id": "anna@example.com",
    "url": "https://example.com/?email=anna",
    "properties": {"plan": "anna's", "big": 12345678901234567},
}


def body(event):
    if isinstance(event, bytes):
        return event
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()


def _record(event):
    user_id = event["user_id"] if isinstance(event, dict) else None
    return Record(body(event), user_id, None)


def bury(redis, why, *events):
    """Make dead letters of these events, fields or bytes, and return their ids, in order."""
    before = set(redis.hkeys(KEYS.dead))
    with opened(redis, project="default") as buffer:
        buffer.append(list(map(_record, events)))
        batch_id = buffer.claim(slot_us=None, found_again_ms=5000)
        admitted = buffer.begin(batch_id, slot="none", slot_valid_ms=2000, lease_ms=60_000)
        buffer.bury(batch_id, admitted.token, why=json.dumps(why), outcome=why["reason"])
    return sorted(id_.decode() for id_ in set(redis.hkeys(KEYS.dead)) - before)
