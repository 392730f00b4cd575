"""Lanes, and the queue and the endpoint of each."""

from __future__ import annotations

from typing import Literal

TRACK: Literal["track"] = "track"
IDENTIFY: Literal["identify"] = "identify"
BACKFILL: Literal["backfill"] = "backfill"
# A backfill holds events of `track` with a low priority: see `ENDPOINTS`.
LANES = (TRACK, IDENTIFY, BACKFILL)
# The kinds of a project's queues, in the order in which a worker of several queues serves them.
QUEUE_KINDS = FORGET_QUEUE, DELIVER_QUEUE, IDENTIFY_QUEUE = ("forget", "deliver", "identify")
# The kind of queue of each lane.
QUEUES = {TRACK: DELIVER_QUEUE, IDENTIFY: IDENTIFY_QUEUE, BACKFILL: DELIVER_QUEUE}
# The lanes of each endpoint of the vendor, highest priority first.
ENDPOINTS = (("track", "backfill"), ("identify",))


def sharing(lane: str) -> tuple[str, ...]:
    """Return the lanes that share an endpoint with this one, and so its rate and its pauses."""
    return next(lanes for lanes in ENDPOINTS if lane in lanes)


def queue_name(project: str, kind: str) -> str:
    """Return the name of a queue in the broker, which several projects may share.

    With Redis as broker it is also a key, without our prefix.
    """
    return f"mm.{kind}" if project == "default" else f"mm.{project}.{kind}"


def queue_names(project: str) -> list[str]:
    """Return the names of the queues of a project, in the order in which they are served."""
    return [queue_name(project, kind) for kind in QUEUE_KINDS]
