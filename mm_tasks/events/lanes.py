"""Lanes, and the queue and the endpoint of each."""

from __future__ import annotations

from typing import Literal

TRACK: Literal["track"] = "track"
IDENTIFY: Literal["identify"] = "identify"
BACKFILL: Literal["backfill"] = "backfill"
# A backfill's events are those of `track`, in no hurry: see `keys.ENDPOINTS`.
LANES = (TRACK, IDENTIFY, BACKFILL)
# Celery's queues, in the order in which a worker of several serves them. With a Redis as broker
# they are keys too, in its database and without our prefix.
QUEUE_NAMES = ("mm.forget", "mm.deliver", "mm.identify")
# Lanes by the endpoint of the vendor that they go to, the one that goes first at the head.
ENDPOINTS = (("track", "backfill"), ("identify",))


def sharing(lane: str) -> tuple[str, ...]:
    """Return the lanes that share this one's endpoint, its rate and whatever stops it."""
    return next(lanes for lanes in ENDPOINTS if lane in lanes)


FORGET_QUEUE, DELIVER_QUEUE, IDENTIFY_QUEUE = QUEUE_NAMES
QUEUES = {TRACK: DELIVER_QUEUE, IDENTIFY: IDENTIFY_QUEUE, BACKFILL: DELIVER_QUEUE}
