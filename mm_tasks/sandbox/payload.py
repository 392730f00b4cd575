"""JSON bodies: parsed strictly to validate them, leniently to show them.

`parse` refuses what a careless encoder writes and some parsers let through:
duplicate keys, NaN and infinities, invalid UTF-8, lone surrogates, anything after
the value. The others never raise: a body that is no JSON simply holds no event.
"""

from __future__ import annotations

import json
import math
from typing import Any


def parse(body: bytes) -> Any:
    """Return the value of a body, or raise ValueError."""
    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=_object,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except RecursionError as error:
        msg = "nested too deeply"
        raise ValueError(msg) from error
    if b"\\ud" in body or b"\\uD" in body:
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError: a lone surrogate
    return value


def events(route: str, body: bytes) -> list[dict[str, Any]]:
    """Return the events of a body, in order."""
    value = _lenient(body)
    if route == "/v1/batch":
        value = value.get("events") if isinstance(value, dict) else None
    elif route != "/v1/track":
        return []
    found = value if isinstance(value, list) else [value]
    return [event for event in found if isinstance(event, dict)]


def ids(route: str, body: bytes) -> list[Any]:
    """Return the event_id of each event, or None; `a|u` for an identify."""
    if route == "/v1/identify":
        value = _lenient(body)
        found = value if isinstance(value, dict) else {}
        return [f"{found.get('anonymous_id')}|{found.get('user_id')}"]
    return [event.get("event_id") for event in events(route, body)]


def rows(route: str, body: bytes) -> list[dict[str, Any]]:
    """Return the rows of a body: its events, or the `$identify` row of an identify."""
    if route != "/v1/identify":
        return events(route, body)
    value = _lenient(body)
    if not isinstance(value, dict):
        return []
    names = ("anonymous_id", "user_id")
    row = {name: value[name] for name in names if name in value}
    return [{"event": "$identify", **row, "properties": value.get("traits", {})}]


def _lenient(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        msg = "a key occurs twice in one object"
        raise ValueError(msg)
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        msg = "NaN and infinities are no JSON"
        raise ValueError(msg)
    return number
