"""One attempt to send a batch: wait for its slot, post it, settle the outcome."""

from __future__ import annotations

import time
from dataclasses import replace
from logging import getLogger
from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mm_tasks.buffer.batches import Admitted
from mm_tasks.buffer.histograms import RequestStats
from mm_tasks.client.backoff import record_with_retry
from mm_tasks.client.outcome import Unavailable
from mm_tasks.delivery.settle import settle
from mm_tasks.delivery.slots import take_slot
from mm_tasks.events.limits import BATCH_BRACKETS_BYTES

if TYPE_CHECKING:
    from mm_tasks.client.outcome import Outcome
    from mm_tasks.delivery.slots import Delivery

log = getLogger(__name__)

# Sending waits this long for its slot inside the process; a later flush ends longer waits.
SLEEP_MAX_S = 1.5
# Not there, not answering, loading its AOF, or no longer the primary.
_REDIS_AWAY = (RedisConnectionError, RedisTimeoutError, ReadOnlyError)


def send(delivery: Delivery, batch_id: str) -> float | None:
    """Make one attempt to send a batch; return in how many seconds it may be sent again, or None.

    At 0 call again at once; after a longer wait a flush takes care of the batch.

    Raises what Redis raises: before the request at once, after it when Redis stays away for a
    whole lease. A later flush then finds the batch.
    """
    admitted = _acquire_slot(delivery, batch_id)
    if not isinstance(admitted, Admitted):
        return admitted
    outcome: Outcome = Unavailable("late")
    # A process that was frozen since its admission could send an event fenced meanwhile.
    if time.monotonic() - admitted.asked_at_s < delivery.policy.lease_s / 2:
        outcome, exchange = _request(delivery, admitted.bodies)
        admitted = replace(admitted, exchange=exchange)
    # A forgotten outcome would be a repeat: P3 of docs/architecture.md. The lease bounds the
    # retries: after it the batch counts as expired. If only a reply was lost, the second call
    # finds its token used up.
    return record_with_retry(
        lambda: settle(delivery, batch_id, admitted, outcome), _REDIS_AWAY, delivery.policy.lease_s
    )


def _request(delivery: Delivery, bodies: list[bytes]) -> tuple[Outcome, RequestStats]:
    began_s = time.monotonic()
    outcome = delivery.client.send(delivery.buffer.lane, bodies)
    took_s = time.monotonic() - began_s
    body_bytes = sum(map(len, bodies)) + len(bodies) - 1 + BATCH_BRACKETS_BYTES
    return outcome, RequestStats(took_s, len(bodies), body_bytes)


def _acquire_slot(delivery: Delivery, batch_id: str) -> Admitted | float | None:
    """Wait for the slot, or take one, and begin; otherwise when to call again, or None."""
    slot = "none" if delivery.limiter is None else ""
    ends_at = time.monotonic() + 2 * SLEEP_MAX_S
    while time.monotonic() < ends_at:
        begun = delivery.buffer.begin(batch_id, slot=slot, lease_ms=delivery.policy.lease_ms)
        if isinstance(begun, Admitted):
            return begun
        if begun.reason == "wait" and begun.wait_s <= SLEEP_MAX_S:
            time.sleep(begun.wait_s)
        elif begun.reason == "wait":
            delivery.buffer.release(batch_id, None, wait_ms=round(begun.wait_s * 1000))
            return begun.wait_s
        elif begun.reason == "unloaded" and delivery.load_fences():
            continue
        elif begun.reason == "slot":
            taken = take_slot(delivery)
            if taken is None:
                break
            slot = str(taken.start_us)
        else:
            log.info("batch_not_begun", extra={"batch_id": batch_id, "reason": begun.reason})
            return None
    delivery.buffer.release(batch_id, None)
    return None
