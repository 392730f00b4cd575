"""Our Celery app, its settings, and the owner of our tasks.

The app reads the environment at its first use, not at import, and never becomes the current app
of a host. Our tasks belong to it until `tasks/install` binds them to the app of a host.
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
from mm_tasks.events import lanes

if TYPE_CHECKING:
    from collections.abc import Callable

    from mm_tasks.settings import Settings

FLUSH, SEND_BATCH = "mm_tasks.flush", "mm_tasks.send_batch"
RUN_ERASURE, SWEEP_ERASURES = "mm_tasks.run_erasure", "mm_tasks.sweep_erasures"
# Shown by the broker's tools and the logs in place of the arguments of a caller.
REDACTED = {"argsrepr": "(...)", "kwargsrepr": "{...}"}
# The kind of queue of each task.
TASK_QUEUES = {
    "mm_tasks.track": lanes.DELIVER_QUEUE,
    "mm_tasks.identify": lanes.IDENTIFY_QUEUE,
    "mm_tasks.forget": lanes.FORGET_QUEUE,
    FLUSH: lanes.DELIVER_QUEUE,
    SEND_BATCH: lanes.DELIVER_QUEUE,
    RUN_ERASURE: lanes.FORGET_QUEUE,
    SWEEP_ERASURES: lanes.FORGET_QUEUE,
}
_WITH_ARGUMENTS = {"mm_tasks.track", "mm_tasks.identify", "mm_tasks.forget"}
# The header of a message that names its project.
PROJECT_HEADER = "mm_tasks_project"


def route(task: str) -> dict[str, Any] | None:
    """Return the options of each publish of a task of ours, `send_task` too; None for others."""
    if task not in TASK_QUEUES:
        return None
    redacted = REDACTED if task in _WITH_ARGUMENTS else {}
    return {"queue": declared_queue(TASK_QUEUES[task]), "serializer": "json", **redacted}


def _route(name: str, *_: Any, **__: Any) -> dict[str, Any] | None:
    return route(name)


def broker() -> redis_client.Broker:
    """Return the address of the broker: its own setting, else the buffer's Redis."""
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
        # A primary that becomes a replica answers UNBLOCKED and READONLY: reconnect.
        "broker_channel_error_retry": True,
        "broker_transport_options": {
            "queue_order_strategy": "priority",
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            # A primary that falls silent is given up after twice this time.
            "health_check_interval": 5,
            **transport_options,
        },
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_queues": queues(),
        "task_default_queue": queue_name(lanes.DELIVER_QUEUE),
        "task_routes": (_route,),
        "worker_prefetch_multiplier": 1,
        # `inspect` shows the arguments of waiting messages, and `control` ends workers, to
        # whoever reaches the broker.
        "worker_enable_remote_control": False,
        # A request that is cancelled may be stored, and its batch would be sent again.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_consumer": "mm_tasks.tasks.overrides:Consumer",
        "worker_soft_shutdown_timeout": min(settings.request_timeout_s + 2, settings.lease_s / 2),
        "worker_enable_soft_shutdown_on_idle": True,
        # No schedule file: all entries are intervals, and several beats are harmless.
        "beat_scheduler": "mm_tasks.tasks.overrides:Scheduler",
        "beat_schedule": beat_schedule(settings),
    }


def queue_name(kind: str) -> str:
    """Return the name of a queue of this process's project."""
    return lanes.queue_name(runtime.current().settings.project, kind)


def queues() -> list[Queue]:
    """Return our queues in the order in which they are served."""
    return [queue(name) for name in lanes.queue_names(runtime.current().settings.project)]


def queue(name: str) -> Queue:
    """Return a queue as we declare it."""
    return Queue(name, Exchange(name, type="direct"), routing_key=name)


def declared_queue(kind: str) -> Any:
    """Return a queue of ours as the current app declares it, else as we do.

    A host with `task_create_missing_queues = False` knows only the queues that it declares.
    """
    name = queue_name(kind)
    return current_app().amqp.queues.get(name) or queue(name)


def beat_schedule(settings: Settings) -> dict[str, Any]:
    """Return the entries of beat. What it publishes is bounded by `tasks/periodic`."""

    def entry(task: str, kind: str, *args: str) -> dict[str, Any]:
        options = {"queue": lanes.queue_name(settings.project, kind)}
        return {
            "task": task,
            "schedule": settings.flush_interval_s,
            "args": args,
            "options": options,
        }

    flushes = {
        f"mm_tasks-flush-{lane}": entry(FLUSH, lanes.QUEUES[lane], lane)
        for lane, *_ in lanes.ENDPOINTS
    }
    return {**flushes, "mm_tasks-sweep-erasures": entry(SWEEP_ERASURES, lanes.FORGET_QUEUE)}


# Workers and beat import the included modules, whatever `-A` names.
app = Celery(
    "mm_tasks",
    set_as_current=False,
    include=["mm_tasks.tasks.registry"],
    log="mm_tasks.tasks.overrides:Logging",
)
app.add_defaults(_configuration)


class _Owner:
    """The app of this process that our tasks belong to."""

    app: Celery = app


def current_app() -> Celery:
    """Return the app that our tasks belong to and publish through: a host's or ours."""
    return _Owner.app


def when_finalized(owner: Celery, call: Callable[..., None]) -> None:
    """Call `call` with the app once it is finalized, or now if it is."""
    if vars(owner)["finalized"]:
        call(owner)
    else:
        owner.on_after_finalize.connect(call, sender=owner)


def bind_tasks(tasks: tuple[Any, ...], host: Celery) -> None:
    """Make `host` the owner of these tasks, without reading its settings."""
    _Owner.app = host
    for task in tasks:
        kind = type(task)
        kind._app, kind._exec_options = host, None  # noqa: SLF001 - `Task.bind` reads the settings


def problems_at_start() -> list[str]:
    """Return the reasons why a worker could not send, or why its Redis would lose events."""
    try:
        current = runtime.current()
    except (ConfigurationError, ImproperlyConfigured) as error:
        return [str(error)]
    from mm_tasks.monitoring import checks

    return [check.sentence for check in checks.start(current) if check.state == "problem"]


@celeryd_init.connect
def _refuse_bad_settings(instance: Any = None, **_: Any) -> None:
    """Refuse to start a worker of our app that has problems. A host's worker logs them."""
    if getattr(instance, "app", None) is app and (problems := problems_at_start()):
        raise SystemExit("\n".join(f"mm_tasks: {problem}" for problem in problems))
