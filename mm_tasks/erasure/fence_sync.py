"""SQL's fences and Redis's: the second is made what the first says, whenever it may differ.

Nothing is sent before that was done for this server (`claim` and `begin` look), so a Redis
that lost its memory sends nothing of an erased subject. Without SQL it waits, and says so.
"""

from __future__ import annotations

import time
from logging import getLogger
from typing import TYPE_CHECKING

from mm_tasks.errors import AuditChainBroken, AuditUnavailable, ConfigurationError

if TYPE_CHECKING:
    from mm_tasks.buffer.fence import Fence, When
    from mm_tasks.erasure.commands import Register
    from mm_tasks.erasure.models import Claim

# How long whoever wants to send waits for the load of another, and how often it looks.
PATIENCE_S = 1.0
_LOOK_S = 0.05

_log = getLogger(__name__)


class FenceSync:
    """The fences of one project in both places."""

    def __init__(self, fence: Fence, register: Register) -> None:
        """Take both; nothing is read here."""
        self._fence = fence
        self._register = register
        self._seen: tuple[int, int] | None = None

    def check_store(self) -> None:
        """Raise `ConfigurationError` when Redis has the fences of another audit store."""
        self._fence.check_store(self._register.store_id)

    def add(self, claim: Claim) -> None:
        """Put up the fence for the subject of an erasure; raises what Redis raises."""
        register = self._register
        self._fence.add(claim.erasure.tags, register.store_id, register.log_size())

    def load(self, when: When = "always") -> bool:
        """Make Redis's fences what SQL's are, and let this server count as loaded.

        False where it was left to another load: see `Fence.load` for `when`. Raises
        `AuditUnavailable`, and `ConfigurationError` or `AuditChainBroken` as `Fence.load`.
        """
        register = self._register
        is_loaded = self._fence.load(
            register.store_id, register.fences, register.log_size, when=when
        )
        _log.info("fences_loaded" if is_loaded else "fences_loaded_by_another")
        return is_loaded

    def try_load(self, patience_s: float = 0) -> bool:
        """Load what was found not loaded; where SQL fails, say why and go on.

        The load of another, which mostly takes milliseconds, is waited for that long: a flush
        that a person asked for comes only once.
        """
        try:
            return self.load("unless loaded") or (
                self._is_other_done(patience_s) and self.load("unless loaded")
            )
        except AuditUnavailable:
            why = "audit_unavailable"
        except ConfigurationError:
            why = "audit_refused"
        except AuditChainBroken:
            why = "audit_log_cut"
        self._fence.note_failed(why)
        _log.error("fences_not_loaded why=%s", why, extra={"why": why})
        return False

    def _is_other_done(self, within_s: float) -> bool:
        ends_at = time.monotonic() + within_s
        while time.monotonic() < ends_at:
            if not self._fence.state().is_loading:
                return True
            time.sleep(_LOOK_S)
        return False

    def reconcile(self) -> None:
        """Load again where Redis has another number of fences than SQL, or a load died.

        So was one that could not be raised, or lowered, because Redis was away; and what a
        dead load had read is still there.
        """
        state = self._fence.state()
        if not state.is_loading:
            # Whatever changes SQL's fences adds to the log. To count them takes its time.
            seen = (state.tags, self._register.log_size())
            if seen == self._seen:
                return
            if state.tags == self._register.fence_count():
                self._seen = seen
                return
        self.load("unless loading")
