"""A request is `Unavailable` if no byte of it can have left, and in doubt from then on."""

import signal
import socket
import ssl
import subprocess
import sys
import time
from base64 import b64encode
from importlib.metadata import version

import pytest
import trustme

from mm_tasks.cli.check import masked
from mm_tasks.client.access import VendorAccess, tls_context
from mm_tasks.client.api import Client
from mm_tasks.client.outcome import Ambiguous, Delivered, Unavailable
from mm_tasks.errors import ConfigurationError
from mm_tasks.monitoring import checks
from mm_tasks.settings import Settings
from tests.client.conftest import KEY
from tests.client.servers import OK, closing, http

# Hosts that are not loopback, at servers that are.
pytestmark = pytest.mark.mm_tasks_real_host
EVENT = [b'{"event":"a"}']


def at_loopback(_, port, **options):
    """A name server on which every name is this machine."""
    return socket.getaddrinfo("127.0.0.1", port, **options)


def never(*_, **__):
    time.sleep(5)


def unknown(*_, **__):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.fixture
def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def full_port():
    """A port whose queue of connections is full: connecting to it takes for ever."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as server,
        socket.create_connection(server.getsockname()),
    ):
        yield server.getsockname()[1]


@pytest.mark.parametrize("look_up", [never, unknown], ids=["slow", "unknown"])
def test_a_name_without_an_address_is_unsent(client, look_up):
    """`getaddrinfo` has no timeout: only the deadline of the request ends a slow one."""
    to = client("https://vendor.example", request_timeout_s=0.3, look_up=look_up)
    began = time.monotonic()

    assert to.send("track", EVENT) == Unavailable("dns")
    assert time.monotonic() - began < 2


def test_a_refused_connection_is_unsent(client, free_port):
    assert client(f"http://127.0.0.1:{free_port}").send("track", EVENT) == Unavailable("refused")


def test_a_deadline_while_connecting_is_unsent(client, full_port):
    to = client(f"http://127.0.0.1:{full_port}", request_timeout_s=0.3)

    assert to.send("track", EVENT) == Unavailable("timeout")


def test_an_address_that_is_mute_does_not_take_the_time_of_the_next(client, vendor, full_port):
    """As with IPv6 that leads nowhere: the second address has its share of the time."""
    server = vendor(OK)

    def look_up(*_, **options):
        ports = (full_port, server.port)
        return [info for port in ports for info in at_loopback("", port, **options)]

    to = client(server.url, request_timeout_s=1, look_up=look_up)

    assert to.send("track", EVENT) == Delivered(1)


def test_tls_that_fails_is_unsent(client, vendor, authority):
    """Not trusted, of another name, no TLS, a cut in the middle, and silence."""
    trusted = {"ca_file": authority.file, "request_timeout_s": 0.3, "look_up": at_loopback}
    of_vendor = vendor(OK, tls=authority.server("vendor.example"))
    plain, cut, mute = vendor(OK), vendor(OK), vendor(OK)
    plain.serve, cut.serve, mute.serve = closing(OK), bool, lambda _: time.sleep(2)
    tries = {
        client(f"https://vendor.example:{of_vendor.port}", look_up=at_loopback): "tls",
        client(f"https://other.example:{of_vendor.port}", **trusted): "tls",
        client(f"https://vendor.example:{plain.port}", **trusted): "tls",
        client(f"https://vendor.example:{cut.port}", **trusted): "tls",
        client(f"https://vendor.example:{mute.port}", **trusted): "timeout",
    }

    assert [to.send("track", EVENT) for to in tries] == [Unavailable(k) for k in tries.values()]
    assert not of_vendor.requests


def test_a_proxy_that_makes_no_tunnel_is_unsent(client, proxy, free_port):
    def mute(_):
        time.sleep(2)

    answers = [
        *(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",),
        *(b"HTTP/1.1 403 Forbidden\r\n\r\n<html>", b"", b"HTTP/1.1 20", b"SSH-2.0-x\r\n"),
        *(b"HTTP/1.1 200 OK\r\n\r\nmore", mute),
    ]
    urls = [*(proxy(answer=answer).url for answer in answers), f"http://127.0.0.1:{free_port}"]

    for url in [*urls, "http://no-such-proxy.invalid"]:
        to = client("https://vendor.example", proxy_url=url, request_timeout_s=0.3)
        assert to.send("track", EVENT) == Unavailable("proxy")


def test_a_tunnel_without_a_vendor_is_unsent(client, proxy):
    url = proxy(answer=closing(b"HTTP/1.1 200 OK\r\n\r\n")).url

    to = client("https://vendor.example", proxy_url=url)

    assert to.send("track", EVENT) == Unavailable("tls")


@pytest.mark.parametrize("proxy_is_tls", [False, True], ids=["http", "https"])
def test_the_vendor_is_reached_and_verified_through_a_proxy(
    client, vendor, proxy, authority, proxy_is_tls
):
    """The name is never looked up here, and the proxy sees neither key nor event."""
    server = vendor(OK, tls=authority.server("vendor.example"))
    front = proxy(server, tls=authority.server("127.0.0.1") if proxy_is_tls else None)
    url = front.url.replace("://", "://user:p%40ss@")
    to = client("https://vendor.example", proxy_url=url, ca_file=authority.file)

    assert [to.send("track", EVENT) for _ in range(3)] == [Delivered(1)] * 3
    assert server.connections == [0, 0, 0]
    (head,) = front.heads
    assert head.startswith(b"CONNECT vendor.example:443 HTTP/1.1\r\nHost: vendor.example:443\r\n")
    assert b"Proxy-Authorization: Basic " + b64encode(b"user:p@ss") + b"\r\n" in head
    distrustful = client("https://vendor.example", proxy_url=proxy(server).url)
    assert distrustful.send("track", EVENT) == Unavailable("tls")


def test_a_proxy_is_not_used_for_loopback(client, vendor, proxy):
    front = proxy()
    for host in ("127.0.0.1", "localhost", "127.8.8.8"):
        to = client(f"http://{host}:{vendor(OK).port}", proxy_url=front.url, look_up=at_loopback)
        assert to.send("track", EVENT) == Delivered(1)

    assert not front.heads


@pytest.fixture
def environment(proxy, monkeypatch, tmp_path):
    """What a host app may have for its own requests; returns its proxy."""
    front = proxy()
    (tmp_path / ".netrc").write_text("default login s3cret password s3cret")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, front.url)
    return front


def test_the_environment_changes_nothing(environment, client, vendor, authority):
    """And a cookie of the vendor is not sent back."""
    answer = http(202, b'{"ok":true,"count":1}', "Set-Cookie: a=b")
    server = vendor(answer, tls=authority.server("vendor.example"))
    url = f"https://vendor.example:{server.port}"
    to = client(f"{url}/a b", ca_file=authority.file, look_up=at_loopback)

    assert [to.send("track", EVENT) for _ in range(2)] == [Delivered(1)] * 2
    assert not environment.heads
    (_, first, _), (_, second, _) = server.requests
    assert first == second
    line, *headers = first.decode().rstrip().split("\r\n")
    assert line == "POST /a%20b/v1/batch HTTP/1.1"
    assert sorted(headers) == [
        "Accept-Encoding: identity",
        f"Authorization: Bearer {KEY.get_secret_value()}",
        "Content-Length: 26",
        "Content-Type: application/json",
        f"Host: vendor.example:{server.port}",
        f"User-Agent: mm-tasks/{version('mm-tasks')}",
    ]


def test_the_name_of_the_request_is_the_one_that_is_looked_up(client, vendor, authority):
    """Python and `requests` write `straße` differently; TLS, the look-up and `Host` must agree."""
    names = []
    server = vendor(OK, tls=authority.server("xn--strae-oqa.example"))

    def look_up(name, port, **options):
        names.append(name)
        return at_loopback(name, port, **options)

    url = f"https://straße.example:{server.port}"
    to = client(url, ca_file=authority.file, look_up=look_up)

    assert to.send("track", EVENT) == Delivered(1)
    assert names == ["xn--strae-oqa.example"]
    ((_, head, _),) = server.requests
    assert f"Host: xn--strae-oqa.example:{server.port}\r\n".encode() in head


def test_the_key_never_goes_through_a_proxy_in_the_clear():
    """`vendor_access` refuses such a host already."""
    with pytest.raises(ConfigurationError, match="MM_TASKS_PROXY_URL"):
        Client(VendorAccess("http://vendor.example", KEY), proxy_url="http://127.0.0.1:1")


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\x30\x82\xff", "folder"])
def test_a_file_without_authorities_is_named(client, tmp_path, content):
    path = tmp_path / "s3cret.pem"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigurationError, match="MM_TASKS_CA_FILE") as caught:
        client("https://vendor.example", ca_file=path)
    assert "s3cret" not in str(caught.value)
    assert "no certificate" not in str(caught.value)


def test_the_authorities_of_a_file_replace_those_of_the_system(authority):
    assert len(tls_context(authority.file).get_ca_certs()) == 1
    assert tls_context(None).verify_mode == ssl.CERT_REQUIRED


def test_an_intermediate_authority_is_enough(client, vendor, tmp_path):
    """As curl has it; OpenSSL by itself wants the root too."""
    intermediate = trustme.CA().create_child_ca()
    intermediate.cert_pem.write_to_path(tmp_path / "intermediate.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    intermediate.issue_cert("127.0.0.1").configure_cert(context)

    to = client(vendor(OK, tls=context).url, ca_file=tmp_path / "intermediate.pem")

    assert to.send("track", EVENT) == Delivered(1)
    assert not tls_context(tmp_path / "intermediate.pem").verify_flags & ssl.VERIFY_X509_STRICT


class SoftTimeLimitExceeded(Exception):
    """As Celery raises it in the middle of anything, from a handler of a signal."""


@pytest.mark.parametrize("is_sent", [False, True], ids=["connecting", "waiting"])
def test_an_exception_in_the_middle_is_an_outcome(client, vendor, full_port, is_sent):
    """Otherwise the soft time limit of a host's Celery would lose a doubt."""

    def interrupt(*_):
        raise SoftTimeLimitExceeded

    port = vendor(lambda _: time.sleep(2)).port if is_sent else full_port
    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        outcome = client(f"http://127.0.0.1:{port}").send("track", EVENT)
    finally:
        signal.signal(signal.SIGALRM, previous)

    assert outcome == (Ambiguous("error") if is_sent else Unavailable("connect"))


