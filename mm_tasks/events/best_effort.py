"""Whether a call that cannot store its event raises, or drops the event and goes on.

`with best_effort():` chooses it for the calls inside, a middleware for those of a request, and
`MM_TASKS_ON_BUFFER_UNAVAILABLE` for all others.

Kept in a context variable, so asyncio tasks and greenlets do not mix. A thread that is started
inside does not inherit it; `asyncio.to_thread` does.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import Token


class _Choice:
    """One choice; two are never the same, so that each block ends only its own."""

    __slots__ = ("is_on",)

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on


_current: ContextVar[_Choice | None] = ContextVar("mm_tasks_best_effort", default=None)
_OF_REQUESTS = _Choice(is_on=True)


@contextmanager
def best_effort(*, enabled: bool = True) -> Iterator[None]:
    """Let `track` and `identify` inside never raise because Redis is away or full.

        with mm_tasks.best_effort():
            receipt = track.delay("page_viewed")  # .accepted, and .reason if it was dropped

    An invalid event raises all the same, and `forget` always raises. `enabled=False` lets the
    calls inside raise, in a request or a process that drops. The inner block wins.
    """
    choice, outer = _Choice(is_on=enabled), _current.get()
    _current.set(choice)
    try:
        yield
    finally:
        # A generator may be closed after its request, when another choice is set.
        if _current.get() is choice:
            _current.set(outer)


def chosen() -> bool | None:
    """Return what the innermost block chose; None outside of all."""
    choice = _current.get()
    return None if choice is None else choice.is_on


def begin_request() -> Token[_Choice | None]:
    """Begin a step of a request whose calls are best effort."""
    return _current.set(_OF_REQUESTS)


def end_request(token: Token[_Choice | None]) -> None:
    """End the step."""
    # An abandoned task is closed from another context. Its own context has ended.
    with suppress(ValueError):
        _current.reset(token)
