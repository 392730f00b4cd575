"""`track`: events of the product, one by one or many at once; see `events/event_fields`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from mm_tasks.errors import InvalidEvent
from mm_tasks.events.lanes import TRACK
from mm_tasks.events.limits import ID_CHARACTERS_MAX
from mm_tasks.tasks.direct import EventTask
from mm_tasks.tasks.receipts import Receipt, counting, in_order, parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from typing import Literal, Unpack

    from celery.canvas import Signature
    from celery.result import AsyncResult

    from mm_tasks.events.encode import Encoded
    from mm_tasks.events.typed_dicts import TrackFields, TrackItem, TrackOnCommit
    from mm_tasks.tasks.on_commit import Planned

    Args = Sequence[str] | None
    Fields = TrackItem | TrackFields | None
    Items = Iterable[TrackItem] | Iterable[Mapping[str, Any]]
    OnError = Literal["raise", "skip"]


class TrackTask(EventTask):
    """`track.delay("signup", user_id="user_42")`: reports a product event."""

    name = "mm_tasks.track"
    lane = TRACK
    positional = ("event",)

    if TYPE_CHECKING:

        def delay(self, event: str, **fields: Unpack[TrackFields]) -> Receipt:
            """Validate and store one event; once it returns, the event is in Redis.

            Raises `InvalidEvent`, `BufferFull` or `BufferUnavailable`; see `errors`.
            """

        async def adelay(self, event: str, **fields: Unpack[TrackFields]) -> Receipt:
            """Do as `delay`, without blocking the event loop. A cancelled call may have stored."""

        def delay_on_commit(self, event: str, **fields: Unpack[TrackOnCommit]) -> Planned:
            """Validate now and store when Django's transaction commits."""

        def s(self, event: str = ..., **fields: Unpack[TrackFields]) -> Signature[Any]:
            """Return a signature for a chain, a group or a schedule; a call validates it."""

        def si(self, event: str, **fields: Unpack[TrackFields]) -> Signature[Any]:
            """Return an immutable signature: the result of a previous task is not inserted."""

    @overload
    def apply_async(self, args: Args = ..., kwargs: Fields = ...) -> Receipt: ...
    @overload
    def apply_async(
        self, args: Args = ..., kwargs: Fields = ..., *, countdown: float
    ) -> Receipt: ...
    @overload
    def apply_async(
        self, args: Args = ..., kwargs: Fields = ..., *, eta: datetime | str
    ) -> Receipt: ...
    @overload
    def apply_async(
        self, args: Args = ..., kwargs: Fields = ..., **options: Any
    ) -> AsyncResult[None]: ...
    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Call `delay`, or store the event for later; with other options, publish a message."""
        return super().apply_async(args, kwargs, **options)

    def delay_many(self, items: Items, *, on_error: OnError = "raise") -> list[Receipt]:
        """Validate all events, then store them together, in order.

        `on_error="raise"`: one `InvalidEvent` names every invalid item by its index, and nothing
        is stored. `"skip"`: the valid items are stored; the receipts of the others hold the error.
        A failure of Redis midway raises `BufferUnavailable` with `.stored` and `.maybe_stored`.
        """
        validated = self._validated(items, on_error)
        stored: list[Receipt] = []
        with counting(self.lane, stored, validated):
            for part in parts(validated):
                stored += self._append(part)
        return in_order(stored, validated)

    async def adelay_many(self, items: Items, *, on_error: OnError = "raise") -> list[Receipt]:
        """Do as `delay_many`; only the validation blocks the event loop."""
        validated = self._validated(items, on_error)
        stored: list[Receipt] = []
        with counting(self.lane, stored, validated):
            for part in parts(validated):
                stored += await self._aappend(part)
        return in_order(stored, validated)

    def _accept_message(self, fields: dict[str, Any]) -> None:
        # Celery delivers a message twice if a worker dies. Both deliveries are the same event.
        task_id = self.request.id
        if task_id and len(task_id) <= ID_CHARACTERS_MAX and fields.get("event_id") is None:
            fields = {**fields, "event_id": task_id}
        self._accept(fields)

    def _validated(self, items: Items, on_error: str) -> list[Encoded | InvalidEvent]:
        """Return each event encoded, or its error; raise all errors if `on_error` is "raise"."""
        if on_error not in {"raise", "skip"}:
            msg = "on_error must be 'raise' or 'skip'"
            raise ValueError(msg)
        validated: list[Encoded | InvalidEvent] = []
        for index, fields in enumerate(items):
            try:
                validated.append(self._encode(fields))
            except InvalidEvent as error:
                problems = [replace(problem, index=index) for problem in error.problems]
                validated.append(type(error)(problems))
        errors = [event for event in validated if isinstance(event, InvalidEvent)]
        self._count_invalid(len(errors))
        if errors and on_error == "raise":
            raise InvalidEvent([problem for error in errors for problem in error.problems])
        return validated
