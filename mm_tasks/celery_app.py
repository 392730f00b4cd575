"""Our Celery app, the settings it must have, and what all our tasks have in common.

The app reads the environment when it is first used, not when it is imported,
and never becomes the current app of a host. Our tasks belong to it, until a host
takes them into an app of its own: see `hosting`.
"""

from __future__ import annotations

import threading
from logging import getLogger
from typing import TYPE_CHECKING, Any

from celery import Celery, Task
from celery.exceptions import ImproperlyConfigured
from celery.signals import celeryd_init
from celery.utils.functional import firstmethod
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu import Connection, Exchange, Queue

from mm_tasks import connections, events, runtime
from mm_tasks.errors import ConfigurationError
from mm_tasks.keys import ENDPOINTS, QUEUE_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

FORGET, DELIVER, IDENTIFY = QUEUE_NAMES
QUEUES = {events.TRACK: DELIVER, events.IDENTIFY: IDENTIFY, events.BACKFILL: DELIVER}

FLUSH, SEND_BATCH = "mm_tasks.flush", "mm_tasks.send_batch"
RUN_ERASURE, SWEEP_ERASURES = "mm_tasks.run_erasure", "mm_tasks.sweep_erasures"

# Of messages that carry what a caller gave: what the broker's tools and the logs show of it.
REDACTED = {"argsrepr": "(...)", "kwargsrepr": "{...}"}
# Where a task goes, by its name. As options of a publish they hold for `send_task` too.
ROUTES: dict[str, dict[str, Any]] = {
    "mm_tasks.track": {"queue": DELIVER, "serializer": "json", **REDACTED},
    "mm_tasks.identify": {"queue": IDENTIFY, "serializer": "json", **REDACTED},
    "mm_tasks.forget": {"queue": FORGET, "serializer": "json", **REDACTED},
    FLUSH: {"queue": DELIVER, "serializer": "json"},
    SEND_BATCH: {"queue": DELIVER, "serializer": "json"},
    RUN_ERASURE: {"queue": FORGET, "serializer": "json"},
    SWEEP_ERASURES: {"queue": FORGET, "serializer": "json"},
}

_log = getLogger(__name__)

# What a publish may cost a web request when the broker is away, or all of its sentinels.
_PUBLISH_TIMEOUT_S = 0.3


def broker() -> connections.Broker:
    """Return how the broker is reached: by its own setting, or as the buffer's Redis."""
    address = runtime.current().settings.broker_address
    if isinstance(address, str):
        return connections.Broker(address, {}, None)
    return connections.broker(address)


def _configuration() -> dict[str, Any]:
    settings = runtime.current().settings
    url, transport_options, tls = broker()
    return {
        "broker_url": url,
        "broker_use_ssl": tls or False,
        "broker_connection_retry_on_startup": True,
        # A primary that becomes a replica says UNBLOCKED and READONLY: connect again.
        "broker_channel_error_retry": True,
        "broker_transport_options": {
            "queue_order_strategy": "priority",
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            # A primary that is gone without a word: after twice this no more is awaited from it.
            "health_check_interval": 5,
            **transport_options,
        },
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_queues": queues(),
        "task_default_queue": DELIVER,
        "task_routes": ROUTES,
        "worker_prefetch_multiplier": 1,
        "worker_consumer": "mm_tasks.celery_app:Consumer",
        "worker_soft_shutdown_timeout": min(settings.request_timeout_s + 2, settings.lease_s / 2),
        "worker_enable_soft_shutdown_on_idle": True,
        "worker_hijack_root_logger": True,
        # No schedule file: all entries are intervals, and several beats are harmless.
        "beat_scheduler": "mm_tasks.beat:Scheduler",
        "beat_schedule": beat_schedule(settings.flush_interval_s),
    }


def queues() -> list[Queue]:
    """Return our queues, the one that is served first at the head."""
    return [Queue(name, Exchange(name, type="direct"), routing_key=name) for name in QUEUE_NAMES]


def beat_schedule(every: float) -> dict[str, Any]:
    """Return what beat asks for. A message that nobody takes in time is of no use later."""
    entries: list[tuple[str, str, str, tuple[str, ...]]] = [
        (f"mm_tasks-flush-{lane}", FLUSH, QUEUES[lane], (lane,)) for lane, *_ in ENDPOINTS
    ]
    entries.append(("mm_tasks-sweep-erasures", SWEEP_ERASURES, FORGET, ()))
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


# Workers and beat import what is included, whoever's module they were told to start with.
app = Celery(
    "mm_tasks",
    set_as_current=False,
    include=["mm_tasks.tasks"],
    log="mm_tasks.celery_log:Logging",
)
app.add_defaults(_configuration)


class _Home:
    """The one app of this process that our tasks belong to."""

    app: Celery = app


def home() -> Celery:
    """Return the app that our tasks belong to and publish through: a host's, or ours."""
    return _Home.app


def once(signal: Any, call: Callable[..., None], owner: Celery, *, is_past: bool) -> None:  # noqa: ANN401
    """Call it with the app when its signal is sent, or now when it was."""
    if is_past:
        call(owner)
    else:
        signal.connect(call, sender=owner)


def settle(tasks: tuple[Any, ...], host: Celery) -> None:
    """Let these tasks belong to `host`, whose settings are not read before one is used."""
    _Home.app = host
    for task in tasks:
        kind = type(task)
        kind._app, kind._exec_options = host, None  # noqa: SLF001 - as `Task.bind`


