"""The address of a Redis: one URL, parsed into parts. Pure: no DNS, no connection.

    redis://[[user]:password@]host[:port][/db]
    rediss://…                                      the same over TLS
    unix://[[user]:password@]/path[?db=1]
    sentinel://[[user]:password@]host[:port][,host[:port]…][/db]?master_name=NAME
    sentinels://…                                   the same over TLS, to sentinels and Redis

User and password belong to the Redis that keeps the data; those of the sentinels are the options
`sentinel_username` and `sentinel_password`. Options of TLS are `ssl_ca_certs`, `ssl_certfile`,
`ssl_keyfile`, `ssl_cert_reqs` (`required`, unless it is `none`) and `ssl_check_hostname`.
Any other option is refused: a misspelt one would otherwise have no effect. Special characters
in a user, a password or a path are percent-encoded.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMES = ("redis", "rediss", "unix", "sentinel", "sentinels")
REDIS_PORT, SENTINEL_PORT = 6379, 26379

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS_OPTIONS = {*_FILES, "ssl_cert_reqs", "ssl_check_hostname"}
_SENTINEL_OPTIONS = {"master_name", "sentinel_username", "sentinel_password"}
_OPTIONS = {
    "redis": set[str](),
    "rediss": _TLS_OPTIONS,
    "unix": {"db"},
    "sentinel": _SENTINEL_OPTIONS,
    "sentinels": _SENTINEL_OPTIONS | _TLS_OPTIONS,
}


class Login(NamedTuple):
    """A user's name and password for Redis; either may be missing."""

    username: str | None = None
    password: str | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a Redis. Its `repr` shows no user and no password."""

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()  # Redis, or its sentinels; none with a socket
    path: str = ""  # of the socket
    db: int = 0
    login: Login = field(default_factory=Login, repr=False)
    # redis-py's options of TLS; the two about verification are always set.
    tls: dict[str, Any] | None = field(default=None, repr=False)
    master_name: str = ""  # the sentinels' name for the primary
    sentinel_login: Login = field(default_factory=Login, repr=False)

    @property
    def is_local(self) -> bool:
        """Say whether it is on this machine: a socket or loopback.

        With sentinels it never is: the primary may move to another machine.
        """
        return not self.master_name and all(is_loopback(host) for host, _ in self.hosts)


def is_loopback(name: str) -> bool:
    """Say whether a host name is 127/8, ::1 or `localhost`."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def parse(url: str) -> Address:
    """Return the address; raise `ValueError` with the broken rule and no part of the URL."""
    # Not by `urlsplit`: newer ones refuse a bracket that is not the first of several hosts.
    scheme, mark, rest = url.partition("://")
    scheme = scheme.lower()
    _require(bool(mark) and scheme in SCHEMES, f"must begin with {'://, '.join(SCHEMES)}://")
    # Unquoted, these characters would end the password early.
    _require("#" not in url, "must have each # written as %23")
    location, _, query = rest.partition("?")
    authority, slash, path = location.partition("/")
    before, _, hosts = authority.rpartition("@")
    _require("@" not in before, "must have each @ of a password written as %40")
    options = _options(query, _OPTIONS[scheme])
    is_unix, is_sentinel = scheme == "unix", scheme.startswith("sentinel")
    _require(not is_sentinel or "master_name" in options, "must have the option master_name")
    return Address(
        scheme,
        () if is_unix else _hosts(hosts, SENTINEL_PORT if is_sentinel else REDIS_PORT),
        _socket(hosts, slash + path) if is_unix else "",
        _db(options.get("db", "") if is_unix else path),
        Login(*(unquote(part) or None for part in before.split(":", 1))),
        _tls(options) if scheme in {"rediss", "sentinels"} else None,
        options.get("master_name", ""),
        Login(options.get("sentinel_username"), options.get("sentinel_password")),
    )


def _options(query: str, known: set[str]) -> dict[str, str]:
    # A + means itself, as in the rest of the URL.
    pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)
    names = [name for name, _ in pairs]
    allowed = ", ".join(sorted(known)) or "none"
    _require(set(names) <= known, f"has an option that is unknown here; those known: {allowed}")
    _require(len(set(names)) == len(names), "has an option twice")
    _require(all(value for _, value in pairs), "has an option without a value")
    return dict(pairs)


def _hosts(text: str, default_port: int) -> tuple[tuple[str, int], ...]:
    hosts = tuple(_host(part, default_port) for part in text.split(","))
    _require(default_port == SENTINEL_PORT or len(hosts) == 1, "must name one host")
    return hosts


def _host(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        name, port = unquote(parts.hostname or ""), parts.port
    except ValueError:
        name, port = "", None
    _require(bool(name), "must name a host, and a port below 65536 or none")
    return name, default_port if port is None else port


def _socket(host: str, path: str) -> str:
    _require(not host and len(path) > 1, "must have three slashes, and the path of a socket")
    return unquote(path)


def _db(text: str) -> int:
    _require(not text or (text.isascii() and text.isdigit()), "must have a number as database")
    return int(text or 0)


def _tls(options: Mapping[str, str]) -> dict[str, Any]:
    """Return redis-py's options; a certificate is verified unless the URL disables it."""
    verified = options.get("ssl_cert_reqs", "required")
    _require(verified in {"required", "none"}, "must have ssl_cert_reqs=required or none")
    checked = options.get("ssl_check_hostname", str(verified == "required").lower())
    _require(checked in {"true", "false"}, "must have ssl_check_hostname=true or false")
    rule = "must have ssl_cert_reqs=required to have ssl_check_hostname=true"
    _require(verified == "required" or checked == "false", rule)
    files = {name: options[name] for name in _FILES if name in options}
    return {**files, "ssl_cert_reqs": verified, "ssl_check_hostname": checked == "true"}


def _require(is_kept: bool, rule: str) -> None:  # noqa: FBT001 - an assertion with a rule
    if not is_kept:
        raise ValueError(rule)
