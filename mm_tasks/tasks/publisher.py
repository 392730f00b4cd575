"""Publish to the broker. A message is a nudge, and costs the caller at most one second."""

from __future__ import annotations

import threading
from logging import getLogger
from typing import TYPE_CHECKING, Any

from kombu import Connection

from mm_tasks import runtime
from mm_tasks.events.lanes import BACKFILL
from mm_tasks.tasks.celery_app import app, broker, current_app, declared_queue

if TYPE_CHECKING:
    from celery import Celery

_log = getLogger(__name__)
# Bounds a publish of a web request while the broker, or each of its sentinels, is away.
_PUBLISH_TIMEOUT_S = 0.3


class _Publisher(threading.local):
    """One broker connection a thread, with short timeouts and without retries."""

    connection: Connection | None = None
    owner: tuple[runtime.Runtime, Celery] | None = None

    def get(self) -> Connection:
        owner = (runtime.current(), current_app())
        if self.connection is None or self.owner != owner:
            self.connection = _connection(owner[1])
            if self.connection.transport.driver_type == "redis":
                self.connection.transport_options = _impatient(self.connection)
            self.owner = owner
        return self.connection


def _impatient(connection: Connection) -> dict[str, Any]:
    """Return its options of the Redis transport, with short timeouts for sentinels too."""
    options = connection.transport_options or {}
    # kombu queries the sentinels in turn.
    each_s = _PUBLISH_TIMEOUT_S / max(1, len(connection.alt))
    sentinel_options = {"socket_timeout": each_s, "socket_connect_timeout": each_s, "retry": None}
    return {
        **options,
        "socket_timeout": _PUBLISH_TIMEOUT_S,
        "socket_connect_timeout": _PUBLISH_TIMEOUT_S,
        "max_retries": 0,
        "sentinel_kwargs": {**(options.get("sentinel_kwargs") or {}), **sentinel_options},
    }


def _connection(to: Celery) -> Connection:
    """Return a connection to the broker of the app, not open yet."""
    if to is app:
        url, options, tls = broker()
        return Connection(
            url, transport_options=options, ssl=tls or False, connect_timeout=_PUBLISH_TIMEOUT_S
        )
    # Has the host's options: a prefix of keys, TLS, the name of a primary.
    return to.connection_for_write(connect_timeout=_PUBLISH_TIMEOUT_S)


_publisher = _Publisher()


def publish_failed() -> None:
    """Reconnect before the next publish: this server may no longer be the primary."""
    connection, _publisher.connection = _publisher.connection, None
    if connection is not None:
        connection.collect()


def publish_options() -> dict[str, Any]:
    """Return the options of a publish that takes at most one second with the broker away."""
    return {"connection": _publisher.get(), "retry": False}


def priority_options(lane: str) -> dict[str, Any]:
    """Return the options that let a worker take messages of a backfill last.

    On Redis, Celery reads priority 9 last. Other brokers get no priority: there 9 is the highest.
    """
    is_last = lane == BACKFILL and _publisher.get().transport.driver_type == "redis"
    return {"priority": 9} if is_last else {}


def nudge(task: str, args: tuple[str], queue: str, *, expires_s: float = 5) -> None:
    """Publish a task that beat would publish a little later. Never raises.

    Publishes nothing if tasks run eagerly: the caller would do the work itself.
    """
    try:
        if runtime.current().has_broker and not current_app().conf.task_always_eager:
            current_app().send_task(
                task,
                args,
                queue=declared_queue(queue),
                expires=expires_s,
                serializer="json",
                ignore_result=True,
                add_to_parent=False,  # not a child of the host's task that stored an event
                **publish_options(),
            )
    except Exception as error:  # noqa: BLE001 - the event is stored, whatever a broker raises
        publish_failed()
        _log.warning("nudge_failed", extra={"error": type(error).__name__})
