"""Our tasks in a Celery app of the host.

`install` adds tasks, queues, routes and beat entries to the host's app, and a step to the
consumer of its workers that writes heartbeats. Only public hooks of Celery are used: see ADR 16.

- When the settings are read, and again when a worker or beat starts, `task_routes` and
  `beat_schedule` of the app get our entries. The module or object that they were read from stays
  as it is.
- When a worker or beat starts, our queues join the queues that the app declares. The option `-Q`
  is applied afterwards, and selects among them.

Queues, routes and beat entries that the host already defines under our names are left alone.

Two features of our own app are not installed: it refuses to start a worker that could not send,
and it outlives a restart of Redis (`tasks/overrides`). See docs/celery.md.
"""

from __future__ import annotations

import threading
from logging import getLogger
from typing import TYPE_CHECKING, Any

from celery.app.routes import MapRoute, prepare
from celery.signals import beat_init, celeryd_after_setup, celeryd_init

from mm_tasks import runtime
from mm_tasks.errors import ConfigurationError
from mm_tasks.settings import Settings
from mm_tasks.tasks import celery_app, heartbeat_writer
from mm_tasks.tasks.base import BaseTask
from mm_tasks.tasks.celery_app import app, current_app, queues
from mm_tasks.tasks.registry import TASKS, register

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

_log = getLogger(__name__)
_lock = threading.Lock()

# A message that waits longer than the timeout, by default an hour, is delivered twice. Our
# messages wait for at most five minutes; a countdown is safe for half of the timeout.
_VISIBILITY_TIMEOUT_MIN_S = 600


def install(host: Celery) -> None:
    """Bind our tasks to `host`: its workers run them, and its broker carries their messages.

    Its beat flushes, and a worker without `-Q` serves our queues too. Reads no settings of the
    host. A second call with the same app restores routes and beat entries that the host replaced;
    a call with another app raises `ConfigurationError`, as one app of a process owns the tasks.
    """
    # Resolve the proxy `celery.current_app` now: it may stand for another app later.
    host = getattr(host, "_get_current_object", lambda: host)()
    with _lock:
        if current_app() not in {app, host}:
            msg = "mm_tasks is installed in another Celery app of this process; one can have it"
            raise ConfigurationError(msg)
        is_new = current_app() is not host
        if is_new:
            celery_app.bind_tasks(TASKS, host)
    if is_new:
        heartbeat_writer.attach(host)
        celery_app.when_finalized(host, register)
        # `config_from_object` may have the settings read more than once.
        host.on_after_configure.connect(_complete_settings, sender=host)
    if vars(host)["configured"]:
        _complete_settings(host)


def setting_warnings(host: Celery) -> list[str]:
    """Return a warning, one sentence, for each setting of the host that harms our tasks.

    Reads its settings. A worker of the host that serves our queues logs the warnings at start.
    """
    warnings = [*_message_warnings(host.conf), *_worker_warnings(host.conf)]
    if not _has_our_routes(host.conf):
        warnings.append("task_routes were replaced after mm_tasks.install(app): call it once more")
    return warnings


def _message_warnings(conf: Any) -> Iterator[str]:
    if not {"json", "application/json"} & set(conf.accept_content or ()):
        yield "accept_content is without json: workers refuse all messages of mm_tasks"
    if conf.task_protocol != 2:  # noqa: PLR2004 - its number
        yield "task_protocol 1 shows arguments in events: use 2"
    options = conf.broker_transport_options or {}
    if options.get("visibility_timeout", _VISIBILITY_TIMEOUT_MIN_S) < _VISIBILITY_TIMEOUT_MIN_S:
        yield (
            f"visibility_timeout is below {_VISIBILITY_TIMEOUT_MIN_S} s: "
            "messages with a countdown are delivered more than once"
        )
    for name in ("acks_late", "max_retries", "rate_limit", "serializer"):
        if any(getattr(task, name) != getattr(BaseTask, name) for task in TASKS):
            yield f"task_annotations give our tasks another {name}: leave it as it is"


