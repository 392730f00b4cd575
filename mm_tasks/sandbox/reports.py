"""`/v1/query` and `/v1/stats`: what one project's read key sees of its rows.

The vendor's page names the parameters and the fields of a row. Left open there
and chosen here: bounds are inclusive, rows come newest first, `limit` is 100
unless given, an absent value is null, a visitor is an `anonymous_id`, a line
of stats is `{"value", <group_by>?, "interval"?}`, and intervals are hour and day.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from mm_tasks.sandbox.answer import reject

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mm_tasks.sandbox.store import Row

LIMIT, LIMIT_MAX = 100, 1000
FILTERS = {"event": "event_name", "source": "source", "medium": "medium", "user_id": "user_id"}
GROUPS = {
    **{name: name for name in ("source", "medium", "campaign", "country", "device_type")},
    **{name: name for name in ("url", "path", "referrer", "user_id", "anonymous_id")},
    "event": "event_name",
}
# How much of an ISO timestamp names its interval.
INTERVALS = {"hour": len("2026-01-01T00"), "day": len("2026-01-01")}
_QUERY = {"from", "to", "limit", *FILTERS}
_STATS = {"from", "to", "limit", "event", "metric", "group_by", "interval"}


def query(rows: Iterable[Row], asked: Mapping[str, str]) -> dict[str, Any]:
    """Return the rows asked for, `event_id` never among their fields, or refuse."""
    found = list(_selected(rows, asked, _QUERY))
    found.sort(key=lambda line: line["timestamp"], reverse=True)
    return {"rows": found[: _limit(asked)]}


def stats(rows: Iterable[Row], asked: Mapping[str, str]) -> dict[str, Any]:
    """Return a number for each group, the largest first, or refuse."""
    metric = _one_of(asked, "metric", ("count", "uniques")) or "count"
    group = _one_of(asked, "group_by", GROUPS)
    interval = _one_of(asked, "interval", INTERVALS)
    visitors: dict[tuple[Any, ...], list[str]] = {}
    for line in _selected(rows, asked, _STATS):
        place = line[GROUPS[group]] if group else None
        begins = line["timestamp"][: INTERVALS[interval]] if interval else None
        visitors.setdefault((place, begins), []).append(line["anonymous_id"])
    lines = [
        {
            **({group: place} if group else {}),
            **({"interval": begins} if interval else {}),
            "value": len(set(seen) if metric == "uniques" else seen),
        }
        for (place, begins), seen in visitors.items()
    ]
    lines.sort(key=lambda line: line["value"], reverse=True)
    return {"metric": metric, "rows": lines[: _limit(asked)]}


def visible(row: Row) -> dict[str, Any]:
    """Return a row as a query shows it, with what the server works out."""
    event = row.event
    url = event.get("url")
    parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
    tags = parse_qs(parts.query)
    properties = json.dumps(event.get("properties", {}), separators=(",", ":"))
    return {
        "timestamp": event.get("timestamp") or _iso(row.stored_at),
        "event_name": event.get("event"),
        "anonymous_id": event.get("anonymous_id") or f"server-{row.number}",
        "user_id": event.get("user_id"),
        "source": tags.get("utm_source", ["direct"])[0],
        "medium": tags.get("utm_medium", ["none"])[0],
        "campaign": tags.get("utm_campaign", [None])[0],
        "source_confidence": 1.0 if "utm_source" in tags else 0.0,
        "referrer": event.get("referrer"),
        "url": url,
        "path": event.get("path") or parts.path or None,
        "country": None,
        "device_type": None,
        "properties": properties,
    }


def _selected(
    rows: Iterable[Row], asked: Mapping[str, str], known: set[str]
) -> Iterator[dict[str, Any]]:
    unknown = sorted(asked.keys() - known)
    if unknown:
        reject(*unknown)
    since, until = _instant(asked, "from"), _instant(asked, "to")
    _limit(asked)
    wanted = {field: asked[name] for name, field in FILTERS.items() if name in asked}
    for row in rows:
        line = visible(row)
        is_in_time = (since or "") <= line["timestamp"] <= (until or "9999-12-31")
        if is_in_time and all(line[field] == value for field, value in wanted.items()):
            yield line


def _instant(asked: Mapping[str, str], name: str) -> str | None:
    if name not in asked:
        return None
    try:
        at = datetime.fromisoformat(asked[name])
    except ValueError:
        reject(name)
    return _iso((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def _iso(at: float) -> str:
    """Return the form in which stored timestamps sort as text."""
    text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _limit(asked: Mapping[str, str]) -> int:
    text = asked.get("limit", str(LIMIT))
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= LIMIT_MAX):
        reject("limit")
    return int(text)


def _one_of(asked: Mapping[str, str], name: str, allowed: Iterable[str]) -> str | None:
    if name in asked and asked[name] not in allowed:
        reject(name)
    return asked.get(name)
