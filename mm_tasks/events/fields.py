"""What the calls take, for editors and type checkers: each field and what it means.

Nothing here is looked at when a call is made: `events` and `asking` decide, and say why.
None means "not given"; in a `context` it leaves out what is set around.
"""

from __future__ import annotations

# Here and not for type checkers alone: who asks `get_type_hints` of a class is answered.
from collections.abc import Collection, Mapping  # noqa: TC003
from datetime import datetime  # noqa: TC003
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


class SharedFields(TypedDict, total=False):
    """The fields that events may have in common: what `context` takes."""

    anonymous_id: str | None
    """The visitor, as the browser knows them; at most 128 characters."""

    user_id: str | None
    """The person, once known; at most 256 characters. What `forget` goes by."""

    session_id: str | None
    """At most 128 characters. The vendor derives one when absent."""

    url: str | None
    """The page, absolute. The vendor reads `utm_*` and click ids here."""

    path: str | None
    """The path shown in reports."""

    referrer: str | None
    """Where the visitor came from. The vendor derives the source from it."""


class TrackFields(SharedFields, total=False):
    """The fields of `track` beside `event`, which says what happened."""

    event_id: str | None
    """What the event is known by, at most 128 characters. Made up (UUIDv7) when absent."""

    timestamp: datetime | str | None
    """When it happened: an aware datetime, or ISO 8601 with an offset. Now, when absent."""

    properties: Mapping[str, Any] | None
    """Anything else, as JSON: at most 8 192 bytes and 32 levels. No personal data."""


class TrackItem(TrackFields):
    """One event of `track.delay_many`."""

    event: Required[str]
    """What happened: snake_case, past tense, at most 128 characters; `$…` for systems."""


class IdentifyFields(TypedDict, total=False):
    """The fields of `identify`. Both ids are required, unless a `context` has them."""

    anonymous_id: str | None
    """The visitor, as the browser knows them; at most 128 characters."""

    user_id: str | None
    """The person that the visitor turned out to be; at most 256 characters."""

    traits: Mapping[str, Any] | None
    """What is known of the person, as JSON: at most 8 192 bytes and 32 levels."""


class OnCommit(TypedDict, total=False):
    """What `delay_on_commit` takes beside the fields of an event."""

    using: str | None
    """Which of Django's databases; the default one, when absent."""

    robust: bool
    """As for Django: log what the store raises at the commit, and go on."""


class TrackOnCommit(TrackFields, OnCommit):
    """What `track.delay_on_commit` takes beside `event`."""


class IdentifyOnCommit(IdentifyFields, OnCommit):
    """What `identify.delay_on_commit` takes."""


class ForgetDetails(TypedDict, total=False):
    """What `forget` takes beside whom to forget and who asks."""

    reason: Reason | None
    """The ground, a fixed word. `gdpr_17_1_b`, consent withdrawn, when absent."""

    ticket: str | None
    """An opaque reference of yours: at most 128 characters, no space, no @, no id of the person."""

    received_at: datetime | str | None
    """When the person asked, which is when the month begins. Now, when absent."""

    anonymous_ids: Collection[str] | None
    """Ids of the same person in browsers. Fenced and purged here; the vendor deletes by none."""

    mode: Mode | None
    """`suppress`, the default: later events are refused until lifted. `once`: they are not."""


class ForgetFields(ForgetDetails):
    """The fields of `forget`."""

    user_id: Required[str]
    """The person; at most 256 characters."""

    requested_by: Required[str]
    """Who asks, as an opaque reference: at most 128 characters, no spaces, no @."""
