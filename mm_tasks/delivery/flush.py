"""From waiting records to the vendor: flush makes batches, send settles them.

`flush` takes a slot, claims a batch for it and says when it should be sent.
`send` admits the attempt, posts it and applies what follows. Both may be called
by any number of workers at once, and either may be killed anywhere: a batch
that nobody cares for is found by a later flush through its lease.

Not here: Celery. Whoever calls publishes what `flush` yields.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from itertools import islice
from logging import getLogger
from typing import TYPE_CHECKING, NamedTuple, assert_never

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mm_tasks.buffer.attempt import Admitted, RequestStats
from mm_tasks.buffer.rate_limiter import SLOT_VALID_MS, Limiter
from mm_tasks.client.outcome import NAMES, Ambiguous, Delivered, Unavailable
from mm_tasks.delivery import retry
from mm_tasks.events.limits import BATCH_BRACKETS_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mm_tasks.buffer.batches import Buffer
    from mm_tasks.buffer.pauses import Pauses
    from mm_tasks.client.api import Client
    from mm_tasks.client.outcome import Outcome

log = getLogger(__name__)

# A claimed batch this long past its slot means that sending does not keep up.
LATE_MS = 1000
# After this, a claimed batch's message counts as lost. An extra message is harmless.
FOUND_AGAIN_MS = SLOT_VALID_MS + 3000
# How long the message of a retry is given before a flush takes care of it.
RETRY_GRACE_MS = 2000
# Bounds the work of one flush; what is left is found by the next.
DUE_MAX = 50
CLAIMED_MAX = 500
# Sending waits this long for its slot inside the process; longer waits go back to Celery.
SLEEP_MAX_S = 1.5
# Not there, not answering, loading its AOF, or no longer the primary.
_REDIS_AWAY = (RedisConnectionError, RedisTimeoutError, ReadOnlyError)
# Identifies that travel in one message: each is still a batch of its own.
IDENTIFIES_A_MESSAGE = 25


class Dispatch(NamedTuple):
    """Batches of one lane to send with one message, and when."""

    lane: str
    batch_ids: list[str]
    countdown_s: float


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that delivery itself needs."""

    flush_interval_s: float = 1
    lease_s: float = 60
    probe_interval_s: float = 60
    park_ambiguous: bool = False


