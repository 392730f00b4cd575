"""Clients of Redis by its address, and its address as Celery's broker.

No call is repeated: a write that timed out may have been applied. With sentinels, each new
connection goes to the current primary. At a failover the sentinels close connections to the
old one, so clients connect anew and find the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import redis

from mm_tasks.connections.breaker import Breaker
from mm_tasks.connections.pool import ANSWERS, Pool
from mm_tasks.connections.sentinel import Primary, PrimaryTLS, Sentinels, sentinel_options

if TYPE_CHECKING:
    from mm_tasks.connections.url import Address, Login

# Of a worker's broker connection: for each sentinel.
_BROKER_SENTINEL_S = 1.0


class RedisClient(redis.Redis):
    """redis-py's client on a `Pool`: its commands obey the breaker and tell it what they saw."""

    connection_pool: Pool

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Do as redis-py; raises `Away` at once while the breaker is open."""
        breaker = self.connection_pool.breaker
        try:
            reply = super().execute_command(*args, **options)
        except redis.TimeoutError:
            breaker.failed()
            raise
        except ANSWERS as error:
            # Such as NOSCRIPT of a Redis that is back: the script is loaded by a second call.
            breaker.answered()
            if isinstance(error, redis.ReadOnlyError):
                # A primary that became a replica keeps its connections: find the new primary.
                self.connection_pool.disconnect()
            raise
        breaker.answered()
        return reply


def client(
    address: Address, *, connect_s: float, answer_s: float, breaker: Breaker | None = None
) -> RedisClient:
    """Return a client that makes one attempt for each call, within these timeouts.

    All sentinels together may take as long as connecting. Without a breaker no call is refused.
    """
    options = pool_options(address, redis, (Primary, PrimaryTLS))
    if address.master_name:
        options["sentinels"] = Sentinels(address, timeout_s=connect_s)
    breaker = Breaker(probe_interval_s=0) if breaker is None else breaker
    pool = Pool(breaker, connect_s=connect_s, answer_s=answer_s, **options)
    owner = RedisClient(connection_pool=pool)
    owner.auto_close_connection_pool = True
    return owner


def pool_options(address: Address, library: Any, primaries: tuple[type, type]) -> dict[str, Any]:
    """Return redis-py's options for a pool of connections to Redis itself, without timeouts.

    `library` is `redis` or `redis.asyncio`, `primaries` its classes of connections, plain and
    over TLS, for addresses with sentinels: these need the option `sentinels` as well.
    """
    options = {"db": address.db, "retry": None, **address.login._asdict(), **(address.tls or {})}
    if address.path:
        kind = library.UnixDomainSocketConnection
        return {**options, "connection_class": kind, "path": address.path}
    kinds = (library.Connection, library.SSLConnection)
    if address.master_name:
        kinds = primaries
    else:
        options["host"], options["port"] = address.hosts[0]
    kind = kinds[address.tls is not None]
    return {**options, "connection_class": kind, "socket_keepalive": True}


class Broker(NamedTuple):
    """kombu's description of a broker: its URL, options of its transport and those of TLS."""

    url: str
    transport_options: dict[str, Any]
    tls: dict[str, Any] | None


def broker(address: Address) -> Broker:
    """Return kombu's description of the same Redis, with the same verification."""
    at, db = _user_info(address.login), address.db
    if address.path:
        url = f"redis+socket://{at}{quote(address.path)}?virtual_host={db}"
        return Broker(url, {}, address.tls)
    scheme, transport = address.scheme, {}
    if address.master_name:
        timeouts = dict.fromkeys(("socket_connect_timeout", "socket_timeout"), _BROKER_SENTINEL_S)
        options = {**sentinel_options(address), **timeouts}
        scheme = "sentinel"
        transport = {"master_name": address.master_name, "sentinel_kwargs": options}
    # Each URL is complete: kombu tries them in turn.
    urls = (f"{scheme}://{at}{_bracketed(host)}:{port}/{db}" for host, port in address.hosts)
    return Broker(";".join(urls), transport, address.tls)


def _user_info(login: Login) -> str:
    if login.username is None and login.password is None:
        return ""
    return f"{quote(login.username or '', safe='')}:{quote(login.password or '', safe='')}@"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
