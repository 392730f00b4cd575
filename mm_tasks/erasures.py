"""Erasures as values: find, follow, cancel, lift and retry them from a program.

    from mm_tasks import erasures

    for erasure in erasures.list(ticket="GDPR-1093"):
        print(erasure.id, erasure.state, [entry.text for entry in erasures.timeline(erasure.id)])

`mm_tasks.forget` requests one. Needs the audit database and the pseudonym key, and no worker. No
value holds an id of a person. Raises `ErasureStateError` for a step that may not follow and for
an erasure that does not exist, `InvalidEvent` for a reference that is none, `AuditUnavailable`,
and `ConfigurationError`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, get_args

from mm_tasks import runtime
from mm_tasks.erasure.audit import protocol
from mm_tasks.erasure.audit.checkpoints import Checkpoint
from mm_tasks.erasure.certificate.issuing import Audience, Form
from mm_tasks.erasure.certificate.wording import Language
from mm_tasks.erasure.request import reference_rule
from mm_tasks.erasure.timeline import sentence
from mm_tasks.errors import ErasureStateError, InvalidEvent, Problem
from mm_tasks.timestamps import moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

__all__ = [
    "Action",
    "Checkpoint",
    "Erasure",
    "ErasurePass",
    "State",
    "TimelineEntry",
    "cancel",
    "find",
    "get",
    "lift",
    "list",
    "receipt",
    "retry",
    "timeline",
]

State: TypeAlias = Literal[
    "scheduled",
    "received",
    "fenced",
    "purged",
    "quiesced",
    "submitted",
    "settling",
    "retrying",
    "waiting_key",
    "attention",
    "completed",
    "completed_once",
    "lifted",
    "cancelled",
    "rejected",
    "duplicate_of",
]
Action: TypeAlias = Literal["cancel", "lift", "retry"]
STATES: tuple[State, ...] = get_args(State)

_UNKNOWN = "there is no such erasure"


@dataclass(frozen=True, slots=True)
class ErasurePass:
    """A pass at the vendor: its last call, and the number of its calls (`attempts`)."""

    round: int
    n: int
    attempts: int
    due_at: datetime
    sent_at: datetime
    answered_at: datetime | None
    status: int | None
    outcome: str | None


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """An entry of the audit log about an erasure: its kind, its details, and `text` in words."""

    seq: int
    at: datetime
    entry: str
    details: Mapping[str, object]
    text: str


@dataclass(frozen=True, slots=True)
class Erasure:
    """The state of an erasure when it was read; times are aware.

    `anonymous` is the number of anonymous ids, `removed` the number of events by place, `next_at`
    the time of the next step. `not_before` is the time of a scheduled one. `passes` are those that
    were called; `get` reads them, and in lists they are None.
    """

    id: str
    project: str
    state: State
    mode: Literal["suppress", "once"]
    requested_by: str
    tickets: tuple[str, ...]
    reason: str | None
    anonymous: int
    received_at: datetime
    due_at: datetime
    accepted_at: datetime
    fenced_at: datetime | None
    quiesced_at: datetime | None
    ended_at: datetime | None
    next_at: datetime | None
    not_before: datetime | None
    passes_s: tuple[float, ...]
    acknowledged: int
    attempts: int
    removed: Mapping[str, int]
    duplicate_of: str | None
    is_wiped: bool
    passes: tuple[ErasurePass, ...] | None = None

    @classmethod
    def _of(cls, shown: Mapping[str, Any]) -> Self:
        values = _values(cls, shown)
        if "passes" in shown:
            passes = (_values(ErasurePass, each) for each in shown["passes"])
            values["passes"] = tuple(ErasurePass(**each) for each in passes)
        for name in ("tickets", "passes_s"):
            values[name] = tuple(values[name])
        return cls(**values)

    @property
    def is_open(self) -> bool:
        """Return whether it has not ended."""
        return self.state in protocol.OPEN

    @property
    def actions(self) -> tuple[Action, ...]:
        """Return the actions that its state allows."""
        entries = protocol.ENTRIES
        allowed: dict[Action, bool] = {
            "retry": self.state in entries["retried"].after,
            "cancel": self.state in entries["cancelled"].after and not self.attempts,
            "lift": self.state in entries["lifted"].after,
        }
        return tuple(action for action, is_allowed in allowed.items() if is_allowed)


def get(erasure_id: str) -> Erasure | None:
    """Return an erasure with its passes; None if it does not exist."""
    shown = runtime.current().audit_store.queries.show(erasure_id)
    return None if shown is None else Erasure._of(shown)  # noqa: SLF001 - of this module


def find(user_id: str) -> tuple[Erasure, ...]:
    """Return the erasures of a person, the newest first, also those whose ids are wiped."""
    return _erasures(runtime.current().audit_store.queries.find(user_id))


def list(  # noqa: A001 - a public name, read as `erasures.list`
    *,
    ticket: str | None = None,
    state: State | tuple[State, ...] | None = None,
    since: datetime | None = None,
    limit: int = 100,
    offset: int = 0,
) -> tuple[Erasure, ...]:
    """Return erasures, the newest first: at most `limit`, after the first `offset`.

    Only those with this ticket, in this state or one of these, accepted `since` this time.
    """
    states = (state,) if isinstance(state, str) else state
    queries = runtime.current().audit_store.queries
    rows = queries.listed(states, offset + limit, ticket=ticket, since=since)
    return _erasures(rows[offset:])


def timeline(erasure_id: str) -> tuple[TimelineEntry, ...]:
    """Return the entries of the audit log about an erasure, in order."""
    entries, _ = runtime.current().audit_store.queries.history(erasure_id)
    if not entries:
        raise ErasureStateError(_UNKNOWN)
    return tuple(
        TimelineEntry(
            entry["seq"],
            moment(entry["at"]),
            entry["entry"],
            entry["details"],
            sentence(entry["entry"], entry["details"]),
        )
        for entry in entries
    )


def receipt(
    erasure_id: str,
    *,
    audience: Literal["person", "authority"] = "authority",
    form: Literal["text", "json", "html"] = "text",
    language: Literal["en", "de"] = "en",
    outside: Iterable[Checkpoint] = (),
) -> str:
    """Return the receipt of an erasure, for the person or an authority.

    The whole log is verified first, also against checkpoints that were kept `outside`. Raises
    `AuditChainBroken` if it does not hold, and `ConfigurationError` for a person's receipt without
    `MM_TASKS_CONTROLLER`.
    """
    issued = runtime.current().audit_store.certificates.issue(
        erasure_id, Audience(audience), Language(language), tuple(outside)
    )
    if issued is None:
        raise ErasureStateError(_UNKNOWN)
    return issued.render(Form(form))


def cancel(erasure_id: str, *, requested_by: str) -> None:
    """End an erasure before the vendor is called; events of its person are accepted again."""
    runtime.current().erasure_service.cancel(erasure_id, _reference(requested_by))


def lift(erasure_id: str, *, requested_by: str) -> None:
    """Accept events of a completed erasure's person again."""
    runtime.current().erasure_service.lift(erasure_id, _reference(requested_by))


def retry(erasure_id: str, *, requested_by: str) -> None:
    """Let a blocked erasure call the vendor again with the next sweep of a worker."""
    runtime.current().erasure_service.retry(erasure_id, _reference(requested_by))


def _erasures(rows: Any) -> tuple[Erasure, ...]:
    return tuple(Erasure._of(row) for row in rows)  # noqa: SLF001 - of this module


def _values(cls: type, shown: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a class among those that are ready for JSON, with times."""
    names = (field.name for field in fields(cls) if field.name in shown)
    return {
        name: moment(shown[name]) if _is_time(name) and shown[name] is not None else shown[name]
        for name in names
    }


def _is_time(name: str) -> bool:
    return name.endswith("_at") or name == "not_before"


def _reference(requested_by: str) -> str:
    if rule := reference_rule(requested_by, ()):
        raise InvalidEvent([Problem("requested_by", rule)])
    return requested_by
