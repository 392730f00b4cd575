"""`track`, by its class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from mm_tasks.buffer.producer import APPEND_RECORDS_MAX
from mm_tasks.buffer.scripts import pages
from mm_tasks.errors import InvalidEvent
from mm_tasks.events.lanes import TRACK
from mm_tasks.events.limits import ID_CHARACTERS_MAX
from mm_tasks.tasks.direct import EventTask
from mm_tasks.tasks.receipts import Receipt, at_index, counting, in_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from celery.canvas import Signature
    from celery.result import AsyncResult

    from mm_tasks.events.encode import Encoded
    from mm_tasks.events.fields import TrackFields, TrackItem, TrackOnCommit
    from mm_tasks.tasks.on_commit import Planned


class TrackTask(EventTask):
    """`track.delay("signup", user_id="user_42")`: reports a product event."""

    name = "mm_tasks.track"
    lane = TRACK
    positional = ("event",)

    @overload
    def delay(self, event: str, /, **fields: Unpack[TrackFields]) -> Receipt: ...
    @overload
    def delay(self, /, *, event: str, **fields: Unpack[TrackFields]) -> Receipt: ...
    def delay(self, /, *args: Any, **fields: Any) -> Receipt:
        """Validate and store one event; once it returns, the event is in Redis.

        Raises `InvalidEvent`, `BufferFull` or `BufferUnavailable`; see `errors`.
        """
        return self._append((self._encoded(args, fields),))[0]

    @overload
    async def adelay(self, event: str, /, **fields: Unpack[TrackFields]) -> Receipt: ...
    @overload
    async def adelay(self, /, *, event: str, **fields: Unpack[TrackFields]) -> Receipt: ...
    async def adelay(self, /, *args: Any, **fields: Any) -> Receipt:
        """As `delay`, without holding up the running event loop.

        A call that is cancelled may have stored its event.
        """
        return (await self._aappend((self._encoded(args, fields),)))[0]

    @overload
    def delay_on_commit(self, event: str, /, **fields: Unpack[TrackOnCommit]) -> Planned: ...
    @overload
    def delay_on_commit(self, /, *, event: str, **fields: Unpack[TrackOnCommit]) -> Planned: ...
    def delay_on_commit(self, /, *args: Any, **fields: Any) -> Planned:
        """As `delay`, when Django's transaction commits: see `contrib.django.commit`."""
        return super().delay_on_commit(*args, **fields)

    @overload
    def apply_async(
        self, args: Sequence[str] | None = ..., kwargs: TrackItem | TrackFields | None = ...
    ) -> Receipt: ...
    @overload
    def apply_async(
        self,
        args: Sequence[str] | None = ...,
        kwargs: TrackItem | TrackFields | None = ...,
        **options: Any,
    ) -> AsyncResult[None]: ...
    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """As `delay`; with options such as `countdown`, publish it for a worker to store."""
        return super().apply_async(args, kwargs, **options)

    def delay_many(
        self,
        items: Iterable[TrackItem] | Iterable[Mapping[str, Any]],
        *,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> list[Receipt]:
        """Validate all events, then store them together, in order.

        `on_error="raise"`: one `InvalidEvent` names every bad item by its index,
        and nothing is stored. `"skip"`: the good ones are stored; the receipts of
        the bad ones hold their error. A failure of Redis midway raises
        `BufferUnavailable` with `.stored` and `.maybe_stored`.
        """
        good, bad, total = self._sorted(items, on_error)
        stored: list[Receipt] = []
        for part in pages(good, APPEND_RECORDS_MAX):
            with counting(stored):
                stored += self._append(part)
        return in_order(stored, bad, total)

    async def adelay_many(
        self,
        items: Iterable[TrackItem] | Iterable[Mapping[str, Any]],
        *,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> list[Receipt]:
        """As `delay_many`; only the validation of the events holds up the event loop."""
        good, bad, total = self._sorted(items, on_error)
        stored: list[Receipt] = []
        for part in pages(good, APPEND_RECORDS_MAX):
            with counting(stored):
                stored += await self._aappend(part)
        return in_order(stored, bad, total)

    @overload
    def s(self, event: str, /, **fields: Unpack[TrackFields]) -> Signature[Any]: ...
    @overload
    def s(self, /, *, event: str = ..., **fields: Unpack[TrackFields]) -> Signature[Any]: ...
    def s(self, /, *args: Any, **fields: Any) -> Signature[Any]:
        """Return a signature, for a chain, a group or a schedule; validated when it is called."""
        return super().s(*args, **fields)

    @overload
    def si(self, event: str, /, **fields: Unpack[TrackFields]) -> Signature[Any]: ...
    @overload
    def si(self, /, *, event: str, **fields: Unpack[TrackFields]) -> Signature[Any]: ...
    def si(self, /, *args: Any, **fields: Any) -> Signature[Any]:
        """As `s`, and nothing is added to it later."""
        return super().si(*args, **fields)

    def _recognisable(self, named: dict[str, Any]) -> dict[str, Any]:
        # Celery delivers a message twice when a worker dies; both are the same event.
        task_id = self.request.id
        if task_id and len(task_id) <= ID_CHARACTERS_MAX and named.get("event_id") is None:
            return {**named, "event_id": task_id}
        return named

    def _sorted(
        self, items: Iterable[Mapping[str, Any]], on_error: str
    ) -> tuple[list[Encoded], dict[int, InvalidEvent], int]:
        """Return the good events, the errors of the bad ones by index, and how many there are."""
        if on_error not in {"raise", "skip"}:
            msg = "on_error must be 'raise' or 'skip'"
            raise ValueError(msg)
        good: list[Encoded] = []
        bad: dict[int, InvalidEvent] = {}
        total = 0
        for index, fields in enumerate(items):
            total += 1
            try:
                good.append(self._encode(fields))
            except InvalidEvent as error:
                bad[index] = at_index(index, error)
        if bad and on_error == "raise":
            raise InvalidEvent([problem for error in bad.values() for problem in error.problems])
        return good, bad, total
