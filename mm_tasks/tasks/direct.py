"""Base classes of the tasks that do their work in the caller: `track`, `identify`, `forget`.

`.delay()` and an `.apply_async()` without options, or with a countdown or an eta alone, do not go
through the broker: they validate in the caller and store there. With options that need a broker (a
queue, a chain) they validate as well, and the arguments travel in the message, redacted in its
`argsrepr`.

The signatures that type checkers see are declared in the subclasses. At runtime every call takes
any arguments: an invalid call raises `InvalidEvent`, which names field and rule, not `TypeError`.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery.exceptions import Reject

from mm_tasks import runtime
from mm_tasks.errors import BufferFull, BufferUnavailable, InvalidEvent, Problem
from mm_tasks.events import context
from mm_tasks.events.encode import encode_identify, encode_track
from mm_tasks.events.lanes import QUEUES, TRACK
from mm_tasks.tasks import countdown, on_commit
from mm_tasks.tasks.base import BaseTask
from mm_tasks.tasks.celery_app import FLUSH, REDACTED
from mm_tasks.tasks.publisher import nudge, publish_options
from mm_tasks.tasks.receipts import Receipt, entries, receipts_of, refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mm_tasks.events.encode import Encoded

_RETRY_S = 10


class InProcessTask(BaseTask):
    """A task whose `delay` does its work in the caller, without the broker."""

    abstract = True
    positional: tuple[str, ...]
    # A message is retried after one of these; `delay` raises them.
    retried_errors: tuple[type[Exception], ...]

    def delay(self, /, *args: Any, **fields: Any) -> Any:
        """Validate the arguments and store them, in the caller; return a receipt."""
        return self._accept(self._by_name(args, fields))

    def run(self, *args: Any, **fields: Any) -> None:
        """Do the work of `delay` for a message; retry until it is stored."""
        named = self._message_by_name(args, fields)
        try:
            self._accept_message(named)
        except self.retried_errors as error:
            self._retry_message(error)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Call `delay`, at once or later, or publish a message if an option needs a worker.

        Raises `InvalidEvent` either way. The exception are later tasks of a chain, whose arguments
        have not been validated: an error here would fail the task before. The worker refuses them.
        """
        if all(value is None for value in options.values()):
            return self.delay(*(args or ()), **(kwargs or {}))
        if countdown.is_scheduled(options):
            delay_s = countdown.delay_s(options, datetime.now(UTC))
            if not delay_s:
                return self.delay(*(args or ()), **(kwargs or {}))
            return self._accept(self._by_name(tuple(args or ()), dict(kwargs or {})), delay_s)
        args = tuple(args or ())
        fields = self._message_fields(args, dict(kwargs or {}))
        if not _comes_after_others(args, options):
            self._check(args, dict(fields))
        current: Any = runtime.current()
        if not current.has_broker:
            return current.publish(self, args, fields, options)
        ours = dict(REDACTED)
        if options.get("connection") is None and options.get("producer") is None:
            ours |= publish_options()
        return super().apply_async(args, fields, **(ours | options))

    def _accept(self, fields: dict[str, Any], delay_s: float = 0.0) -> Any:
        """Validate and store, to be done in `delay_s` seconds; return a receipt."""
        raise NotImplementedError

    def _message_fields(self, args: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a message, with the values that only the caller knows."""
        raise NotImplementedError

    def _check(self, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        """Raise `InvalidEvent` for arguments that `delay` would refuse."""
        raise NotImplementedError

    def _accept_message(self, fields: dict[str, Any]) -> None:
        """Do as `_accept` for a message. Only here `self.request` may be read: it needs an app."""
        self._accept(fields)

    def _by_name(self, args: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:
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

    def _message_by_name(self, args: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:
        """Return all arguments of a message by name.

        A chain inserts the result of the previous task as the first argument. The result is
        ignored if the signature has all arguments already: `chain(work.s(), track.s("done"))`.
        """
        names = self.positional[: len(args)]
        has_all = len(args) > len(names) or not fields.keys().isdisjoint(names)
        if self.request.id and has_all:
            args = args[1:]
        return self._by_name(args, fields)

    def _retry_message(self, error: Exception) -> None:
        """Retry the message, without a limit on the number of retries. Always raises."""
        if self.request.is_eager:
            raise error
        try:
            self.retry(exc=error, countdown=_RETRY_S)
        except Reject:
            # The broker accepted no new message. Requeue the current one, which Celery would drop.
            raise Reject(error, requeue=True) from None


def _comes_after_others(args: Any, options: Mapping[str, Any]) -> bool:
    """Return whether Celery calls this after other tasks, with their result as first argument.

    A chain passes `parent_id`. The body of a chord is recognised by its group and the list of
    results.
    """
    is_in_group = options.get("group_id") is not None
    return "parent_id" in options or (is_in_group and bool(args) and isinstance(args[0], list))


class EventTask(InProcessTask):
    """A task that stores an event."""

    abstract = True
    lane: str
    retried_errors = (BufferFull, BufferUnavailable)
    delay_on_commit: Any = on_commit.delay_on_commit
    apply_async_on_commit = on_commit.apply_async_on_commit

    def delay(self, /, *args: Any, **fields: Any) -> Receipt:
        """Validate and store one event; drop it if Redis is away and the caller chose so."""
        return self._append((self._encoded(args, fields),))[0]

    async def adelay(self, /, *args: Any, **fields: Any) -> Any:
        """Do as `delay` without blocking the event loop. A cancelled call may have stored."""
        return (await self._aappend((self._encoded(args, fields),)))[0]

    def _message_fields(self, args: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:
        # The worker has no request to take the shared fields from.
        return context.with_context(self.lane, fields, self.positional[: len(args)])

    def _check(self, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        self._encoded(args, fields)

    def _accept(self, fields: dict[str, Any], delay_s: float = 0.0) -> Receipt:
        part = (self._encoded((), fields, delay_s),)
        # Without a delay it is of a message, which is never dropped: it is retried.
        return (self._append(part, delay_s) if delay_s else self._store(part))[0]

    def _encoded(
        self, args: tuple[Any, ...], fields: dict[str, Any], delay_s: float = 0.0
    ) -> Encoded:
        try:
            named = context.with_context(self.lane, self._by_name(args, fields))
            if delay_s and self.lane == TRACK and named.get("timestamp") is None:
                # It happens when it is due, as it did when a message carried it.
                named["timestamp"] = datetime.now(UTC) + timedelta(seconds=delay_s)
            return self._encode(named)
        except InvalidEvent:
            self._count_invalid(1)
            raise

    def _count_invalid(self, events: int) -> None:
        if events:
            runtime.current().refusals.add(self.lane, "invalid", events)

    def _encode(self, fields: Mapping[str, Any]) -> Encoded:
        if self.lane == TRACK:
            return encode_track(fields, bytes_max=runtime.current().event_bytes_max)
        return encode_identify(fields)

    def _append(self, part: Sequence[Encoded], delay_s: float = 0.0) -> list[Receipt]:
        """Store at most 1 000 events, or drop them if the caller chose so: see `refused`."""
        try:
            return self._store(part, delay_s)
        except (BufferFull, BufferUnavailable) as error:
            return refused(self.lane, part, error)

    def _store(self, part: Sequence[Encoded], delay_s: float = 0.0) -> list[Receipt]:
        """Store at most 1 000 events with one script, and nudge a flush if a batch is full."""
        producer, delay_ms = runtime.current().producers[self.lane], math.ceil(delay_s * 1000)
        suppressed, is_full = (
            producer.schedule(entries(part), delay_ms)
            if delay_ms
            else producer.append(entries(part))
        )
        if is_full:
            nudge(FLUSH, (self.lane,), QUEUES[self.lane])
        return receipts_of(part, suppressed)

    async def _aappend(self, part: Sequence[Encoded]) -> list[Receipt]:
        # No nudge: it would block the event loop on the broker, and beat flushes anyway.
        current = runtime.current()
        producer, pool = current.producers[self.lane], current.async_clients.current()
        try:
            appended = await producer.aappend(pool, entries(part))
        except (BufferFull, BufferUnavailable) as error:
            return refused(self.lane, part, error)
        return receipts_of(part, appended.suppressed)
