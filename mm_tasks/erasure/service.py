"""Requests and commands of people, together with their effect on the fence in Redis.

SQL first: a committed request will be done. The fence in Redis follows at once if Redis
answers, otherwise with the next sweep.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from logging import getLogger
from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import RedisError

from mm_tasks.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from mm_tasks.erasure.commands import ErasureCommands
    from mm_tasks.erasure.fence_sync import FenceSync
    from mm_tasks.erasure.models import Claim
    from mm_tasks.erasure.request import ErasureRequest
    from mm_tasks.erasure.steps import ErasureSteps

_log = getLogger(__name__)


class Accepted(NamedTuple):
    """A committed erasure: its id, and whether the fence in Redis is up."""

    id: str
    is_fenced: bool


class ErasureService:
    """The entry point for requests and commands; `workflow` does the erasures."""

    def __init__(
        self,
        steps: ErasureSteps,
        commands: ErasureCommands,
        fence_sync: FenceSync,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take everything as arguments; nothing is read here."""
        self._steps = steps
        self._commands = commands
        self._fence_sync = fence_sync
        self._clock = clock

    def request(self, request: ErasureRequest, *, via: str = "call") -> Accepted:
        """Commit a request, then raise the fence. `via` is one of `protocol.VIA`.

        Raises `InvalidEvent`, `AuditUnavailable` or `ConfigurationError` (the fence in Redis
        is of another audit store); then nothing was accepted.
        """
        # Without Redis the check is impossible here; raising the fence repeats it.
        with suppress(RedisError):
            self._fence_sync.check_store()
        opened = self._commands.open_request(request, self._clock(), via=via)
        is_fenced = opened.is_fenced
        if opened.claim is not None:
            is_fenced = self._raise_fence(opened.claim)
        return Accepted(opened.id, is_fenced)

    def cancel(self, erasure: str, requested_by: str) -> None:
        """See `ErasureCommands.cancel`."""
        self._commands.cancel(erasure, requested_by, self._clock())
        self._lower_fence()

    def reject(self, erasure: str, requested_by: str, outcome: str) -> None:
        """See `ErasureCommands.reject`."""
        self._commands.reject(erasure, requested_by, outcome, self._clock())
        self._lower_fence()

    def mark_duplicate(self, erasure: str, original: str, requested_by: str) -> None:
        """See `ErasureCommands.mark_duplicate`."""
        self._commands.mark_duplicate(erasure, original, requested_by, self._clock())
        self._lower_fence()

    def lift(self, erasure: str, requested_by: str) -> None:
        """See `ErasureCommands.lift`."""
        self._commands.lift(erasure, requested_by, self._clock())
        self._lower_fence()

    def retry(self, erasure: str, requested_by: str) -> None:
        """See `ErasureCommands.retry`."""
        self._commands.retry(erasure, requested_by, self._clock())

    def _raise_fence(self, claim: Claim) -> bool:
        """Raise the fence, record it, and release the claim; return whether the fence is up."""
        is_up = False
        try:
            try:
                self._fence_sync.add(claim)
                is_up = True
                self._steps.mark_fenced(claim, self._clock())
            except RedisError as error:
                _log.warning("fence_not_raised", extra={"error": type(error).__name__})
            self._steps.release(claim)
        except AuditUnavailable:
            # The request is committed. A sweep takes over when the short lease has expired.
            _log.warning("fence_not_noted", extra={"erasure": claim.id})
        return is_up

    def _lower_fence(self) -> None:
        """Load the fence of SQL into Redis; if that fails, the next sweep does it."""
        try:
            self._fence_sync.load()
        except (RedisError, AuditUnavailable) as error:
            _log.warning("fence_not_lowered", extra={"error": type(error).__name__})
