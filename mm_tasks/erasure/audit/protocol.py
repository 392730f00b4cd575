"""The state machine of audit entries: the entries that may follow each state of an erasure.

    received → fenced → purged → quiesced → submitted → settling → submitted … → completed
       ↑ started                              ├ retrying · waiting_key · attention
    scheduled
    rejected · cancelled · duplicate_of: before the first call only
    completed → lifted, by a person; completed → completed_once, by `released`, in mode `once`

Entries about the store itself, `STORE_ENTRIES`, stand between those of erasures.

The table `ENTRIES` has the legal states and the details of each kind; `step` applies an
entry. `rows` calls `step` before it writes an entry and `verification` for each entry it
reads, so that both follow the same rules.

Each quiesce begins a round, which makes all passes. A pass is called until the vendor
acknowledges it. The first call of a pass, a call after a changed outcome and a call after one
without a known outcome begin an attempt: each has an entry before it (`intent`). A call with the
same outcome as the call before it adds no entry, and the next one is of the same attempt. The entry
of a changed outcome (`result`) ends the attempt, and has the number of its `calls` if there were
several. While the vendor refuses the key or the host, `waiting_key` also comes without a call.

An erasure whose `received` has a `not_before` begins in the state `scheduled`; `started` ends that,
at its time or because a request without one was added. With a `call_after` the vendor is not
called before that time; of several requests the earliest counts, and one without none at all.

Earlier releases ended an erasure of mode `once` by `lifted` without a `requested_by`.

Pure: no clock, no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from mm_tasks.errors import ErasureStateError
from mm_tasks.timestamps import STAMP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ACKNOWLEDGED = "acknowledged"

BEFORE_CALLS = frozenset({"received", "fenced", "purged", "quiesced"})
# The project is paused because the vendor refuses its key or host: no call is made but the probe.
WAITING_KEY = "waiting_key"
BLOCKED = frozenset({"retrying", WAITING_KEY, "attention"})
# Asked for and not begun: no fence is up, and nothing is removed.
SCHEDULED = "scheduled"
OPEN = BEFORE_CALLS | BLOCKED | {SCHEDULED, "submitted", "settling"}
ENDED = frozenset(
    {"completed", "completed_once", "lifted", "cancelled", "rejected", "duplicate_of"}
)
STATES = OPEN | ENDED

# Texts of an entry: never free text, and nothing that looks like an e-mail address.
_REFERENCE = re.compile(r"[^\s@\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}")
WORD_CHARACTERS_MAX = 64
_WORD = re.compile(r"[a-z0-9][a-z0-9_.:-]{0,63}", re.ASCII)
# A request is accepted in the call itself, or by a worker that received it in a message.
VIA = frozenset({"call", "message"})


class IllegalTransition(ErasureStateError):
    """Illegal transition. The message states the rule and never contains user data."""


class AuditEntry(NamedTuple):
    """One kind of entry: the states it may follow, its next state, the names of its details.

    `to` is '' if the entry does not change the state. A detail in `optional` may be absent.
    """

    after: frozenset[str]
    to: str
    details: frozenset[str]
    optional: frozenset[str] = frozenset()


def _entry(after: frozenset[str] | set[str], to: str, *details: str) -> AuditEntry:
    return AuditEntry(frozenset(after), to, frozenset(details))


_REQUEST = ("requested_by", "ticket", "reason", "received_at", "via")
_LATER = frozenset({"not_before", "call_after"})
_CANCELLABLE = BEFORE_CALLS | {SCHEDULED, WAITING_KEY}
# A call was begun, or is made again.
CALLED = BLOCKED | {"submitted"}

ENTRIES: Mapping[str, AuditEntry] = MappingProxyType(
    {
        "received": _entry(
            set(), "received", *_REQUEST, "project", "mode", "anonymous", "due_at"
        )._replace(optional=_LATER),
        "ticket_added": _entry(OPEN, "", *_REQUEST, "mode")._replace(optional=_LATER),
        "started": _entry({SCHEDULED}, "received"),
        # Of a scheduled erasure it does not change the state: see `step`.
        "anonymous_added": _entry(OPEN, "received", "anonymous"),
        "fenced": _entry({"received"}, "fenced"),
        # Repeated while a scan removes something, such as the events of a failed attempt.
        "purged": _entry({"fenced", "purged"}, "purged", "removed"),
        "quiesced": _entry({"purged"}, "quiesced", "passes")._replace(
            optional=frozenset({"passes_s"})
        ),
        # In the states `BLOCKED` it does not change the state: see `step`.
        "intent": _entry(
            OPEN - {SCHEDULED, "received", "fenced", "purged"}, "submitted", "pass", "attempt"
        ),
        # A result may be late: after another worker took over, after new anonymous ids.
        "result": _entry(STATES, "", "pass", "attempt", "status", "outcome")._replace(
            optional=frozenset({"calls"})
        ),
        "settling": _entry({"submitted"}, "settling", "next_at"),
        "retrying": _entry(CALLED, "retrying", "next_at"),
        # With `row_changed` before a call: the work row is not the one that the log says.
        "attention": _entry(CALLED | {"quiesced", "settling"}, "attention", "next_at")._replace(
            optional=frozenset({"outcome"})
        ),
        WAITING_KEY: _entry(CALLED | {"quiesced", "settling"}, WAITING_KEY, "next_at"),
        "retried": _entry(BLOCKED, "", "requested_by"),
        "completed": _entry({"submitted"}, "completed", "acknowledged"),
        "cancelled": _entry(_CANCELLABLE, "cancelled", "requested_by"),
        "rejected": _entry(_CANCELLABLE, "rejected", "requested_by", "outcome"),
        "duplicate_of": _entry(_CANCELLABLE, "duplicate_of", "requested_by", "original"),
        "lifted": _entry({"completed"}, "lifted", "requested_by"),
        "released": _entry({"completed"}, "completed_once"),
        "wiped": _entry(ENDED, ""),
        "aof_rewritten": _entry(ENDED | {"submitted"}, "", "outcome"),
    }
)

# Entries about the store itself, and their details. They belong to no erasure.
STORE_ENTRIES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        # The tags were sealed: the upgrade of an older store. `rows` are in force.
        "sealed": frozenset({"rows", "schema_version"}),
        # A person adopted a log that had lost entries: see `restored`.
        "restored": frozenset(
            {"known_head", "known_size", "project", "requested_by", "size", "tags"}
        ),
        "restored_lifted": frozenset({"original", "tags"}),
        # An authority stamped the checkpoint of this size, or did not: see `timestamping`.
        "timestamped": frozenset({"size", "token"}),
        "timestamp_failed": frozenset({"size", "outcome"}),
    }
)


@dataclass(frozen=True, slots=True)
class ErasureState:
    """The state of one erasure, as its entries give it.

    Of this round: the number of `passes`, the number `acknowledged`, and `called`, the pass
    of the newest attempt. Of all rounds: the number of `attempts`, and in `waiting` the pass
    of each attempt without a result.
    """

    state: str
    passes: int = 0
    acknowledged: int = 0
    called: int = 0
    attempts: int = 0
    waiting: Mapping[int, int] = field(default_factory=dict)
    wiped: bool = False


def step(
    before: ErasureState | None, kind: str, details: Mapping[str, Any], erasure: str = ""
) -> ErasureState:
    """Return the state after an entry, or raise `IllegalTransition`.

    `before` is None for the first entry. Only `duplicate_of` needs the erasure's id.
    """
    for holds, rule in _rules(before, kind, details, erasure):
        if not holds:
            raise IllegalTransition(rule)
    if before is None:
        return ErasureState(SCHEDULED if details.get("not_before") else "received")
    stays = (before.state == SCHEDULED and kind == "anonymous_added") or (
        before.state in BLOCKED and kind == "intent"
    )
    to = before.state if stays else ENTRIES[kind].to or before.state
    return _after(replace(before, state=to), kind, details)


def check_store_entry(kind: str, details: Mapping[str, Any]) -> None:
    """Raise `IllegalTransition` unless an entry about the store has its details."""
    if set(details) != STORE_ENTRIES[kind]:
        msg = "its details are not those of its kind"
        raise IllegalTransition(msg)
    for name, value in details.items():
        if not _ALLOWED[name](value):
            msg = f"its {name} is not of the allowed form"
            raise IllegalTransition(msg)


def _rules(
    before: ErasureState | None, kind: str, details: Mapping[str, Any], erasure: str
) -> Iterator[tuple[bool, str]]:
    """Yield each rule, and whether it holds; a rule relies on the ones before it."""
    yield kind in ENTRIES, "its kind is not one of the protocol's"
    entry = ENTRIES[kind]
    is_whole = entry.details <= set(details) <= entry.details | entry.optional
    yield is_whole, "its details are not those of its kind"
    for name, value in details.items():
        yield _ALLOWED[name](value), f"its {name} is not of the allowed form"
    if before is None:
        yield kind == "received", f"{kind} comes before received"
        return
    yield before.state in entry.after, f"{kind} may not follow the state {before.state}"
    yield from _call_rules(before, kind, details)
    if kind == "duplicate_of":
        yield details["original"] != erasure, "an erasure is no duplicate of itself"


def _call_rules(
    before: ErasureState, kind: str, details: Mapping[str, Any]
) -> Iterator[tuple[bool, str]]:
    """Yield each rule about the calls of the vendor, and whether it holds."""
    are_all_passed = before.acknowledged == before.passes
    is_answered = before.attempts not in before.waiting
    is_passed = is_answered and before.acknowledged == before.called
    match kind:
        case "cancelled" | "rejected" | "duplicate_of":
            yield not before.attempts, "the vendor was called already"
        case "quiesced":
            yield details["passes"] > 0, "a round makes at least one pass"
            planned = details.get("passes_s")
            is_each = planned is None or len(planned) == details["passes"]
            yield is_each, "each pass has its interval"
        case "intent":
            is_next = details["attempt"] == before.attempts + 1
            yield is_next, "attempts must be counted without a gap"
            is_first = not are_all_passed and details["pass"] == before.acknowledged + 1
            yield is_first, "an intent must be for the first pass that was not acknowledged"
        case "result":
            is_expected = before.waiting.get(details["attempt"]) == details["pass"]
            yield is_expected, "a result must have its intent, and only one result"
        case "settling":
            yield is_passed and not are_all_passed, "the last call was not acknowledged"
        case "retrying" | "attention":
            is_refused = before.state in CALLED and is_answered and not is_passed
            is_stopped = details.get("outcome") == "row_changed"
            yield is_stopped or is_refused, "it needs a result that is no success"
        case "waiting_key":
            is_left = before.state in {"quiesced", "settling"} or not is_passed
            yield is_left and not are_all_passed, "it needs a pass that was not acknowledged"
        case "completed":
            is_complete = details["acknowledged"] == before.passes
            yield is_passed and are_all_passed and is_complete, "not every pass was acknowledged"
        case "wiped":
            yield not before.wiped, "the ids were wiped before"


def _after(state: ErasureState, kind: str, details: Mapping[str, Any]) -> ErasureState:
    match kind:
        case "quiesced":
            return replace(state, passes=details["passes"], acknowledged=0, called=0)
        case "intent":
            attempt, n = details["attempt"], details["pass"]
            waiting = {**state.waiting, attempt: n}
            return replace(state, called=n, attempts=attempt, waiting=waiting)
        case "result":
            attempt = details["attempt"]
            waiting = {other: n for other, n in state.waiting.items() if other != attempt}
            state = replace(state, waiting=waiting)
            # A result of an earlier attempt, or after new anonymous ids, does not count.
            newest = (state.attempts, state.called)
            is_current = state.state in CALLED and (attempt, details["pass"]) == newest
            if not is_current or details["outcome"] != ACKNOWLEDGED:
                return state
            return replace(state, state="submitted", acknowledged=state.acknowledged + 1)
        case "wiped":
            return replace(state, wiped=True)
        case _:
            return state


def _text(pattern: re.Pattern[str]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _optional(allowed: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or allowed(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_seconds(value: object) -> bool:
    return isinstance(value, list) and all(type(s) in (int, float) and s >= 0 for s in value)


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(is_word(k) and _is_count(n) for k, n in value.items())


is_reference = _text(_REFERENCE)
is_word = _text(_WORD)
_is_stamp = _text(STAMP)

# The form of each detail.
_ALLOWED: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("known_size", "rows", "schema_version", "size", "tags"), _is_count),
    **dict.fromkeys(("known_head", "token"), _text(re.compile(r"[0-9a-f]{64}"))),
    **dict.fromkeys(("acknowledged", "anonymous", "attempt", "calls", "pass", "passes"), _is_count),
    **dict.fromkeys(("mode", "outcome"), is_word),
    **dict.fromkeys(("call_after", "due_at", "not_before", "received_at"), _is_stamp),
    **dict.fromkeys(("original", "project"), is_reference),
    **dict.fromkeys(("requested_by", "ticket"), _optional(is_reference)),
    "passes_s": _are_seconds,
    "next_at": _optional(_is_stamp),
    "reason": _optional(is_word),
    "status": _optional(_is_count),
    "removed": _are_counts,
    "via": VIA.__contains__,
}
