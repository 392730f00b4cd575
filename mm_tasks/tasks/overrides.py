"""Classes of Celery that we replace by a setting, each a dotted string."""

from __future__ import annotations

from typing import Any

from celery import beat
from celery.app.log import Logging as CeleryLogging
from celery.worker.consumer import Consumer as CeleryConsumer

from mm_tasks import runtime
from mm_tasks.monitoring import log_format


class Consumer(CeleryConsumer):
    """Celery's consumer, outliving a restart of Redis while it holds messages.

    Celery 5.7.0 collects the lost connection and then closes it a second time, and
    whatever still belongs to it, such as the late acknowledgement of a task that
    runs, finds a transport without its connection: AttributeError, which ends the
    worker. Here the transport gets it back, so that the acknowledgement reaches
    Redis once that is there again.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Do as Celery does, and leave the lost transport able to reconnect."""
        connection = self.connection
        consumer = getattr(self, "task_consumer", None)
        transport = consumer.channel.connection if consumer is not None else None
        try:
            super().on_connection_error_after_connected(exc)
        except AttributeError:
            self.connection = None
        if transport is not None and getattr(transport, "client", connection) is None:
            transport.client = connection


class Scheduler(beat.Scheduler):
    """The schedule in memory, whose connection is not closed under a publish.

    Celery's handler of SIGTERM closes the scheduler in the middle of whatever beat does, and
    then raises SystemExit there. From 5.7.0 on that closes the connection too: a publish that
    waits for Redis fails with a ValueError in place of the SystemExit, and beat logs it and
    goes on. Here a schedule that ticks stays open; beat closes it again once it has ended.
    """

    _is_ticking = False

    def tick(self, *args: Any, **options: Any) -> float:
        """Publish what is due, at most one entry; return the seconds until the next tick."""
        self._is_ticking = True
        try:
            return super().tick(*args, **options)
        finally:
            self._is_ticking = False

    def close(self) -> None:
        """Let go of the connection, unless a tick uses it."""
        if not self._is_ticking:
            super().close()


_Logging: Any = CeleryLogging  # celery-types knows no handler with another formatter


class Logging(_Logging):  # type: ignore[misc]
    """Celery's own, in the form that `MM_TASKS_LOG_FORMAT` names."""

    def setup_handlers(self, *args: Any, **options: Any) -> Any:
        """Add a handler to a logger; also that of tasks gets our formatter."""
        return super().setup_handlers(*args, **{**options, "formatter": self._formatter})

    def _formatter(self, *_: Any, **__: Any) -> Any:
        return log_format.formatter(runtime.log_form(), self.format)
