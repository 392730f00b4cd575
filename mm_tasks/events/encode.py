"""Events, validated as strictly as the vendor would, encoded once to the bytes sent.

What the vendor would refuse raises here, naming field and rule and never the
value, so that a rejected batch is an exception and not a habit. Nothing is
truncated or repaired: `None` means "not given", all else is sent as it is.

Lengths are in UTF-16 code units, the way the vendor's JavaScript counts.

Two passes: the first only decides, fast, since every `track.delay` waits for it;
the second runs when the first refused, and says why. Whatever a hostile object
raises in between is dropped, as its text may hold the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import uuid_utils
from pydantic_core import Url, to_json

from mm_tasks.errors import EventTooLarge, Problem
from mm_tasks.events.explain import refusal
from mm_tasks.events.limits import BATCH_BRACKETS_BYTES, BATCH_BYTES_MAX
from mm_tasks.events.properties import InvalidValue, check_size, now, plain_object, surely_fits
from mm_tasks.events.rules import (
    IDENTIFY_SHAPE,
    TOO_LONG,
    TRACK_SHAPE,
    Shape,
    present_fields,
    too_long_fields,
    vendor_timestamp,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class Encoded(NamedTuple):
    """One event, ready to be stored: `body` is the exact JSON that will be sent."""

    id: str
    body: bytes
    user_id: str | None
    anonymous_id: str | None


def encode_track(
    fields: Mapping[str, object], *, bytes_max: int = BATCH_BYTES_MAX - BATCH_BRACKETS_BYTES
) -> Encoded:
    """Validate and encode one event; raise `InvalidEvent` with every broken rule.

    `event_id` and `timestamp` are made here where absent, so that a repeat
    carries the same ones. `bytes_max` is what fits into a batch alone.
    """
    try:
        encoded = _encode_track(present_fields(fields, TRACK_SHAPE))
    except Exception:  # noqa: BLE001 - a hostile object raises what it likes
        encoded = None
    if encoded is None:
        raise refusal(fields, TRACK_SHAPE)
    if len(encoded.body) > bytes_max:
        rule = f"is {len(encoded.body)} bytes; {bytes_max} fit into a batch"
        raise EventTooLarge([Problem("event", rule)])
    return encoded


def encode_identify(fields: Mapping[str, object]) -> Encoded:
    """Validate and encode one identify; its id is ours alone, the vendor knows none."""
    try:
        event, body = _encode(present_fields(fields, IDENTIFY_SHAPE), IDENTIFY_SHAPE)
    except Exception:  # noqa: BLE001 - a hostile object raises what it likes
        event, body = {}, b""
    if not event:
        raise refusal(fields, IDENTIFY_SHAPE)
    return Encoded(str(uuid_utils.uuid7()), body, event["user_id"], event["anonymous_id"])


def _encode_track(given: dict[str, Any]) -> Encoded:
    given["timestamp"] = vendor_timestamp(given["timestamp"]) if "timestamp" in given else now()
    if "event_id" not in given:
        given["event_id"] = str(uuid_utils.uuid7())
    event, body = _encode(given, TRACK_SHAPE)
    return Encoded(event["event_id"], body, event.get("user_id"), event.get("anonymous_id"))


def _encode(given: dict[str, Any], shape: Shape) -> tuple[dict[str, Any], bytes]:
    """Return the fields in the vendor's order and their JSON, or raise anything."""
    if shape.free in given:
        given[shape.free] = plain_object(given[shape.free])
    event = shape.read(given)
    if "url" in event:
        Url(event["url"])
    body = to_json(event)
    if not body.isascii() and too_long_fields(event, shape):
        raise InvalidValue(TOO_LONG)
    if shape.free in event and not surely_fits(len(body)):
        check_size(event[shape.free])
    return event, body
