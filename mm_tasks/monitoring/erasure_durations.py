"""How long the steps of erasures take, from the audit log, which is the truth.

The log only grows, so each look reads what was added since the one before. Steps, from which
entry to which:

    fenced     received, or new anonymous ids, until the fence was up
    purged     until the first look at everything in Redis was done
    quiesced   until nothing of the person was on its way
    answered   from an intent to its result: one call of the vendor
    completed  received until completed: the whole of it, passes and all
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mm_tasks.buffer import histograms
from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit.protocol import ENDED
from mm_tasks.timestamps import moment

if TYPE_CHECKING:
    from datetime import datetime

    from mm_tasks.erasure.audit.database import Database

STEPS = ("fenced", "purged", "quiesced", "answered", "completed")
# Of one look, so that the first one of a long log does not take minutes; the next goes on.
ENTRIES_MAX = 50_000


@dataclass(slots=True)
class _Open:
    received_at: datetime
    last_at: datetime
    state: str = "received"
    intents: dict[object, datetime] = field(default_factory=dict)


class ErasureDurations:
    """The steps of one project's erasures, as far as the log was read."""

    def __init__(self, project: str) -> None:
        """Begin before the first entry."""
        self._project = project
        self._seq = 0
        self._open: dict[str, _Open] = {}
        self.histogram_counters: Counter[str] = Counter()

    def read(self, database: Database) -> None:
        """Read what was added; from the start where the log is shorter than it was (restored).

        Raises `AuditUnavailable`; then what was read so far counts.
        """
        with database.read() as connection:
            if audit_log.head(connection).size < self._seq:
                self._seq, self._open, self.histogram_counters = 0, {}, Counter()
            for seq, line in audit_log.lines(connection, after=self._seq, limit=ENTRIES_MAX):
                fields = json.loads(line)
                at = moment(fields["at"])
                self._take(fields["erasure"], fields["entry"], fields["details"], at)
                self._seq = seq

    def _take(self, erasure: str, entry: str, details: dict[str, Any], at: datetime) -> None:
        if entry == "received" and details["project"] == self._project:
            self._open[erasure] = _Open(at, at)
        one = self._open.get(erasure)
        if one is None:
            return
        match entry:
            case "fenced" | "quiesced":
                self._took(entry, one.last_at, at)
            case "purged" if one.state != "purged":
                self._took(entry, one.last_at, at)
            case "intent":
                one.intents[details["attempt"]] = at
            case "result" if details["attempt"] in one.intents:
                self._took("answered", one.intents.pop(details["attempt"]), at)
            case "completed":
                self._took(entry, one.received_at, at)
        if entry in {"received", "anonymous_added", "fenced", "purged", "quiesced"}:
            one.state, one.last_at = entry, at
        if entry in ENDED:
            del self._open[erasure]

    def _took(self, step: str, since: datetime, at: datetime) -> None:
        name, total, millionths = histograms.of_step(step, (at - since).total_seconds())
        self.histogram_counters[name] += 1
        self.histogram_counters[total] += millionths
