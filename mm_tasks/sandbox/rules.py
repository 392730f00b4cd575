"""What the vendor refuses: the table "One event" of its reference, as code.

Text is counted in UTF-16 code units and numbers printed as JSON.stringify does.
Strict where the page only infers: null and "" for an optional field, unknown
fields and a timestamp in another form than `YYYY-MM-DDTHH:MM:SS.mmmZ` are refused.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic_core import Url

LENGTHS = {
    "event": 128,
    "event_id": 128,
    "anonymous_id": 128,
    "user_id": 256,
    "session_id": 128,
    "url": 2048,
    "path": 2048,
    "referrer": 2048,
}
COMPUTED = frozenset(
    {"source", "medium", "campaign", "source_confidence", "source_rule_id"}
    | {"country", "device_type", "browser", "os", "ip_hash"}
)
PROPERTIES_MAX = 8192
_TIMESTAMP = re.compile(
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}Z"
)


def units(text: str) -> int:
    """Return the length of a JavaScript string."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def stringified(value: Any) -> int:  # noqa: ANN401 - JSON
    """Return how many bytes JSON.stringify of `value` has in UTF-8."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    longer = sum(_longer(number) for number in _floats(value))
    return len(text.encode("utf-8", "surrogatepass")) + longer


def event_problem(event: Any) -> str | None:  # noqa: ANN401 - JSON
    """Return the name of the first bad field of an event, or None."""
    if not isinstance(event, dict) or "event" not in event:
        return "event"
    for name, value in event.items():
        if name in LENGTHS:
            if type(value) is not str or not 1 <= units(value) <= LENGTHS[name]:
                return str(name)
        elif name == "timestamp":
            if type(value) is not str or not _TIMESTAMP.fullmatch(value):
                return str(name)
        elif name == "properties":
            if type(value) is not dict or stringified(value) > PROPERTIES_MAX:
                return str(name)
        elif name not in COMPUTED:
            return str(name)
    return "url" if "url" in event and not _is_url(event["url"]) else None


def identify_problem(body: Any) -> str | None:  # noqa: ANN401 - JSON
    """Return the name of the first bad field of an identify, or None."""
    if not isinstance(body, dict) or not body.keys() <= {"anonymous_id", "user_id", "traits"}:
        return "fields"
    for name in ("anonymous_id", "user_id"):
        value = body.get(name)
        if type(value) is not str or not 1 <= units(value) <= LENGTHS[name]:
            return name
    return None if isinstance(body.get("traits", {}), dict) else "traits"


def _is_url(text: str) -> bool:
    try:
        Url(text)
    except ValueError:
        return False
    return True


def _floats(value: Any) -> list[float]:  # noqa: ANN401 - JSON
    if type(value) is float:
        return [value]
    inner = value.values() if type(value) is dict else value if type(value) is list else ()
    return [number for item in inner for number in _floats(item)]


def _longer(number: float) -> int:
    # ECMA-262 prints 1e20 as 100000000000000000000 and 0.00001 without an exponent.
    text = repr(number)
    if "e" not in text or not 1e-7 <= abs(number) < 1e21:  # noqa: PLR2004 - ECMA-262
        return 0
    return max(
        0, len(f"{number:.0f}" if abs(number) > 1 else f"{number:.30f}".rstrip("0")) - len(text)
    )
