"""The protocol of an erasure: which entry may follow which, and what each may say.

    received → fenced → purged → quiesced → submitted → settling → submitted … → completed
                                              ├ retrying · waiting_key · attention
    rejected · cancelled · duplicate_of: before the first call only      completed → lifted

One value, `ENTRIES`, and one function, `step`. The ledger asks it before it
writes an entry; verification asks it of what was written. So neither can
allow what the other does not.

A round begins with each quiesce and makes all its passes; a pass is called as
often as it takes until the vendor acknowledges it, and each such attempt has an
entry before the call (`intent`) and one after it (`result`).

Pure: no clock, no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from mm_tasks.errors import MMTasksError
from mm_tasks.timestamps import STAMP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ACKNOWLEDGED = "acknowledged"

BEFORE_CALLS = frozenset({"received", "fenced", "purged", "quiesced"})
BLOCKED = frozenset({"retrying", "waiting_key", "attention"})
OPEN = BEFORE_CALLS | BLOCKED | {"submitted", "settling"}
ENDED = frozenset({"completed", "lifted", "cancelled", "rejected", "duplicate_of"})
STATES = OPEN | ENDED
# In these the subject's events are refused.
FENCED = OPEN | {"completed"}

# Texts an entry may hold: never free text, and nothing that looks like an e-mail address.
REFERENCE = re.compile(r"[^\s@\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}")
WORD_CHARACTERS_MAX = 64
WORD = re.compile(r"[a-z0-9][a-z0-9_.:-]{0,63}", re.ASCII)
# How a request came: accepted in the call itself, or by a worker that had it from the broker.
VIA = frozenset({"call", "message"})


class IllegalTransition(MMTasksError):  # noqa: N818 - of what was asked, or of what a log says
    """This may not follow. The message is the rule, in words; never what was asked."""


class AuditEntry(NamedTuple):
    """One kind of entry: the states it may follow, the state it leads to, what it says.

    `to` is '' where the state stays.
    """

    after: frozenset[str]
    to: str
    details: frozenset[str]


def _entry(after: frozenset[str] | set[str], to: str, *details: str) -> AuditEntry:
    return AuditEntry(frozenset(after), to, frozenset(details))


_ASKED = ("requested_by", "ticket", "reason", "received_at", "via")

ENTRIES: Mapping[str, AuditEntry] = MappingProxyType(
    {
        "received": _entry(set(), "received", *_ASKED, "project", "mode", "anonymous", "due_at"),
        "ticket_added": _entry(OPEN, "", *_ASKED, "mode"),
        "anonymous_added": _entry(OPEN, "received", "anonymous"),
        "fenced": _entry({"received"}, "fenced"),
        # Again as long as something is found: what was being sent and came back.
        "purged": _entry({"fenced", "purged"}, "purged", "removed"),
        "quiesced": _entry({"purged"}, "quiesced", "passes"),
        "intent": _entry(
            BLOCKED | {"quiesced", "settling", "submitted"}, "submitted", "pass", "attempt"
        ),
        # An answer may come late: after another worker took over, after new anonymous ids.
        "result": _entry(STATES, "", "pass", "attempt", "status", "outcome"),
        "settling": _entry({"submitted"}, "settling", "next_at"),
        "retrying": _entry({"submitted"}, "retrying", "next_at"),
        "waiting_key": _entry({"submitted"}, "waiting_key", "next_at"),
        "attention": _entry({"submitted"}, "attention", "next_at"),
        "retried": _entry(BLOCKED, "", "requested_by"),
        "completed": _entry({"submitted"}, "completed", "acknowledged"),
        "cancelled": _entry(BEFORE_CALLS, "cancelled", "requested_by"),
        "rejected": _entry(BEFORE_CALLS, "rejected", "requested_by", "outcome"),
        "duplicate_of": _entry(BEFORE_CALLS, "duplicate_of", "requested_by", "original"),
        "lifted": _entry({"completed"}, "lifted", "requested_by"),
        "wiped": _entry(ENDED, ""),
        "aof_rewritten": _entry(ENDED | {"submitted"}, "", "outcome"),
    }
)


@dataclass(frozen=True, slots=True)
class ErasureState:
    """How far one erasure is.

    Of this round: how many `passes` it makes, how many are `acknowledged`, and the pass of
    the newest attempt, `called`. Of all rounds: how many `attempts` were made, and which of
    them wait for their result, with their pass.
    """

    state: str
    passes: int = 0
    acknowledged: int = 0
    called: int = 0
    attempts: int = 0
    waiting: Mapping[int, int] = field(default_factory=dict)
    wiped: bool = False

    @property
    def answered(self) -> bool:
        """Say whether the newest attempt has its result."""
        return self.attempts not in self.waiting


def step(
    progress: ErasureState | None, kind: str, details: Mapping[str, object], erasure: str = ""
) -> ErasureState:
    """Return how far the erasure is after an entry, or raise `IllegalTransition`.

    `progress` is None before the first entry; `erasure` is only looked at there and for
    `duplicate_of`.
    """
    entry = ENTRIES.get(kind)
    if entry is None:
        msg = "its kind is not one of the protocol's"
        raise IllegalTransition(msg)
    check_details(entry, details)
    if progress is None:
        if kind != "received":
            msg = f"{kind} comes before received"
            raise IllegalTransition(msg)
        return ErasureState("received")
    if progress.state not in entry.after:
        msg = f"{kind} may not follow the state {progress.state}"
        raise IllegalTransition(msg)
    _check_calls(progress, kind, details)
    if kind == "duplicate_of" and details["original"] == erasure:
        msg = "an erasure is no duplicate of itself"
        raise IllegalTransition(msg)
    return _after(progress, kind, details, entry.to or progress.state)


def _check_calls(progress: ErasureState, kind: str, details: Mapping[str, object]) -> None:
    """Raise where the state would allow the entry, and the calls to the vendor do not."""
    all_passed = progress.acknowledged == progress.passes
    passed = progress.answered and progress.acknowledged == progress.called
    rules = {
        "cancelled": (not progress.attempts, "the vendor was called already"),
        "rejected": (not progress.attempts, "the vendor was called already"),
        "duplicate_of": (not progress.attempts, "the vendor was called already"),
        "intent": (
            not all_passed and details.get("pass") == progress.acknowledged + 1,
            "an intent must be for the first pass that was not acknowledged",
        ),
        "result": (
            details.get("attempt") in progress.waiting
            and progress.waiting.get(_count(details, "attempt")) == details.get("pass"),
            "a result must have its intent, and only one result",
        ),
        "quiesced": (_count(details, "passes") > 0, "a round makes at least one pass"),
        "settling": (passed and not all_passed, "the last call was not acknowledged"),
        "completed": (
            passed and all_passed and details.get("acknowledged") == progress.passes,
            "not every pass was acknowledged",
        ),
        "wiped": (not progress.wiped, "the ids were wiped before"),
    }
    if kind in BLOCKED:
        rules[kind] = (progress.answered and not passed, "it needs a result that is no success")
    if kind == "intent" and details.get("attempt") != progress.attempts + 1:
        msg = "attempts must be counted without a gap"
        raise IllegalTransition(msg)
    holds, rule = rules.get(kind, (True, ""))
    if not holds:
        raise IllegalTransition(rule)


def _after(
    progress: ErasureState, kind: str, details: Mapping[str, object], state: str
) -> ErasureState:
    match kind:
        case "quiesced":
            passes = _count(details, "passes")
            return replace(progress, state=state, passes=passes, acknowledged=0, called=0)
        case "intent":
            attempt, n = _count(details, "attempt"), _count(details, "pass")
            waiting = {**progress.waiting, attempt: n}
            return replace(progress, state=state, called=n, attempts=attempt, waiting=waiting)
        case "result":
            attempt = _count(details, "attempt")
            waiting = {one: n for one, n in progress.waiting.items() if one != attempt}
            counts = details["outcome"] == ACKNOWLEDGED and is_current(progress, attempt)
            acknowledged = progress.acknowledged + counts
            return replace(progress, waiting=waiting, acknowledged=acknowledged)
        case "wiped":
            return replace(progress, wiped=True)
        case _:
            return replace(progress, state=state)


def is_current(progress: ErasureState, attempt: int) -> bool:
    """Say whether the erasure waits for this attempt's result, and not for another's."""
    return progress.state == "submitted" and attempt == progress.attempts


def _count(details: Mapping[str, object], name: str) -> int:
    value = details.get(name)
    return value if isinstance(value, int) else 0


def check_details(entry: AuditEntry, details: Mapping[str, object]) -> None:
    """Raise `IllegalTransition` unless these are exactly the details of its kind."""
    if set(details) != entry.details:
        msg = "its details are not those of its kind"
        raise IllegalTransition(msg)
    for name, value in details.items():
        if not _ALLOWED[name](value):
            msg = f"its {name} is not of the allowed form"
            raise IllegalTransition(msg)


def _text(pattern: re.Pattern[str]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _optional(allowed: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or allowed(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(
        is_word(name) and _is_count(n) for name, n in value.items()
    )


is_reference = _text(REFERENCE)
is_word = _text(WORD)
_is_stamp = _text(STAMP)

_ALLOWED: Mapping[str, Callable[[object], bool]] = {
    "acknowledged": _is_count,
    "anonymous": _is_count,
    "attempt": _is_count,
    "due_at": _is_stamp,
    "mode": is_word,
    "next_at": _optional(_is_stamp),
    "original": is_reference,
    "outcome": is_word,
    "pass": _is_count,
    "passes": _is_count,
    "project": is_reference,
    "reason": is_word,
    "received_at": _is_stamp,
    "removed": _are_counts,
    "requested_by": _optional(is_reference),
    "status": _optional(_is_count),
    "ticket": _optional(is_reference),
    "via": lambda value: value in VIA,
}
