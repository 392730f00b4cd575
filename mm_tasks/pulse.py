"""Lets the workers and the beat of a Celery app leave signs of life: see `signs`.

A worker does so from the timer of its consumer, which only ticks while the consumer takes
messages; a beat when it has published a flush. Neither ever ends or waits for it: where Redis
is away there is no sign, which is the truth.
"""

from __future__ import annotations

import socket
import time
from logging import getLogger
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.signals import after_task_publish, beat_embedded_init, beat_init
from redis.exceptions import RedisError

from mm_tasks import runtime, signs
from mm_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery

_log = getLogger(__name__)


def give(app: Celery, flush: str) -> None:
    """Let workers of this app have a pulse, and beats that publish a task named `flush`."""
    app.steps["consumer"].add(Pulse)
    _Beat.flushes.add(flush)


class Pulse(bootsteps.StartStopStep):
    """A step of the consumer, there while it is connected to its broker."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:  # noqa: ANN401 - Celery's
        """Begin with nothing to cancel."""
        super().__init__(consumer, **options)
        self._tick: Any = None

    def start(self, consumer: Any) -> None:  # noqa: ANN401 - Celery's
        """Leave a sign now and then."""
        self._leave(consumer)
        self._tick = consumer.timer.call_repeatedly(signs.PERIOD_S, self._leave, (consumer,))

    def stop(self, consumer: Any) -> None:  # noqa: ANN401, ARG002 - Celery's
        """Be silent: the connection is lost, or the worker ends."""
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None

    def _leave(self, consumer: Any) -> None:  # noqa: ANN401 - Celery's
        served = consumer.task_consumer.queues if consumer.task_consumer else ()
        _leave(signs.WORKER, consumer.hostname, [queue.name for queue in served])


class _Beat:
    """What a beat's process knows."""

    flushes: set[str] = set()  # noqa: RUF012 - of the process
    left_at_s = -signs.PERIOD_S


@beat_init.connect
@beat_embedded_init.connect
def _listen(**_: Any) -> None:  # noqa: ANN401 - Celery's
    """From now on, in this process alone, hear of what was published."""
    after_task_publish.connect(_published)


def _published(sender: str = "", **_: Any) -> None:  # noqa: ANN401 - Celery's
    if sender in _Beat.flushes and time.monotonic() - _Beat.left_at_s >= signs.PERIOD_S:
        _Beat.left_at_s = time.monotonic()
        _leave(signs.BEAT, socket.gethostname())


def _leave(kind: str, name: str, queues: Iterable[str] = ()) -> None:
    try:
        current = runtime.current()
        signs.leave(current.quick_redis, current.settings.project, kind, name, queues)
    except (RedisError, ConfigurationError) as error:
        _log.debug("no_sign_left", extra={"error": type(error).__name__})
