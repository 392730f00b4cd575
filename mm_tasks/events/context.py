"""Fields that all events of one request, job or script share.

`context`, or a middleware of `contrib`, sets them around the code that tracks. They are added
to each `track` and `identify` inside. Arguments of the call win. Passing `None` removes the
field. `delay_many` ignores the context: the events of a backfill are about other people.

Kept in a context variable, so threads, asyncio tasks and greenlets do not mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Unpack

from mm_tasks.errors import InvalidEvent, Problem
from mm_tasks.events.best_effort import begin_request, end_request
from mm_tasks.events.encode import encode_track
from mm_tasks.events.event_fields import IDENTIFY_FIELDS, SHARED_FIELDS
from mm_tasks.events.lanes import IDENTIFY, TRACK

if TYPE_CHECKING:
    from mm_tasks.events.typed_dicts import SharedFields

_SHARED_BY_LANE = {
    TRACK: SHARED_FIELDS.keys(),
    IDENTIFY: SHARED_FIELDS.keys() & IDENTIFY_FIELDS.keys(),
}

Reader = Callable[[], Mapping[str, Any]]


_current: ContextVar[Reader | None] = ContextVar("mm_tasks_ambient", default=None)


class RequestScope:
    """The shared fields of one request, set during each of its steps and at no other time.

        with scope:  # a step

    Each event calls `read`, which must return valid fields and not raise. A `context` that a
    step began and did not end, such as one in a stream, is restored in the next step.
    """

    __slots__ = ("_effort", "_inside", "_is_best_effort", "_token")

    def __init__(self, read: Reader, *, is_best_effort: bool = False) -> None:
        """Begin without the fields of a `context` around the request."""
        self._inside: Reader | None = read
        self._is_best_effort = is_best_effort

    def __enter__(self) -> None:
        """Begin a step."""
        self._token = _current.set(self._inside)
        if self._is_best_effort:
            self._effort = begin_request()

    def __exit__(self, *_: object) -> None:
        """End the step."""
        if self._is_best_effort:
            end_request(self._effort)
        self._inside = _current.get()
        try:  # noqa: SIM105 - `suppress` costs each request a microsecond
            _current.reset(self._token)
        except ValueError:
            # An abandoned task is closed from another context. Its own context has ended.
            pass


@contextmanager
def context(**fields: Unpack[SharedFields]) -> Iterator[None]:
    """Add these fields to all events tracked inside. Contexts may be nested; the inner one wins.

        with mm_tasks.context(anonymous_id=visitor, url=page):
            track.delay("report_opened")

    Raises `InvalidEvent` at once if the vendor would refuse a field, naming field and rule.
    """
    if unknown := fields.keys() - SHARED_FIELDS.keys():
        rule = f"cannot be shared; known are {', '.join(SHARED_FIELDS)}"
        raise InvalidEvent([Problem(name, rule) for name in sorted(unknown)])
    encode_track({"event": "context", **fields})
    outer = _current.get()

    def read() -> Mapping[str, Any]:
        return {**(outer() if outer is not None else {}), **fields}

    _current.set(read)
    try:
        yield
    finally:
        # A generator may be closed after its request, when another reader is set.
        if _current.get() is read:
            _current.set(outer)


def with_context(
    lane: str, fields: dict[str, Any], positional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the fields of a call with those of the context that the call did not pass.

    `positional` names the fields that the call passed by position.
    """
    read = _current.get()
    if read is None:
        return fields
    names = _SHARED_BY_LANE[lane] - set(positional)
    return {**{name: value for name, value in read().items() if name in names}, **fields}


def valid_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """Return the fields that the vendor would accept."""
    try:
        encode_track({"event": "context", **fields})
    except InvalidEvent as error:
        refused = {problem.field for problem in error.problems}
        return {name: value for name, value in fields.items() if name not in refused}
    return dict(fields)
