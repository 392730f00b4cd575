"""Record events instead of storing them, and say in a test which ones are expected."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields as fields_of
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from mm_tasks import runtime
from mm_tasks.erasure.request import ErasureRequest
from mm_tasks.events.models import IDENTIFY_FIELDS, TRACK_FIELDS
from mm_tasks.testing import matching
from mm_tasks.testing.records import Records
from mm_tasks.testing.runtime import RecordingRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mm_tasks.errors import MMTasksError
    from mm_tasks.testing.records import Lane, Recorded

_KNOWN: dict[Lane, tuple[str, ...]] = {
    "track": tuple(TRACK_FIELDS),
    "identify": tuple(IDENTIFY_FIELDS),
    "forget": (*(one.name for one in fields_of(ErasureRequest)), "via"),
}
_NOT_TEXT = ("properties", "traits", "anonymous_ids")


@contextmanager
def record() -> Iterator[Recorder]:
    """Record what all threads of this process track, identify and forget meanwhile.

    Everything is validated as always, and nothing is stored, sent or published. Recordings
    may be nested: the newest takes all. The recorder can be asked afterwards too.
    """
    journal = Records()
    with runtime.replaced(cast("runtime.Runtime", RecordingRuntime(journal))):
        yield Recorder(journal)


class Recorder:
    """What was recorded. Fields are a subset: `properties={"plan": "pro"}` asks for one key.

    A value is compared as it would be sent, so a datetime may be given; None asks for a field
    that is absent; `unittest.mock.ANY` is equal to anything.
    """

    def __init__(self, journal: Records) -> None:
        """Take what is recorded to; see `record`."""
        self._journal = journal

    def __repr__(self) -> str:
        """Count, and show nothing of anybody."""
        return f"<Recorder: {len(self._journal.recorded)} recorded>"

    @property
    def events(self) -> list[Recorded]:
        """Return all that was accepted so far, in order."""
        return list(self._journal.recorded)

    @property
    def suppressed(self) -> list[Recorded]:
        """Return what was not accepted, as its person is suppressed."""
        return list(self._journal.suppressed)

    def tracked(self, event: str | None = None, /, **fields: Any) -> list[Recorded]:
        """Return the tracked events of this name, or of any, with these fields."""
        return self._found("track", _with_name(event, fields))

    def identified(self, **fields: Any) -> list[Recorded]:
        """Return the calls of `identify` with these fields."""
        return self._found("identify", fields)

    def forgotten(self, **fields: Any) -> list[Recorded]:
        """Return the calls of `forget` with these fields."""
        return self._found("forget", fields)

    def assert_tracked(self, event: str | None = None, /, **fields: Any) -> Recorded:
        """Fail unless such an event was tracked; return the first."""
        __tracebackhide__ = True
        return self._first("track", _with_name(event, fields))

    def assert_tracked_once(self, event: str | None = None, /, **fields: Any) -> Recorded:
        """Fail unless exactly one such event was tracked; return it."""
        __tracebackhide__ = True
        expected = _with_name(event, fields)
        first, *more = found = [self._first("track", expected), *self.tracked(**expected)[1:]]
        if more:
            head = f"{matching.call('track', expected)} was recorded {len(found)} times, not once:"
            raise AssertionError("\n".join([head, *matching.lines(found, expected)]))
        return first

    def assert_not_tracked(self, event: str | None = None, /, **fields: Any) -> None:
        """Fail if such an event was tracked."""
        __tracebackhide__ = True
        expected = _with_name(event, fields)
        if found := self._found("track", expected):
            head = f"{matching.call('track', expected)} was recorded, and should not have been:"
            raise AssertionError("\n".join([head, *matching.lines(found, expected)]))

    def assert_identified(self, **fields: Any) -> Recorded:
        """Fail unless there was such a call of `identify`; return the first."""
        __tracebackhide__ = True
        return self._first("identify", fields)

    def assert_forgotten(self, **fields: Any) -> Recorded:
        """Fail unless there was such a call of `forget`; return the first."""
        __tracebackhide__ = True
        return self._first("forget", fields)

    def assert_nothing(self) -> None:
        """Fail if anything was accepted: an event, an identify or a forget."""
        __tracebackhide__ = True
        if found := self.events:
            head = "nothing should have been recorded:"
            raise AssertionError("\n".join([head, *matching.lines(found, {})]))

    def clear(self) -> None:
        """Forget what was recorded. Who is suppressed, and what fails, stays so."""
        self._journal.clear()

    def suppress(self, *, user_id: str | None = None, anonymous_id: str | None = None) -> None:
        """Let this person be erased: their events are not accepted, as the receipts say.

        A recorded `forget` does the same for the ids it names.
        """
        self._journal.suppress(
            () if user_id is None else (user_id,),
            () if anonymous_id is None else (anonymous_id,),
        )

    def fail_with(self, error: MMTasksError | None, *, times: int | None = None) -> None:
        """Let calls raise this error from now on, or only so many `times`; None ends it.

        `BufferFull` and `BufferUnavailable` meet track and identify, `AuditUnavailable` meets
        forget, `ConfigurationError` all. Of a call that raises, nothing is recorded.
        """
        self._journal.let_fail(error, times)

    def _found(self, lane: Lane, expected: Mapping[str, Any]) -> list[Recorded]:
        _check(lane, expected)
        return [
            one
            for one in self.events
            if one.lane == lane and not matching.differences(expected, one.fields)
        ]

    def _first(self, lane: Lane, expected: Mapping[str, Any]) -> Recorded:
        __tracebackhide__ = True
        for found in self._found(lane, expected):
            return found
        raise AssertionError(self._missing(lane, expected))

    def _missing(self, lane: Lane, expected: Mapping[str, Any]) -> str:
        """Return what was recorded instead, and how the nearest of it is different."""
        recorded, suppressed = self.events, self.suppressed
        text = [f"{matching.call(lane, expected)} was not recorded."]
        near = matching.nearest(expected, [one for one in recorded if one.lane == lane])
        if near is not None:
            number = next(n for n, one in enumerate(recorded, 1) if one is near)
            text.append(f"Nearest is number {number}:")
            text += matching.difference_lines(expected, near)
        text.append("Recorded:" if recorded else "Nothing was recorded.")
        text += matching.lines(recorded, expected)
        if suppressed:
            text.append("Not accepted, as their person is suppressed:")
            text += matching.lines(suppressed, expected)
        return "\n".join(text)


def _with_name(event: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    if event is None:
        return fields
    if "event" in fields:
        msg = "event was given twice"
        raise TypeError(msg)
    return {"event": event, **fields}


def _check(lane: Lane, expected: Mapping[str, Any]) -> None:
    """Refuse what no record can have: `assert_not_tracked` would pass for ever."""
    for name, value in expected.items():
        if name not in _KNOWN[lane]:
            close = get_close_matches(name, _KNOWN[lane], n=1)
            free = {"track": "properties", "identify": "traits"}.get(lane)
            hint = f"; did you mean {close[0]}?" if close else ""
            if not hint and free:
                hint = f"; did you mean {free}={{{name!r}: …}}?"
            msg = f"{name!r} is not a field of {lane}{hint}"
            raise TypeError(msg)
        if name not in _NOT_TEXT and isinstance(value, int | float):
            msg = f"{name} is text in every {lane}; use str()"
            raise TypeError(msg)
