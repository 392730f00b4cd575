"""Heartbeats of workers and beat, in our app and in a host app.

A worker writes them from the timer of its consumer, once it consumes. A worker that hangs or has
lost the broker therefore stops. A beat writes one when it comes to a flush or a sweep, published
or not. If Redis is away, neither stops nor waits: it logs the first failure and continues.
"""

from __future__ import annotations

import socket
import threading
import time
from logging import getLogger
from typing import TYPE_CHECKING, Any

from celery.bootsteps import StartStopStep
from celery.signals import beat_init
from celery.worker.consumer.tasks import Tasks

from mm_tasks import runtime
from mm_tasks.buffer import heartbeats
from mm_tasks.tasks.broker_address import fingerprint
from mm_tasks.tasks.celery_app import current_app, queues

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

EVERY_S = 5.0

_log = getLogger(__name__)


class HeartbeatWriter:
    """Writes the heartbeats of one process. No method raises."""

    def __init__(self, kind: heartbeats.Kind, name: str) -> None:
        """Take the identity of the process; connect to nothing."""
        self._process = (kind, name)
        self._is_failing = False
        self._wrote_s: float | None = None

    def write(self, served: list[str], broker: str = "") -> None:
        """Write a heartbeat with the queues that are served, and of which broker."""
        now_s, last_s = time.monotonic(), self._wrote_s
        elapsed_s = None if last_s is None else now_s - last_s
        self._try(heartbeats.write, served, broker=broker, elapsed_s=elapsed_s)
        self._wrote_s = None if self._is_failing else now_s

    def delete(self) -> None:
        """Delete the heartbeat: the process was told to stop."""
        self._try(heartbeats.delete)

    def _try(self, call: Callable[..., None], *args: Any, **named: Any) -> None:
        was_failing, self._is_failing = self._is_failing, False
        try:
            current = runtime.current()
            if current.has_broker:
                project = current.settings.project
                call(current.producer_redis, project, *self._process, *args, **named)
        except Exception as error:  # noqa: BLE001 - a worker must outlive a failed heartbeat
            self._is_failing = True
            if not was_failing:
                _log.warning("heartbeat_failed", extra={"error": type(error).__name__})


class HeartbeatStep(StartStopStep):
    """The step of a consumer that writes heartbeats while it serves a queue of ours."""

    requires = (Tasks,)

    def __init__(self, consumer: Any, **_: Any) -> None:
        """Take the consumer, which is not connected yet."""
        self._writer = HeartbeatWriter("worker", consumer.hostname)
        self._timer: Any = None
        self._has_written = False

    def start(self, consumer: Any) -> None:
        """Write the first heartbeat and schedule the others."""
        self.stop(consumer)
        self._timer = consumer.timer.call_repeatedly(EVERY_S, self._write, (consumer,))
        self._write(consumer)

    def stop(self, consumer: Any) -> None:
        """Stop writing: the connection is lost, or the worker ends."""
        timer, self._timer = self._timer, None
        if timer is not None:
            consumer.timer.cancel(timer)

    def close(self, consumer: Any) -> None:
        """Delete the heartbeat: the worker was told to stop."""
        self.stop(consumer)
        if self._has_written:
            self._writer.delete()

    def _write(self, consumer: Any) -> None:
        # Read each time: remote control can add a queue to a worker, and cancel one.
        served = consumer.app.amqp.queues.consume_from
        ours = [queue.name for queue in queues() if queue.name in served]
        if ours:
            self._has_written = True
            self._writer.write(ours, _broker(consumer.app))


def _broker(app: Celery) -> str:
    return fingerprint(app.connection_for_read(), runtime.current().settings.redis_address)


def attach(app: Celery) -> None:
    """Let the workers of `app` write heartbeats. Its beat does so if our tasks belong to it."""
    app.steps["consumer"].add(HeartbeatStep)


class _Beat(threading.local):
    """The beat of this thread, if one runs in it. In a worker, other threads publish as well."""

    writer: HeartbeatWriter | None = None
    next_s = 0.0


_beat = _Beat()


@beat_init.connect
def _begin(sender: Any, **_: Any) -> None:
    """Let the beat of our tasks write heartbeats. The signal comes from its thread."""
    if sender.app is current_app():
        _beat.writer, _beat.next_s = HeartbeatWriter("beat", socket.gethostname()), 0.0


def beat_is_alive() -> None:
    """Write a heartbeat, once in `EVERY_S`, if a beat runs in this thread."""
    if _beat.writer is not None and time.monotonic() >= _beat.next_s:
        _beat.writer.write([])
        _beat.next_s = time.monotonic() + EVERY_S
