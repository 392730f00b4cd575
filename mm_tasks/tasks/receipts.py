"""Receipts of calls, and helpers for many events that several scripts store."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mm_tasks import runtime
from mm_tasks.buffer.producer import APPEND_RECORDS_MAX, Record
from mm_tasks.buffer.scripts import pages
from mm_tasks.errors import BufferFull, BufferUnavailable, InvalidEvent
from mm_tasks.events import best_effort

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mm_tasks.events.encode import Encoded


@dataclass(frozen=True, slots=True)
class ErasureReceipt:
    """An accepted erasure. `id` is the id of the erasure, which may have been open already.

    `fenced`: from now on no attempt that carries an event of the person is admitted. It is False
    if Redis was out of reach; then the next sweep raises the fence. It is False as well until the
    time of an erasure with a countdown or an eta.

    `seen` is False if there was no trace of the person before: no event waiting, scheduled, in a
    batch or dead, and no earlier erasure. Delivered events leave no trace, so a right id may be
    unseen too. None: not known, because Redis holds too many records, or does not answer.
    """

    id: str
    fenced: bool
    accepted: bool = True
    seen: bool | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """The id of a stored event. `accepted` is False if it was not stored, with the `reason`.

    `suppressed`: its person is erased. `invalid`: a rule was broken, which `error` names; only
    with `delay_many(…, on_error="skip")`. `unavailable`, `full`: Redis was away, or the buffer
    full; only where such events are dropped, see `best_effort`. An event that is `unavailable`
    may be stored all the same, if Redis did not answer in time.
    """

    id: str | None
    accepted: bool
    error: InvalidEvent | None = None
    reason: Literal["suppressed", "invalid", "unavailable", "full"] | None = None


def entries(part: Sequence[Encoded]) -> list[Record]:
    """Return the records of events."""
    return [Record(event.body, event.user_id, event.anonymous_id) for event in part]


def receipts_of(part: Sequence[Encoded], suppressed: frozenset[int]) -> list[Receipt]:
    """Return the receipts of the events of one script."""
    return [
        Receipt(event.id, accepted=False, reason="suppressed")
        if position in suppressed
        else Receipt(event.id, accepted=True)
        for position, event in enumerate(part)
    ]


def refused(
    lane: str, part: Sequence[Encoded], error: BufferFull | BufferUnavailable
) -> list[Receipt]:
    """Count events that were not stored; return their receipts, or raise the error.

    `best_effort` and `MM_TASKS_ON_BUFFER_UNAVAILABLE` decide.
    """
    current = runtime.current()
    reason = _reason(error)
    current.refusals.add(lane, reason, len(part), error.maybe_stored)
    is_dropped = best_effort.chosen()
    if is_dropped is None:
        is_dropped = current.settings.on_buffer_unavailable == "drop"
    if not is_dropped:
        raise error
    current.refusals.log_dropped(reason, len(part))
    return [Receipt(event.id, accepted=False, reason=reason) for event in part]


def _reason(error: BufferFull | BufferUnavailable) -> Literal["full", "unavailable"]:
    return "full" if isinstance(error, BufferFull) else "unavailable"


def parts(validated: list[Encoded | InvalidEvent]) -> Iterator[Sequence[Encoded]]:
    """Yield the valid events in chunks that one script can store."""
    encoded = (event for event in validated if not isinstance(event, InvalidEvent))
    return pages(encoded, APPEND_RECORDS_MAX)


@contextmanager
def counting(
    lane: str, receipts: list[Receipt], validated: list[Encoded | InvalidEvent]
) -> Iterator[None]:
    """Add the number of events stored before a failure to its error; count those after it."""
    try:
        yield
    except (BufferFull, BufferUnavailable) as error:
        error.stored = sum(receipt.accepted for receipt in receipts)
        valid = sum(not isinstance(event, InvalidEvent) for event in validated)
        untried = valid - len(receipts) - APPEND_RECORDS_MAX
        if untried > 0:
            runtime.current().refusals.add(lane, _reason(error), untried)
        raise


def in_order(stored: list[Receipt], validated: list[Encoded | InvalidEvent]) -> list[Receipt]:
    """Return a receipt for each item, in the order of the items."""
    receipts = iter(stored)
    return [
        Receipt(None, accepted=False, error=event, reason="invalid")
        if isinstance(event, InvalidEvent)
        else next(receipts)
        for event in validated
    ]
