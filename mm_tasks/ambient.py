"""What the events of one request, job or script have in common.

Set around the code that tracks (`context`, or a middleware of `contrib`), and added to each
`track` and `identify` in it. What a call gives itself wins, `None` included: that leaves a
field out. `delay_many` takes nothing from here: a backfill is about others.

Kept in a context variable, so threads, tasks of asyncio and greenlets do not mix.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, TypedDict

from mm_tasks.errors import InvalidEvent, Problem
from mm_tasks.events import TRACK, TrackEvent, encode_track

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Unpack

# What an event says of its own is not here: its name, id, time and properties.
SHARED = ("anonymous_id", "user_id", "session_id", "url", "path", "referrer")
_FOR = {TRACK: SHARED, "identify": ("anonymous_id", "user_id")}
assert set(SHARED) < set(TrackEvent.model_fields)


class SharedFields(TypedDict, total=False):
    """The fields that events may have in common; None removes what is set around."""

    anonymous_id: str | None
    user_id: str | None
    session_id: str | None
    url: str | None
    path: str | None
    referrer: str | None


class Ambient:
    """Fields that are read when the first event asks for them, and only once."""

    __slots__ = ("_fields", "_read")

    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        """Take what reads the fields; it must return usable ones and not raise."""
        self._read = read
        self._fields: Mapping[str, Any] | None = None

    def fields(self) -> Mapping[str, Any]:
        """Return the fields."""
        if self._fields is None:
            self._fields = self._read()
        return self._fields


_current: ContextVar[Ambient | None] = ContextVar("mm_tasks_ambient", default=None)


@contextmanager
def context(**fields: Unpack[SharedFields]) -> Iterator[None]:
    """Give these fields to all events tracked inside. Contexts may be nested; the inner one wins.

        with mm_tasks.context(anonymous_id=visitor, url=page):
            track.delay("report_opened")

    Raises `InvalidEvent` at once where the vendor would refuse a field, naming field and rule.
    """
    checked = {name: value for name, value in fields.items() if value is not None}
    if unknown := fields.keys() - set(SHARED):
        raise InvalidEvent(_unknown(unknown))
    encode_track({"event": "context", **checked})
    around = _current.get()

    def read() -> Mapping[str, Any]:
        outer = around.fields() if around is not None else {}
        merged = {**outer, **fields}
        return {name: value for name, value in merged.items() if value is not None}

    token = enter(read)
    try:
        yield
    finally:
        leave(token)


def enter(read: Callable[[], Mapping[str, Any]]) -> Token[Ambient | None]:
    """Let `read` say what events tracked from now on have in common, until `leave`."""
    return _current.set(Ambient(read))


def leave(token: Token[Ambient | None]) -> None:
    """End what `enter` began. From another context (a stream that was closed) do nothing."""
    try:
        _current.reset(token)
    except ValueError:
        # It was a copy, which ended by itself.
        return


def added(lane: str, given: Mapping[str, Any], taken: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of a call with what it did not give; `taken` were given by position."""
    around = _current.get()
    if around is None:
        return given if type(given) is dict else dict(given)
    known = _FOR[lane]
    more = {
        name: value
        for name, value in around.fields().items()
        if name in known and name not in taken
    }
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


def _unknown(names: set[str]) -> list[Any]:

    rule = f"cannot be shared; known are {', '.join(SHARED)}"
    return [Problem(name, rule) for name in sorted(names)]
