"""What the events of one request, job or script have in common.

Set around the code that tracks (`context`, or a middleware of `contrib`), and added to each
`track` and `identify` in it. What a call gives itself wins, `None` included: that leaves a
field out. `delay_many` takes nothing from here: a backfill is about others.

Kept in a context variable, so threads, tasks of asyncio and greenlets do not mix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from mm_tasks.errors import InvalidEvent, Problem
from mm_tasks.events.encode import encode_track
from mm_tasks.events.lanes import TRACK
from mm_tasks.events.models import TrackEvent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Unpack

    from mm_tasks.events.fields import SharedFields

# What an event says of its own is not here: its name, id, time and properties.
SHARED = ("anonymous_id", "user_id", "session_id", "url", "path", "referrer")
_FOR = {TRACK: SHARED, "identify": ("anonymous_id", "user_id")}
assert set(SHARED) < set(TrackEvent.model_fields)

Reader = Callable[[], Mapping[str, Any]]


_current: ContextVar[Reader | None] = ContextVar("mm_tasks_ambient", default=None)


class RequestScope:
    """What one request gives its events, in each of its steps and nowhere else.

        with carried:  # a step

    `read` is asked by each event; it must return usable fields and not raise. What a step began
    and did not end, such as a `context` in a stream, is there again in the next step.
    """

    __slots__ = ("_inside", "_token")

    def __init__(self, read: Reader) -> None:
        """Begin anew: what is around the request does not count."""
        self._inside: Reader | None = read

    def __enter__(self) -> None:
        """Begin a step."""
        self._token = _current.set(self._inside)

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._inside = _current.get()
        try:
            _current.reset(self._token)
        except ValueError:
            # A task that was dropped is closed from outside. Its context ended with it.
            return


@contextmanager
def context(**fields: Unpack[SharedFields]) -> Iterator[None]:
    """Give these fields to all events tracked inside. Contexts may be nested; the inner one wins.

        with mm_tasks.context(anonymous_id=visitor, url=page):
            track.delay("report_opened")

    Raises `InvalidEvent` at once where the vendor would refuse a field, naming field and rule.
    """
    if unknown := fields.keys() - set(SHARED):
        raise InvalidEvent(_unknown(unknown))
    encode_track({"event": "context", **fields})
    around = _current.get()

    def read() -> Mapping[str, Any]:
        return {**(around() if around is not None else {}), **fields}

    _current.set(read)
    try:
        yield
    finally:
        # Elsewhere it has ended by itself: a generator may be closed after its request.
        if _current.get() is read:
            _current.set(around)


def with_context(lane: str, given: dict[str, Any], taken: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of a call with what it did not give; `taken` were given by position."""
    around = _current.get()
    if around is None:
        return given
    known = _FOR[lane]
    more = {name: value for name, value in around().items() if name in known and name not in taken}
    return {**more, **given}


def usable(fields: Mapping[str, str]) -> dict[str, str]:
    """Return those of these fields that the vendor would not refuse."""
    if _is_usable(fields):
        return dict(fields)
    return {name: value for name, value in fields.items() if _is_usable({name: value})}


def _is_usable(fields: Mapping[str, str]) -> bool:
    try:
        encode_track({"event": "context", **fields})
    except InvalidEvent:
        return False
    return True


def _unknown(names: set[str]) -> list[Problem]:
    rule = f"cannot be shared; known are {', '.join(SHARED)}"
    return [Problem(name, rule) for name in sorted(names)]
