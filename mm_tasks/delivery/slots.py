"""Who may take the next slot of an endpoint's rate, and what delivers one lane.

A slot is reserved up to one flush interval ahead, so that a batch knows its time and no worker
polls. A low-priority lane leaves the slots to its sibling as long as that has a batch ready.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from mm_tasks.buffer.rate_limiter import Slot

if TYPE_CHECKING:
    from collections.abc import Callable

    from mm_tasks.buffer.batches import Batches
    from mm_tasks.buffer.pauses import Pauses
    from mm_tasks.buffer.rate_limiter import Limiter
    from mm_tasks.client.api import Client


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of delivery."""

    flush_interval_s: float = 1
    lease_s: float = 60
    probe_interval_s: float = 60
    park_ambiguous: bool = False

    @property
    def lease_ms(self) -> int:
        """Return the lease of an attempt in milliseconds."""
        return round(self.lease_s * 1000)


@dataclass(frozen=True, slots=True)
class Delivery:
    """The parts that deliver one lane; `flush`, `send` and `settle` take them.

    `limiter` is None for a lane that the vendor does not limit. `load_fences` is called when
    not all fences are loaded, and returns whether they are now. `sibling` is the other lane of
    the same endpoint; one probe serves both. A lane with `low_priority` takes no slot while its
    sibling has a batch ready.
    """

    buffer: Batches
    limiter: Limiter | None
    pauses: Pauses
    client: Client
    policy: Policy
    load_fences: Callable[[], bool]
    sibling: Batches | None = None
    low_priority: bool = False

    @property
    def endpoint(self) -> tuple[Batches, ...]:
        """Return the lanes of the endpoint, this one first."""
        return (self.buffer,) if self.sibling is None else (self.buffer, self.sibling)


def take_slot(delivery: Delivery) -> Slot | None:
    """Reserve the next slot; None when it is too far off or belongs to the sibling."""
    if delivery.limiter is None:
        return Slot(0, None)
    if delivery.low_priority and delivery.sibling is not None and _wants_slot(delivery.sibling):
        return None
    return delivery.limiter.reserve(delivery.policy.flush_interval_s)


def _wants_slot(buffer: Batches) -> bool:
    """Return whether a batch is ready or late; a lane that cannot be read takes no slot."""
    try:
        return buffer.readiness() in {"ready", "late"}
    except ResponseError:
        return False
