"""Errors of the package, ordered by the caller's remedy.

MMTasksError
├── ConfigurationError   fix the settings, then restart
├── InvalidEvent         fix the caller; the event was not stored (also a ValueError)
│   └── EventTooLarge
├── BufferFull           slow down or shed load; nothing more was stored
├── BufferUnavailable    Redis did not answer in time; the event may have been stored
├── ImportRefused        fix the file or the options, then run the import again
├── AuditUnavailable     the erasure was not accepted; retry
├── AuditChainBroken     stop; the audit log was altered
└── ErasureStateError    this step of an erasure may not follow; read its state

No message holds a value: an error may be logged, and logs outlive erasures.
Failures of one delivery attempt are values, not exceptions: see `client/outcome`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "AuditChainBroken",
    "AuditUnavailable",
    "BufferFull",
    "BufferUnavailable",
    "ConfigurationError",
    "ErasureStateError",
    "EventTooLarge",
    "ImportRefused",
    "InvalidEvent",
    "MMTasksError",
    "Problem",
]

# A message shows the first problems only; `problems` has all.
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


class InvalidEvent(MMTasksError, ValueError):
    """The vendor would refuse this event. Nothing was stored."""

    def __init__(self, problems: list[Problem]) -> None:
        """Take the broken rules, at least one."""
        self.problems = problems
        shown = "; ".join(str(problem) for problem in problems[:_PROBLEMS_SHOWN])
        more = len(problems) - _PROBLEMS_SHOWN
        super().__init__(f"{shown}; and {more} more" if more > 0 else shown)

    def __reduce__(self) -> tuple[type[InvalidEvent], tuple[list[Problem]]]:
        """Pickle by the arguments, for Celery and multiprocessing."""
        return type(self), (self.problems,)


class EventTooLarge(InvalidEvent):
    """A part of the event, or all of it, is above a limit in bytes."""


class _PartlyStored(MMTasksError):
    """An append that did not finish. Counts the events that are, and may be, in Redis."""

    def __init__(self, message: str, stored: int = 0, maybe_stored: int = 0) -> None:
        """Take the counts of events; both are 0 or 1 for a single `delay`."""
        self.stored = stored
        self.maybe_stored = maybe_stored
        super().__init__(message)

    def __reduce__(self) -> tuple[type[_PartlyStored], tuple[str, int, int]]:
        """Pickle by the arguments."""
        return type(self), (str(self), self.stored, self.maybe_stored)


class BufferFull(_PartlyStored):
    """The buffer holds `MM_TASKS_BUFFER_BYTES_MAX`. Nothing was dropped to make room."""


class BufferUnavailable(_PartlyStored):
    """Redis did not answer in time. `maybe_stored` events may be stored all the same."""


class ImportRefused(MMTasksError):
    """A file, its position or the options stop the import. Rows stored before stay stored."""


class AuditUnavailable(MMTasksError):
    """The audit database did not take the request; the erasure was not accepted."""


class AuditChainBroken(MMTasksError):
    """The audit log does not verify: an entry was changed, removed or cut off.

    `reason` is a fixed word for logs and `mm-tasks status`.
    """

    def __init__(self, message: str, reason: str = "audit_log_broken") -> None:
        """Take the sentence and the word."""
        self.reason = reason
        super().__init__(message)

    def __reduce__(self) -> tuple[type[AuditChainBroken], tuple[str, str]]:
        """Pickle by the arguments."""
        return type(self), (str(self), self.reason)


class ErasureStateError(MMTasksError):
    """The erasure does not exist, or its state does not allow this. Nothing was changed."""
