"""The status of a project for people and programs: the place of every event, and the pause."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.buffer import snapshot
from mm_tasks.buffer.refusals import REASONS

if TYPE_CHECKING:
    from redis import Redis

PLACES = (
    *("accepted", "scheduled", "leased", "delivered", "dead", "erased", "discarded"),
    "suppressed",
)


def read(redis: Redis, project: str) -> dict[str, Any]:
    """Return the status of a project, all lanes together, from one atomic read.

    `{"project", "paused": null | {"reason", "since"}, "counts", "oldest_waiting_s", "next_due_s",
    "fence": {"tags", "loaded"}, "left_out", "clock": null | {"stepped_s", "at"}, "refused",
    "unanswered"}`. Counts are of events, except `ambiguous`, of requests that may have been stored.
    `next_due_s` is the time until the next scheduled event is due, null without one. `left_out`
    counts fields of web requests that were dropped because the vendor would reject them. `clock`
    is the last step of Redis's clock, for a day. `refused` counts by reason the events that calls
    did not store; to `unanswered` of them Redis gave no answer, so they may be stored. Erasures
    are in the audit database: see `erasure/queries`.
    """
    read_now = snapshot.read(redis, project)
    paused, age_s, due_s = read_now.paused, read_now.oldest_waiting_s, read_now.next_due_s
    step = read_now.clock.step
    counts = {place: read_now.total(place) for place in (*PLACES, "ambiguous")}
    refused = {reason: read_now.total(f"refused:{reason}") for reason in REASONS}
    return {
        "project": project,
        "paused": None if paused is None else {"reason": paused.reason, "since": paused.since},
        "counts": counts | {"waiting": read_now.waiting, "refused": sum(refused.values())},
        "oldest_waiting_s": None if age_s is None else round(age_s, 3),
        "next_due_s": None if due_s is None else round(due_s, 3),
        "fence": {"tags": read_now.fence_tags, "loaded": read_now.fences_loaded},
        "left_out": read_now.total("left_out"),
        "clock": None if step is None else {"stepped_s": step.by_s, "at": step.at_s},
        "refused": refused,
        "unanswered": read_now.total("unanswered"),
    }
