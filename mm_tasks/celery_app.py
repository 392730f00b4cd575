"""Our Celery app and the settings it must have: see *Celery* in the design.

The app reads the environment when it is first used, not when it is imported,
and never becomes the current app of a host.
"""

from __future__ import annotations

import threading
from typing import Any

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.signals import celeryd_init
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu import Connection, Exchange, Queue

from mm_tasks import runtime
from mm_tasks.errors import ConfigurationError

FORGET, DELIVER, IDENTIFY = "mm.forget", "mm.deliver", "mm.identify"
QUEUES = {"track": DELIVER, "identify": IDENTIFY}

# What a publish may cost a web request when the broker is away.
_PUBLISH_TIMEOUT_S = 0.3


def _redis_broker(url: str) -> str:
    # redis-py and kombu spell a Unix socket differently.
    return url.replace("unix://", "redis+socket://", 1) if url.startswith("unix://") else url


def broker_url() -> str:
    """Return the broker's URL: its own setting, or the buffer's Redis."""
    settings = runtime.current().settings
    return _redis_broker((settings.broker_url or settings.redis_url).get_secret_value())


def _configuration() -> dict[str, Any]:
    settings = runtime.current().settings
    return {
        "broker_url": broker_url(),
        "broker_connection_retry_on_startup": True,
        # A primary that becomes a replica says UNBLOCKED and READONLY: connect again.
        "broker_channel_error_retry": True,
        "broker_transport_options": {
            "queue_order_strategy": "priority",
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
        },
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_queues": [
            Queue(name, Exchange(name, type="direct"), routing_key=name)
            for name in (FORGET, DELIVER, IDENTIFY)
        ],
        "task_default_queue": DELIVER,
        "task_routes": {
            "mm_tasks.identify": {"queue": IDENTIFY},
            "mm_tasks.forget": {"queue": FORGET},
            "mm_tasks.run_erasure": {"queue": FORGET},
            "mm_tasks.sweep_erasures": {"queue": FORGET},
        },
        "worker_prefetch_multiplier": 1,
        "worker_consumer": "mm_tasks.celery_app:Consumer",
        "worker_soft_shutdown_timeout": min(settings.request_timeout_s + 2, settings.lease_s / 2),
        "worker_enable_soft_shutdown_on_idle": True,
        "worker_hijack_root_logger": True,
        # No schedule file: all entries are intervals, and several beats are harmless.
        "beat_scheduler": "celery.beat:Scheduler",
        "beat_schedule": _beat_schedule(settings.flush_interval_s),
    }


def _beat_schedule(every: float) -> dict[str, Any]:
    """Return what beat asks for. A message that nobody takes in time is of no use later."""
    entries: list[tuple[str, str, str, tuple[str, ...]]] = [
        (f"mm_tasks-flush-{lane}", "mm_tasks.flush", queue, (lane,))
        for lane, queue in QUEUES.items()
    ]
    entries.append(("mm_tasks-sweep-erasures", "mm_tasks.sweep_erasures", FORGET, ()))
    return {
        name: {
            "task": task,
            "schedule": every,
            "args": args,
            "options": {"queue": queue, "expires": max(1.0, every)},
        }
        for name, task, queue, args in entries
    }


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


app = Celery("mm_tasks", set_as_current=False)
app.add_defaults(_configuration)


@celeryd_init.connect
def _refuse_bad_settings(conf: Any = None, **_: Any) -> None:  # noqa: ANN401
    """Refuse to start a worker that could not send, or whose Redis would lose events."""
    if conf is None or conf.get("worker_consumer") != "mm_tasks.celery_app:Consumer":
        return
    from mm_tasks import preflight  # noqa: PLC0415 - slow, and only a worker looks

    try:
        current = runtime.current()
    except (ConfigurationError, ImproperlyConfigured) as error:
        problems = [str(error)]
    else:
        problems = [
            verdict.sentence
            for verdict in preflight.start(current.worker_redis, current.settings, current)
            if verdict.state == "problem"
        ]
    if problems:
        raise SystemExit("\n".join(f"mm_tasks: {problem}" for problem in problems))


class _Publisher(threading.local):
    """A broker connection for each thread that gives up soon and never repeats."""

    connection: Connection | None = None
    owner: runtime.Runtime | None = None

    def get(self) -> Connection:
        if self.connection is None or self.owner is not runtime.current():
            url = broker_url()
            options = {
                "socket_timeout": _PUBLISH_TIMEOUT_S,
                "socket_connect_timeout": _PUBLISH_TIMEOUT_S,
                "max_retries": 0,
            }
            is_redis = url.startswith(("redis", "sentinel"))
            self.connection = Connection(
                url,
                transport_options=options if is_redis else {},
                connect_timeout=_PUBLISH_TIMEOUT_S,
            )
            self.owner = runtime.current()
        return self.connection


_publisher = _Publisher()


def publish_failed() -> None:
    """Let the next publish connect anew: this server may no longer be the primary."""
    connection, _publisher.connection = _publisher.connection, None
    if connection is not None:
        connection.collect()


def publish_options() -> dict[str, Any]:
    """Return the options of a publish that costs at most one second with the broker away."""
    return {"connection": _publisher.get(), "retry": False}
