"""The daily verification of the audit log, in steps that a sweep takes.

A run verifies the entries after those of the run before, once a week all of them: each line
follows the one before, is canonical and has a MAC that holds; the log has what Redis and the
checkpoints of the host saw; and the rows of the fences are those that the log says. It does not
replay erasures into the work rows: `verification` does, by `mm-tasks audit verify`.

`buffer/audit_state` keeps how far it came and what it found, so that the workers of a project do
one run a day together. After a failure a whole run follows within an hour.
"""

from __future__ import annotations

from collections import deque
from logging import getLogger
from typing import TYPE_CHECKING

from mm_tasks.buffer.fence import LogEnd
from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.continuity import compare
from mm_tasks.errors import AuditChainBroken, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mm_tasks.buffer.audit_state import AuditFindings, AuditState
    from mm_tasks.erasure.audit.seals import Seals
    from mm_tasks.erasure.audit.session import AuditSession
    from mm_tasks.erasure.queries import ErasureQueries

_EVERY_S = 86_400
_WHOLE_S = 7 * _EVERY_S
_AGAIN_S = 3600
# Entries of one step: a tenth of a second.
_ENTRIES_MAX = 5000

_log = getLogger(__name__)


class DailyVerification:
    """The verification of one project's audit store."""

    def __init__(
        self,
        session: AuditSession,
        queries: ErasureQueries,
        state: AuditState,
        check_store: Callable[[], None],
        check_log: Callable[[], None],
    ) -> None:
        """Take the store, the findings in Redis, and the checks of `FenceSync`."""
        self._session = session
        self._queries = queries
        self._state = state
        self._check_store = check_store
        self._check_log = check_log

    def step(self) -> None:
        """Begin a run if one is due, and take the next step of a run that has begun.

        Does nothing if the fence in Redis is of another audit store, which a sweep logs. Raises
        Redis's errors and `AuditUnavailable`; a later step then goes on.
        """
        try:
            self._check_store()
        except ConfigurationError:
            return
        findings = self._state.read()
        is_due = findings.is_running or _is_due(findings)
        if not is_due or not self._state.claim_step(findings):
            return
        try:
            if not findings.is_running:
                is_whole = bool(findings.broken) or findings.age_s("whole") >= _WHOLE_S
                self._state.begin_run(whole=is_whole)
                findings = self._state.read()
            self._go_on(findings.reached)
        finally:
            self._state.end_step()

    def _go_on(self, reached: LogEnd) -> None:
        try:
            end, is_all = self._follow(reached)
            if is_all:
                self._finish(end)
        except AuditChainBroken as error:
            self._state.found_broken(str(error))
            _log.error("audit_not_verified why=%s", error.reason, extra={"why": error.reason})
        else:
            self._state.reach(end)

    def _follow(self, reached: LogEnd) -> tuple[LogEnd, bool]:
        """Verify the next entries; return how far that came, and whether they are all."""
        with self._session.read() as connection:
            size = audit_log.head(connection).size
            if reason := compare(connection, size, [reached]).reason:
                msg = f"entry {reached.size} is not the one that was verified before"
                raise AuditChainBroken(msg, reason)
            end = LogEnd(reached.size, reached.head or audit_log.FIRST_PREV)
            for seq, line in audit_log.lines(connection, after=end.size, limit=_ENTRIES_MAX):
                end = _next(end, seq, line, self._session.pseudonyms.seals)
        return end, end.size == size

    def _finish(self, end: LogEnd) -> None:
        self._check_log()
        # Raises at its end unless the rows are those that the log says.
        deque(self._queries.fences(), maxlen=0)
        with self._session.read() as connection:
            missing_guards = tables.guards_missing(connection)
        self._state.guards(", ".join(missing_guards))
        self._state.verified(end.size)
        _log.info("audit_verified size=%d", end.size, extra={"size": end.size})


def _is_due(findings: AuditFindings) -> bool:
    wait_s = _AGAIN_S if findings.broken else _EVERY_S
    return findings.age_s("began") >= wait_s


def _next(end: LogEnd, seq: int, line: str, seals: Seals) -> LogEnd:
    """Return the end of the log after the next line; raise `AuditChainBroken` if it is not that."""
    fields = audit_log.object_of(line)
    rules = {
        "it is not in the canonical form": audit_log.canonical(fields) == line,
        "it is stored under another number than its own": fields.get("seq") == seq,
        f"it does not follow entry {end.size}: one of the two was changed": (
            (seq, fields.get("prev")) == (end.size + 1, end.head)
        ),
        # A line of an earlier release has none; `verification` refuses it after one that has.
        "its MAC does not hold: it was not written with this key": (
            "mac" not in fields or audit_log.fences_of(fields, seals) is not None
        ),
    }
    for rule, holds in rules.items():
        if not holds:
            msg = f"entry {seq}: {rule}"
            raise AuditChainBroken(msg)
    return LogEnd(seq, audit_log.hash_of(line))
