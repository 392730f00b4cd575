"""The tasks of workers: flush, send, and the steps of erasures."""

from __future__ import annotations

from contextlib import contextmanager
from logging import getLogger
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.errors import AuditUnavailable
from mm_tasks.events.lanes import QUEUES, TRACK, sharing
from mm_tasks.tasks.base import BaseTask
from mm_tasks.tasks.celery_app import FLUSH, RUN_ERASURE, SEND_BATCH, SWEEP_ERASURES
from mm_tasks.tasks.publisher import priority_options, publish_failed, publish_options

if TYPE_CHECKING:
    from collections.abc import Iterator

log = getLogger(__name__)
# A lost message costs nothing, so none waits longer than this in the memory of a worker.
_COUNTDOWN_MAX_S = 300


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
    log.warning("backend_unavailable", extra={"task": task, "error": kind})


class Flush(BaseTask):
    """Makes batches of what waits and publishes a message for each; see `delivery`.

    Of a lane, and of those that share its endpoint: each in its turn, whatever became of
    the others.
    """

    name = FLUSH

    @_found_again("flush")
    def run(self, lane: str = TRACK, *, linger: bool = True) -> None:
        """Take what one flush may; with `linger=False`, part-full batches at once."""
        failures = [self._flush(one, linger=linger) for one in sharing(lane)]
        if lane == TRACK:
            runtime.current().trim_dead_letters()  # of all lanes
        for failure in filter(None, failures):
            raise failure

    def _flush(self, lane: str, *, linger: bool) -> Exception | None:
        try:
            for dispatch in runtime.current().deliveries[lane].flush(linger=linger):
                # Should this fail, the batch is found again by a later flush.
                send_batch.apply_async(
                    (dispatch.lane, dispatch.batch_ids),
                    queue=QUEUES[dispatch.lane],
                    countdown=dispatch.countdown_s,
                    **priority_options(dispatch.lane),
                    **publish_options(),
                )
        except Exception as error:  # noqa: BLE001 - raised when the others had their turn
            return error
        return None


class SendBatch(BaseTask):
    """Sends batches that a flush claimed, each by itself."""

    name = SEND_BATCH

    @_found_again("send_batch")
    def run(self, lane: str, batch_ids: list[str]) -> None:
        """Make one attempt for each batch, and ask for the next where one is due."""
        delivery = runtime.current().deliveries[lane]
        for batch_id in batch_ids:
            wait_s = delivery.send(batch_id)
            # The time is in Redis too: should the message be lost, a flush finds the batch.
            # Run eagerly, there is none, and `retry` would not wait.
            if wait_s is not None and not self.request.is_eager:
                self.retry(
                    args=(lane, [batch_id]),
                    countdown=min(wait_s, _COUNTDOWN_MAX_S),
                    throw=False,
                    **publish_options(),
                )


class RunErasure(BaseTask):
    """Takes the steps of one erasure that are due; see `erasure`."""

    name = RUN_ERASURE

    @_found_again("run_erasure")
    def run(self, erasure_id: str) -> None:
        """Take them, in order, as far as they are due."""
        runtime.current().erasures.run(erasure_id)


class SweepErasures(BaseTask):
    """Takes every step of every erasure that is due, and warns of deadlines."""

    name = SWEEP_ERASURES

    @_found_again("sweep_erasures")
    def run(self) -> None:
        """Take them all."""
        runtime.current().erasures.sweep()


flush: Any = Flush()
send_batch: Any = SendBatch()
run_erasure: Any = RunErasure()
sweep_erasures: Any = SweepErasures()