def _worker_warnings(conf: Any) -> Iterator[str]:
    if conf.worker_prefetch_multiplier != 1:
        yield "worker_prefetch_multiplier is not 1: erasures wait behind prefetched messages"
    if conf.worker_eta_task_limit is not None:
        yield "worker_eta_task_limit is set: batches that wait for their time block erasures"
    lease_s = Settings.model_fields["lease_s"].default
    for name in ("task_time_limit", "task_soft_time_limit"):
        if 0 < (getattr(conf, name) or lease_s) < lease_s:
            yield f"{name} is below {lease_s} s: a request that is cut may be sent twice"
    if conf.worker_cancel_long_running_tasks_on_connection_loss:
        yield (
            "worker_cancel_long_running_tasks_on_connection_loss is on, as in Celery 6 by default: "
            "a request that is cut may be sent twice"
        )
    if conf.worker_enable_remote_control:
        yield (
            "worker_enable_remote_control is on: inspect and Flower show the arguments of track, "
            "identify and forget that go through the broker"
        )


class _Routes:
    """Our routes. They precede the host's, whose route for all tasks, `*`, must not match ours."""

    def __init__(self, host_routes: tuple[Any, ...]) -> None:
        """Take the routes of the host, which win where they name our tasks."""
        self._tables = [route for route in prepare(host_routes) if isinstance(route, MapRoute)]

    def __call__(self, name: str, *_: Any, **__: Any) -> dict[str, Any] | None:
        """Return the options of a publish; None if the host routes the task."""
        is_hosts = any(_names_task(table, name) for table in self._tables)
        return None if is_hosts else celery_app.route(name)


def _names_task(table: Any, name: str) -> bool:
    ours = (pattern for pattern in table.patterns if "mm_tasks" in pattern.pattern)
    return name in table.map or any(pattern.match(name) for pattern in ours)


def _has_our_routes(conf: Any) -> bool:
    return any(isinstance(route, _Routes) for route in conf.task_routes or ())


def _complete_settings(sender: Any, **_: Any) -> None:
    """Add our routes and beat entries, where they are missing, to the settings of the app."""
    conf = sender.conf
    if not _has_our_routes(conf):
        routes = conf.task_routes or ()
        routes = tuple(routes) if isinstance(routes, list | tuple) else (routes,)
        # `update`, as an assignment does not reach a router that was made already.
        conf.update(task_routes=(_Routes(routes), *routes))
    # A new dict: the host's own may be in a module that other apps read as well.
    conf.beat_schedule = {**_missing_entries(conf), **conf.beat_schedule}


def _missing_entries(conf: Any) -> dict[str, Any]:
    try:
        settings = runtime.load_settings()
    except ConfigurationError:
        # The host starts all the same. The first use of the settings raises and says why.
        settings = Settings.model_construct()
    entries = celery_app.beat_schedule(settings)
    return {name: entry for name, entry in entries.items() if name not in conf.beat_schedule}


def _add_queues(host: Celery) -> None:
    table: Any = host.amqp.queues
    for queue in queues():
        if queue.name not in table.consume_from:
            table.select_add(table.get(queue.name, queue))


def _is_host(candidate: Celery) -> bool:
    return candidate is not app and candidate is current_app()


@celeryd_init.connect
def _complete_worker(instance: Any, **_: Any) -> None:
    """Let a worker know our queues before `-Q` selects some."""
    if _is_host(instance.app):
        _complete_settings(instance.app)
        _add_queues(instance.app)


@beat_init.connect
def _complete_beat(sender: Any, **_: Any) -> None:
    """Add entries that a later assignment of `beat_schedule` removed; the scheduler is made."""
    if _is_host(sender.app):
        sender.scheduler.update_from_dict(_missing_entries(sender.app.conf))
        _add_queues(sender.app)


@celeryd_after_setup.connect
def _warn(instance: Any, **_: Any) -> None:
    """Log why a host's worker that serves our queues does it badly, or not at all."""
    host = instance.app
    if _is_host(host) and {queue.name for queue in queues()} & set(host.amqp.queues.consume_from):
        for sentence in (*celery_app.problems_at_start(), *setting_warnings(host)):
            _log.warning("host_configuration_problem: %s", sentence)
