"""Erasures as values: what was asked, how far one is, and what a worker holds of it.

Ids of a subject are in two of these, and in no `repr`. See `steps` for the steps of
the workflow and `register` for what people ask.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mm_tasks.buffer import records
from mm_tasks.erasure.audit import protocol
from mm_tasks.timestamps import moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

Step = Literal["fence", "purge", "quiesce", "call", "complete"]


@dataclass(frozen=True, slots=True)
class Erasure:
    """How far one erasure is, as the database had it a moment ago.

    `ids` are the user id and the anonymous ids; None once they were wiped.
    """

    id: str
    project: str
    state: str
    mode: str
    ids: tuple[str, tuple[str, ...]] | None = field(repr=False)
    received_at: datetime
    due_at: datetime
    fenced_at: datetime | None
    quiesced_at: datetime | None
    next_at: datetime | None
    passes_s: tuple[float, ...]
    acknowledged: int
    attempts: int
    removed: Mapping[str, int]

    @property
    def user_id(self) -> str:
        """Return the id that the vendor is told; there until the erasure ended."""
        assert self.ids is not None, self.id
        return self.ids[0]

    @property
    def tags(self) -> tuple[bytes, ...]:
        """Return the tags to fence and to purge: the user's, then the anonymous ones."""
        assert self.ids is not None, self.id
        user, anonymous = self.ids
        user_tag = records.tag(self.project, "user", user)
        return (user_tag, *(records.tag(self.project, "anonymous", one) for one in anonymous))

    @property
    def step(self) -> Step | None:
        """Return what is to be done next, once it is due; None when it has ended."""
        match self.state:
            case "received":
                return "fence"
            case "fenced":
                return "purge"
            case "purged":
                return "quiesce"
            case "submitted" if self.acknowledged == len(self.passes_s):
                return "complete"
            case state if state in protocol.OPEN:
                return "call"
            case _:
                return None


@dataclass(frozen=True, slots=True)
class Claim:
    """An erasure that this worker alone may take a step of, until the lease runs out."""

    id: str
    token: str
    erasure: Erasure


class Opened(NamedTuple):
    """What became of a request.

    `id` is that of the open erasure where there was one. With a `claim` the fence is to be
    raised, and the caller may do it; without one it is up, or another worker is at it.
    """

    id: str
    is_new: bool
    is_fenced: bool
    claim: Claim | None


class StepAttempt(NamedTuple):
    """One call to the vendor that is about to be made: of pass `n`."""

    erasure: str
    n: int
    attempt: int


class VendorAck(NamedTuple):
    """How a call ended.

    `status` is HTTP's, None when there was no answer. `outcome` is a fixed word;
    `protocol.ACKNOWLEDGED` is success. Otherwise `then` is one of `protocol.BLOCKED` and
    `next_at` says when the pass is tried again; None waits for a person.
    """

    status: int | None
    outcome: str
    then: str = ""
    next_at: datetime | None = None


class ErasureDeadline(NamedTuple):
    """An open erasure that has used up `mark` percent of its time, or more."""

    id: str
    state: str
    received_at: datetime
    due_at: datetime
    mark: int


def erasure_of(row: Mapping[str, Any]) -> Erasure:
    """Return the value of a row of `mm_erasures`."""
    ids = None if row["ids"] is None else json.loads(row["ids"])
    return Erasure(
        id=row["id"],
        project=row["project"],
        state=row["state"],
        mode=row["mode"],
        ids=None if ids is None else (ids["user"], tuple(ids["anonymous"])),
        received_at=moment(row["received_at"]),
        due_at=moment(row["due_at"]),
        fenced_at=optional(row["fenced_at"]),
        quiesced_at=optional(row["quiesced_at"]),
        next_at=optional(row["next_at"]),
        passes_s=tuple(json.loads(row["passes_s"])),
        acknowledged=row["acknowledged"],
        attempts=row["attempts"],
        removed=json.loads(row["removed"]),
    )


def optional(text: str | None) -> datetime | None:
    """Return the moment of a stamp that may be absent."""
    return None if text is None else moment(text)


def packed(user_id: str, anonymous_ids: tuple[str, ...]) -> str:
    """Return the text of the column `ids`, which can hold any id in any database."""
    return json.dumps({"user": user_id, "anonymous": anonymous_ids})


def summary_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told of a row of `mm_erasures`, ready for JSON: no id of the subject."""
    plain = (
        "id",
        "project",
        "state",
        "mode",
        "epoch",
        "anonymous",
        "requested_by",
        "reason",
        "received_at",
        "due_at",
        "accepted_at",
        "fenced_at",
        "quiesced_at",
        "ended_at",
        "next_at",
        "acknowledged",
        "attempts",
        "duplicate_of",
    )
    parsed = ("tickets", "removed", "passes_s")
    return {
        **{name: row[name] for name in plain},
        **{name: json.loads(row[name]) for name in parsed},
        "subject": row["pseudonym"],
        "is_wiped": row["ids"] is None,
    }


def passes_of(attempts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the last attempt of each pass, and how many there were."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for row in attempts:
        key = (row["round"], row["n"])
        shown = ("round", "n", "due_at", "sent_at", "answered_at", "status", "outcome")
        before = found.get(key, {"attempts": 0})
        found[key] = {name: row[name] for name in shown} | {"attempts": before["attempts"] + 1}
    return list(found.values())
