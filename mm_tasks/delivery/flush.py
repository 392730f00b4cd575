"""Make batches of waiting records, and yield the batches that workers must send.

Any number of workers may flush at once, and each may be killed anywhere: a batch whose message
or worker was lost is found by a later flush through its lease.

Not here: Celery. The caller publishes the yielded dispatches; `delivery/send` sends them.
"""

from __future__ import annotations

from logging import getLogger
from typing import TYPE_CHECKING, NamedTuple

from mm_tasks.buffer.scripts import pages
from mm_tasks.client.outcome import Ambiguous
from mm_tasks.delivery.settle import settle
from mm_tasks.delivery.slots import take_slot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mm_tasks.buffer.batches import Batches
    from mm_tasks.delivery.slots import Delivery

log = getLogger(__name__)

# Bounds the work of one flush; the next flush finds the rest.
DUE_MAX = 50
# Identifies in one message: each is still a batch of its own.
IDENTIFIES_A_MESSAGE = 25


class Dispatch(NamedTuple):
    """Batches of one lane to send with one message, and the time until their slot."""

    lane: str
    batch_ids: list[str]
    wait_s: float


def flush(delivery: Delivery, *, linger: bool = True) -> Iterator[Dispatch]:
    """Yield the batches to send: lost and due ones first, then new ones.

    Stops when nothing is ready, no slot is free within one flush interval, or claimed batches
    are not sent in time. `linger=False` also takes part-full batches at once. Scheduled records
    that are due become waiting first.
    """
    delivery.buffer.scheduled.move_due()
    readiness = delivery.buffer.readiness(linger=linger)
    if readiness == "unloaded" and delivery.load_fences():
        readiness = delivery.buffer.readiness(linger=linger)
    if readiness == "paused":
        yield from _probe(delivery)
    elif readiness not in {"unloaded", "throttled"}:
        yield from _dispatches(delivery, _due(delivery))
        yield from _dispatches(delivery, _fresh(delivery, linger=linger))


def _fresh(delivery: Delivery, *, linger: bool) -> Iterator[tuple[str, float]]:
    while delivery.buffer.readiness(linger=linger) == "ready":
        slot = take_slot(delivery)
        if slot is None:
            return
        batch_id = delivery.buffer.claim(slot_us=slot.start_us, linger=linger)
        if batch_id is not None:
            yield batch_id, slot.wait_s


def _due(delivery: Delivery) -> Iterator[tuple[str, float]]:
    for batch_id in delivery.buffer.due(DUE_MAX):
        if _settle_expired(delivery, batch_id):
            continue
        slot = take_slot(delivery)
        if slot is None:
            return
        if delivery.buffer.assign_slot(batch_id, slot_us=slot.start_us):
            yield batch_id, slot.wait_s


def _settle_expired(delivery: Delivery, batch_id: str) -> bool:
    """Settle a batch whose lease expired while it was sent; return whether it had."""
    attempt = delivery.buffer.take_over(batch_id, lease_ms=delivery.policy.lease_ms)
    if attempt is None:
        return False
    log.warning("batch_lease_expired", extra={"batch_id": batch_id})
    settle(delivery, batch_id, attempt, Ambiguous("lease"))
    return True


def _probe(delivery: Delivery) -> Iterator[Dispatch]:
    refused = delivery.pauses.probe_due()
    if refused is None:
        return
    for batch_id in delivery.buffer.due(DUE_MAX):
        _settle_expired(delivery, batch_id)
    slot = take_slot(delivery)
    if slot is None:
        return
    for buffer, batch_id in _probe_candidates(delivery, refused, slot.start_us):
        if not buffer.assign_slot(batch_id, slot_us=slot.start_us):
            continue
        # False: another flush was first, and this flush has nothing left to do.
        if delivery.pauses.choose_probe(batch_id, lost_ms=delivery.policy.lease_ms):
            yield Dispatch(buffer.lane, [batch_id], slot.wait_s)
        return


def _probe_candidates(
    delivery: Delivery, refused: list[str], slot_us: int | None
) -> Iterator[tuple[Batches, str]]:
    """Yield the batches by what their last attempts showed.

    First those that nothing speaks against, then a new one, then those that were sent in doubt or
    refused by a filter, then those refused in this pause.
    """
    doubtful, last = [], []
    for buffer in delivery.endpoint:
        batch_ids = buffer.due(DUE_MAX, everything=True)
        set_back = buffer.held_against(batch_ids)
        for batch_id in batch_ids:
            if batch_id in refused:
                last.append((buffer, batch_id))
            elif batch_id in set_back:
                doubtful.append((buffer, batch_id))
            else:
                yield buffer, batch_id
    for buffer in delivery.endpoint:
        fresh = buffer.claim(slot_us=slot_us, linger=False)
        if fresh is not None:
            yield buffer, fresh
    yield from doubtful
    yield from last


def _dispatches(delivery: Delivery, batches: Iterator[tuple[str, float]]) -> Iterator[Dispatch]:
    """Yield one message a batch, or one for several where no batch waits for a slot."""
    lane = delivery.buffer.lane
    if delivery.limiter is not None:
        for batch_id, wait_s in batches:
            yield Dispatch(lane, [batch_id], wait_s)
        return
    ids = (batch_id for batch_id, _ in batches)
    for page in pages(ids, IDENTIFIES_A_MESSAGE):
        yield Dispatch(lane, page, 0)
