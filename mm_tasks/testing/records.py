"""The recorded calls, in order, and the errors that calls shall raise.

`runtime` adds records and `recorder` reads them. Any thread may add.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal

from mm_tasks.errors import (
    AuditUnavailable,
    BufferFull,
    BufferUnavailable,
    ConfigurationError,
    MMTasksError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Lane = Literal["track", "identify", "forget"]

_options: ContextVar[dict[str, Any] | None] = ContextVar("mm_tasks_options", default=None)

_FAILING: dict[type[MMTasksError], tuple[Lane, ...]] = {
    BufferFull: ("track", "identify"),
    BufferUnavailable: ("track", "identify"),
    AuditUnavailable: ("forget",),
    ConfigurationError: ("track", "identify", "forget"),
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """One call that was accepted: `track`, `identify` or `forget`.

    `fields` are the fields that the vendor would receive; of a `forget`, those of the request.
    `event` is the name and `id` the receipt's id; an `identify` has neither. `delay_s` is in how
    many seconds a scheduled call is due, otherwise None. `options` are the options of a call
    through the broker, such as `{"queue": "mm.deliver"}`, of a scheduled one
    `{"countdown": delay_s}`, otherwise None.
    """

    lane: Lane
    # Not printed, since it may be personal data.
    fields: dict[str, Any] = field(repr=False)
    event: str | None = None
    id: str | None = None
    options: dict[str, Any] | None = field(default=None, repr=False)
    delay_s: float | None = None

    @property
    def through_broker(self) -> bool:
        """Return whether it went as a Celery message, to be stored by a worker later."""
        return self.options is not None and self.delay_s is None


class Records:
    """The records of one recorder."""

    def __init__(self) -> None:
        """Start empty."""
        self.recorded: list[Recorded] = []
        self.suppressed: list[Recorded] = []
        self.user_ids: set[str] = set()
        self.anonymous_ids: set[str] = set()
        self.erasures: dict[str, str] = {}
        self._failures: dict[Lane, Iterator[MMTasksError]] = {}

    def add(
        self,
        lane: Lane,
        fields: dict[str, Any],
        id_: str | None,
        delay_s: float = 0.0,
        *,
        is_accepted: bool = True,
    ) -> None:
        """Record a call; one that is not accepted is of a suppressed person."""
        options = {"countdown": delay_s} if delay_s else _options.get()
        record = Recorded(lane, fields, fields.get("event"), id_, options, delay_s or None)
        (self.recorded if is_accepted else self.suppressed).append(record)

    def suppress(self, user_ids: Iterable[str], anonymous_ids: Iterable[str]) -> None:
        """Accept no further events of these persons."""
        self.user_ids.update(user_ids)
        self.anonymous_ids.update(anonymous_ids)

    def is_suppressed(self, user_id: str | None, anonymous_id: str | None) -> bool:
        """Return whether one of the ids belongs to a suppressed person."""
        return user_id in self.user_ids or anonymous_id in self.anonymous_ids

    def clear(self) -> None:
        """Remove the records, and nothing else."""
        self.recorded.clear()
        self.suppressed.clear()

    def let_fail(self, error: MMTasksError | None, times: int | None) -> None:
        """See `Recorder.fail_with`."""
        if error is None:
            self._failures = {}
            return
        lanes = next((lanes for kind, lanes in _FAILING.items() if isinstance(error, kind)), ())
        if not lanes:
            known = ", ".join(kind.__name__ for kind in _FAILING)
            msg = f"fail_with takes an error of type {known}, or None"
            raise TypeError(msg)
        failures = repeat(error) if times is None else repeat(error, times)
        self._failures |= dict.fromkeys(lanes, failures)

    def fail(self, lane: Lane) -> None:
        """Raise the error of this lane, if there is one.

        A call through the broker raises none: a worker would get the error, and retry.
        """
        if not self.is_through_broker():
            for error in self._failures.get(lane, ()):
                # A copy, since raising adds a traceback to the caller's object.
                raise copy.copy(error)

    def is_through_broker(self) -> bool:
        """Return whether the calls of this thread go through the broker now."""
        return _options.get() is not None

    @contextmanager
    def through_broker(self, options: Mapping[str, Any]) -> Iterator[None]:
        """Record the calls of this thread in the block as calls through the broker."""
        token = _options.set({name: v for name, v in options.items() if v is not None})
        try:
            yield
        finally:
            _options.reset(token)
