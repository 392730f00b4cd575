"""Replacements of Celery's classes. A setting names each by its dotted path."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from celery import beat
from celery.app.log import Logging as CeleryLogging
from celery.worker.consumer import Consumer as CeleryConsumer

from mm_tasks import runtime
from mm_tasks.monitoring import log_format

# The last run of an entry that is due.
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class Consumer(CeleryConsumer):
    """A consumer that outlives a restart of Redis while it holds messages.

    Celery 5.7.0 collects the lost connection and closes it a second time. The transport then
    has no connection, and a late acknowledgement of a running task raises AttributeError, which
    ends the worker. This class gives the transport its connection back: the acknowledgement
    reaches Redis once that is up again.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Call Celery's handler, and keep the lost transport able to reconnect."""
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
    """A schedule in memory that outlives a clock that is set back, and SIGTERM during a publish.

    Celery waits until the clock has reached an entry's last run again. Here an entry whose last run
    is in the future is due.

    Celery's handler of SIGTERM interrupts beat, closes the scheduler and raises SystemExit. Since
    5.7.0 this closes the connection too: a publish that waits for Redis fails with ValueError
    instead of SystemExit, and beat logs the error and continues. Here the connection stays open
    during a tick; beat closes the scheduler again when it ends.
    """

    _is_ticking = False

    def tick(self, *args: Any, **options: Any) -> float:
        """Publish at most one due entry; return the seconds until the next tick."""
        self._is_ticking = True
        self._forget_the_future()
        try:
            return super().tick(*args, **options)
        finally:
            self._is_ticking = False

    def _forget_the_future(self) -> None:
        is_late = False
        for entry in self.schedule.values():
            last: Any = entry.last_run_at
            if last > entry.default_now():
                is_late, entry.last_run_at = True, _LONG_AGO
        if is_late:
            self.populate_heap()

    def close(self) -> None:
        """Close the connection, unless a tick uses it."""
        if not self._is_ticking:
            super().close()


_Logging: Any = CeleryLogging  # celery-types knows no argument `formatter`


class Logging(_Logging):  # type: ignore[misc] # its base is untyped
    """Celery's logging in the format of `MM_TASKS_LOG_FORMAT`."""

    def setup_handlers(self, *args: Any, **options: Any) -> Any:
        """Add a handler with our formatter to a logger, that of tasks included."""
        return super().setup_handlers(*args, **{**options, "formatter": self._formatter})

    def _formatter(self, *_: Any, **__: Any) -> Any:
        return log_format.formatter(runtime.log_form(), self.format)
