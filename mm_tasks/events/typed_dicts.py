"""The fields of each call and their meaning, for editors and type checkers.

No call reads these types: `events/event_fields` and `erasure/request` have the rules.
None means "not given"; in an inner `context` it removes a field of the outer one.
"""

from __future__ import annotations

# Imported at run time too, so that `get_type_hints` of a class works.
from collections.abc import Collection, Mapping  # noqa: TC003 - read at run time
from datetime import datetime  # noqa: TC003 - read at run time
from typing import Any, Literal, Required, TypedDict

Reason = Literal[
    "gdpr_17_1_a",
    "gdpr_17_1_b",
    "gdpr_17_1_c",
    "gdpr_17_1_d",
    "gdpr_17_1_e",
    "gdpr_17_1_f",
    "ccpa",
    "contract",
    "internal",
]
Mode = Literal["suppress", "once"]


class PersonFields(TypedDict, total=False):
    """The two ids that events have of a person."""

    anonymous_id: str | None
    """The visitor, as the browser knows them; at most 128 characters."""

    user_id: str | None
    """The person, once known; at most 256 characters. `forget` erases by it."""


class SharedFields(PersonFields, total=False):
    """The fields of `context`, which events may share."""

    session_id: str | None
    """At most 128 characters. The vendor derives one when absent."""

    url: str | None
    """The page, absolute. The vendor reads `utm_*` and click ids here."""

    path: str | None
    """The path shown in reports."""

    referrer: str | None
    """Where the visitor came from. The vendor derives the source from it."""


class TrackFields(SharedFields, total=False):
    """The fields of `track` besides `event`."""

    event_id: str | None
    """The id of the event, at most 128 characters. Made up (UUIDv7) when absent."""

    timestamp: datetime | str | None
    """When it happened: an aware datetime, or ISO 8601 with an offset. Now, when absent."""

    properties: Mapping[str, Any] | None
    """Anything else, as JSON: at most 8 192 bytes and 32 levels. No personal data."""


class TrackItem(TrackFields):
    """One event of `track.delay_many`."""

    event: Required[str]
    """The name of the event: snake_case, past tense, at most 128 characters; `$…` for systems."""


class IdentifyFields(PersonFields, total=False):
    """The fields of `identify`. Both ids are required, unless a `context` has them."""

    traits: Mapping[str, Any] | None
    """Facts about the person, as JSON: at most 8 192 bytes and 32 levels."""


class OnCommit(TypedDict, total=False):
    """The options of `delay_on_commit`."""

    using: str | None
    """The name of one of Django's databases; the default one, when absent."""

    robust: bool
    """As in Django: log an error that the store raises at the commit, and continue."""


class TrackOnCommit(TrackFields, OnCommit):
    """The fields and options of `track.delay_on_commit` besides `event`."""


class IdentifyOnCommit(IdentifyFields, OnCommit):
    """The fields and options of `identify.delay_on_commit`."""


class ForgetDetails(TypedDict, total=False):
    """The optional fields of `forget`."""

    reason: Reason | None
    """The legal ground, if somebody stated it; see `docs/erasure.md`."""

    ticket: str | None
    """An opaque reference of yours: at most 128 characters, no space, no @, no id of the person."""

    received_at: datetime | str | None
    """The time of the person's request, when the month begins. Now, when absent."""

    anonymous_ids: Collection[str] | None
    """Ids of the same person in browsers. Fenced and purged here; the vendor cannot use them."""

    mode: Mode | None
    """`suppress`, the default: later events are refused until lifted. `once`: they are accepted."""

    grace_s: float | None
    """Seconds before the vendor is called. `MM_TASKS_ERASURE_GRACE_S`, when absent."""
