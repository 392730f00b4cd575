"""A fingerprint of a broker's address, by which two processes find out whether they share it.

The address is transport, hosts, ports, database or virtual host, and prefix of keys; no user and
no password is part of it. The server of the buffer counts as one address, as its name may differ
between a container and its host. Any other broker that two processes reach by different names is
two brokers here.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kombu import Connection

from mm_tasks.connections.url import is_loopback

if TYPE_CHECKING:
    from mm_tasks.connections.url import Address


def fingerprint(connection: Connection, buffer: Address) -> str:
    """Return the fingerprint of the broker that a connection leads to; open nothing."""
    options = connection.transport_options or {}
    is_redis = connection.transport.driver_type == "redis"
    default_port = connection.transport.default_port
    parts: list[Any] = [Connection(url) for url in connection.alt] or [connection]
    hosts = sorted(_place(part.hostname, part.port or default_port) for part in parts)
    at: Any = [(buffer.path, default_port)] if buffer.path else buffer.hosts
    of_buffer = sorted(_place(host, port) for host, port in at)
    # kombu has the database of a socket in the query of the path.
    query = str(parts[0].hostname).partition("?")[2].partition("=")[2]
    database = query or (parts[0].virtual_host or "").strip("/") or ("0" if is_redis else "/")
    address = (
        connection.transport.driver_type,
        "buffer" if is_redis and hosts == of_buffer else hosts,
        options.get("master_name"),
        database,
        options.get("global_keyprefix"),
    )
    return hashlib.sha256(repr(address).encode()).hexdigest()[:12]


def _place(name: Any, port: int | None) -> tuple[str, int | None]:
    """Return a host in one spelling with its port, or the path of a socket, without a login."""
    text = str(name or "localhost")
    if text.startswith(("socket://", "/")):
        return urlsplit(text).path, None
    return "127.0.0.1" if is_loopback(text) else text.lower(), port
