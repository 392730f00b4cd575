"""Keeps the fence in Redis equal to the one in SQL, which is authoritative.

`claim` and `begin` refuse to work on a Redis server on which the fence was not loaded, so a
server that lost its memory sends no event of an erased subject. While SQL is unavailable it
sends nothing, and `status` has the reason.

A log that lacks an entry which Redis or a checkpoint of a host saw lowers no fence. The host that
finds it marks that in Redis, and no other host loads a fence until the mark is gone.
"""

from __future__ import annotations

import time
from functools import partial
from logging import getLogger
from typing import TYPE_CHECKING

from mm_tasks.errors import AuditChainBroken, AuditUnavailable, ConfigurationError

if TYPE_CHECKING:
    from mm_tasks.buffer.audit_state import AuditState
    from mm_tasks.buffer.fence import Fence, LogEnd, When
    from mm_tasks.erasure.audit.continuity import Continuity
    from mm_tasks.erasure.models import Claim
    from mm_tasks.erasure.queries import ErasureQueries

# How long a flush waits for the load of another process, and how often it polls.
PATIENCE_S = 1.0
_POLL_S = 0.05

_log = getLogger(__name__)


class FenceSync:
    """The fence of one project, in SQL and in Redis."""

    def __init__(
        self, fence: Fence, queries: ErasureQueries, continuity: Continuity, state: AuditState
    ) -> None:
        """Take the parts; nothing is read here."""
        self._fence = fence
        self._queries = queries
        self._continuity = continuity
        self._state = state
        # What `reconcile` found to be equal: see there.
        self._seen: tuple[int, int] | None = None
        self._shared: int | None = None

    def check_store(self) -> None:
        """Raise `ConfigurationError` if the fence in Redis is of another audit store."""
        self._fence.check_store(self._queries.store_id)

    def check_log(self, *, whole: bool = True) -> None:
        """Raise `AuditChainBroken` if the log lacks an entry that Redis or this host saw.

        Unless `whole`, of the checkpoints of this host the last ones are compared. Raises
        `ConfigurationError` as `check_store`.
        """
        self.check_store()
        self._log_end(self._fence.state().known, whole=whole)

    def add(self, claim: Claim) -> None:
        """Fence the subject of an erasure in Redis. Raises Redis's errors.

        Works although the log lacks entries: then it does not move the known end of the log.
        """
        tags, store_id = claim.erasure.tags, self._queries.store_id
        known = self._fence.add(tags, store_id)
        try:
            self._advance(known)
        except AuditChainBroken:
            # A load that began before this host marked the log may have lowered the fence.
            self._fence.add(tags, store_id)

    def _advance(self, known: LogEnd) -> None:
        """Let Redis know the end of the log, which has this erasure's entry."""
        while True:
            end = self._log_end(known)
            now = self._fence.advance(known, end)
            if now.size >= end.size:
                return
            known = now  # of another process, with fewer entries: look for these too

    def _log_end(self, known: LogEnd, *, whole: bool = False) -> LogEnd:
        """Return the end of the log; raise `AuditChainBroken` if it lacks entries, and mark that.

        If `whole`, all checkpoints of this host are compared, and its mark ends if they are there.
        """
        marks = self._state.read().differing
        try:
            end = self._continuity.end(known, whole=whole)
        except AuditChainBroken as error:
            if self._state.mark_log(error.reason):
                _log.error("audit_log_differs why=%s", error.reason, extra={"why": error.reason})
            raise
        if whole and marks.pop(self._state.host, ""):
            self._state.unmark_log()
        for host, reason in marks.items():
            msg = f"host {host} found that the audit log lacks entries; see mm-tasks audit adopt"
            raise AuditChainBroken(msg, reason)
        return end

    def load(self, when: When = "always") -> bool:
        """Replace the fence in Redis by the one in SQL, and mark this server as loaded.

        Returns False if another load is left to finish: see `Fence.load` for `when`. Raises
        `AuditUnavailable`, and `ConfigurationError` or `AuditChainBroken` as `Fence.load`.
        """
        queries, log_end = self._queries, partial(self._log_end, whole=True)
        is_loaded = self._fence.load(queries.store_id, queries.fences, log_end, when=when)
        _log.info("fences_loaded" if is_loaded else "fences_loaded_by_another")
        return is_loaded

    def try_load(self, patience_s: float = 0) -> bool:
        """Load the fence if this server is not loaded; log a failure of SQL instead of raising.

        Waits up to `patience_s` for the load of another process, which usually takes
        milliseconds: a flush that a person starts is not repeated.
        """
        try:
            return self.load("unless loaded") or (
                self._is_other_done(patience_s) and self.load("unless loaded")
            )
        except AuditUnavailable:
            why = "audit_unavailable"
        except ConfigurationError:
            why = "audit_refused"
        except AuditChainBroken as error:
            why = error.reason
        self._fence.note_failed(why)
        _log.error("fences_not_loaded why=%s", why, extra={"why": why})
        return False

    def _is_other_done(self, within_s: float) -> bool:
        ends_at = time.monotonic() + within_s
        while time.monotonic() < ends_at:
            if not self._fence.state().is_loading:
                return True
            time.sleep(_POLL_S)
        return False

    def reconcile(self) -> None:
        """Load the fence if Redis has another number of tags than SQL, or a load died.

        This repairs a fence that could not be added or lifted while Redis was away, and
        removes the draft of a dead load. Lets Redis know the end of the log. Raises
        `AuditChainBroken` if the log lacks entries, and `ConfigurationError` as `check_store`.
        """
        self.check_store()
        state = self._fence.state()
        is_marked = self._state.host in self._state.read().differing
        end = self._log_end(state.known, whole=is_marked)
        if state.store_id is not None and end != state.known:
            self._fence.advance(state.known, end)
        if state.is_loading or not self._is_same(state.tags):
            self.load("unless loading")

    def _is_same(self, tags: int) -> bool:
        """Return whether SQL fences so many tags.

        To count them exactly opens each seal, for a million some seconds. An erasure that is
        fenced or lifted in both places leaves the number of rows above that of tags as it was.
        So the exact count is needed only when that difference is another one.
        """
        seen = (tags, self._queries.fence_sum())
        if seen == self._seen:
            return True
        shared = self._queries.fence_rows() - tags
        if shared != self._shared:
            if tags != self._queries.fence_count():
                return False
            self._shared = shared
        self._seen = seen
        return True
