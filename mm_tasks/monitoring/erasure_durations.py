"""Durations of the steps of erasures, from the audit log, which is authoritative.

The log only grows, so each read takes the entries after the one before. A step lasts:

    fenced     from `received`, from new anonymous ids, or from `started`, to `fenced`
    purged     from `fenced` to the first `purged`
    quiesced   from the last `purged` to `quiesced`
    answered   from an `intent` to its `result`: one call of the vendor
    completed  from `received`, or from `started`, to `completed`, all passes included
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
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
# Bounds one read, so that the first read of a long log does not take minutes.
ENTRIES_MAX = 50_000


@dataclass(slots=True)
class _OpenErasure:
    received_at: datetime
    last_at: datetime
    state: str = "received"
    intents: dict[object, datetime] = field(default_factory=dict)


class ErasureDurations:
    """Histograms of the steps of one project's erasures, up to the last entry read."""

    def __init__(self, project: str) -> None:
        """Start before the first entry."""
        self._project = project
        self._seq = 0
        self._open: dict[str, _OpenErasure] = {}
        self.histogram_counters: Counter[str] = Counter()

    def read(self, database: Database) -> None:
        """Read the new entries; all of them if the log became shorter, as after a restore.

        Raises `AuditUnavailable`; the entries read until then count.
        """
        with database.read() as connection:
            if audit_log.head(connection).size < self._seq:
                self._seq, self._open, self.histogram_counters = 0, {}, Counter()
            for seq, line in audit_log.lines(connection, after=self._seq, limit=ENTRIES_MAX):
                self._seq = seq
                # An entry that is not one is for `verify` to find.
                with suppress(LookupError, TypeError, ValueError):
                    fields = audit_log.object_of(line)
                    at = moment(fields["at"])
                    self._add_entry(fields["erasure"], fields["entry"], fields["details"], at)

    def _add_entry(self, erasure: str, entry: str, details: dict[str, Any], at: datetime) -> None:
        if entry == "received" and details["project"] == self._project:
            self._open[erasure] = _OpenErasure(at, at)
        begun = self._open.get(erasure)
        if begun is None:
            return
        match entry:
            case "fenced" | "quiesced" | "purged" if (entry, begun.state) != ("purged", "purged"):
                self._add_step(entry, begun.last_at, at)
            case "intent":
                begun.intents[details["attempt"]] = at
            case "result" if details["attempt"] in begun.intents:
                self._add_step("answered", begun.intents.pop(details["attempt"]), at)
            case "completed":
                self._add_step(entry, begun.received_at, at)
        if entry == "started":
            begun.received_at = at
        if entry in {"received", "started", "anonymous_added", "fenced", "purged", "quiesced"}:
            begun.state, begun.last_at = entry, at
        if entry in ENDED:
            del self._open[erasure]

    def _add_step(self, step: str, since: datetime, at: datetime) -> None:
        name, total, millionths = histograms.of_step(step, (at - since).total_seconds())
        self.histogram_counters[name] += 1
        self.histogram_counters[total] += millionths
