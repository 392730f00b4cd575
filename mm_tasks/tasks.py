"""The Celery tasks: `track` and `identify` for callers, `flush` and `send_batch` for workers.

`.delay()` and a plain `.apply_async()` of the first two do not go through the
broker: they validate in the caller and store in one round trip. With options
that need a broker the event travels in the message, redacted in its `argsrepr`.
No message that we publish ourselves carries data.
"""

from __future__ import annotations

from dataclasses import dataclass
from logging import getLogger
from typing import TYPE_CHECKING, Any

from celery import Task

from mm_tasks import events, runtime
from mm_tasks.buffer import APPEND_RECORDS_MAX, Entry
from mm_tasks.celery_app import QUEUES, app, publish_options
from mm_tasks.errors import BufferFull, BufferUnavailable, InvalidEvent, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mm_tasks.events import Encoded

log = getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a stored event is known by. `accepted` is False when it was not stored.

    That is so when its person is erased and suppressed, or, with
    `delay_many(…, on_error="skip")`, when it is invalid: then `error` says why.
    """

    id: str | None
    accepted: bool
    error: InvalidEvent | None = None


# Its `delay` returns what was stored; celery-types knows only AsyncResult.
_Task: Any = Task


class _EventTask(_Task):  # type: ignore[misc]
    """A task whose plain call stores the event without the broker."""

    abstract = True
    typing = False
    lane: str
    positional: tuple[str, ...]
    ignore_result = True
    acks_late = True
    max_retries = None

    def delay(self, /, *args: Any, **fields: Any) -> Receipt:  # noqa: ANN401 - checked here
        """Validate and store one event; once it returns, the event is in Redis.

        Raises `InvalidEvent`, `BufferFull` or `BufferUnavailable`; see `errors`.
        """
        return self._store([self._encoded(args, fields)])[0]

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - Receipt, or Celery's result with options
        needs_broker = any(value is not None for value in options.values())
        if not needs_broker and not self.app.conf.task_always_eager:
            return self.delay(*(args or ()), **(kwargs or {}))
        redacted = {"argsrepr": "(...)", "kwargsrepr": "{...}"}
        return super().apply_async(args, kwargs, **(redacted | options))

    def run(self, *args: Any, **fields: Any) -> None:  # noqa: ANN401
        """Store an event that came in a message; kept by the broker until it is stored."""
        encoded = self._encoded(args, fields)
        try:
            self._store([encoded])
        except (BufferFull, BufferUnavailable) as error:
            raise self.retry(exc=error, countdown=10) from None

    def _encoded(self, args: Sequence[Any], fields: dict[str, Any]) -> Encoded:
        extra = len(args) - len(self.positional)
        if extra > 0:
            rule = f"takes {len(self.positional)} positional arguments, {extra} too many"
            raise InvalidEvent([Problem("event", rule)])
        given = dict(zip(self.positional, args, strict=False))
        twice = given.keys() & fields.keys()
        if twice:
            raise InvalidEvent([Problem(name, "was given twice") for name in sorted(twice)])
        return self._encode({**given, **fields})

    def _encode(self, fields: dict[str, Any]) -> Encoded:
        if self.lane == events.TRACK:
            return events.encode_track(fields, bytes_max=runtime.current().event_bytes_max)
        return events.encode_identify(fields)

    def _store(self, encoded: list[Encoded]) -> list[Receipt]:
        """Store in scripts of at most 1 000 records; a failure says how far it came."""
        current = runtime.current()
        buffer = current.producers[self.lane]
        nudge_ms = round(current.settings.flush_interval_s * 1000)
        receipts: list[Receipt] = []
        for start in range(0, len(encoded), APPEND_RECORDS_MAX):
            part = encoded[start : start + APPEND_RECORDS_MAX]
            entries = [Entry(event.body, event.user_id, event.anonymous_id) for event in part]
            try:
                appended = buffer.append(entries, nudge_ms=nudge_ms)
            except (BufferFull, BufferUnavailable) as error:
                error.stored = sum(receipt.accepted for receipt in receipts)
                raise
            receipts += [
                Receipt(event.id, accepted=i not in appended.suppressed)
                for i, event in enumerate(part)
            ]
            if appended.nudge:
                _nudge(self.lane)
        return receipts


class _TrackTask(_EventTask):
    abstract = True
    lane = events.TRACK
    positional = ("event",)

    def delay_many(
        self, items: Iterable[dict[str, Any]], *, on_error: str = "raise"
    ) -> list[Receipt]:
        """Validate all events, then store them together, in order.

        `on_error="raise"`: one `InvalidEvent` names every bad item by its index,
        and nothing is stored. `"skip"`: the good ones are stored; the receipts of
        the bad ones hold their error. A failure of Redis midway raises
        `BufferUnavailable` with `.stored` and `.maybe_stored`.
        """
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
                bad[index] = _at(index, error)
        if bad and on_error == "raise":
            raise InvalidEvent([problem for error in bad.values() for problem in error.problems])
        stored = iter(self._store(good))
        return [
            Receipt(None, accepted=False, error=bad[index]) if index in bad else next(stored)
            for index in range(total)
        ]


class _IdentifyTask(_EventTask):
    abstract = True
    lane = events.IDENTIFY
    positional = ("anonymous_id", "user_id", "traits")


def _at(index: int, error: InvalidEvent) -> InvalidEvent:
    problems = [Problem(problem.field, problem.rule, index) for problem in error.problems]
    return type(error)(problems)


def _nudge(lane: str) -> None:
    """Ask for a flush soon. Beat will flush anyway, so a broker that is away costs nothing."""
    try:
        flush.apply_async((lane,), queue=QUEUES[lane], expires=5, **publish_options())
    except Exception as error:  # noqa: BLE001 - whatever a broker raises, the event is stored
        log.warning("nudge_failed", extra={"error": type(error).__name__})


track = app.register_task(type("track", (_TrackTask,), {"name": "mm_tasks.track"})())
identify = app.register_task(type("identify", (_IdentifyTask,), {"name": "mm_tasks.identify"})())


@app.task(name="mm_tasks.flush")
def flush(lane: str = events.TRACK, *, linger: bool = True) -> None:
    """Make batches of what waits and publish a message for each; see `delivery`."""
    for dispatch in runtime.current().deliveries[lane].flush(linger=linger):
        # Should this fail, the batch is found again by a later flush.
        send_batch.apply_async(
            (lane, dispatch.batch_ids),
            queue=QUEUES[lane],
            countdown=dispatch.countdown_s,
            **publish_options(),
        )


@app.task(name="mm_tasks.send_batch", bind=True, max_retries=None)
def send_batch(self: Any, lane: str, batch_ids: list[str]) -> None:  # noqa: ANN401
    """Send batches that a flush claimed, each by itself."""
    delivery = runtime.current().deliveries[lane]
    for batch_id in batch_ids:
        wait_s = delivery.send(batch_id)
        if wait_s is not None:
            # The time is in Redis too: should the message be lost, a flush finds the batch.
            self.retry(
                args=(lane, [batch_id]),
                countdown=min(wait_s, 300),
                throw=False,
                **publish_options(),
            )
