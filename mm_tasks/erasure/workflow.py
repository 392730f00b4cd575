"""The erasure workflow: fence, purge, quiesce, call as often as planned, complete.

    run(id) ─▶ claim ─▶ each step that is due ─▶ release
    sweep() ─▶ reconcile the fence ─▶ run each erasure that is due ─▶ log deadlines

Each step is a transaction of `steps`, and safe to repeat: if a worker dies, its lease expires
and the next sweep continues. No step needs a Celery message. The fence stays up in every
case, and the vendor is called until it acknowledges.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from logging import getLogger
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from mm_tasks.client.backoff import backoff_s, random_s, record_with_retry, throttle_s
from mm_tasks.client.outcome import (
    NAMES,
    Ambiguous,
    Delivered,
    Filtered,
    Misdirected,
    Outcome,
    Rejected,
    Throttled,
    Unauthorized,
    Unavailable,
)
from mm_tasks.erasure.audit.protocol import ACKNOWLEDGED, WORD_CHARACTERS_MAX
from mm_tasks.erasure.models import VendorAck
from mm_tasks.erasure.request import ONCE
from mm_tasks.errors import AuditChainBroken, AuditUnavailable, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mm_tasks.buffer.purge import Purge
    from mm_tasks.client.api import Client
    from mm_tasks.erasure.commands import ErasureCommands
    from mm_tasks.erasure.fence_sync import FenceSync
    from mm_tasks.erasure.models import Claim, Erasure, StepAttempt
    from mm_tasks.erasure.steps import ErasureSteps

_log = getLogger(__name__)

# Each attempt adds three entries to the log, so the waits grow longer than delivery's.
_BACKOFF_MIN_S = 1.0
_BACKOFF_MAX_S = 900.0
# An unexpected response needs a person; it is also tried again, as its cause may pass.
_ATTENTION_S = 3600.0
# The longest pause before the next scan for requests in progress.
_QUIESCE_S = 0.25
_REDIS_AWAY_S = 1.0
# A sweep starts no erasure after this time; the next sweep continues.
_SWEEP_S = 5.0
_AOF_WAIT_S = 20.0


@dataclass(frozen=True, slots=True)
class ErasurePolicy:
    """The settings that the workflow needs. `passes_s` are counted from quiesce."""

    passes_s: tuple[float, ...] = (0, 900, 86_400)
    lease_s: float = 60
    probe_interval_s: float = 60


class ErasureWorkflow:
    """The workflow of one project's erasures, run by a worker."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of each step
        self,
        steps: ErasureSteps,
        commands: ErasureCommands,
        fence_sync: FenceSync,
        purge: Purge,
        client: Client,
        policy: ErasurePolicy,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take the parts; nothing is read here."""
        self._steps = steps
        self._commands = commands
        self._fence_sync = fence_sync
        self._purge = purge
        self._client = client
        self._policy = policy
        self._clock = clock

    def run(self, erasure_id: str) -> None:
        """Take every step that is due, unless another worker has the claim.

        Raises Redis's errors and `AuditUnavailable`; a later sweep then finds the erasure.
        """
        claim = self._steps.claim(erasure_id, self._clock(), self._policy.lease_s)
        try:
            while claim is not None and self._is_due(claim.erasure):
                at_step = claim
                claim = self._step(claim)
        except RedisError:
            self._steps.release(at_step, self._in(_REDIS_AWAY_S))
            raise
        if claim is not None:
            self._steps.release(claim)

    def sweep(self) -> None:
        """Run every erasure that is due, and log deadlines. Needs no message."""
        ends_at = time.monotonic() + _SWEEP_S
        try:
            self._fence_sync.reconcile()
        except (RedisError, AuditChainBroken, ConfigurationError) as error:
            # The fence stays as it is; steps that do not need it continue.
            kind = type(error).__name__
            _log.error("fences_not_mended error=%s", kind, extra={"error": kind})
        for erasure_id in self._steps.due(self._clock()):
            if time.monotonic() > ends_at:
                break
            try:
                self.run(erasure_id)
            except AuditUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - one failure must not stop the other erasures
                kind = type(error).__name__
                about = {"erasure": erasure_id, "error": kind}
                _log.error("erasure_failed erasure=%s error=%s", erasure_id, kind, extra=about)
        for late in self._commands.newly_overdue(self._clock()):
            _log.warning(
                "erasure_deadline erasure=%s state=%s percent=%d",
                *(late.id, late.state, late.mark),
                extra={"erasure": late.id, "state": late.state, "percent": late.mark},
            )

    def _is_due(self, erasure: Erasure) -> bool:
        return erasure.next_at is not None and erasure.next_at <= self._clock()

    def _step(self, claim: Claim) -> Claim | None:
        """Take the next step; return None if the erasure ended, or the claim is lost."""
        match claim.erasure.step:
            case "fence":
                self._fence_sync.add(claim)
                return self._steps.mark_fenced(claim, self._clock())
            case "purge":
                scan = self._purge.scan(claim.erasure.tags, self._keep_alive(claim))
                return self._steps.mark_purged(claim, scan.removed, self._clock())
            case "quiesce":
                return self._quiesce(claim)
            case "call":
                return self._call(claim)
            case "complete":
                return self._complete(claim)
            case None:
                return None

    def _quiesce(self, claim: Claim) -> Claim | None:
        """Record quiesce if no event is left or in progress; otherwise scan again soon."""
        scan = self._purge.scan(claim.erasure.tags, self._keep_alive(claim))
        now = self._clock()
        if scan.removed.total():
            return self._steps.mark_purged(claim, scan.removed, now)
        if not scan.sending_ms:
            return self._steps.mark_quiesced(claim, self._policy.passes_s, now)
        self._steps.release(claim, self._in(min(_QUIESCE_S, scan.sending_ms / 1000)))
        return None

    def _call(self, claim: Claim) -> Claim | None:
        attempt = self._steps.intent(claim, self._clock())
        if attempt is None:
            self._steps.release(claim)
            return None
        outcome = self._client.forget(claim.erasure.user_id)
        erasure = self._record_with_retry(attempt, self._ack(claim.erasure, outcome))
        return replace(claim, erasure=erasure)

    def _ack(self, erasure: Erasure, outcome: Outcome) -> VendorAck:
        word, status, then, wait_s = _classify(outcome)
        if then == "retrying":
            wait_s = _backoff_s(erasure.attempts - erasure.acknowledged)
            if isinstance(outcome, Throttled):
                wait_s = throttle_s(outcome.retry_after_s, 1, random_s)
        elif then == "waiting_key":
            wait_s = self._policy.probe_interval_s
        next_at = self._in(wait_s) if then else None
        return VendorAck(status, word, then, next_at)

    def _record_with_retry(self, attempt: StepAttempt, answer: VendorAck) -> Erasure:
        """Note the answer, also where SQL is away for a while: an intent without a result is
        a call of which nobody can say how it ended.
        """
        return record_with_retry(
            lambda: self._steps.result(attempt, answer, self._clock()),
            (AuditUnavailable,),
            self._policy.lease_s / 2,
        )

    def _complete(self, claim: Claim) -> Claim | None:
        wait_s = min(_AOF_WAIT_S, self._policy.lease_s / 2)
        word = self._purge.rewrite_aof(wait_s)
        ended = self._steps.complete(claim, self._clock(), word)
        if ended is not None and ended.mode == ONCE:
            self._fence_sync.load()
        return None

    def _keep_alive(self, claim: Claim) -> Callable[[], object]:
        """Return a function that extends the claim during a long scan."""
        lease_s = self._policy.lease_s
        extend_at = time.monotonic() + lease_s / 3

        def keep_alive() -> None:
            nonlocal extend_at
            if time.monotonic() > extend_at:
                self._steps.extend(claim, self._clock(), lease_s)
                extend_at = time.monotonic() + lease_s / 3

        return keep_alive

    def _in(self, seconds: float) -> datetime:
        return self._clock() + timedelta(seconds=seconds)


def _classify(  # noqa: PLR0911 - one return for each outcome
    outcome: Outcome,
) -> tuple[str, int | None, str, float]:
    """Return the fixed word of an outcome, its status, the next state, and the wait."""
    match outcome:
        case Delivered():
            return ACKNOWLEDGED, HTTPStatus.OK, "", 0
        case Unauthorized(answer=answer):
            return _word("unauthorized", answer.code), answer.status, "waiting_key", 0
        case Throttled(answer=answer):
            return _word("throttled", answer.code), answer.status, "retrying", 0
        case Unavailable(kind=kind):
            return _word("unavailable", kind), None, "retrying", 0
        case Ambiguous(kind="unusable", status=status):
            return "unusable", status, "attention", _ATTENTION_S
        case Ambiguous(kind=kind, status=status, code=code):
            word = _word("ambiguous", code if code != "-" else kind)
            return word, status, "retrying", 0
        case Rejected(answer=answer) | Misdirected(answer=answer) | Filtered(answer=answer):
            name = NAMES[type(outcome)]
            return _word(name, answer.code), answer.status, "attention", _ATTENTION_S


def _word(name: str, code: str) -> str:
    return f"{name}:{code}"[:WORD_CHARACTERS_MAX]


def _backoff_s(failures: int) -> float:
    """Return a wait with full jitter above a second: up to 2, 4, 8 … 900 s."""
    return max(_BACKOFF_MIN_S, backoff_s(failures + 2, random_s, _BACKOFF_MAX_S))
