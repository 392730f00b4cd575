"""What people and programs are shown: where every event is, and why sending is paused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.events import BACKFILL, LANES
from mm_tasks.keys import ProjectKeys
from mm_tasks.scripting import Script

if TYPE_CHECKING:
    from redis import Redis

_STATUS = Script("status")
PLACES = ("accepted", "leased", "delivered", "dead", "erased", "discarded", "suppressed")


def read(redis: Redis, project: str) -> dict[str, Any]:
    """Return the status of a project, all lanes together, from one atomic look.

    `{"project", "paused": null | {"reason", "since"}, "counts", "oldest_waiting_s", "fence":
    {"tags", "loaded"}, "left_out"}`. Counts are of events, but `ambiguous` is of requests that
    may have been stored; `left_out` is of fields that events of web requests went without, as
    the vendor would have refused them. What is known of erasures is in the audit database:
    see `register`.
    """
    keys = ProjectKeys(project)
    track, identify = keys.lane("track"), keys.lane("identify")
    now_us, raw_counts, raw_pause, queues, throttles, fence = _STATUS(
        redis,
        (
            keys.counts,
            keys.pause,
            track.waiting,
            identify.waiting,
            track.throttle,
            identify.throttle,
            track.outage,
            identify.outage,
            keys.fence,
            keys.fences,
            keys.lane(BACKFILL).waiting,
        ),
        (),
    )
    fields = {name.decode(): int(value) for name, value in _pairs(raw_counts)}
    counts = {
        place: sum(fields.get(f"{lane}:{place}", 0) for lane in LANES)
        for place in (*PLACES, "ambiguous")
    }
    counts["waiting"] = sum(queues[::2])
    oldest = [int(stamp) for stamp in queues[1::2] if stamp]
    age_s = int(now_us) / 1e6 - min(oldest) / 1e3 if oldest else None
    pause = {name.decode(): value.decode() for name, value in _pairs(raw_pause)}
    waits = [value.decode() for value in throttles if value]
    return {
        "project": project,
        "paused": _unfenced(fence) or _paused(pause, int(now_us), waits),
        "counts": counts,
        "oldest_waiting_s": None if age_s is None else max(0.0, round(age_s, 3)),
        "fence": {"tags": fence[0], "loaded": bool(fence[1])},
        "left_out": sum(fields.get(f"{lane}:left_out", 0) for lane in LANES),
    }


def _pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _unfenced(fence: list[Any]) -> dict[str, Any] | None:
    """Return the pause of a server whose fences could not be loaded."""
    _, is_loaded, why, since_ms = fence
    if is_loaded or not why:
        return None
    return {"reason": f"fences_not_loaded: - {why.decode()}", "since": int(since_ms) / 1000}


def _paused(pause: dict[str, str], now_us: int, throttles: list[str]) -> dict[str, Any] | None:
    if "kind" in pause:
        reason = f"{pause['kind']}: {pause['status']} {pause['code']}"
        return {"reason": reason, "since": int(pause["since_ms"]) / 1000}
    for throttle in throttles:
        until_us, since_ms = map(int, throttle.split())
        if until_us > now_us:
            return {"reason": "throttled: 429 rate_limited", "since": since_ms / 1000}
    return None
