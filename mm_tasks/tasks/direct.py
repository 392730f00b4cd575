"""Tasks that do their work in the caller: `track` and `identify`, by their classes.

`.delay()` and a plain `.apply_async()` do not go through the broker: they validate in
the caller and store there. With options that need a broker (a countdown, a chain) they
validate as well, and the arguments travel in the message, redacted in its `argsrepr`.

The signatures are for people and their tools. What is really taken is anything, so that
a wrong call raises `InvalidEvent`, which names field and rule, and never `TypeError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from celery.exceptions import Reject

from mm_tasks import runtime
from mm_tasks.errors import BufferFull, BufferUnavailable, InvalidEvent, Problem
from mm_tasks.events import context
from mm_tasks.events.encode import encode_identify, encode_track
from mm_tasks.events.lanes import QUEUES, TRACK
from mm_tasks.tasks.base import BaseTask
from mm_tasks.tasks.celery_app import FLUSH, REDACTED
from mm_tasks.tasks.publisher import nudge, publish_options
from mm_tasks.tasks.receipts import Receipt, entries, receipts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery.canvas import Signature

    from mm_tasks.events.encode import Encoded
    from mm_tasks.tasks.on_commit import Planned

_AGAIN_S = 10


class InProcessTask(BaseTask):
    """A task whose plain call does its work in the caller, without the broker."""

    abstract = True
    positional: tuple[str, ...]

    def s(self, /, *args: Any, **fields: Any) -> Signature[Any]:
        """Return a signature, for a chain, a group or a schedule; validated when it is called."""
        made: Signature[Any] = super().s(*args, **fields)
        return made

    def si(self, /, *args: Any, **fields: Any) -> Signature[Any]:
        """As `s`, and nothing is added to it later."""
        made: Signature[Any] = super().si(*args, **fields)
        return made

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        **options: Any,
    ) -> Any:
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


def _comes_after_others(args: Any, options: Mapping[str, Any]) -> bool:
    """Tell whether this is called at the end of other tasks, their result put in front.

    A chain says so. A chord does not: its body looks like a task of a group, but for the list
    of results.
    """
    if "parent_id" in options:
        return True
    return options.get("group_id") is not None and bool(args) and isinstance(args[0], list)


class EventTask(InProcessTask):
    """A task that stores an event."""

    abstract = True
    lane: str

    def run(self, *args: Any, **fields: Any) -> None:
        """Store an event that came in a message; tried again until Redis takes it."""
        named = self._arrived(args, fields) if self.request.id else self._named(args, fields)
        encoded = self._encoded((), self._recognisable(named))
        try:
            self._append((encoded,))
        except (BufferFull, BufferUnavailable) as error:
            self._again(error)

    def delay_on_commit(self, /, *args: Any, **fields: Any) -> Planned:
        """As `delay`, when Django's transaction commits: see `contrib.django.commit`."""
        from mm_tasks.tasks.on_commit import delay_on_commit  # noqa: PLC0415 - needs Django

        return delay_on_commit(self, *args, **fields)

    def apply_async_on_commit(self, args: Any = None, kwargs: Any = None, **options: Any) -> None:
        """As `apply_async`, when Django's transaction commits."""
        from mm_tasks.tasks.on_commit import apply_async_on_commit  # noqa: PLC0415

        apply_async_on_commit(self, args, kwargs, **options)

    def _to_send(self, args: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:
        # In the worker there is no request any more.
        return context.with_context(self.lane, fields, self.positional[: len(args)])

    def _check(self, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        self._encoded(args, fields)

    def _recognisable(self, named: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a message so that a repeat of it can be told."""
        return named

    def _encoded(self, args: tuple[Any, ...], fields: dict[str, Any]) -> Encoded:
        named = self._named(args, fields)
        return self._encode(context.with_context(self.lane, named))

    def _encode(self, fields: Mapping[str, Any]) -> Encoded:
        if self.lane == TRACK:
            return encode_track(fields, bytes_max=runtime.current().event_bytes_max)
        return encode_identify(fields)

    def _append(self, part: Sequence[Encoded]) -> list[Receipt]:
        """Store at most 1 000 events with one script, and nudge a flush if one is full."""
        suppressed, is_full = runtime.current().producers[self.lane].append(entries(part))
        if is_full:
            nudge(FLUSH, (self.lane,), QUEUES[self.lane])
        return receipts_of(part, suppressed)

    async def _aappend(self, part: Sequence[Encoded]) -> list[Receipt]:
        # No nudge: that would keep the loop waiting for the broker, and beat flushes anyway.
        current = runtime.current()
        producer = current.producers[self.lane]
        appended = await producer.aappend(current.async_clients.current(), entries(part))
        return receipts_of(part, appended.suppressed)
