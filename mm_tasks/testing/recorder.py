"""Record events instead of storing them, and assert in a test which were recorded."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields as fields_of
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from mm_tasks import runtime
from mm_tasks.erasure.request import ErasureRequest
from mm_tasks.events.event_fields import IDENTIFY_FIELDS, TRACK_FIELDS
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
    "forget": (*(field.name for field in fields_of(ErasureRequest)), "via"),
}
_NOT_TEXT = ("properties", "traits", "anonymous_ids")


@contextmanager
def record() -> Iterator[Recorder]:
    """Record the calls of `track`, `identify` and `forget` in all threads of this process.

    Events are validated as always; nothing is stored, sent or published. Recordings may be
    nested: the innermost takes all calls. The recorder stays usable after the block.
    """
    records = Records()
    with runtime.replaced(cast("runtime.Runtime", RecordingRuntime(records))):
        yield Recorder(records)


class Recorder:
    """The recorded calls. Expected fields are a subset: `properties={"plan": "pro"}` is one key.

    A value is compared as it would be sent, so a datetime works; None matches an absent field;
    `unittest.mock.ANY` matches anything.
    """

    def __init__(self, records: Records) -> None:
        """Take the records; see `record`."""
        self._records = records

    def __repr__(self) -> str:
        """Return the number of records, without personal data."""
        return f"<Recorder: {len(self._records.recorded)} recorded>"

    @property
    def events(self) -> list[Recorded]:
        """Return the accepted calls, in order."""
        return list(self._records.recorded)

    @property
    def suppressed(self) -> list[Recorded]:
        """Return the calls that were not accepted because the person is suppressed."""
        return list(self._records.suppressed)

    def tracked(self, event: str | None = None, /, **fields: Any) -> list[Recorded]:
        """Return the tracked events with these fields, and with this name if it is given."""
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
        """Fail unless `identify` was called with these fields; return the first call."""
        __tracebackhide__ = True
        return self._first("identify", fields)

    def assert_forgotten(self, **fields: Any) -> Recorded:
        """Fail unless `forget` was called with these fields; return the first call."""
        __tracebackhide__ = True
        return self._first("forget", fields)

    def assert_nothing(self) -> None:
        """Fail if anything was accepted: an event, an identify or a forget."""
        __tracebackhide__ = True
        if found := self.events:
            head = "nothing should have been recorded:"
            raise AssertionError("\n".join([head, *matching.lines(found, {})]))

    def clear(self) -> None:
        """Remove the records. Suppressed persons and `fail_with` stay in force."""
        self._records.clear()

    def suppress(self, *, user_id: str | None = None, anonymous_id: str | None = None) -> None:
        """Treat this person as erased: their events are not accepted, as the receipts show.

        A recorded `forget` does the same for its ids.
        """
        self._records.suppress(
            () if user_id is None else (user_id,),
            () if anonymous_id is None else (anonymous_id,),
        )

    def fail_with(self, error: MMTasksError | None, *, times: int | None = None) -> None:
        """Let calls raise this error from now on, or only `times` times; None ends it.

        `BufferFull` and `BufferUnavailable` affect track and identify, `AuditUnavailable`
        affects forget, `ConfigurationError` all. A call that raises is not recorded.
        """
        self._records.let_fail(error, times)

    def _found(self, lane: Lane, expected: Mapping[str, Any]) -> list[Recorded]:
        _check(lane, expected)
        return [
            entry
            for entry in self.events
            if entry.lane == lane and not matching.differences(expected, entry.fields)
        ]

    def _first(self, lane: Lane, expected: Mapping[str, Any]) -> Recorded:
        __tracebackhide__ = True
        for found in self._found(lane, expected):
            return found
        raise AssertionError(self._missing(lane, expected))

    def _missing(self, lane: Lane, expected: Mapping[str, Any]) -> str:
        """Return the records, and the differences of the most similar one."""
        recorded, suppressed = self.events, self.suppressed
        text = [f"{matching.call(lane, expected)} was not recorded."]
        near = matching.nearest(expected, [entry for entry in recorded if entry.lane == lane])
        if near is not None:
            number = next(n for n, entry in enumerate(recorded, 1) if entry is near)
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
    """Refuse fields that no record can have: `assert_not_tracked` would always pass."""
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
