"""`identify`, by its class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack, overload

from mm_tasks.events.lanes import IDENTIFY
from mm_tasks.tasks.direct import EventTask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery.canvas import Signature

    from mm_tasks.events.fields import IdentifyFields, IdentifyOnCommit
    from mm_tasks.tasks.on_commit import Planned
    from mm_tasks.tasks.receipts import Receipt


class IdentifyTask(EventTask):
    """`identify.delay(anonymous_id=…, user_id=…)`: links a visitor to a person."""

    name = "mm_tasks.identify"
    lane = IDENTIFY
    positional = ("anonymous_id", "user_id", "traits")

    @overload
    def delay(self, /, **fields: Unpack[IdentifyFields]) -> Receipt: ...
    @overload
    def delay(
        self, /, anonymous_id: str, user_id: str = ..., traits: Mapping[str, Any] | None = ...
    ) -> Receipt: ...
    def delay(self, /, *args: Any, **fields: Any) -> Receipt:
        """Validate and store the link; once it returns, it is in Redis. Raises as `track.delay`."""
        return self._append((self._encoded(args, fields),))[0]

    @overload
    async def adelay(self, /, **fields: Unpack[IdentifyFields]) -> Receipt: ...
    @overload
    async def adelay(
        self, /, anonymous_id: str, user_id: str = ..., traits: Mapping[str, Any] | None = ...
    ) -> Receipt: ...
    async def adelay(self, /, *args: Any, **fields: Any) -> Receipt:
        """As `delay`, without holding up the running event loop."""
        return (await self._aappend((self._encoded(args, fields),)))[0]

    @overload
    def delay_on_commit(self, /, **fields: Unpack[IdentifyOnCommit]) -> Planned: ...
    @overload
    def delay_on_commit(
        self, anonymous_id: str, user_id: str = ..., /, **fields: Unpack[IdentifyOnCommit]
    ) -> Planned: ...
    def delay_on_commit(self, /, *args: Any, **fields: Any) -> Planned:
        """As `delay`, when Django's transaction commits: see `contrib.django.commit`."""
        return super().delay_on_commit(*args, **fields)

    @overload
    def s(self, /, **fields: Unpack[IdentifyFields]) -> Signature[Any]: ...
    @overload
    def s(
        self, /, anonymous_id: str, user_id: str = ..., traits: Mapping[str, Any] | None = ...
    ) -> Signature[Any]: ...
    def s(self, /, *args: Any, **fields: Any) -> Signature[Any]:
        """Return a signature. In a chain give the ids by name, or use `si`."""
        return super().s(*args, **fields)
