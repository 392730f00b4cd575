"""The erasure workflow: start if scheduled, fence, purge, quiesce, call as planned, complete.

    run(id) ─▶ claim ─▶ each step that is due ─▶ release
    sweep() ─▶ reconcile the fence ─▶ run each erasure that is due ─▶ log deadlines

Each step is a transaction of `steps`, and safe to repeat: if a worker dies, its lease expires
and the next sweep continues. A scan of the records serves all erasures that are due for one.
No step needs a Celery message. The fence stays up in every case, and the vendor is called
until it acknowledges.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from logging import getLogger
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from mm_tasks.buffer.purge import TAGS_MAX
from mm_tasks.client import outcome as outcomes
from mm_tasks.client.backoff import backoff_s, random_s, record_with_retry, throttle_s
from mm_tasks.erasure.audit import checkpoint_hook
from mm_tasks.erasure.audit.protocol import ACKNOWLEDGED, WORD_CHARACTERS_MAX
from mm_tasks.erasure.models import TO_SCAN, VendorAck
from mm_tasks.erasure.request import ONCE
from mm_tasks.errors import AuditChainBroken, AuditUnavailable, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mm_tasks.buffer.purge import Purge, Scan
    from mm_tasks.client.api import Client
    from mm_tasks.erasure.commands import ErasureCommands
    from mm_tasks.erasure.fence_sync import FenceSync
    from mm_tasks.erasure.models import Claim, Erasure
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


@dataclass(frozen=True, slots=True)
class ErasureWorkflow:
    """The workflow of one project's erasures, run by a worker."""

    steps: ErasureSteps
    commands: ErasureCommands
    fence_sync: FenceSync
    purge: Purge
    client: Client
    policy: ErasurePolicy

    def run(self, erasure_id: str) -> None:
        """Take every step that is due, unless another worker has the claim.

        Raises Redis's errors and `AuditUnavailable`; a later sweep then finds the erasure.
        """
        claim = self.steps.claim(erasure_id, self.policy.lease_s)
        try:
            while claim is not None and claim.erasure.is_due:
                at_step = claim
                claim = self._step(claim)
        except RedisError:
            self.steps.release(at_step, _REDIS_AWAY_S)
            raise
        if claim is not None:
            self.steps.release(claim)

    def sweep(self) -> None:
        """Run every erasure that is due, and log deadlines. Needs no message."""
        ends_at = time.monotonic() + _SWEEP_S
        try:
            self.fence_sync.reconcile()
        except (RedisError, AuditChainBroken, ConfigurationError) as error:
            # The fence stays as it is; steps that do not need it continue.
            kind = type(error).__name__
            _log.error("fences_not_mended error=%s", kind, extra={"error": kind})
        for erasure_id in self.steps.due(self.policy.lease_s):
            if time.monotonic() > ends_at:
                break
            with _apart(erasure_id):
                self.run(erasure_id)
        for late in self.commands.newly_overdue():
            about = {"erasure": late.id, "state": late.state, "percent": late.mark}
            message = "erasure_deadline erasure=%s state=%s percent=%d"
            _log.warning(message, *about.values(), extra=about)

    def _step(self, claim: Claim) -> Claim | None:
        """Take the next step; return None if the erasure ended, or the claim is lost."""
        match claim.erasure.step:
            case "start":
                return self._start(claim)
            case "fence":
                return self._fence(claim)
            case "purge" | "quiesce":
                return self._scan(claim)
            case "call":
                return self._call(claim)
            case "complete":
                return self._complete(claim)
            case None:
                return None

    def _start(self, claim: Claim) -> Claim | None:
        with checkpoint_hook.deferred():
            started = self.steps.start(claim)
            return None if started is None else self._fence(started)

    def _fence(self, claim: Claim) -> Claim | None:
        self.fence_sync.add(claim)
        return self.steps.mark_fenced(claim)

    def _scan(self, claim: Claim) -> Claim | None:
        """Remove our own copies, and those of the other erasures that are due for a scan."""
        others = self._others(len(claim.erasure.tags))
        try:
            fenced = (self._fence(o) if o.erasure.step == "fence" else o for o in others)
            claims = [claim, *filter(None, fenced)]
            subjects = {each.id: each.erasure.tags for each in claims}
            scans = self.purge.scan(subjects, self._keep_alive(claims))
        except RedisError:
            for other in others:
                self.steps.release(other, _REDIS_AWAY_S)
            raise
        for other in claims[1:]:
            with _apart(other.id):
                after = self._purge_or_quiesce(other, scans[other.id])
                if after is not None:
                    self.steps.release(after)
        return self._purge_or_quiesce(claim, scans[claim.id])

    def _others(self, tags: int) -> list[Claim]:
        """Claim the other erasures that are due for a scan, as many as it takes besides `tags`."""
        others = []
        for erasure_id in self.steps.due(self.policy.lease_s, states=TO_SCAN):
            other = self.steps.claim(erasure_id, self.policy.lease_s)
            if other is None:
                continue
            tags += len(other.erasure.tags)
            if tags > TAGS_MAX or other.erasure.state not in TO_SCAN:
                self.steps.release(other)
                break
            others.append(other)
        return others

    def _purge_or_quiesce(self, claim: Claim, scan: Scan) -> Claim | None:
        """Record that our own copies are removed; or quiesce, if none was left or in progress.

        Otherwise a later scan repeats this soon.
        """
        if claim.erasure.step == "purge" or scan.removed.total():
            return self.steps.mark_purged(claim, scan.removed)
        if not scan.sending_ms:
            return self.steps.mark_quiesced(claim, self.policy.passes_s)
        self.steps.release(claim, min(_QUIESCE_S, scan.sending_ms / 1000))
        return None

    def _call(self, claim: Claim) -> Claim | None:
        attempt = self.steps.intent(claim)
        if attempt is None:
            self.steps.release(claim)
            return None
        ack = self._ack(claim.erasure, self.client.forget(claim.erasure.user_id))
        # An intent without a result is a call of which nobody can say how it ended.
        erasure = record_with_retry(
            lambda: self.steps.result(attempt, ack),
            (AuditUnavailable,),
            self.policy.lease_s / 2,
        )
        return replace(claim, erasure=erasure)

    def _ack(self, erasure: Erasure, outcome: outcomes.Outcome) -> VendorAck:
        """Return the fixed word and status of an outcome, and when to call again."""
        word, status, then = _classify(outcome)
        if not then:
            return VendorAck(status, word)
        wait_s = {
            "retrying": _backoff_s(erasure.attempts - erasure.acknowledged),
            "waiting_key": self.policy.probe_interval_s,
            "attention": _ATTENTION_S,
        }[then]
        if isinstance(outcome, outcomes.Throttled):
            wait_s = throttle_s(outcome.retry_after_s, 1, random_s)
        return VendorAck(status, word[:WORD_CHARACTERS_MAX], then, wait_s)

    def _complete(self, claim: Claim) -> Claim | None:
        word = self.purge.rewrite_aof(min(_AOF_WAIT_S, self.policy.lease_s / 2))
        ended = self.steps.complete(claim, word)
        if ended is not None and ended.mode == ONCE:
            self.fence_sync.load()
        return None

    def _keep_alive(self, claims: Sequence[Claim]) -> Callable[[], object]:
        """Return a function that extends the claims during a long scan."""
        lease_s = self.policy.lease_s
        extend_at = time.monotonic() + lease_s / 3

        def keep_alive() -> None:
            nonlocal extend_at
            if time.monotonic() > extend_at:
                for claim in claims:
                    self.steps.extend(claim, lease_s)
                extend_at = time.monotonic() + lease_s / 3

        return keep_alive