# celery-types knows only tasks whose `delay` returns an AsyncResult.
_Task: Any = Task
_by_name: Any = firstmethod("annotate")  # type: ignore[arg-type] # it takes the name


class OurTask(_Task):  # type: ignore[misc]
    """What all our tasks need, whatever the settings of the app they are in.

    That is JSON, no result, no rate limit (the vendor's is kept by `limiter`, over all
    workers), no end to retries, and an acknowledgement when done. Arguments are checked by
    the tasks.
    """

    abstract = True
    _app = app  # not the current app of a host, whichever that is
    typing = False
    serializer = "json"
    ignore_result = True
    store_errors_even_if_ignored = False
    acks_late = True
    max_retries = None
    rate_limit = 0  # none; None would be the host's default

    @classmethod
    def annotate(cls) -> None:
        """Heed a host's annotations by our names; those for all tasks are not meant for ours."""
        for name, value in (_by_name(cls.app.annotations, cls) or {}).items():
            setattr(cls, name, value)

    def apply(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - Celery's
        """Run it here and now; Celery looks it up in the registry, which may not be made yet."""
        self.app.finalize(auto=True)
        return super().apply(*args, **options)


def problems_at_start() -> list[str]:
    """Return why a worker could not send, or why its Redis would lose events."""
    try:
        current = runtime.current()
    except (ConfigurationError, ImproperlyConfigured) as error:
        return [str(error)]
    from mm_tasks import preflight  # noqa: PLC0415 - slow, and only a worker looks

    verdicts = preflight.start(current.worker_redis, current.settings, current)
    return [verdict.sentence for verdict in verdicts if verdict.state == "problem"]


@celeryd_init.connect
def _refuse_bad_settings(instance: Any = None, **_: Any) -> None:  # noqa: ANN401
    """Refuse to start a worker of our app that has problems; a host's only says so."""
    if getattr(instance, "app", None) is not app:
        return
    problems = problems_at_start()
    if problems:
        raise SystemExit("\n".join(f"mm_tasks: {problem}" for problem in problems))


class _Publisher(threading.local):
    """A broker connection for each thread that gives up soon and never repeats."""

    connection: Connection | None = None
    owner: tuple[runtime.Runtime, Celery] | None = None

    def get(self) -> Connection:
        owner = (runtime.current(), home())
        if self.connection is None or self.owner != owner:
            self.connection = _connection(owner[1])
            if self.connection.transport.driver_type == "redis":
                self.connection.transport_options = _hasty(self.connection)
            self.owner = owner
        return self.connection


def _hasty(connection: Connection) -> dict[str, Any]:
    """Return its options of the Redis transport, but that it gives up soon, sentinels too."""
    options = connection.transport_options or {}
    # kombu asks each of them in turn.
    each_s = _PUBLISH_TIMEOUT_S / max(1, len(connection.alt))
    asking = {"socket_timeout": each_s, "socket_connect_timeout": each_s, "retry": None}
    return {
        **options,
        "socket_timeout": _PUBLISH_TIMEOUT_S,
        "socket_connect_timeout": _PUBLISH_TIMEOUT_S,
        "max_retries": 0,
        "sentinel_kwargs": {**(options.get("sentinel_kwargs") or {}), **asking},
    }


def _connection(to: Celery) -> Connection:
    """Return a connection to the broker that is not open yet."""
    if to is app:
        url, options, tls = broker()
        return Connection(
            url, transport_options=options, ssl=tls or False, connect_timeout=_PUBLISH_TIMEOUT_S
        )
    # With what the host has set for it: a prefix of keys, TLS, the name of a primary.
    return to.connection_for_write(connect_timeout=_PUBLISH_TIMEOUT_S)


_publisher = _Publisher()


def publish_failed() -> None:
    """Let the next publish connect anew: this server may no longer be the primary."""
    connection, _publisher.connection = _publisher.connection, None
    if connection is not None:
        connection.collect()


def publish_options() -> dict[str, Any]:
    """Return the options of a publish that costs at most one second with the broker away."""
    return {"connection": _publisher.get(), "retry": False}


def urgency(lane: str) -> dict[str, Any]:
    """Return the options by which a backfill's messages are taken after all others.

    On Redis 9 is what is read last. Elsewhere it means something else, and they go in turn.
    """
    is_last = lane == events.BACKFILL and _publisher.get().transport.driver_type == "redis"
    return {"priority": 9} if is_last else {}


def nudge(task: str, args: tuple[str], queue: str, *, expires_s: float = 5) -> None:
    """Ask for what beat will ask for anyway, a little sooner; a broker that is away costs nothing.

    Nothing is asked for where tasks run eagerly: that would be done here and now.
    """
    if not runtime.current().has_broker:
        return
    try:
        if not home().conf.task_always_eager:
            home().send_task(
                task,
                args,
                queue=queue,
                expires=expires_s,
                serializer="json",
                ignore_result=True,
                add_to_parent=False,  # no child of a host's task that stored an event
                **publish_options(),
            )
    except Exception as error:  # noqa: BLE001 - whatever a broker raises, all is stored
        publish_failed()
        _log.warning("nudge_failed", extra={"error": type(error).__name__})
