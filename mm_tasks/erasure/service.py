"""Requests and commands of people, together with their effect on the fence in Redis.

SQL first: a committed request will be done. The fence in Redis follows at once if Redis
answers, otherwise with the next sweep.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from logging import getLogger
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from mm_tasks.erasure.audit import checkpoint_hook
from mm_tasks.erasure.models import Opened
from mm_tasks.errors import AuditChainBroken, AuditUnavailable

if TYPE_CHECKING:
    from mm_tasks.buffer.pauses import Pauses
    from mm_tasks.erasure.commands import ErasureCommands
    from mm_tasks.erasure.fence_sync import FenceSync
    from mm_tasks.erasure.models import Claim
    from mm_tasks.erasure.request import ErasureRequest
    from mm_tasks.erasure.steps import ErasureSteps

_log = getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ErasureService:
    """The entry point for requests and commands; `workflow` does the erasures."""

    steps: ErasureSteps
    commands: ErasureCommands
    fence_sync: FenceSync
    pause: Pauses

    def request(
        self, request: ErasureRequest, *, via: str = "call", delay_s: float = 0.0
    ) -> Opened:
        """Commit a request, then raise the fence. `via` is one of `protocol.VIA`.

        With a delay the erasure begins by itself that many seconds from now, and not before.
        Raises `InvalidEvent`, `AuditUnavailable` or `ConfigurationError` (the fence in Redis
        is of another audit store); then nothing was accepted.
        """
        # Without Redis the check is impossible here; raising the fence repeats it.
        with suppress(RedisError):
            self.fence_sync.check_store()
        with checkpoint_hook.deferred():
            opened = self.commands.open_request(request, via=via, delay_s=delay_s)
            if opened.claim is None:
                return opened
            return Opened(opened.id, self._raise_fence(opened.claim))

    def cancel(
        self, erasure: str, requested_by: str, kind: str = "cancelled", **details: str
    ) -> None:
        """See `ErasureCommands.cancel`; raises `AuditChainBroken` if the log lacks entries."""
        self._require_whole_log()
        self.commands.cancel(erasure, requested_by, kind, **details)
        self._lower_fence()

    def lift(self, erasure: str, requested_by: str) -> None:
        """See `ErasureCommands.lift`; raises `AuditChainBroken` if the log lacks entries."""
        self._require_whole_log()
        self.commands.lift(erasure, requested_by)
        self._lower_fence()

    def retry(self, erasure: str, requested_by: str) -> None:
        """See `ErasureCommands.retry`. If the key is refused, the next sweep probes with it."""
        self.commands.retry(erasure, requested_by)
        # Without Redis no call is made; after it the probe is made at its time.
        with suppress(RedisError):
            self.pause.probe_now()

    def _raise_fence(self, claim: Claim) -> bool:
        """Raise the fence, record it, and release the claim; return whether the fence is up."""
        is_up = False
        try:
            try:
                self.fence_sync.add(claim)
                is_up = True
                self.steps.mark_fenced(claim)
            except RedisError as error:
                _log.warning("fence_not_raised", extra={"error": type(error).__name__})
            self.steps.release(claim)
        except AuditUnavailable:
            # The request is committed. A sweep takes over when the short lease has expired.
            _log.warning("fence_not_noted", extra={"erasure": claim.id})
        return is_up

    def _require_whole_log(self) -> None:
        """Refuse to lower a fence on the word of a log that lacks entries.

        The fence would stay in Redis, and `adopt` would take it for that of a lost person.
        """
        with suppress(RedisError):
            self.fence_sync.check_log(whole=False)

    def _lower_fence(self) -> None:
        """Load the fence of SQL into Redis; if that fails, the next sweep does it."""
        try:
            self.fence_sync.load()
        except (RedisError, AuditUnavailable, AuditChainBroken) as error:
            _log.warning("fence_not_lowered", extra={"error": type(error).__name__})
