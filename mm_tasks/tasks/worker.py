"""The tasks that workers run: flush, send, and the steps of erasures."""

from __future__ import annotations

from contextlib import contextmanager
from logging import getLogger
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.delivery.flush import flush as flush_lane
from mm_tasks.delivery.send import SLEEP_MAX_S, send
from mm_tasks.errors import AuditUnavailable
from mm_tasks.events.lanes import FORGET_QUEUE, QUEUES, TRACK, sharing
from mm_tasks.tasks import celery_app
from mm_tasks.tasks.base import BaseTask
from mm_tasks.tasks.periodic import PeriodicTask
from mm_tasks.tasks.publisher import priority_options, publish_failed, publish_options

if TYPE_CHECKING:
    from collections.abc import Iterator

log = getLogger(__name__)


@contextmanager
def _left_to_next_run(task: str) -> Iterator[None]:
    """Log that a store or the broker is away; a later run of the task finds the work again."""
    try:
        yield
    except (RedisError, OperationalError, AuditUnavailable) as error:
        kind = type(error).__name__
        if not isinstance(error, AuditUnavailable):
            publish_failed()
    else:
        return
    # Outside of the handler, and by name: the text of a script's error may quote a record.
    log.warning("backend_unavailable", extra={"task": task, "error": kind})


class Flush(PeriodicTask):
    """Turns waiting records into batches and publishes a message for each: see `delivery/flush`.

    Flushes a lane and the lanes that share its endpoint. A failure of one does not stop the others.
    """

    name = celery_app.FLUSH

    def kind(self, args: tuple[Any, ...]) -> str:
        """Return the kind of queue of the lane."""
        return QUEUES[args[0] if args else TRACK]

    @_left_to_next_run("flush")
    def run(self, lane: str = TRACK, *, linger: bool = True) -> None:
        """Flush the lanes; with `linger=False`, send part-full batches at once."""
        self.begin(lane)
        failures = [self._flush(sibling, linger=linger) for sibling in sharing(lane)]
        if lane == TRACK:
            runtime.current().trim_dead_letters()  # of all lanes
        for failure in filter(None, failures):
            raise failure

    def _flush(self, lane: str, *, linger: bool) -> Exception | None:
        try:
            for dispatch in flush_lane(runtime.current().deliveries[lane], linger=linger):
                # Celery turns a countdown into an instant of this host's clock, and the receiver
                # judges it by its own. Sending waits for a near slot by itself.
                wait_s = dispatch.wait_s if dispatch.wait_s > SLEEP_MAX_S else None
                # If this fails, a later flush finds the batch again.
                send_batch.apply_async(
                    (dispatch.lane, dispatch.batch_ids),
                    queue=celery_app.declared_queue(QUEUES[dispatch.lane]),
                    countdown=wait_s,
                    **priority_options(dispatch.lane),
                    **publish_options(),
                )
        except Exception as error:  # noqa: BLE001 - raised after the other lanes
            return error
        return None


class SendBatch(BaseTask):
    """Sends the batches that a flush claimed."""

    name = celery_app.SEND_BATCH

    @_left_to_next_run("send_batch")
    def run(self, lane: str, batch_ids: list[str]) -> None:
        """Make one attempt for each batch. A flush takes care of those that must wait."""
        delivery = runtime.current().deliveries[lane]
        for batch_id in batch_ids:
            # A task that runs eagerly has no message to repeat.
            if send(delivery, batch_id) == 0 and not self.request.is_eager:
                # If the message is lost, a flush finds the batch.
                self.retry(args=(lane, [batch_id]), countdown=0, throw=False, **publish_options())


class RunErasure(BaseTask):
    """Takes the due steps of one erasure: see `erasure/workflow`."""

    name = celery_app.RUN_ERASURE

    @_left_to_next_run("run_erasure")
    def run(self, erasure_id: str) -> None:
        """Take the due steps, in order."""
        runtime.current().erasures.run(erasure_id)


class SweepErasures(PeriodicTask):
    """Takes the due steps of all erasures, logs deadlines, and verifies the log once a day."""

    name = celery_app.SWEEP_ERASURES

    def kind(self, args: tuple[Any, ...]) -> str:  # noqa: ARG002 - a sweep has none
        """Return the kind of queue of all erasures."""
        return FORGET_QUEUE

    @_left_to_next_run("sweep_erasures")
    def run(self) -> None:
        """Take all due steps."""
        self.begin()
        current = runtime.current()
        current.erasures.sweep()
        current.daily_verification.step()


flush: Any = Flush()
send_batch: Any = SendBatch()
run_erasure: Any = RunErasure()
sweep_erasures: Any = SweepErasures()
