"""What people ask of erasures, and what it does to the fence.

SQL first: once that has it, it will be done. The fence follows at once where Redis is in
reach, otherwise with the next sweep.
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

    from mm_tasks.erasure.commands import Register
    from mm_tasks.erasure.fence_sync import FenceSync
    from mm_tasks.erasure.models import Claim
    from mm_tasks.erasure.request import ErasureRequest
    from mm_tasks.erasure.steps import ErasureSteps

_log = getLogger(__name__)


class Accepted(NamedTuple):
    """An erasure that will be done: its id, and whether the fence is up already.

    `is_new` is False where one of the same subject was open: then it is that one's id.
    """

    id: str
    is_fenced: bool
    is_new: bool


class ErasureService:
    """The door for people; `erasure` does the work."""

    def __init__(
        self,
        steps: ErasureSteps,
        register: Register,
        fence_sync: FenceSync,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take everything as arguments; nothing is read here."""
        self._steps = steps
        self._register = register
        self._fence_sync = fence_sync
        self._clock = clock

    def request(self, asked: ErasureRequest, *, via: str = "call") -> Accepted:
        """Accept a request, then raise the fence; the log says that it came by `via`.

        Raises `InvalidEvent`, `AuditUnavailable` or `ConfigurationError` (the fences in Redis
        are those of another audit store); then nothing was accepted.
        """
        # Where Redis is away nobody can tell, and the fence itself is refused later.
        with suppress(RedisError):
            self._fence_sync.check_store()
        opened = self._register.open_request(asked, self._clock(), via=via)
        is_fenced = opened.is_fenced
        if opened.claim is not None:
            is_fenced = self._raised(opened.claim)
        return Accepted(opened.id, is_fenced, opened.is_new)

    def cancel(self, erasure: str, requested_by: str) -> None:
        """End an erasure before the vendor was called; its subject is fenced no more."""
        self._register.cancel(erasure, requested_by, self._clock())
        self._lower()

    def reject(self, erasure: str, requested_by: str, outcome: str) -> None:
        """As `cancel`, for a reason in a fixed word, such as `not_verified`."""
        self._register.reject(erasure, requested_by, outcome, self._clock())
        self._lower()

    def mark_duplicate(self, erasure: str, original: str, requested_by: str) -> None:
        """As `cancel`, for the reason that another erasure does the same."""
        self._register.mark_duplicate(erasure, original, requested_by, self._clock())
        self._lower()

    def lift(self, erasure: str, requested_by: str) -> None:
        """Let events of a completed erasure's subject in again."""
        self._register.lift(erasure, requested_by, self._clock())
        self._lower()

    def retry(self, erasure: str, requested_by: str) -> None:
        """Let a blocked erasure call the vendor again at once."""
        self._register.retry(erasure, requested_by, self._clock())

    def _raised(self, claim: Claim) -> bool:
        """Raise the fence and note that; give the erasure back in any case."""
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
            # The request is committed. A sweep takes over once the short lease has run out.
            _log.warning("fence_not_noted", extra={"erasure": claim.id})
        return is_up

    def _lower(self) -> None:
        """Take what SQL fences no more out of Redis; a sweep does it where that is away."""
        try:
            self._fence_sync.load()
        except (RedisError, AuditUnavailable) as error:
            _log.warning("fence_not_lowered", extra={"error": type(error).__name__})
