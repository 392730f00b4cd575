"""Receipts of calls, and helpers for many events that several scripts store."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mm_tasks.buffer.producer import APPEND_RECORDS_MAX, Record
from mm_tasks.buffer.scripts import pages
from mm_tasks.errors import BufferFull, BufferUnavailable, InvalidEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mm_tasks.events.encode import Encoded


@dataclass(frozen=True, slots=True)
class ErasureReceipt:
    """An accepted erasure. `id` is the id of the erasure, which may have been open already.

    `fenced`: from now on no attempt that carries an event of the person is admitted. It is False
    if Redis was out of reach; then the next sweep raises the fence. It is False as well until the
    time of an erasure with a countdown or an eta.
    """

    id: str
    fenced: bool
    accepted: bool = True


@dataclass(frozen=True, slots=True)
class Receipt:
    """The id of a stored event. `accepted` is False if the event was not stored.

    Its person is then erased and suppressed. With `delay_many(…, on_error="skip")` it may also be
    invalid, with the reason in `error`.
    """

    id: str | None
    accepted: bool
    error: InvalidEvent | None = None


def entries(part: Sequence[Encoded]) -> list[Record]:
    """Return the records of events."""
    return [Record(event.body, event.user_id, event.anonymous_id) for event in part]


def receipts_of(part: Sequence[Encoded], suppressed: frozenset[int]) -> list[Receipt]:
    """Return the receipts of the events of one script."""
    return [Receipt(event.id, position not in suppressed) for position, event in enumerate(part)]


def parts(validated: list[Encoded | InvalidEvent]) -> Iterator[Sequence[Encoded]]:
    """Yield the valid events in chunks that one script can store."""
    encoded = (event for event in validated if not isinstance(event, InvalidEvent))
    return pages(encoded, APPEND_RECORDS_MAX)


@contextmanager
def counting(receipts: list[Receipt]) -> Iterator[None]:
    """Add the number of events stored before a failure to its error."""
    try:
        yield
    except (BufferFull, BufferUnavailable) as error:
        error.stored = sum(receipt.accepted for receipt in receipts)
        raise


def in_order(stored: list[Receipt], validated: list[Encoded | InvalidEvent]) -> list[Receipt]:
    """Return a receipt for each item, in the order of the items."""
    receipts = iter(stored)
    return [
        Receipt(None, accepted=False, error=event)
        if isinstance(event, InvalidEvent)
        else next(receipts)
        for event in validated
    ]
