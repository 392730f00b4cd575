"""Our tasks in a host's own Celery app.

`install` adds tasks, queues, routes and beat entries to the host, and a step to the consumer
of its workers that leaves a sign of life. It changes nothing else: none of its settings, not
its default queue, not its current app. It may be called before or after the host's settings
were read, and does not have them read.

Not here: what only our own app does, which is to refuse to start a worker that could not
send, and to outlive a restart of Redis (`celery_app.Consumer`, which a host may set too).
See docs/celery.md.
"""

from __future__ import annotations

import threading
from logging import getLogger
from typing import TYPE_CHECKING, Any

from celery.app.routes import MapRoute
from celery.signals import beat_init, celeryd_after_setup

from mm_tasks import runtime
from mm_tasks.errors import ConfigurationError
from mm_tasks.settings import Settings
from mm_tasks.tasks import heartbeat_writer
from mm_tasks.tasks.base import BaseTask
from mm_tasks.tasks.celery_app import (
    ROUTES,
    app,
    beat_schedule,
    bind_tasks,
    current_app,
    on_signal_or_now,
    problems_at_start,
    queues,
)
from mm_tasks.tasks.registry import TASKS, register

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

_log = getLogger(__name__)
_lock = threading.Lock()

# Celery: "visibility_timeout", an hour, and a message that waits longer is delivered twice.
_VISIBILITY_TIMEOUT_S = 3600
# Ours wait for at most five minutes, and a countdown is good for half of the timeout.
_VISIBILITY_TIMEOUT_MIN_S = 600


def install(host: Celery) -> None:
    """Let our tasks belong to `host`: its workers run them, its broker carries their messages.

    Its beat flushes, and a worker without `-Q` serves our queues too. Once for each process:
    again with the same app does nothing, with another raises `ConfigurationError`. What the
    host has a queue, a route or a beat entry for by our names stays the host's.
    """
    # What `celery.current_app` stands for now, not later.
    host = getattr(host, "_get_current_object", lambda: host)()
    with _lock:
        if current_app() is host:
            return
        if current_app() is not app:
            msg = "mm_tasks is installed in another Celery app of this process; one can have it"
            raise ConfigurationError(msg)
        bind_tasks(TASKS, host)
    _add_queues_and_routes(host)
    heartbeat_writer.attach(host)
    on_signal_or_now(host.on_after_finalize, register, host, is_past=vars(host)["finalized"])
    # Whenever they are read, which `config_from_object` may have done once more.
    host.on_after_configure.connect(_add_to_beat, sender=host)
    if vars(host)["configured"]:
        _add_to_beat(host)


def setting_warnings(host: Celery) -> list[str]:
    """Return, one sentence each, which of the host's settings our tasks would do better without.

    Reads its settings. A worker of the host that serves our queues logs them when it starts.
    """
    return list(_setting_warnings(host.conf))


def _setting_warnings(conf: Any) -> Iterator[str]:
    if not {"json", "application/json"} & set(conf.accept_content or ()):
        yield "accept_content is without json: workers refuse all messages of mm_tasks"
    if conf.task_protocol != 2:  # noqa: PLR2004 - its number
        yield "task_protocol 1 shows arguments in events: use 2"
    if conf.worker_prefetch_multiplier != 1:
        yield "worker_prefetch_multiplier is not 1: erasures wait behind what was prefetched"
    if conf.worker_eta_task_limit is not None:
        yield "worker_eta_task_limit is set: batches that wait for their time block erasures"
    for name in ("task_time_limit", "task_soft_time_limit"):
        limit_s, lease_s = getattr(conf, name), Settings.model_fields["lease_s"].default
        if limit_s and limit_s < lease_s:
            yield f"{name} is below {lease_s} s: a request that is cut may be sent twice"
    options = conf.broker_transport_options or {}
    if options.get("visibility_timeout", _VISIBILITY_TIMEOUT_S) < _VISIBILITY_TIMEOUT_MIN_S:
        yield (
            f"visibility_timeout is below {_VISIBILITY_TIMEOUT_MIN_S} s: "
            "messages with a countdown are delivered more than once"
        )
    for name in ("acks_late", "max_retries", "rate_limit", "serializer"):
        if any(getattr(task, name) != getattr(BaseTask, name) for task in TASKS):
            yield f"task_annotations give our tasks another {name}: leave it as it is"


