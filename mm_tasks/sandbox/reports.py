"""`/v1/query` and `/v1/stats`: reports of one project's rows for its read key.

The vendor's page names the parameters and the fields of a row. It leaves open, and
this module chooses: bounds are inclusive, rows come newest first, `limit` is 100
by default, an absent value is null, a visitor is an `anonymous_id`, a line
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
# Length of the part of an ISO timestamp that names its interval.
INTERVALS = {"hour": len("2026-01-01T00"), "day": len("2026-01-01")}
_QUERY = {"from", "to", "limit", *FILTERS}
_STATS = {"from", "to", "limit", "event", "metric", "group_by", "interval"}


def query(rows: Iterable[Row], parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return the selected rows, without `event_id`, or refuse."""
    found = list(_selected(rows, parameters, _QUERY))
    found.sort(key=lambda line: line["timestamp"], reverse=True)
    return {"rows": found[: _limit(parameters)]}


def stats(rows: Iterable[Row], parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return a number for each group, the largest first, or refuse."""
    metric = _one_of(parameters, "metric", ("count", "uniques")) or "count"
    group = _one_of(parameters, "group_by", GROUPS)
    interval = _one_of(parameters, "interval", INTERVALS)
    visitors: dict[tuple[Any, ...], list[str]] = {}
    for line in _selected(rows, parameters, _STATS):
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
    return {"metric": metric, "rows": lines[: _limit(parameters)]}


def visible(row: Row) -> dict[str, Any]:
    """Return a row as a query shows it, with the computed fields."""
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
    rows: Iterable[Row], parameters: Mapping[str, str], known: set[str]
) -> Iterator[dict[str, Any]]:
    unknown = sorted(parameters.keys() - known)
    if unknown:
        reject(*unknown)
    since, until = _instant(parameters, "from"), _instant(parameters, "to")
    _limit(parameters)
    wanted = {field: parameters[name] for name, field in FILTERS.items() if name in parameters}
    for row in rows:
        line = visible(row)
        is_in_time = (since or "") <= line["timestamp"] <= (until or "9999-12-31")
        if is_in_time and all(line[field] == value for field, value in wanted.items()):
            yield line


def _instant(parameters: Mapping[str, str], name: str) -> str | None:
    if name not in parameters:
        return None
    try:
        at = datetime.fromisoformat(parameters[name])
    except ValueError:
        reject(name)
    return _iso((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def _iso(at: float) -> str:
    """Return a timestamp in the stored form, which sorts as text."""
    text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _limit(parameters: Mapping[str, str]) -> int:
    text = parameters.get("limit", str(LIMIT))
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= LIMIT_MAX):
        reject("limit")
    return int(text)


def _one_of(parameters: Mapping[str, str], name: str, allowed: Iterable[str]) -> str | None:
    if name in parameters and parameters[name] not in allowed:
        reject(name)
    return parameters.get(name)
