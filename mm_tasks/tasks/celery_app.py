"""Our Celery app, the settings it must have, and what all our tasks have in common.

The app reads the environment when it is first used, not when it is imported,
and never becomes the current app of a host. Our tasks belong to it, until a host
takes them into an app of its own: see `hosting`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.signals import celeryd_init
from kombu import Exchange, Queue

from mm_tasks import runtime
from mm_tasks.connections import redis_client
from mm_tasks.errors import ConfigurationError
from mm_tasks.events.lanes import (
    DELIVER_QUEUE,
    ENDPOINTS,
    FORGET_QUEUE,
    IDENTIFY_QUEUE,
    QUEUE_NAMES,
    QUEUES,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FLUSH, SEND_BATCH = "mm_tasks.flush", "mm_tasks.send_batch"
RUN_ERASURE, SWEEP_ERASURES = "mm_tasks.run_erasure", "mm_tasks.sweep_erasures"
# Of messages that carry what a caller gave: what the broker's tools and the logs show of it.
REDACTED = {"argsrepr": "(...)", "kwargsrepr": "{...}"}
# Where a task goes, by its name. As options of a publish they hold for `send_task` too.
ROUTES: dict[str, dict[str, Any]] = {
    "mm_tasks.track": {"queue": DELIVER_QUEUE, "serializer": "json", **REDACTED},
    "mm_tasks.identify": {"queue": IDENTIFY_QUEUE, "serializer": "json", **REDACTED},
    "mm_tasks.forget": {"queue": FORGET_QUEUE, "serializer": "json", **REDACTED},
    FLUSH: {"queue": DELIVER_QUEUE, "serializer": "json"},
    SEND_BATCH: {"queue": DELIVER_QUEUE, "serializer": "json"},
    RUN_ERASURE: {"queue": FORGET_QUEUE, "serializer": "json"},
    SWEEP_ERASURES: {"queue": FORGET_QUEUE, "serializer": "json"},
}


def broker() -> redis_client.Broker:
    """Return how the broker is reached: by its own setting, or as the buffer's Redis."""
    address = runtime.current().settings.broker_address
    if isinstance(address, str):
        return redis_client.Broker(address, {}, None)
    return redis_client.broker(address)


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
        "task_default_queue": DELIVER_QUEUE,
        "task_routes": ROUTES,
        "worker_prefetch_multiplier": 1,
        "worker_consumer": "mm_tasks.tasks.overrides:Consumer",
        "worker_soft_shutdown_timeout": min(settings.request_timeout_s + 2, settings.lease_s / 2),
        "worker_enable_soft_shutdown_on_idle": True,
        "worker_hijack_root_logger": True,
        # No schedule file: all entries are intervals, and several beats are harmless.
        "beat_scheduler": "mm_tasks.tasks.overrides:Scheduler",
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
    entries.append(("mm_tasks-sweep-erasures", SWEEP_ERASURES, FORGET_QUEUE, ()))
    return {
        name: {
            "task": task,
            "schedule": every,
            "args": args,
            "options": {"queue": queue, "expires": max(1.0, every)},
        }
        for name, task, queue, args in entries
    }


# Workers and beat import what is included, whoever's module they were told to start with.
app = Celery(
    "mm_tasks",
    set_as_current=False,
    include=["mm_tasks.tasks.registry"],
    log="mm_tasks.tasks.overrides:Logging",
)
app.add_defaults(_configuration)


class _Owner:
    """The one app of this process that our tasks belong to."""

    app: Celery = app


def current_app() -> Celery:
    """Return the app that our tasks belong to and publish through: a host's, or ours."""
    return _Owner.app


def on_signal_or_now(
    signal: Any, call: Callable[..., None], owner: Celery, *, is_past: bool
) -> None:
    """Call it with the app when its signal is sent, or now when it was."""
    if is_past:
        call(owner)
    else:
        signal.connect(call, sender=owner)


def bind_tasks(tasks: tuple[Any, ...], host: Celery) -> None:
    """Let these tasks belong to `host`, whose settings are not read before one is used."""
    _Owner.app = host
    for task in tasks:
        kind = type(task)
        kind._app, kind._exec_options = host, None  # noqa: SLF001 - as `Task.bind`


def problems_at_start() -> list[str]:
    """Return why a worker could not send, or why its Redis would lose events."""
    try:
        current = runtime.current()
    except (ConfigurationError, ImproperlyConfigured) as error:
        return [str(error)]
    from mm_tasks.monitoring import checks  # noqa: PLC0415 - slow, and only a worker looks

    return [check.sentence for check in checks.start(current) if check.state == "problem"]


@celeryd_init.connect
def _refuse_bad_settings(instance: Any = None, **_: Any) -> None:
    """Refuse to start a worker of our app that has problems; a host's only says so."""
    if getattr(instance, "app", None) is not app:
        return
    problems = problems_at_start()
    if problems:
        raise SystemExit("\n".join(f"mm_tasks: {problem}" for problem in problems))
