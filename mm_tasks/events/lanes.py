"""Lanes, and the queue and the endpoint of each."""

from __future__ import annotations

from typing import Literal

TRACK: Literal["track"] = "track"
IDENTIFY: Literal["identify"] = "identify"
BACKFILL: Literal["backfill"] = "backfill"
# A backfill holds events of `track` with a low priority: see `ENDPOINTS`.
LANES = (TRACK, IDENTIFY, BACKFILL)
# Celery's queues, in the order in which a worker of several queues serves them. With Redis as
# broker they are also its keys, without our prefix.
QUEUE_NAMES = ("mm.forget", "mm.deliver", "mm.identify")
# The lanes of each endpoint of the vendor, highest priority first.
ENDPOINTS = (("track", "backfill"), ("identify",))


def sharing(lane: str) -> tuple[str, ...]:
    """Return the lanes that share an endpoint with this one, and so its rate and its pauses."""
    return next(lanes for lanes in ENDPOINTS if lane in lanes)


FORGET_QUEUE, DELIVER_QUEUE, IDENTIFY_QUEUE = QUEUE_NAMES
QUEUES = {TRACK: DELIVER_QUEUE, IDENTIFY: IDENTIFY_QUEUE, BACKFILL: DELIVER_QUEUE}
