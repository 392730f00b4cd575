"""How a Redis is reached, by its address: a client, a pool for an event loop, a Celery broker.

Each call is asked once: a write that timed out may have been applied. With sentinels, each
new connection is made to the primary that they name then. At a failover they end the old
connections, so that whoever holds one connects anew and finds the new primary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import SentinelConnectionPool as LoopSentinelConnectionPool
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from mm_tasks.connections.sentinel import (
    LoopPrimary,
    LoopPrimaryTLS,
    LoopSentinels,
    Primary,
    PrimaryTLS,
    Sentinels,
)

if TYPE_CHECKING:
    from mm_tasks.connections.url import Address, Login

# Of a worker's broker connection: for each sentinel.
_BROKER_SENTINEL_S = 1.0


def client(address: Address, *, connect_s: float, answer_s: float) -> redis.Redis:
    """Return a client that asks once and waits no longer than told.

    Sentinels, all of them together, may take as long as connecting.
    """
    options = {**_options(address, connect_s, answer_s), "retry": Retry(NoBackoff(), 0)}
    if not address.master_name:
        return redis.Redis.from_pool(
            redis.ConnectionPool(connection_class=_kind(address, redis), **options)
        )
    pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
        address.master_name,
        Sentinels(address.hosts, _sentinel_options(address), whole_s=connect_s),
        connection_class=Primary if address.tls is None else PrimaryTLS,
        **options,
    )
    return redis.Redis.from_pool(pool)


def loop_pool(
    address: Address, *, connections_max: int, sentinels_s: float
) -> redis.asyncio.ConnectionPool:
    """Return a pool for one event loop, whose connections have no timeouts of their own.

    Sentinels, all of them together, may take that long.
    """
    options = {
        **_options(address, None, None),
        "retry": AsyncRetry(NoBackoff(), 0),
        "max_connections": connections_max,
    }
    if not address.master_name:
        return redis.asyncio.ConnectionPool(
            connection_class=_kind(address, redis.asyncio), **options
        )
    return LoopSentinelConnectionPool(  # type: ignore[no-untyped-call]
        address.master_name,
        LoopSentinels(address.hosts, _sentinel_options(address), whole_s=sentinels_s),
        connection_class=LoopPrimary if address.tls is None else LoopPrimaryTLS,
        **options,
    )


class Broker(NamedTuple):
    """How kombu is told of a broker: its URL, options of its transport, and those of TLS."""

    url: str
    transport_options: dict[str, Any]
    tls: dict[str, Any] | None


def broker(address: Address) -> Broker:
    """Return what kombu must be told to reach the same Redis, with the same verification."""
    tls = None if address.tls is None else dict(address.tls)
    at, db = _written(address.login), address.db
    if address.path:
        return Broker(f"redis+socket://{at}{quote(address.path)}?virtual_host={db}", {}, tls)
    scheme = "sentinel" if address.master_name else address.scheme
    # Each is complete: kombu goes on with the next one by itself.
    urls = (f"{scheme}://{at}{_bracketed(host)}:{port}/{db}" for host, port in address.hosts)
    return Broker(";".join(urls), _sentinel_transport(address), tls)


def _sentinel_transport(address: Address) -> dict[str, Any]:
    if not address.master_name:
        return {}
    asked = {
        **_sentinel_options(address),
        "socket_connect_timeout": _BROKER_SENTINEL_S,
        "socket_timeout": _BROKER_SENTINEL_S,
        # redis-py's own would be ten times.
        "retry": None,
    }
    return {"master_name": address.master_name, "sentinel_kwargs": asked}


def _kind(address: Address, of: Any) -> Any:
    """Return the class of its connections."""
    if address.path:
        return of.UnixDomainSocketConnection
    return of.Connection if address.tls is None else of.SSLConnection


def _options(address: Address, connect_s: float | None, answer_s: float | None) -> dict[str, Any]:
    """Return what redis-py is told of connections to Redis itself."""
    options = {
        "db": address.db,
        "username": address.login.username,
        "password": address.login.password,
        "socket_connect_timeout": connect_s,
        "socket_timeout": answer_s,
        **(address.tls or {}),
    }
    if address.path:
        return {**options, "path": address.path}
    if not address.master_name:
        options["host"], options["port"] = address.hosts[0]
    return {**options, "socket_keepalive": True}


def _sentinel_options(address: Address) -> dict[str, Any]:
    """Return what redis-py is told of a sentinel, beside where it is."""
    return {
        "username": address.sentinel_login.username,
        "password": address.sentinel_login.password,
        **({} if address.tls is None else {"ssl": True, **address.tls}),
    }


def _written(login: Login) -> str:
    if login.username is None and login.password is None:
        return ""
    return f"{quote(login.username or '', safe='')}:{quote(login.password or '', safe='')}@"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
