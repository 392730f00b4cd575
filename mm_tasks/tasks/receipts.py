"""What callers get back, and the arithmetic of many events stored in several scripts."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mm_tasks.buffer.producer import Record
from mm_tasks.errors import BufferFull, BufferUnavailable, InvalidEvent, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mm_tasks.events.encode import Encoded


@dataclass(frozen=True, slots=True)
class ErasureReceipt:
    """An erasure that will be done. `id` is the erasure's: of one that is open already, if any.

    `fenced`: from now on no attempt that carries an event of the person is admitted. Where
    Redis was out of reach it is False, and the same holds from the next sweep.
    """

    id: str
    fenced: bool
    accepted: bool = True


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a stored event is known by. `accepted` is False when it was not stored.

    That is so when its person is erased and suppressed, or, with
    `delay_many(…, on_error="skip")`, when it is invalid: then `error` says why.
    """

    id: str | None
    accepted: bool
    error: InvalidEvent | None = None


def entries(part: Sequence[Encoded]) -> list[Record]:
    """Return what is stored of events."""
    return [Record(event.body, event.user_id, event.anonymous_id) for event in part]


def receipts_of(part: Sequence[Encoded], suppressed: frozenset[int]) -> list[Receipt]:
    """Return the receipts of what one script took."""
    return [Receipt(event.id, position not in suppressed) for position, event in enumerate(part)]


@contextmanager
def counting(receipts: list[Receipt]) -> Iterator[None]:
    """Let a failure say how many events were stored before it."""
    try:
        yield
    except (BufferFull, BufferUnavailable) as error:
        error.stored = sum(receipt.accepted for receipt in receipts)
        raise


def in_order(stored: list[Receipt], bad: dict[int, InvalidEvent], total: int) -> list[Receipt]:
    """Return a receipt for each item, as they were given."""
    rest = iter(stored)
    return [
        Receipt(None, accepted=False, error=bad[index]) if index in bad else next(rest)
        for index in range(total)
    ]


def at_index(index: int, error: InvalidEvent) -> InvalidEvent:
    """Return the error, saying of each problem which event has it."""
    problems = [Problem(problem.field, problem.rule, index) for problem in error.problems]
    return type(error)(problems)
