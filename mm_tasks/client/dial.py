"""Connect to the vendor: look up the name, connect, ask a proxy for a tunnel, begin TLS.

No byte of a request is sent here, so a request that fails here was provably not sent.
"""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from mm_tasks.client import http1
from mm_tasks.client.connection import Connection, Deadline
from mm_tasks.connections.url import is_loopback
from mm_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# P6 of docs/architecture.md: admission and first byte lie close together. The look-up of a name
# may take longer: after the first of two name servers died, it takes 5 s each time.
CONNECT_TIMEOUT_S = 2.0
_PORTS = {"http": 80, "https": 443}


class Attempt:
    """One exchange: when it must be over, and how far it came."""

    def __init__(self, timeout_s: float) -> None:
        """Begin now."""
        self.deadline = Deadline(timeout_s)
        # dns, connect, proxy or tls; then `sent`, once a byte of the request may have left.
        self.stage = "connect"

    @property
    def is_sent(self) -> bool:
        """Say whether the vendor may have received the request."""
        return self.stage == "sent"

    def kind(self, error: Exception) -> str:
        """Return one word for an error at this stage."""
        if self.is_sent:
            return http1.flaw_of(error)
        if self.stage in {"connect", "tls"}:
            if isinstance(error, TimeoutError):
                return "timeout"
            if isinstance(error, ConnectionRefusedError):
                return "refused"
        return self.stage


class Dialer:
    """Opens connections to one host, directly or through a proxy."""

    def __init__(
        self,
        host: str,
        proxy_url: str | None = None,
        *,
        tls: Callable[[], ssl.SSLContext],
        look_up: Callable[..., Any] | None = None,
    ) -> None:
        """Take checked URLs. `tls` is called if any of them is https.

        A loopback host is not reached through the proxy. `look_up` is `socket.getaddrinfo` if
        None. Raises `ConfigurationError` if a proxy would see the key.
        """
        self._url = urlsplit(host)
        self._proxy = None
        if proxy_url and not is_loopback(self._url.hostname or ""):
            self._proxy = urlsplit(proxy_url)
            if self._url.scheme != "https":
                msg = "MM_TASKS_PROXY_URL: the key would travel through it in the clear; use https"
                raise ConfigurationError(msg)
        schemes = {url.scheme for url in (self._url, self._proxy) if url}
        self._tls = tls() if "https" in schemes else None
        self._look_up = look_up

    def open(self, attempt: Attempt) -> Connection:
        """Return a new connection.

        Raises what the look-up, the socket or TLS raise, with `attempt.stage` where it happened.
        """
        url, proxy = self._url, self._proxy
        attempt.stage = "proxy" if proxy else "dns"
        addresses = self._addresses(proxy or url, attempt.deadline)
        attempt.stage = "proxy" if proxy else "connect"
        deadline = Deadline(min(CONNECT_TIMEOUT_S, attempt.deadline.left_s()))
        connection = Connection(_connected(addresses, deadline), deadline)
        try:
            if proxy:
                self._secure(connection, proxy)
                _open_tunnel(connection, proxy, "{}:{}".format(*location(url)))
            attempt.stage = "tls"
            self._secure(connection, url)
        except BaseException:
            connection.close()
            raise
        return connection

    def _addresses(self, url: SplitResult, deadline: Deadline) -> Sequence[Any]:
        """Look up the name in a thread, since `getaddrinfo` has no timeout.

        The thread outlives a deadline that passes; it ends with the resolver's own timeout.
        """
        found: list[Any] = []
        host, port = location(url)

        def look_up() -> None:
            try:
                function = self._look_up or socket.getaddrinfo
                found.append(function(host.strip("[]"), port, type=socket.SOCK_STREAM))
            except Exception as error:  # noqa: BLE001 - raised by the thread that waits
                found.append(error)

        thread = threading.Thread(target=look_up, name="mm-tasks-dns", daemon=True)
        thread.start()
        thread.join(deadline.left_s())
        if not found:
            raise TimeoutError
        if isinstance(found[0], Exception):
            raise found[0]
        addresses: Sequence[Any] = found[0]
        return addresses

    def _secure(self, connection: Connection, url: SplitResult) -> None:
        """Begin TLS with the host of an https URL, inside the TLS of a proxy too."""
        if url.scheme != "https":
            return
        assert self._tls is not None
        sock, name = connection.sock, url.hostname or ""
        sock.settimeout(connection.deadline.left_s())
        if isinstance(sock, ssl.SSLSocket):
            from urllib3.util.ssltransport import SSLTransport

            connection.sock = SSLTransport(sock, self._tls, server_hostname=name)
        else:
            connection.sock = self._tls.wrap_socket(sock, server_hostname=name)


def location(url: SplitResult) -> tuple[str, int]:
    """Return host and port as a request names them: ASCII, an IPv6 address in brackets."""
    name = (url.hostname or "").encode("idna").decode()
    port = _PORTS[url.scheme] if url.port is None else url.port
    return f"[{name}]" if ":" in name else name, port


def _connected(addresses: Sequence[Any], deadline: Deadline) -> socket.socket:
    """Return a socket connected to the first address that answers within its share of the time."""
    failed: Exception = OSError("no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(deadline.left_s() / (len(addresses) - number))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failed


def _open_tunnel(connection: Connection, proxy: SplitResult, target: str) -> None:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.username is not None:
        login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(login.encode()).decode()}")
    connection.write("\r\n".join([*lines, "", ""]).encode())
    answer = http1.read_head(connection)
    if answer.status // 100 != 2 or connection.has_unread:  # noqa: PLR2004 - HTTP
        raise ConnectionError
