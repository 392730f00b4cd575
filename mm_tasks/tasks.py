"""The Celery tasks: `track`, `identify` and `forget` for callers, the others for workers.

`.delay()` and a plain `.apply_async()` of the first three do not go through the
broker: they validate in the caller and store there. With options that need a
broker the arguments travel in the message, redacted in its `argsrepr`.
No message that we publish ourselves carries data.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from typing import TYPE_CHECKING, Any

from celery import Task
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from mm_tasks import events, runtime
from mm_tasks.asking import request_of
from mm_tasks.buffer import APPEND_RECORDS_MAX, Entry
from mm_tasks.celery_app import FORGET, QUEUES, app, publish_failed, publish_options
from mm_tasks.errors import (
    AuditUnavailable,
    BufferFull,
    BufferUnavailable,
    ConfigurationError,
    InvalidEvent,
    Problem,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mm_tasks.events import Encoded

log = getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ErasureReceipt:
    """An erasure that will be done. `id` is the erasure's: of one that is open already, if any.

    `fenced`: from now on no attempt that carries an event of the person is admitted. Where
    Redis was out of reach it is False, and the same holds from the next sweep.
    """

    id: str
    fenced: bool
    accepted: bool = True


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


class _DirectTask(_Task):  # type: ignore[misc]
    """A task whose plain call does its work in the caller, without the broker."""

    abstract = True
    _app = app  # not the current app of a host, whichever that is
    typing = False
    positional: tuple[str, ...]
    ignore_result = True
    acks_late = True
    max_retries = None

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - Receipt, or Celery's result with options
        if all(value is None for value in options.values()):
            return self.delay(*(args or ()), **(kwargs or {}))
        ours: dict[str, Any] = {"argsrepr": "(...)", "kwargsrepr": "{...}"}
        if options.get("connection") is None and options.get("producer") is None:
            ours |= publish_options()
        return super().apply_async(args, kwargs, **(ours | options))

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


class _EventTask(_DirectTask):
    """A task that stores an event."""

    abstract = True
    lane: str

    def delay(self, /, *args: Any, **fields: Any) -> Receipt:  # noqa: ANN401 - checked here
        """Validate and store one event; once it returns, the event is in Redis.

        Raises `InvalidEvent`, `BufferFull` or `BufferUnavailable`; see `errors`.
        """
        return self._append((self._encoded(args, fields),))[0]

    def run(self, *args: Any, **fields: Any) -> None:  # noqa: ANN401 - checked here
        """Store an event that came in a message; tried again until Redis takes it."""
        encoded = self._encoded(args, fields)
        try:
            self._append((encoded,))
        except (BufferFull, BufferUnavailable) as error:
            raise self.retry(exc=error, countdown=10) from None

    def _encoded(self, args: tuple[Any, ...], fields: dict[str, Any]) -> Encoded:
        return self._encode(self._named(args, fields))

    def _encode(self, fields: dict[str, Any]) -> Encoded:
        if self.lane == events.TRACK:
            return events.encode_track(fields, bytes_max=runtime.current().event_bytes_max)
        return events.encode_identify(fields)

    def _append(self, part: Sequence[Encoded]) -> list[Receipt]:
        """Store at most 1 000 events with one script, and nudge a flush if one is full."""
        entries = [Entry(event.body, event.user_id, event.anonymous_id) for event in part]
        suppressed, is_full = runtime.current().producers[self.lane].append(entries)
        if is_full:
            # Beat will flush anyway, so a broker that is away costs nothing.
            _nudge(flush, (self.lane,), QUEUES[self.lane])
        return [
            Receipt(event.id, position not in suppressed) for position, event in enumerate(part)
        ]


class _TrackTask(_EventTask):
    """`track.delay("signup", user_id="user_42")`: reports a product event; see `TrackEvent`."""

    name = "mm_tasks.track"
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
        stored = iter(self._stored(good))
        return [
            Receipt(None, accepted=False, error=bad[index]) if index in bad else next(stored)
            for index in range(total)
        ]

    def _stored(self, encoded: list[Encoded]) -> list[Receipt]:
        """Store in scripts of at most 1 000 records; a failure says how far it came."""
        receipts: list[Receipt] = []
        for start in range(0, len(encoded), APPEND_RECORDS_MAX):
            try:
                receipts += self._append(encoded[start : start + APPEND_RECORDS_MAX])
            except (BufferFull, BufferUnavailable) as error:
                error.stored = sum(receipt.accepted for receipt in receipts)
                raise
        return receipts


class _IdentifyTask(_EventTask):
    """`identify.delay(anonymous_id=…, user_id=…)`: links a visitor to a person."""

    name = "mm_tasks.identify"
    lane = events.IDENTIFY
    positional = ("anonymous_id", "user_id", "traits")


class _ForgetTask(_DirectTask):
    """`forget.delay(user_id=…, requested_by=…)`: asks for the erasure of a person."""

    name = "mm_tasks.forget"
    positional = ("user_id", "requested_by")

    def delay(self, /, *args: Any, **fields: Any) -> ErasureReceipt:  # noqa: ANN401 - checked here
        """Commit the request and its audit entry, raise the fence, and start the erasure.

        `user_id` and `requested_by` are required; `ticket`, `reason` (see `erasures.Reason`),
        `received_at`, `anonymous_ids` and `mode` (`suppress` or `once`) are not. Raises
        `InvalidEvent`, `AuditUnavailable` or `ConfigurationError`; then nothing was accepted.
        """
        accepted = runtime.current().intake.request(request_of(self._named(args, fields)))
        # Beat sweeps anyway, so a broker that is away costs nothing.
        _nudge(run_erasure, (accepted.id,), FORGET, expires_s=60)
        return ErasureReceipt(accepted.id, accepted.is_fenced)

    def run(self, *args: Any, **fields: Any) -> None:  # noqa: ANN401 - checked here
        """Accept a request that came in a message; tried again until the audit store takes it."""
        try:
            self.delay(*args, **fields)
        except (AuditUnavailable, ConfigurationError) as error:
            raise self.retry(exc=error, countdown=10) from None


track, identify, forget = _TrackTask(), _IdentifyTask(), _ForgetTask()


@app.on_after_finalize.connect
def _register(sender: Any, **_: Any) -> None:  # noqa: ANN401
    """Register what has a class of its own; not at import, because binding reads the settings."""
    sender.register_task(track)
    sender.register_task(identify)
    sender.register_task(forget)


def _at(index: int, error: InvalidEvent) -> InvalidEvent:
    problems = [Problem(problem.field, problem.rule, index) for problem in error.problems]
    return type(error)(problems)


def _nudge(task: Any, args: tuple[str], queue: str, expires_s: float = 5) -> None:  # noqa: ANN401
    """Ask for what beat will ask for anyway, a little sooner."""
    try:
        task.apply_async(args, queue=queue, expires=expires_s, **publish_options())
    except Exception as error:  # noqa: BLE001 - whatever a broker raises, all is stored
        publish_failed()
        log.warning("nudge_failed", extra={"error": type(error).__name__})


@contextmanager
def _found_again(task: str) -> Iterator[None]:
    """Let a task end quietly when a store or the broker is away: a later one takes over."""
    try:
        yield
    except (RedisError, OperationalError, AuditUnavailable) as error:
        kind = type(error).__name__
        if not isinstance(error, AuditUnavailable):
            publish_failed()
    else:
        return
    # Outside of the handler, and by name: the text of a script's error may quote a record.
    log.warning("store_away", extra={"task": task, "error": kind})


@app.task(name="mm_tasks.flush")
@_found_again("flush")
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
    if lane == events.TRACK:
        runtime.current().trim_dead_letters()  # of both lanes


@app.task(name="mm_tasks.run_erasure")
@_found_again("run_erasure")
def run_erasure(erasure_id: str) -> None:
    """Take the steps of one erasure that are due; see `erasure`."""
    runtime.current().erasures.run(erasure_id)


@app.task(name="mm_tasks.sweep_erasures")
@_found_again("sweep_erasures")
def sweep_erasures() -> None:
    """Take every step of every erasure that is due, and warn of deadlines."""
    runtime.current().erasures.sweep()


@app.task(name="mm_tasks.send_batch", bind=True, max_retries=None)
@_found_again("send_batch")
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
