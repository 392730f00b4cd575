"""`identify`: links the id of a visitor to the id of a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.events.lanes import IDENTIFY
from mm_tasks.tasks.direct import EventTask

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from typing import Protocol, Unpack

    from celery.canvas import Signature

    from mm_tasks.events.fields import OnCommit
    from mm_tasks.tasks.direct import Returned_co
    from mm_tasks.tasks.on_commit import Planned
    from mm_tasks.tasks.receipts import Receipt

    class _Identify(Protocol[Returned_co]):
        def __call__(
            self,
            anonymous_id: str | None = ...,
            user_id: str | None = ...,
            traits: Mapping[str, Any] | None = ...,
        ) -> Returned_co: ...

    class _IdentifyOnCommit(Protocol):
        def __call__(
            self,
            anonymous_id: str | None = ...,
            user_id: str | None = ...,
            traits: Mapping[str, Any] | None = ...,
            **options: Unpack[OnCommit],
        ) -> Planned: ...


class IdentifyTask(EventTask):
    """`identify.delay(anonymous_id=…, user_id=…)`: links a visitor to a person."""

    name = "mm_tasks.identify"
    lane = IDENTIFY
    positional = ("anonymous_id", "user_id", "traits")

    delay: _Identify[Receipt]
    """Validate and store the link; once it returns, it is in Redis. Raises as `track.delay`."""
    adelay: _Identify[Coroutine[Any, Any, Receipt]]
    """Do as `delay`, without blocking the event loop."""
    delay_on_commit: _IdentifyOnCommit
    """Validate now and store when Django's transaction commits."""
    s: _Identify[Signature[Any]]
    """Return a signature. In a chain pass the ids by name, or use `si`."""
