"""What lets workers and beat leave their signs of life, in our app and in a host's.

A worker does it from the timer of its consumer, once that consumes: one that hangs, or
has no connection to the broker, goes silent. A beat does it when it has published the
flush. Neither is ended or held up by a Redis that is away: both say so once, and go on.
"""

from __future__ import annotations

import socket
import threading
import time
from logging import getLogger
from typing import TYPE_CHECKING, Any

from celery.bootsteps import StartStopStep
from celery.signals import after_task_publish, beat_init
from celery.worker.consumer.tasks import Tasks

from mm_tasks import runtime
from mm_tasks.buffer import heartbeats
from mm_tasks.tasks.celery_app import FLUSH, current_app, queues

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from redis import Redis

EVERY_S = 5.0

_log = getLogger(__name__)


class HeartbeatWriter:
    """The signs of one process, which fail quietly."""

    def __init__(self, kind: heartbeats.Kind, name: str) -> None:
        """Take who it is; reach for nothing."""
        self._kind, self._name = kind, name
        self._is_failing = False

    def leave(self, served: list[str]) -> None:
        """Leave a sign; a failure is logged when it is the first in a row."""
        self._try(
            lambda redis, project: heartbeats.leave(redis, project, self._kind, self._name, served)
        )

    def withdraw(self) -> None:
        """Take it back."""
        self._try(
            lambda redis, project: heartbeats.withdraw(redis, project, self._kind, self._name)
        )

    def _try(self, call: Callable[[Redis, str], None]) -> None:
        try:
            current = runtime.current()
            if current.has_broker:
                call(current.producer_redis, current.settings.project)
        except Exception as error:  # noqa: BLE001 - a sign is never worth a worker
            if not self._is_failing:
                _log.warning("heartbeat_failed", extra={"error": type(error).__name__})
            self._is_failing = True
        else:
            self._is_failing = False


class HeartbeatStep(StartStopStep):
    """The step of a consumer that leaves signs while it consumes from a queue of ours."""

    requires = (Tasks,)

    def __init__(self, consumer: Any, **_: Any) -> None:
        """Take the consumer, which is not connected yet."""
        self._pulse = HeartbeatWriter("worker", consumer.hostname)
        self._timer: Any = None
        self._has_left = False

    def start(self, consumer: Any) -> None:
        """Leave the first sign, and ask the timer for the others."""
        self.stop(consumer)
        self._timer = consumer.timer.call_repeatedly(EVERY_S, self._leave, (consumer,))
        self._leave(consumer)

    def stop(self, consumer: Any) -> None:
        """Go silent: the connection is lost, or the worker ends."""
        timer, self._timer = self._timer, None
        if timer is not None:
            consumer.timer.cancel(timer)

    def close(self, consumer: Any) -> None:
        """Take the sign back: the worker was told to stop."""
        self.stop(consumer)
        if self._has_left:
            self._pulse.withdraw()

    def _leave(self, consumer: Any) -> None:
        # Asked each time: a queue can be added to a worker that runs, and taken from it.
        served = set(consumer.app.amqp.queues.consume_from)
        ours = [queue.name for queue in queues() if queue.name in served]
        if ours:
            self._has_left = True
            self._pulse.leave(ours)


class _BeatHeartbeat:
    """The signs of the beat of this process, at most one each few seconds."""

    def __init__(self) -> None:
        self._pulse = HeartbeatWriter("beat", socket.gethostname())
        # A worker's threads publish flushes too where beat is one of them.
        self._thread = threading.get_ident()
        self._next_s = 0.0

    def published(self, **_: Any) -> None:
        if threading.get_ident() == self._thread and time.monotonic() >= self._next_s:
            self._pulse.leave([])
            self._next_s = time.monotonic() + EVERY_S


def attach(app: Celery) -> None:
    """Let the workers of `app` leave signs; its beat does once it is home to our tasks."""
    app.steps["consumer"].add(HeartbeatStep)


@beat_init.connect
def _begin(sender: Any, **_: Any) -> None:
    if sender.app is current_app():
        after_task_publish.connect(_BeatHeartbeat().published, sender=FLUSH, weak=False)
