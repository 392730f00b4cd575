"""Tasks that do their work in the caller: `track` and `identify`, by their classes.

`.delay()` and a plain `.apply_async()` do not go through the broker: they validate in
the caller and store there. With options that need a broker (a countdown, a chain) they
validate as well, and the arguments travel in the message, redacted in its `argsrepr`.

The signatures are for people and their tools. What is really taken is anything, so that
a wrong call raises `InvalidEvent`, which names field and rule, and never `TypeError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NoReturn, Unpack, overload

from celery.exceptions import Reject

from mm_tasks import ambient, events, runtime
from mm_tasks.celery_app import (
    FLUSH,
    QUEUES,
    REDACTED,
    OurTask,
    nudge,
    publish_options,
)
from mm_tasks.errors import (
    BufferFull,
    BufferUnavailable,
    InvalidEvent,
    Problem,
)
from mm_tasks.limits import ID_CHARACTERS_MAX
from mm_tasks.receipts import (
    Receipt,
    at_index,
    counting,
    entries,
    in_order,
    parts,
    receipts_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from celery.canvas import Signature
    from celery.result import AsyncResult

    from mm_tasks.contrib.django.commit import Planned
    from mm_tasks.events import Encoded
    from mm_tasks.signatures import (
        IdentifyFields,
        IdentifyOnCommit,
        TrackFields,
        TrackItem,
        TrackOnCommit,
    )

_AGAIN_S = 10


class DirectTask(OurTask):
    """A task whose plain call does its work in the caller, without the broker."""

    abstract = True
    positional: tuple[str, ...]

    def s(self, /, *args: Any, **fields: Any) -> Signature[Any]:  # noqa: ANN401 - checked when called
        """Return a signature, for a chain, a group or a schedule; validated when it is called."""
        made: Signature[Any] = super().s(*args, **fields)
        return made

    def si(self, /, *args: Any, **fields: Any) -> Signature[Any]:  # noqa: ANN401 - checked when called
        """As `s`, and nothing is added to it later."""
        made: Signature[Any] = super().si(*args, **fields)
        return made

    def apply_async(
        self,
        args: Any = None,  # noqa: ANN401 - a sequence
        kwargs: Any = None,  # noqa: ANN401 - a mapping
        **options: Any,  # noqa: ANN401 - Celery's
    ) -> Any:  # noqa: ANN401 - a receipt, or Celery's result with options
        """As `delay`. With options that are not None, publish it for a worker to do.

        Raises `InvalidEvent` either way; but what comes after other tasks was checked by nobody,
        and its worker will refuse it: here it would make the task before it fail.
        """
        if all(value is None for value in options.values()):
            return self.delay(*(args or ()), **(kwargs or {}))
        fields = self._to_send(tuple(args or ()), dict(kwargs or {}))
        if not _comes_after_others(args, options):
            self._check(tuple(args or ()), dict(fields))
        current: Any = runtime.current()
        if not current.has_broker:
            return current.publish(self, args or (), fields, options)
        ours = dict(REDACTED)
        if options.get("connection") is None and options.get("producer") is None:
            ours |= publish_options()
        return super().apply_async(args, fields, **(ours | options))

    def _to_send(self, args: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields with what only the caller knows, for a worker to have it too."""
        raise NotImplementedError

    def _check(self, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        """Raise `InvalidEvent` where `delay` would."""
        raise NotImplementedError

    def _named(self, args: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:
        """Return all arguments by name."""
        for name, value in zip(self.positional, args, strict=False):
            if name in fields:
                raise InvalidEvent([Problem(name, "was given twice")])
            fields[name] = value
        extra = len(args) - len(self.positional)
        if extra > 0:
            rule = f"takes {len(self.positional)} positional arguments, {extra} too many"
            raise InvalidEvent([Problem(self.positional[0], rule)])
        return fields

    def _arrived(self, args: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:
        """Return all arguments of a message by name.

        A chain puts the result of the task before in front. Where all is said without it,
        `chain(work.s(), track.s("done"))`, it has no place and is left out.
        """
        is_extra = len(args) > len(self.positional)
        if is_extra or any(name in fields for name in self.positional[: len(args)]):
            args = args[1:]
        return self._named(args, fields)

    def _again(self, error: Exception) -> NoReturn:
        """Let the message come again, as often as it takes."""
        if self.request.is_eager:
            raise error
        try:
            self.retry(exc=error, countdown=_AGAIN_S)
        except Reject:
            # The broker took no new message: keep the one there is. Celery would drop it.
            raise Reject(error, requeue=True) from None
        raise AssertionError


def _comes_after_others(args: Any, options: Mapping[str, Any]) -> bool:  # noqa: ANN401
    """Tell whether this is called at the end of other tasks, their result put in front.

    A chain says so. A chord does not: its body looks like a task of a group, but for the list
    of results.
    """
    if "parent_id" in options:
        return True
    return options.get("group_id") is not None and bool(args) and isinstance(args[0], list)


class EventTask(DirectTask):
    """A task that stores an event."""

    abstract = True
    lane: str

    def run(self, *args: Any, **fields: Any) -> None:  # noqa: ANN401 - checked here
        """Store an event that came in a message; tried again until Redis takes it."""
        named = self._arrived(args, fields) if self.request.id else self._named(args, fields)
        encoded = self._encoded((), self._recognisable(named))
        try:
            self._append((encoded,))
        except (BufferFull, BufferUnavailable) as error:
            self._again(error)

    def delay_on_commit(self, /, *args: Any, **fields: Any) -> Planned:  # noqa: ANN401 - checked here
        """As `delay`, when Django's transaction commits: see `contrib.django.commit`."""
        from mm_tasks.contrib.django.commit import delay_on_commit  # noqa: PLC0415 - needs Django

        return delay_on_commit(self, *args, **fields)

    def apply_async_on_commit(self, args: Any = None, kwargs: Any = None, **options: Any) -> None:  # noqa: ANN401
        """As `apply_async`, when Django's transaction commits."""
        from mm_tasks.contrib.django.commit import apply_async_on_commit  # noqa: PLC0415

        apply_async_on_commit(self, args, kwargs, **options)

    def _to_send(self, args: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:
        # In the worker there is no request any more.
        return ambient.added(self.lane, fields, self.positional[: len(args)])

    def _check(self, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        self._encoded(args, fields)

    def _recognisable(self, named: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a message so that a repeat of it can be told."""
        return named

    def _encoded(self, args: tuple[Any, ...], fields: dict[str, Any]) -> Encoded:
        named = self._named(args, fields)
        return self._encode(ambient.added(self.lane, named))

    def _encode(self, fields: Mapping[str, Any]) -> Encoded:
        if self.lane == events.TRACK:
            return events.encode_track(fields, bytes_max=runtime.current().event_bytes_max)
        return events.encode_identify(fields)

    def _append(self, part: Sequence[Encoded]) -> list[Receipt]:
        """Store at most 1 000 events with one script, and nudge a flush if one is full."""
        suppressed, is_full = runtime.current().producers[self.lane].append(entries(part))
        if is_full:
            nudge(FLUSH, (self.lane,), QUEUES[self.lane])
        return receipts_of(part, suppressed)

    async def _aappend(self, part: Sequence[Encoded]) -> list[Receipt]:
        # No nudge: that would keep the loop waiting for the broker, and beat flushes anyway.
        current = runtime.current()
        buffer = current.producers[self.lane]
        appended = await buffer.aappend(current.loops.current(), entries(part))
        return receipts_of(part, appended.suppressed)


class TrackTask(EventTask):
    """`track.delay("signup", user_id="user_42")`: reports a product event."""

    name = "mm_tasks.track"
    lane = events.TRACK
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
        **options: Any,  # noqa: ANN401 - Celery's
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
        for part in parts(good):
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
        for part in parts(good):
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


class IdentifyTask(EventTask):
    """`identify.delay(anonymous_id=…, user_id=…)`: links a visitor to a person."""

    name = "mm_tasks.identify"
    lane = events.IDENTIFY
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