def test_the_end_of_the_process_is_no_outcome(client, vendor):
    def interrupt(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            client(vendor(lambda _: time.sleep(2)).url).send("track", EVENT)
    finally:
        signal.signal(signal.SIGALRM, previous)


FORKING = """
import ctypes, os, sys
from pydantic import SecretStr
from mm_tasks.cli.check import masked
from mm_tasks.client.access import VendorAccess
from mm_tasks.client.api import Client

to = Client(VendorAccess(sys.argv[1], SecretStr("sk_test_abc_x")))
to.send("track", [b"parent"])
child = ctypes.PyDLL(None).fork()
to.send("track", [b"child" if child == 0 else b"parent"])
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
to.send("track", [b"parent"])
"""


def test_a_child_forked_without_hooks_opens_a_connection_of_its_own(vendor):
    """uWSGI forks in C: two processes on one connection would receive each other's answers."""
    server = vendor(OK)

    subprocess.run([sys.executable, "-c", FORKING, server.url], check=True, timeout=60)

    users = {(number, b"child" in body) for number, _, body in server.requests}
    assert users == {(0, False), (1, True)}
    assert len(server.requests) == 4


PROXIES = [
    *(
        "socks5://proxy",
        "proxy:3128",
        "http://",
        "http://:3128",
        "http://proxy:0",
        "http://proxy:x",
    ),
    *("http://u:s3cret@p@proxy", "http://u:s3cret/x@proxy", "http://u:s3cret?@proxy", "http://a b"),
    *("http://u:s3cret#@proxy", "http://proxy/path", "http://s3cret@proxy/?a=b", "ftp://s3cret@x"),
]


@pytest.mark.parametrize("url", PROXIES)
def test_a_bad_url_of_a_proxy_is_refused_by_its_rule(url):
    """A `/`, `?`, `#` or `@` in a password would end the host too early."""
    with pytest.raises(ConfigurationError, match=r"^MM_TASKS_PROXY_URL: must ") as caught:
        Settings.load({"proxy_url": url})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://proxy", "https://u:p%40ss@proxy:3128/", "http://[::1]:3128", "http://müller.example"],
)
def test_a_good_url_of_a_proxy_is_accepted_and_never_shown(url):
    settings = Settings.load({"proxy_url": url})

    assert settings.proxy_url.get_secret_value() == url
    assert "p%40ss" not in repr(settings) + masked("proxy_url", settings.proxy_url)


def test_check_shows_whom_the_client_trusts(authority, tmp_path):
    def trust(path):
        settings = Settings.load({"millimetric_key": KEY, "ca_file": path})
        (check,) = (one for one in checks.vendor(settings) if one.name == "trust")
        return check.state, check.sentence

    (tmp_path / "empty.pem").touch()

    assert trust(None) == ("ok", "authorities for the vendor: the system's, else certifi's")
    assert trust(authority.file) == ("ok", "authorities for the vendor: MM_TASKS_CA_FILE's")
    state, sentence = trust(tmp_path / "empty.pem")
    assert state == "problem"
    assert sentence.startswith("MM_TASKS_CA_FILE: must name a file")
