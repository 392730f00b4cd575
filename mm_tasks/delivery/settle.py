"""Apply an outcome: first to the project (throttle, pause, resume), then to the batch."""

from __future__ import annotations

from logging import getLogger
from typing import TYPE_CHECKING, assert_never

from mm_tasks.client.backoff import backoff_s, random_s
from mm_tasks.client.outcome import NAMES, Ambiguous
from mm_tasks.delivery import retry

if TYPE_CHECKING:
    from mm_tasks.buffer.batches import Admitted
    from mm_tasks.client.outcome import Outcome
    from mm_tasks.delivery.slots import Delivery

log = getLogger(__name__)


def settle(delivery: Delivery, batch_id: str, attempt: Admitted, outcome: Outcome) -> float | None:
    """Apply an outcome; return in how many seconds the batch may be sent again, or None."""
    buffer, name = delivery.buffer, NAMES[type(outcome)]
    wait_s = _signal(delivery, batch_id, attempt, outcome)
    park = delivery.policy.park_ambiguous
    decision = retry.decide(outcome, attempt, park=park, random_s=random_s)
    extra = {"batch_id": batch_id, "attempt": attempt.attempt, "outcome": name}
    log.info("batch_settled", extra=extra)
    doubt = outcome.kind if isinstance(outcome, Ambiguous) else ""
    counted = {"outcome": name, "ambiguous": doubt}
    match decision:
        case retry.Ack(stored=stored):
            differs = stored not in {None, attempt.sent}
            if differs:
                log.warning("batch_count_differs", extra={"batch_id": batch_id})
            buffer.ack(batch_id, attempt, count_differs=differs)
            return 0 if attempt.left else None
        case retry.Bisect():
            return _bisect(delivery, batch_id, attempt, name, decision)
        case retry.Bury(why=why):
            log.warning("batch_buried", extra={"batch_id": batch_id})
            buffer.bury(batch_id, attempt, why=why, **counted)
            return None
        case retry.Retry(wait_s=own_wait_s):
            due_s = max(wait_s, own_wait_s)
            kept = buffer.release(batch_id, attempt, wait_ms=round(due_s * 1000), **counted)
            # At 0 the project is paused, and a flush will choose its probe.
            return due_s if kept and due_s > 0 else None
        case _:
            assert_never(decision)


def _bisect(
    delivery: Delivery, batch_id: str, attempt: Admitted, kind: str, decision: retry.Bisect
) -> float | None:
    """Bisect a refused batch; pause when not its events are at fault, but everything is refused."""
    (answer, why), buffer = decision, delivery.buffer
    if kind == retry.REJECTED:
        isolation_max = retry.ISOLATION_MAX
        state = buffer.bisect(batch_id, attempt, why=why, isolation_max=isolation_max)
    else:
        state = buffer.bisect_filtered(batch_id, attempt, why=why)
    if state == "buried":
        log.warning("event_buried", extra={"batch_id": batch_id})
    if state == "again":
        wait_s = backoff_s(attempt.attempt, random_s)
        buffer.release(batch_id, None, wait_ms=round(wait_s * 1000))
        return wait_s
    is_paused = False
    if state in {"systematic", "refused"}:
        failures_max = retry.FILTERED_MAX if state == "refused" else 0
        is_paused = _pause(delivery, batch_id, retry.Pause(kind, answer, failures_max))
    return None if is_paused or state == "old" else 0


def _signal(delivery: Delivery, batch_id: str, attempt: Admitted, outcome: Outcome) -> float:
    """Throttle, pause or resume; return the seconds that this batch has to wait for it."""
    if retry.lifts(attempt.paused, outcome):
        delivery.pauses.lift(batch_id)
    match retry.signal(outcome, attempt, random_s):
        case retry.Throttle(wait_s=wait_s):
            keep_ms = delivery.limiter.refill_ms if delivery.limiter else 0
            log.warning("project_throttled", extra={"wait_s": wait_s})
            return delivery.pauses.throttle(round(wait_s * 1000), keep_ms=keep_ms)
        case retry.Pause() as pause:
            _pause(delivery, batch_id, pause)
    return 0


def _pause(delivery: Delivery, batch_id: str, pause: retry.Pause) -> bool:
    probe_ms = round(delivery.policy.probe_interval_s * 1000)
    # A batch of the other lane soon shows whether only a bad import was refused.
    is_import = delivery.low_priority and pause.kind == retry.REJECTED
    is_paused = delivery.pauses.pause(
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
    return is_paused