@contextmanager
def _apart(erasure_id: str) -> Iterator[None]:
    """Log an unexpected failure of one erasure, which must not stop the others."""
    try:
        yield
    except AuditUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - see above
        failure = {"erasure": erasure_id, "error": type(error).__name__}
        _log.error("erasure_failed erasure=%s error=%s", *failure.values(), extra=failure)


def _classify(outcome: outcomes.Outcome) -> tuple[str, int | None, str]:
    """Return the word of an outcome, its status, and the next state; '' if acknowledged."""
    name = outcomes.NAMES[type(outcome)]
    match outcome:
        case outcomes.Delivered():
            return ACKNOWLEDGED, HTTPStatus.OK, ""
        case outcomes.Unavailable(kind=kind):
            return f"{name}:{kind}", None, "retrying"
        case outcomes.Ambiguous(kind=kind, status=status, code=code):
            # Without a status there was no answer of HTTP that somebody could look at.
            if kind == "unusable" and status is not None:
                return kind, status, "attention"
            return f"{name}:{code if code != '-' else kind}", status, "retrying"
        case outcomes.Unauthorized(answer=answer):
            then = "waiting_key"
        case outcomes.Throttled(answer=answer):
            then = "retrying"
        case outcomes.Rejected() | outcomes.Misdirected() | outcomes.Filtered():
            then, answer = "attention", outcome.answer
    return f"{name}:{answer.code}", answer.status, then


def _backoff_s(failures: int) -> float:
    """Return a wait with full jitter above a second: up to 2, 4, 8 … 900 s."""
    return max(_BACKOFF_MIN_S, backoff_s(failures + 2, random_s, _BACKOFF_MAX_S))