def _add_queues_and_routes(host: Celery) -> None:
    """Let the host's tables have ours as well, whenever they are made from its settings."""
    amqp: Any = host.amqp
    amqp.__class__ = _widened(type(amqp))
    made = vars(amqp)
    if "queues" in made:
        _add_queues(amqp.queues)
    if amqp._rtable is not None:  # noqa: SLF001 - made already, from settings that were read
        amqp.flush_routes()
    if "router" in made:
        amqp.router = amqp.Router()


def _widened(kind: Any) -> Any:
    class Amqp(kind):  # type: ignore[misc]
        """The host's own, and ours beside it."""

        def Queues(self, *args: Any, **options: Any) -> Any:  # noqa: N802 - Celery's
            return _add_queues(super().Queues(*args, **options))

        def flush_routes(self) -> None:
            super().flush_routes()
            self._rtable: list[Any] = [_Route(self._rtable), *self._rtable]

    return Amqp


def _add_queues(table: Any) -> Any:
    for queue in queues():
        if queue.name in table:
            continue
        if table._consume_from is None:  # noqa: SLF001 - nobody chose with `-Q` yet
            table.select_add(queue)
        else:
            table.add(queue)
    return table


class _Route:
    """Our routes, before the host's: a route for all tasks, `*`, is not meant for ours."""

    def __init__(self, hosts: list[Any]) -> None:
        """Take the host's, which win where they speak of ours by name."""
        maps: list[Any] = [route for route in hosts if isinstance(route, MapRoute)]
        self._named = {name for one in maps for name in one.map}
        self._patterns = [
            pattern for one in maps for pattern in one.patterns if "mm_tasks" in pattern.pattern
        ]

    def __call__(self, name: str, *_: Any, **__: Any) -> dict[str, Any] | None:
        """Return the options of a publish, None for whatever is not ours."""
        route = ROUTES.get(name)
        if route is None or name in self._named:
            return None
        if any(pattern.match(name) for pattern in self._patterns):
            return None
        return dict(route)


# What `install` put into the host's schedule, to be told from the host's own by that name.
_added: dict[str, Any] = {}


def _add_to_beat(sender: Any, **_: Any) -> None:
    try:
        every_s = Settings.load().flush_interval_s
    except ConfigurationError:
        # No reason for the host not to start; whatever uses the settings raises and says why.
        every_s = Settings.model_fields["flush_interval_s"].default
    hosts = sender.conf.beat_schedule
    _added.clear()
    _added.update((n, entry) for n, entry in beat_schedule(every_s).items() if n not in hosts)
    # Another dict: the host's own may be in a module that other apps read as well.
    sender.conf.beat_schedule = {**hosts, **_added}


@beat_init.connect
def _complete_beat(sender: Any, **_: Any) -> None:
    """Let beat have our entries, even if the host's schedule was set after it was read."""
    if sender.app is app or sender.app is not current_app():
        return
    hosts = {
        name
        for name, entry in sender.app.conf.beat_schedule.items()
        if entry is not _added.get(name)
    }
    ours = beat_schedule(runtime.current().settings.flush_interval_s)
    sender.scheduler.update_from_dict({n: entry for n, entry in ours.items() if n not in hosts})


@celeryd_after_setup.connect
def _warn(instance: Any, **_: Any) -> None:
    """Say why a host's worker that serves our queues does so badly, or not at all."""
    host = instance.app
    if host is app or host is not current_app():
        return
    if {queue.name for queue in queues()} & set(host.amqp.queues.consume_from):
        for sentence in (*problems_at_start(), *setting_warnings(host)):
            _log.warning("host_configuration_problem: %s", sentence)
