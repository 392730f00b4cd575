"""Publish to the broker. A message is a nudge, and costs the caller at most one second."""

from __future__ import annotations

import os
import socket
import threading
import time
from logging import getLogger
from typing import TYPE_CHECKING, Any

from kombu import Connection
from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.buffer import heartbeats
from mm_tasks.events.lanes import BACKFILL
from mm_tasks.monitoring import health
from mm_tasks.tasks.broker_address import fingerprint
from mm_tasks.tasks.celery_app import PROJECT_HEADER, app, broker, current_app, declared_queue

if TYPE_CHECKING:
    from celery import Celery

_log = getLogger(__name__)
# Bounds each step of a publish of a web request while the broker, or each of its sentinels, is
# away: connecting, the handshakes, and each answer.
_PUBLISH_TIMEOUT_S = 0.3
# How often a process writes to which broker it publishes, and compares it with the workers'.
_NOTED_EVERY_S = 30.0


class _Publisher(threading.local):
    """One broker connection a thread, with short timeouts and without retries."""

    connection: Connection | None = None
    owner: tuple[int, runtime.Runtime | None, Celery] = (0, None, app)

    def get(self) -> Connection:
        # uWSGI forks without Python's hooks: a child must not use its parent's connection.
        owner = (os.getpid(), runtime.current(), current_app())
        if self.connection is None or self.owner != owner:
            if self.connection is not None and self.owner[0] != owner[0]:
                _abandoned.append(self.connection)
            self.connection = _connection(owner[2])
            if self.connection.transport.driver_type == "redis":
                self.connection.transport_options = _impatient(self.connection)
            self.owner = owner
        return self.connection


# Garbage collection would close a connection that the parent process still uses.
_abandoned: list[Connection] = []


def _connect(connection: Connection) -> None:
    """Connect, trying each address once; raises kombu's `OperationalError`.

    By itself kombu waits two seconds after the first failure. A transport other than Redis gets
    its timeout here, for answers after the handshake.
    """
    if connection.connected:
        return
    # A connection by sentinels asks all of them each time.
    is_redis = connection.transport.driver_type == "redis"
    tries = 1 if is_redis else max(1, len(connection.alt))
    connection.connect_timeout = _PUBLISH_TIMEOUT_S / tries
    connection.ensure_connection(max_retries=tries - 1, interval_start=0, interval_step=0)
    transport = getattr(connection.connection, "transport", None)
    if isinstance(sock := getattr(transport, "sock", None), socket.socket):
        sock.settimeout(_PUBLISH_TIMEOUT_S)


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
    """Return the options of a publish that takes at most one second with the broker away.

    Connects, unless tasks run eagerly; raises kombu's `OperationalError`.
    """
    connection = _publisher.get()
    if not current_app().conf.task_always_eager:
        _connect(connection)
    return {"connection": connection, "retry": False}


def priority_options(lane: str) -> dict[str, Any]:
    """Return the options that let a worker take messages of a backfill last.

    On Redis, Celery reads priority 9 last. Other brokers get no priority: there 9 is the highest.
    """
    is_last = lane == BACKFILL and _publisher.get().transport.driver_type == "redis"
    return {"priority": 9} if is_last else {}


def nudge(task: str, args: tuple[str], queue: str) -> None:
    """Publish a task that beat would publish a little later, to a kind of queue. Never raises.

    Publishes nothing if tasks run eagerly: the caller would do the work itself.
    """
    try:
        current = runtime.current()
        if current.has_broker and not current_app().conf.task_always_eager:
            current_app().send_task(
                task,
                args,
                queue=declared_queue(queue),
                headers={PROJECT_HEADER: current.settings.project},
                serializer="json",
                ignore_result=True,
                add_to_parent=False,  # not a child of the host's task that stored an event
                **publish_options(),
            )
            note_publish()
    except Exception as error:  # noqa: BLE001 - the event is stored, whatever a broker raises
        publish_failed()
        _log.warning("nudge_failed", extra={"error": type(error).__name__})


def own_broker() -> str:
    """Return the fingerprint of the broker that this process publishes to."""
    return fingerprint(_publisher.get(), runtime.current().settings.redis_address)


class _Noted:
    """When this process last wrote to which broker it publishes, and its publishes since then."""

    owner: tuple[int, runtime.Runtime | None] = (0, None)
    next_s = 0.0
    publishes = 0


def note_publish() -> None:
    """Write, at most every 30 s, to which broker this process publishes; count if none listens.

    Raises nothing if Redis is away.
    """
    current = runtime.current()
    if (owner := (os.getpid(), current)) != _Noted.owner:
        _Noted.owner, _Noted.next_s, _Noted.publishes = owner, 0.0, 0
    _Noted.publishes += 1
    if time.monotonic() < _Noted.next_s:
        return
    publishes, _Noted.publishes = _Noted.publishes, 0
    _Noted.next_s = time.monotonic() + _NOTED_EVERY_S
    redis, project, own = current.producer_redis, current.settings.project, own_broker()
    try:
        heartbeats.write_publisher(redis, project, own, socket.gethostname())
        if health.serves_no_worker(heartbeats.read(redis, project), own):
            heartbeats.count_unserved(redis, project, publishes)
            _log.warning("published_where_no_worker_listens")
    except RedisError:
        return
