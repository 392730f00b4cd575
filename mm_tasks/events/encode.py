"""Events, validated as strictly as by the vendor, encoded once to the bytes that are sent.

An event that the vendor would refuse raises here. The error names field and rule and never
the value. Nothing is truncated or repaired: `None` means "not present", every other value is
sent as it is.

Lengths are in UTF-16 code units, as the vendor's JavaScript counts them.

The first pass only decides, fast, since every `track.delay` waits for it. If it refuses, a
second pass finds the broken rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic_core import to_json

from mm_tasks.errors import EventTooLarge, InvalidEvent, Problem
from mm_tasks.events import ids
from mm_tasks.events.explain import UNREADABLE, refusal
from mm_tasks.events.limits import BATCH_BRACKETS_BYTES, BATCH_BYTES_MAX
from mm_tasks.events.properties import InvalidValue, check_size, plain_object, surely_fits
from mm_tasks.events.rules import IDENTIFY_SHAPE, TRACK_SHAPE, Shape, vendor_timestamp
from mm_tasks.timestamps import now

if TYPE_CHECKING:
    from collections.abc import Mapping


class Encoded(NamedTuple):
    """One event, ready to be stored: `body` is the exact JSON that is sent."""

    id: str
    body: bytes
    user_id: str | None
    anonymous_id: str | None


def encode_track(
    fields: Mapping[str, object], *, bytes_max: int = BATCH_BYTES_MAX - BATCH_BRACKETS_BYTES
) -> Encoded:
    """Validate and encode one event; raise `InvalidEvent` with every broken rule.

    `event_id` and `timestamp` are made here where absent, so that a repeat
    carries the same ones. `bytes_max` is the room for one event in a batch.
    """
    encoded = _encode(fields, TRACK_SHAPE)
    if len(encoded.body) > bytes_max:
        rule = f"is {len(encoded.body)} bytes; {bytes_max} fit into a batch"
        raise EventTooLarge([Problem("event", rule)])
    return encoded


def encode_identify(fields: Mapping[str, object]) -> Encoded:
    """Validate and encode one identify; its id is ours alone and is not sent."""
    return _encode(fields, IDENTIFY_SHAPE)


def _encode(fields: Mapping[str, object], shape: Shape) -> Encoded:
    try:
        try:
            return _encode_valid(fields, shape)
        except (InvalidValue, ValueError):  # pydantic's errors are ValueErrors
            error = refusal(fields, shape)
    except Exception:  # noqa: BLE001 - an object of the caller, such as a tzinfo, raises anything
        error = InvalidEvent([Problem("event", UNREADABLE)])
    # Outside of the handlers: an error that holds a value must not be chained to this one.
    raise error


def _encode_valid(fields: Mapping[str, object], shape: Shape) -> Encoded:
    present = shape.present(fields)
    if shape is TRACK_SHAPE:
        present["timestamp"] = (
            vendor_timestamp(present["timestamp"]) if "timestamp" in present else now()
        )
        if "event_id" not in present:
            present["event_id"] = ids.uuid7()
    if shape.free in present:
        present[shape.free] = plain_object(present[shape.free])
    event = shape.read(present)
    body = to_json(event)
    if not body.isascii() and (rules := shape.too_long_rules(event)):
        raise InvalidValue(*rules.values())
    if shape.free in event and not surely_fits(len(body)):
        check_size(event[shape.free])
    event_id = event.get("event_id") or ids.uuid7()
    return Encoded(event_id, body, event.get("user_id"), event.get("anonymous_id"))
