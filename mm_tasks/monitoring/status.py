"""What people and programs are shown: where every event is, and why sending is paused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.buffer import snapshot

if TYPE_CHECKING:
    from redis import Redis

PLACES = ("accepted", "leased", "delivered", "dead", "erased", "discarded", "suppressed")


def read(redis: Redis, project: str) -> dict[str, Any]:
    """Return the status of a project, all lanes together, from one atomic look.

    `{"project", "paused": null | {"reason", "since"}, "counts", "oldest_waiting_s", "fence":
    {"tags", "loaded"}, "left_out"}`. Counts are of events, but `ambiguous` is of requests that
    may have been stored; `left_out` is of fields that events of web requests went without, as
    the vendor would have refused them. What is known of erasures is in the audit database:
    see `erasure/queries`.
    """
    found = snapshot.read(redis, project)
    paused, age_s = found.paused, found.oldest_waiting_s
    counts = {place: found.total(place) for place in (*PLACES, "ambiguous")}
    return {
        "project": project,
        "paused": None if paused is None else {"reason": paused.reason, "since": paused.since},
        "counts": counts | {"waiting": found.waiting},
        "oldest_waiting_s": None if age_s is None else round(age_s, 3),
        "fence": {"tags": found.fence_tags, "loaded": found.fences_loaded},
        "left_out": found.total("left_out"),
    }
