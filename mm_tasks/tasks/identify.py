"""`identify`: links the id of a visitor to the id of a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.events.lanes import IDENTIFY
from mm_tasks.tasks.direct import EventTask

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Unpack

    from celery.canvas import Signature

    from mm_tasks.events.typed_dicts import OnCommit
    from mm_tasks.tasks.on_commit import Planned
    from mm_tasks.tasks.receipts import Receipt

    Id = str | None
    Traits = Mapping[str, Any] | None


class IdentifyTask(EventTask):
    """`identify.delay(anonymous_id=…, user_id=…)`: links a visitor to a person."""

    name = "mm_tasks.identify"
    lane = IDENTIFY
    positional = ("anonymous_id", "user_id", "traits")

    if TYPE_CHECKING:

        def delay(self, anonymous_id: Id = ..., user_id: Id = ..., traits: Traits = ...) -> Receipt:
            """Validate and store the link; once it returns, it is in Redis.

            Raises as `track.delay`.
            """

        async def adelay(
            self, anonymous_id: Id = ..., user_id: Id = ..., traits: Traits = ...
        ) -> Receipt:
            """Do as `delay`, without blocking the event loop."""

        def delay_on_commit(
            self,
            anonymous_id: Id = ...,
            user_id: Id = ...,
            traits: Traits = ...,
            **options: Unpack[OnCommit],
        ) -> Planned:
            """Validate now and store when Django's transaction commits."""

        def s(
            self, anonymous_id: Id = ..., user_id: Id = ..., traits: Traits = ...
        ) -> Signature[Any]:
            """Return a signature. In a chain pass the ids by name, or use `si`."""
