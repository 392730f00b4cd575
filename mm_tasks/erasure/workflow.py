"""The erasure workflow: start if scheduled, fence, purge, quiesce, call as planned, complete.

    run(id) ─▶ claim ─▶ each step that is due ─▶ release
    sweep() ─▶ reconcile the fence ─▶ run each erasure that is due ─▶ log deadlines

Each step is a transaction of `steps`, and safe to repeat: if a worker dies, its lease expires
and the next sweep continues. A scan of the records serves all erasures that are due for one.
No step needs a Celery message. The fence stays up in every case, and the vendor is called
until it acknowledges.

While the vendor refuses the key, no call is made but the probe of the whole project, which may be
an erasure's call or a batch: see `buffer/pauses`.
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
from mm_tasks.erasure import aof_rewrites
from mm_tasks.erasure.audit import checkpoint_hook, protocol
from mm_tasks.erasure.audit.protocol import ACKNOWLEDGED, WORD_CHARACTERS_MAX
from mm_tasks.erasure.models import TO_SCAN, VendorAck
from mm_tasks.erasure.request import ONCE
from mm_tasks.errors import AuditChainBroken, AuditUnavailable, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mm_tasks.buffer.pauses import Pauses
    from mm_tasks.buffer.purge import Purge, Scan
    from mm_tasks.client.api import Client
    from mm_tasks.erasure.commands import ErasureCommands
    from mm_tasks.erasure.fence_sync import FenceSync
    from mm_tasks.erasure.models import Claim, Erasure, StepAttempt
    from mm_tasks.erasure.steps import ErasureSteps

_log = getLogger(__name__)

# A vendor that does not answer for hours needs no call each minute.
_BACKOFF_MIN_S = 1.0
_BACKOFF_MAX_S = 900.0
# An unexpected response needs a person; it is also tried again, as its cause may pass.
_ATTENTION_S = 3600.0
# The longest pause before the next scan for requests in progress.
_QUIESCE_S = 0.25
_REDIS_AWAY_S = 1.0
# A sweep starts no erasure after this time; the next sweep continues.
_SWEEP_S = 5.0


@dataclass(frozen=True, slots=True)
class ErasurePolicy:
    """The settings that the workflow needs. For `passes_s` see `ErasureSteps.mark_quiesced`."""

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
    pause: Pauses
    client: Client
    policy: ErasurePolicy

    def run(self, erasure_id: str) -> None:
        """Take every step that is due, unless another worker has the claim.

        Raises Redis's errors and `AuditUnavailable`; a later sweep then finds the erasure.
        """
        if self._run(erasure_id):
            self.fence_sync.load()

    def _run(self, erasure_id: str) -> bool:
        """Do as `run`, but leave it to the caller to lower the fence in Redis: True if it must."""
        claim, must_lower = self.steps.claim(erasure_id, self.policy.lease_s), False
        try:
            while claim is not None and claim.erasure.is_due:
                at_step = claim
                claim = self._step(claim)
                last = at_step.erasure
                must_lower = claim is None and last.step == "complete" and last.mode == ONCE
        except RedisError:
            self.steps.release(at_step, _REDIS_AWAY_S)
            raise
        if claim is not None:
            self.steps.release(claim)
        return must_lower

    def sweep(self) -> None:
        """Run every erasure that is due, and log deadlines. Needs no message."""
        _mend(self.fence_sync.reconcile)
        is_idle = self._run_due()
        for late in self.commands.newly_overdue():
            about = {"erasure": late.id, "state": late.state, "percent": late.mark}
            message = "erasure_deadline erasure=%s state=%s percent=%d"
            _log.warning(message, *about.values(), extra=about)
        aof_rewrites.follow(self.steps, self.purge, is_idle=is_idle)

    def _run_due(self) -> bool:
        """Run each erasure that is due, for a while; return whether none is left.

        Reads what is due before each, so that a new one waits for the step in progress only.
        One load of the fence lowers it for all that ended in mode `once`.
        """
        ends_at, done, must_lower, is_idle = time.monotonic() + _SWEEP_S, set[str](), False, False
        while time.monotonic() < ends_at and not is_idle:
            erasure_id = next((id_ for id_ in self._due() if id_ not in done), None)
            is_idle = erasure_id is None
            if erasure_id is not None:
                done.add(erasure_id)
                with _apart(erasure_id):
                    must_lower |= self._run(erasure_id)
        if must_lower:
            _mend(self.fence_sync.load)
        return is_idle

    def _due(self) -> list[str]:
        """Return the erasures that are due; while the key is refused, one that waits to probe."""
        lease_s, others = self.policy.lease_s, protocol.OPEN - {protocol.WAITING_KEY}
        try:
            if not self.pause.is_paused():
                return self.steps.due(lease_s)
            is_probe_due = self.pause.probe_due() is not None
        except RedisError:
            is_probe_due = False
        due = self.steps.due(lease_s, states=others)
        if is_probe_due:
            due += self.steps.due(lease_s, 1, (protocol.WAITING_KEY,))
        return due

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
            is_again = all(each.erasure.step == "quiesce" for each in claims)
            scans = self.purge.scan(subjects, self._keep_alive(claims), is_again=is_again)
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
        """Record that our own copies are removed; quiesce, if none was left or in progress.

        Otherwise a later scan repeats this soon. A first scan that finds nothing is the last one.
        """
        if claim.erasure.step == "purge" or scan.removed.total():
            purged = self.steps.mark_purged(claim, scan.removed)
            if purged is None or scan.removed.total():
                return purged
            claim = purged
        if not scan.sending_ms:
            return self.steps.mark_quiesced(claim, self.policy.passes_s)
        self.steps.release(claim, min(_QUIESCE_S, scan.sending_ms / 1000))
        return None

    def _call(self, claim: Claim) -> Claim | None:
        is_probe = self.pause.is_paused()
        lost_ms = round(self.policy.lease_s * 1000)
        if is_probe and not self.pause.choose_probe(claim.id, lost_ms=lost_ms):
            self.steps.wait_for_key(claim)
            return None
        attempt = self.steps.intent(claim)
        if attempt is None:
            self.steps.release(claim)
            return None
        outcome = self.client.forget(claim.erasure.user_id)
        is_paused = self._signal(claim.id, outcome, is_probe=is_probe)
        ack = self._ack(claim.erasure, attempt, outcome, is_paused=is_paused)
        # An intent without a result is a call of which nobody can say how it ended.
        erasure = record_with_retry(
            lambda: self.steps.result(attempt, ack),
            (AuditUnavailable,),
            self.policy.lease_s / 2,
        )
        after = replace(claim, erasure=erasure)
        if erasure.state != protocol.WAITING_KEY:
            return after
        self.steps.release(after)
        return None

    def _signal(self, erasure_id: str, outcome: outcomes.Outcome, *, is_probe: bool) -> bool:
        """Begin, keep or end the project's pause after a call; return whether it stands.

        Only the vendor's word begins one, not the page of a proxy. It ends as with a batch that
        probes, by each answer that is not about the key or the host.
        """
        is_refused = isinstance(outcome, outcomes.Unauthorized) and outcome.answer.code != "-"
        if not (is_probe or is_refused):
            return False
        probe_ms = round(self.policy.probe_interval_s * 1000)
        try:
            if _lifts(outcome):
                self.pause.lift(erasure_id)
                return False
            kind, answer = _refusal(outcome)
            self.pause.pause(
                erasure_id,
                kind,
                status=str(answer.status or "-"),
                code=answer.code,
                first_ms=probe_ms,
                probe_ms=probe_ms,
            )
        except RedisError as error:
            # The result of the call is recorded all the same.
            _log.warning("pause_not_noted", extra={"error": type(error).__name__})
        else:
            _log.warning("project_paused", extra={"reason": kind})
        return True

    def _ack(
        self,
        erasure: Erasure,
        attempt: StepAttempt,
        outcome: outcomes.Outcome,
        *,
        is_paused: bool,
    ) -> VendorAck:
        """Return the fixed word and status of an outcome, and when to call again."""
        word, status, then = _classify(outcome)
        if not then:
            return VendorAck(status, word)
        word = word[:WORD_CHARACTERS_MAX]
        if is_paused:
            return VendorAck(status, word, protocol.WAITING_KEY)
        failures = attempt.attempt - 1 - erasure.acknowledged + attempt.calls - 1
        wait_s = _backoff_s(failures) if then == "retrying" else _ATTENTION_S
        if isinstance(outcome, outcomes.Throttled):
            wait_s = throttle_s(outcome.retry_after_s, 1, random_s)
        return VendorAck(status, word, then, wait_s)

    def _complete(self, claim: Claim) -> Claim | None:
        self.steps.complete(claim)
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


def _mend(repair: Callable[[], object]) -> None:
    """Repair the fence in Redis; log a failure, as steps that do not need it continue."""
    try:
        repair()
    except (RedisError, AuditChainBroken, ConfigurationError) as error:
        kind = type(error).__name__
        _log.error("fences_not_mended error=%s", kind, extra={"error": kind})


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
        case outcomes.Unauthorized(answer=answer) | outcomes.Throttled(answer=answer):
            then = "retrying"
        case outcomes.Rejected() | outcomes.Misdirected() | outcomes.Filtered():
            then, answer = "attention", outcome.answer
    return f"{name}:{answer.code}", answer.status, then


def _lifts(outcome: outcomes.Outcome) -> bool:
    """Return whether a probe shows that key and host are accepted: by any other answer."""
    match outcome:
        case outcomes.Delivered() | outcomes.Rejected() | outcomes.Throttled():
            return True
        case outcomes.Ambiguous(status=status):
            return status is not None
        case _:
            return False


def _refusal(outcome: outcomes.Outcome) -> tuple[str, outcomes.Response]:
    """Return the kind of the pause after a probe that did not end it, and the answer."""
    name = outcomes.NAMES[type(outcome)]
    match outcome:
        case outcomes.Unauthorized(answer=answer) if answer.code != "-":
            return name, answer
        case outcomes.Misdirected(answer=answer):
            return name, answer
        case _:
            # It shows nothing about the key: the reason of the pause stays.
            return "unavailable", outcomes.Response(0)


def _backoff_s(failures: int) -> float:
    """Return a wait with full jitter above a second: up to 2, 4, 8 … 900 s."""
    return max(_BACKOFF_MIN_S, backoff_s(failures + 2, random_s, _BACKOFF_MAX_S))
