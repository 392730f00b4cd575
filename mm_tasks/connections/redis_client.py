"""Clients of Redis by its address, and its address as Celery's broker.

No call is repeated: a write that timed out may have been applied. With sentinels, each new
connection goes to the current primary. At a failover the sentinels close connections to the
old one, so clients connect anew and find the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mm_tasks.connections.sentinel import Primary, PrimaryTLS, Sentinels, sentinel_options

if TYPE_CHECKING:
    from mm_tasks.connections.url import Address, Login

# Of a worker's broker connection: for each sentinel.
_BROKER_SENTINEL_S = 1.0


def client(address: Address, *, connect_s: float, answer_s: float) -> redis.Redis:
    """Return a client that makes one attempt for each call, within these timeouts.

    All sentinels together may take as long as connecting.
    """
    options = {
        **connection_options(address),
        "socket_connect_timeout": connect_s,
        "socket_timeout": answer_s,
        "retry": Retry(NoBackoff(), 0),
    }
    if address.master_name:
        options["sentinels"] = Sentinels(address, timeout_s=connect_s)
    kind = connection_class(address, redis, (Primary, PrimaryTLS))
    return redis.Redis.from_pool(redis.ConnectionPool(connection_class=kind, **options))


def connection_class(address: Address, library: Any, primaries: tuple[type, type]) -> Any:
    """Return the class of connections: the library's, or with sentinels one of `primaries`."""
    if address.path:
        return library.UnixDomainSocketConnection
    own = (library.Connection, library.SSLConnection)
    return (primaries if address.master_name else own)[address.tls is not None]


def connection_options(address: Address) -> dict[str, Any]:
    """Return redis-py's options for a connection to Redis itself, without timeouts."""
    options = {
        "db": address.db,
        "username": address.login.username,
        "password": address.login.password,
        **(address.tls or {}),
    }
    if address.path:
        return {**options, "path": address.path}
    if not address.master_name:
        options["host"], options["port"] = address.hosts[0]
    return {**options, "socket_keepalive": True}


class Broker(NamedTuple):
    """kombu's description of a broker: its URL, options of its transport and those of TLS."""

    url: str
    transport_options: dict[str, Any]
    tls: dict[str, Any] | None


def broker(address: Address) -> Broker:
    """Return kombu's description of the same Redis, with the same verification."""
    tls = None if address.tls is None else dict(address.tls)
    at, db = _user_info(address.login), address.db
    if address.path:
        return Broker(f"redis+socket://{at}{quote(address.path)}?virtual_host={db}", {}, tls)
    scheme = "sentinel" if address.master_name else address.scheme
    # Each URL is complete: kombu tries them in turn.
    urls = (f"{scheme}://{at}{_bracketed(host)}:{port}/{db}" for host, port in address.hosts)
    return Broker(";".join(urls), _sentinel_transport(address), tls)


def _sentinel_transport(address: Address) -> dict[str, Any]:
    if not address.master_name:
        return {}
    options = {
        **sentinel_options(address),
        "socket_connect_timeout": _BROKER_SENTINEL_S,
        "socket_timeout": _BROKER_SENTINEL_S,
        # redis-py's default is ten attempts.
        "retry": None,
    }
    return {"master_name": address.master_name, "sentinel_kwargs": options}


def _user_info(login: Login) -> str:
    if login.username is None and login.password is None:
        return ""
    return f"{quote(login.username or '', safe='')}:{quote(login.password or '', safe='')}@"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