class Delivery:
    """One lane. `limiter` is None for a lane that the vendor does not limit.

    `sibling` is the other lane of the same endpoint, if there is one: one probe is for both.
    A lane that `low_priority` to it takes no slot that `sibling` has a batch for, and none ahead of
    time that it can do without.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the stages that it knows
        self,
        buffer: Buffer,
        limiter: Limiter | None,
        pauses: Pauses,
        client: Client | None,
        policy: Policy,
        load_fences: Callable[[], bool],
        *,
        sibling: Buffer | None = None,
        low_priority: bool = False,
    ) -> None:
        """Take the parts. A flush needs no client.

        `load_fences` is called where not all fences are loaded; it says whether they are now.
        """
        self._buffer = buffer
        self._limiter = limiter
        self._pauses = pauses
        self._client = client
        self._policy = policy
        self._load_fences = load_fences
        self._lease_ms = round(policy.lease_s * 1000)
        self._sibling = sibling
        self._sibling_first = sibling if low_priority else None

    def flush(self, *, linger: bool = True) -> Iterator[Dispatch]:
        """Yield what is to be sent: forgotten and due batches first, then new ones.

        Stops when nothing is ready, no slot is free within one flush interval,
        or what was claimed is not being sent in time. `linger=False` also takes
        part-full batches at once.
        """
        looked = self._look(linger=linger)
        if looked == "unloaded":
            # Otherwise nothing is sent, and `status` says why.
            looked = self._look(linger=linger) if self._load_fences() else looked
        if looked == "unloaded":
            return
        if looked == "paused":
            yield from self._probe()
            return
        if looked != "throttled":
            yield from self._together(self._again())
            yield from self._together(self._fresh(linger=linger))

    def send(self, batch_id: str) -> float | None:
        """Make one attempt to send a batch; return in how many seconds to call again, or None."""
        admitted = self._acquire_slot(batch_id)
        if not isinstance(admitted, Admitted):
            return admitted
        outcome: Outcome = Unavailable("late")
        # A process that was frozen since would send what the fence may have stopped by now.
        if time.monotonic() - admitted.asked_at_s < self._policy.lease_s / 2:
            outcome, exchange = self._request(admitted.bodies)
            admitted = replace(admitted, exchange=exchange)
        return self._record_with_retry(lambda: self._settle(batch_id, admitted, outcome))

    def _request(self, bodies: list[bytes]) -> tuple[Outcome, RequestStats]:
        assert self._client is not None
        began_s = time.monotonic()
        outcome = self._client.send(self._buffer.lane, bodies)
        took_s = time.monotonic() - began_s
        body_bytes = sum(map(len, bodies)) + len(bodies) - 1 + BATCH_BRACKETS_BYTES
        return outcome, RequestStats(took_s, len(bodies), body_bytes)

    def _look(self, *, linger: bool) -> str:
        return self._buffer.look(late_ms=LATE_MS, claimed_max=CLAIMED_MAX, linger=linger)

    def _fresh(self, *, linger: bool) -> Iterator[tuple[str, float]]:
        while self._look(linger=linger) == "ready":
            slot = self._slot()
            if slot is None:
                return
            batch_id = self._buffer.claim(
                slot_us=slot.start_us, found_again_ms=FOUND_AGAIN_MS, linger=linger
            )
            if batch_id is not None:
                yield batch_id, slot.wait_s

    def _again(self) -> Iterator[tuple[str, float]]:
        for batch_id in self._buffer.due(DUE_MAX):
            lapsed = self._buffer.lapse(batch_id, lease_ms=self._lease_ms)
            if lapsed is not None:
                log.warning("batch_lease_expired", extra={"batch_id": batch_id})
                self._settle(batch_id, lapsed, Ambiguous("lease"))
                continue
            slot = self._slot()
            if slot is None:
                return
            if self._buffer.adopt(batch_id, slot_us=slot.start_us, found_again_ms=FOUND_AGAIN_MS):
                yield batch_id, slot.wait_s

    def _probe(self) -> Iterator[Dispatch]:
        refused = self._pauses.probe_due()
        if refused is None:
            return
        for batch_id in self._buffer.due(DUE_MAX):
            lapsed = self._buffer.lapse(batch_id, lease_ms=self._lease_ms)
            if lapsed is not None:
                self._settle(batch_id, lapsed, Ambiguous("lease"))
        slot = self._slot()
        if slot is None:
            return
        for buffer, batch_id in self._probe_candidates(refused, slot.start_us):
            if not buffer.adopt(batch_id, slot_us=slot.start_us, found_again_ms=FOUND_AGAIN_MS):
                continue
            # Otherwise another flush was first, and this one has nothing left to do.
            if self._pauses.choose_probe(batch_id, lost_ms=self._lease_ms):
                yield Dispatch(buffer.lane, [batch_id], slot.wait_s)
            return

    def _probe_candidates(self, refused: str, slot_us: int | None) -> Iterator[tuple[Buffer, str]]:
        """Yield another batch than the refused one if the endpoint has one: see *Outcomes*."""
        last = []
        for buffer in self._endpoint():
            found = buffer.due(DUE_MAX, everything=True)
            last += [(buffer, batch_id) for batch_id in found if batch_id == refused]
            yield from ((buffer, batch_id) for batch_id in found if batch_id != refused)
            fresh = buffer.claim(slot_us=slot_us, found_again_ms=FOUND_AGAIN_MS)
            if fresh is not None:
                yield buffer, fresh
        yield from last

    def _endpoint(self) -> tuple[Buffer, ...]:
        return (self._buffer,) if self._sibling is None else (self._buffer, self._sibling)

    def _slot(self) -> _Slot | None:
        if self._limiter is None:
            return _Slot(0, None)
        every_s, ahead_max_s = self._policy.flush_interval_s, None
        if self._sibling_first is not None:
            if _wants_slot(self._sibling_first):
                return None
            ahead_max_s = self._limiter.spare_lookahead_s(every_s)
        slot = self._limiter.reserve(every_s, ahead_max_s=ahead_max_s)
        return None if slot is None else _Slot(slot.wait_s, slot.start_us)

    def _together(self, found: Iterator[tuple[str, float]]) -> Iterator[Dispatch]:
        if self._limiter is not None:
            for batch_id, wait_s in found:
                yield Dispatch(self._buffer.lane, [batch_id], wait_s)
            return
        ids = (batch_id for batch_id, _ in found)
        while page := list(islice(ids, IDENTIFIES_A_MESSAGE)):
            yield Dispatch(self._buffer.lane, page, 0)

    def _acquire_slot(self, batch_id: str) -> Admitted | float | None:
        """Wait for the slot, or take one, and begin; otherwise when to call again, or None."""
        slot = "none" if self._limiter is None else ""
        ends_at = time.monotonic() + 2 * SLEEP_MAX_S
        while time.monotonic() < ends_at:
            begun = self._buffer.begin(
                batch_id, slot=slot, slot_valid_ms=SLOT_VALID_MS, lease_ms=self._lease_ms
            )
            if isinstance(begun, Admitted):
                return begun
            if begun.reason == "wait" and begun.wait_s <= SLEEP_MAX_S:
                time.sleep(begun.wait_s)
            elif begun.reason == "wait":
                self._give_back(batch_id, begun.wait_s)
                return begun.wait_s
            elif begun.reason == "unloaded" and self._load_fences():
                continue
            elif begun.reason == "slot":
                taken = self._slot()
                if taken is None:
                    break
                slot = str(taken.start_us)
            else:
                log.info("batch_not_begun", extra={"batch_id": batch_id, "reason": begun.reason})
                return None
        self._give_back(batch_id, 0)
        return None

    def _give_back(self, batch_id: str, wait_s: float) -> None:
        self._buffer.release(batch_id, "", wait_ms=round(wait_s * 1000), grace_ms=0)

    def _record_with_retry(self, settle: Callable[[], float | None]) -> float | None:
        """Settle, and while Redis is away try again: an outcome forgotten is a repeat (P3).

        Gives up after a lease: by then the batch counts as lapsed. What was applied
        although its reply was lost is not applied twice: the token is used up.
        """
        ends_at = time.monotonic() + self._policy.lease_s
        wait_s = 0.05
        while True:
            try:
                return settle()
            except _REDIS_AWAY:
                if time.monotonic() > ends_at:
                    raise
                time.sleep(wait_s)
                wait_s = min(1.0, 2 * wait_s)

    def _settle(self, batch_id: str, attempt: Admitted, outcome: Outcome) -> float | None:
        """Apply what follows an outcome, to the project and then to the batch."""
        wait_s = self._tell_project(batch_id, attempt, outcome)
        park = self._policy.park_ambiguous
        decision = retry.decide(outcome, attempt, park=park, random_s=_random_s)
        name = NAMES[type(outcome)]
        extra = {"batch_id": batch_id, "attempt": attempt.attempt, "outcome": name}
        log.info("batch_settled", extra=extra)
        return self._apply(batch_id, attempt, decision, wait_s)

    def _apply(
        self, batch_id: str, attempt: Admitted, decision: retry.Decision, wait_s: float
    ) -> float | None:
        buffer, token, exchange = self._buffer, attempt.token, attempt.exchange
        match decision:
            case retry.Ack(count=count):
                differs = count is not None and count != attempt.sent
                if differs:
                    log.warning("batch_count_differs", extra={"batch_id": batch_id})
                buffer.ack(
                    batch_id,
                    attempt.generation,
                    token=token,
                    count_differs=differs,
                    exchange=exchange,
                )
                return 0 if attempt.left else None
            case retry.Narrow():
                return self._narrow(batch_id, attempt, decision)
            case retry.Bury(why=why, outcome=outcome, ambiguous=ambiguous):
                log.warning("batch_buried", extra={"batch_id": batch_id})
                buffer.bury(
                    batch_id,
                    token,
                    why=why,
                    outcome=outcome,
                    ambiguous=ambiguous,
                    exchange=exchange,
                )
            case retry.Retry(wait_s=own_wait_s, outcome=outcome, ambiguous=ambiguous):
                due_s = max(wait_s, own_wait_s)
                kept = buffer.release(
                    batch_id,
                    token,
                    wait_ms=round(due_s * 1000),
                    grace_ms=RETRY_GRACE_MS,
                    outcome=outcome,
                    ambiguous=ambiguous,
                    exchange=exchange,
                )
                # At 0 the project is paused, and a flush will choose its probe.
                return due_s if kept and due_s > 0 else None
            case _:
                assert_never(decision)
        return None

    def _narrow(self, batch_id: str, attempt: Admitted, found: retry.Narrow) -> float | None:
        """Narrow a refused batch down; pause when it is not the events but a rule."""
        state = self._buffer.narrow(
            batch_id,
            attempt.token,
            why=found.why,
            isolation_max=found.isolation_max,
            exchange=attempt.exchange,
        )
        if state == "buried":
            log.warning("event_buried", extra={"batch_id": batch_id})
        elif state == "systematic":
            self._pause(batch_id, retry.Pause(found.kind, found.answer))
        return 0 if state in {"narrowed", "buried"} else None

    def _tell_project(self, batch_id: str, attempt: Admitted, outcome: Outcome) -> float:
        """Throttle, pause or lift; return how long this batch has to wait for it."""
        if retry.lifts(attempt.paused, outcome):
            refused = self._pauses.lift(batch_id)
            is_refusal = attempt.paused != retry.UNAVAILABLE
            if is_refusal and refused not in {"", batch_id} and isinstance(outcome, Delivered):
                for buffer in self._endpoint():
                    buffer.single_out(refused)
        known = retry.signal(outcome, attempt, _random_s)
        match known:
            case None:
                return 0
            case retry.Throttle(wait_s=wait_s):
                keep_ms = self._limiter.refill_ms if self._limiter else 0
                log.warning("project_throttled", extra={"wait_s": wait_s})
                return self._pauses.throttle(round(wait_s * 1000), keep_ms=keep_ms)
            case retry.Pause():
                self._pause(batch_id, known)
                return 0
            case _:
                assert_never(known)

    def _pause(self, batch_id: str, pause: retry.Pause) -> None:
        probe_ms = round(self._policy.probe_interval_s * 1000)
        # The other lane's batches tell soon whether the refused events are but a bad import's.
        is_import = self._sibling_first is not None and pause.kind == retry.REJECTED
        is_paused = self._pauses.pause(
            batch_id,
            pause.kind,
            status=str(pause.answer.status or "-"),
            code=pause.answer.code,
            first_ms=1000 if pause.failures_max or is_import else probe_ms,
            probe_ms=probe_ms,
            failures_max=pause.failures_max,
        )
        if is_paused:
            log.warning("project_paused", extra={"reason": pause.kind})


class _Slot(NamedTuple):
    wait_s: float
    start_us: int | None


def _wants_slot(buffer: Buffer) -> bool:
    """Say whether a batch is ready or late; a lane that cannot be read will take no slot."""
    try:
        return buffer.look(late_ms=LATE_MS, claimed_max=CLAIMED_MAX) in {"ready", "late"}
    except ResponseError:
        return False


def _random_s(below: float) -> float:
    return random.uniform(0, below)  # noqa: S311 - jitter, no secret
