"""What can go wrong, by what the caller can do about it.

MMTasksError
├── ConfigurationError   fix the settings, then restart
├── InvalidEvent         fix the caller; the event was not stored (also a ValueError)
│   └── EventTooLarge
├── BufferFull           slow down or shed load; nothing more was stored
├── BufferUnavailable    Redis did not answer in time; the event may have been stored
├── ImportRefused        fix the file or the options, then run the import again
├── AuditUnavailable     the erasure was not accepted; ask again
├── AuditChainBroken     stop; the audit log was altered
└── protocol.Illegal     this step of an erasure may not follow; look at its state

No message holds a value: an error may be logged, and logs outlive erasures.
Failures of one delivery attempt are not exceptions: see `outcome`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "AuditChainBroken",
    "AuditUnavailable",
    "BufferFull",
    "BufferUnavailable",
    "ConfigurationError",
    "EventTooLarge",
    "ImportRefused",
    "InvalidEvent",
    "MMTasksError",
    "Problem",
]

# A message that names thousands of bad events helps nobody; `problems` has them all.
_PROBLEMS_SHOWN = 20


class MMTasksError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigurationError(MMTasksError):
    """A setting is missing or wrong. The message names the setting and the rule."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule: which field, which rule and, within `delay_many`, which event."""

    field: str
    rule: str
    index: int | None = None

    def __str__(self) -> str:
        """Return for example ``[3] user_id: must be a string``."""
        place = "" if self.index is None else f"[{self.index}] "
        return f"{place}{self.field}: {self.rule}"


class InvalidEvent(MMTasksError, ValueError):  # noqa: N818 - the public name
    """The vendor would refuse this event, so it was refused here. Nothing was stored."""

    def __init__(self, problems: list[Problem]) -> None:
        """Take every broken rule that was found, at least one."""
        self.problems = problems
        shown = "; ".join(str(problem) for problem in problems[:_PROBLEMS_SHOWN])
        more = len(problems) - _PROBLEMS_SHOWN
        super().__init__(f"{shown}; and {more} more" if more > 0 else shown)

    def __reduce__(self) -> tuple[type[InvalidEvent], tuple[list[Problem]]]:
        """Pickle by what it was made from (Celery and multiprocessing do)."""
        return type(self), (self.problems,)


class EventTooLarge(InvalidEvent):
    """A part of the event, or all of it, is above a limit in bytes."""


class _PartlyStored(MMTasksError):  # noqa: N818 - base of two public names
    """An append that did not finish: how many events are in Redis, and how many may be."""

    def __init__(self, message: str, stored: int = 0, maybe_stored: int = 0) -> None:
        """Take the counts of events; both are 0 or 1 for a single `delay`."""
        self.stored = stored
        self.maybe_stored = maybe_stored
        super().__init__(message)

    def __reduce__(self) -> tuple[type[_PartlyStored], tuple[str, int, int]]:
        """Pickle by what it was made from."""
        return type(self), (str(self), self.stored, self.maybe_stored)


class BufferFull(_PartlyStored):
    """The buffer holds `MM_TASKS_BUFFER_BYTES_MAX`. Nothing was dropped to make room."""


class BufferUnavailable(_PartlyStored):
    """Redis did not answer in time. `maybe_stored` events may be there all the same."""


class ImportRefused(MMTasksError):  # noqa: N818 - the public name
    """A file, its position or the options are not fit to go on; what was stored before, is."""


class AuditUnavailable(MMTasksError):  # noqa: N818 - the public name
    """The audit database did not take the request; the erasure was not accepted."""


class AuditChainBroken(MMTasksError):  # noqa: N818 - the public name
    """The audit log does not verify: an entry was changed, removed or cut off."""
