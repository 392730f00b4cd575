"""The client against sockets that misbehave: doubt must never look like an answer."""

import time
from ssl import SSLContext

import pytest
import requests
from pydantic import SecretStr

from mm_tasks.client.access import vendor_access
from mm_tasks.client.api import Client
from mm_tasks.client.dial import Dialer
from mm_tasks.client.outcome import (
    Ambiguous,
    Delivered,
    Filtered,
    Misdirected,
    Rejected,
    Response,
    Unauthorized,
)
from mm_tasks.client.transport import InDoubt, NotSent, WireAdapter
from mm_tasks.errors import ConfigurationError
from tests.client.conftest import KEY
from tests.client.servers import closing, http


@pytest.fixture
def send(vendor, client):
    """Send two events to a vendor that gives this answer and ends the connection."""

    def send(answer, timeout_s=10.0):
        send.vendor = vendor(answer if callable(answer) else closing(answer))
        to = client(send.vendor.url, request_timeout_s=timeout_s)
        return to.send("track", [b'{"event":"a"}', b'{"event":"b"}'])

    return send


def drip(sock):
    for byte in http(202, b'{"ok":true,"count":2}'):
        sock.sendall(bytes([byte]))
        time.sleep(0.1)


HERE = "Location: http://127.0.0.1:1/"
NO_TEXT = b"\r\nLocation: http://\xff/\r\n\r\n"
TABLE = {
    "202 with ok": (http(202, b'{"ok":true,"count":2}'), Delivered(2)),
    "200 with ok": (http(200, b'{"ok":true}'), Delivered(None)),
    "202 with ok false": (http(202, b'{"ok":false}'), Ambiguous("unusable", 202)),
    "200 with HTML": (http(200, b"<html>"), Ambiguous("unusable", 200)),
    "200 without a body": (http(200), Ambiguous("cut", 200)),
    "cut in the headers": (b"HTTP/1.1 202 Accepted\r\nContent-Ty", Ambiguous),
    "cut in the body": (b'HTTP/1.1 202 A\r\nContent-Length: 99\r\n\r\n{"ok":tr', Ambiguous),
    "closed without an answer": (b"", Ambiguous),
    "giant": (http(202, b'{"ok":true' + b" " * 70_000 + b"}"), Ambiguous),
    "400": (http(400, b'{"error":"invalid_payload"}'), Rejected),
    "413 of a proxy": (http(413, b"<html>"), Rejected),
    "401": (http(401, b'{"error":"invalid_api_key"}'), Unauthorized),
    "403": (http(403, b'{"error":"insufficient_scope"}'), Unauthorized),
    "403 of a filter": (http(403), Filtered(Response(403))),
    "403 of a JSON proxy": (http(403, b'{"error":"blocked"}'), Filtered(Response(403, "blocked"))),
    "404 of a page": (http(404, b"<html>"), Filtered(Response(404))),
    "404 with a code": (http(404, b'{"error":"invalid_payload"}'), Misdirected),
    "451": (http(451), Filtered),
    "307 elsewhere": (http(307, b"", HERE), Misdirected),
    "307 to nonsense": (http(307, b"", "Location: http://["), Misdirected),
    "307 to no text": (http(307).replace(b"\r\n\r\n", NO_TEXT), Misdirected),
    "307 with a code": (http(307, b'{"error":"moved"}', HERE), Misdirected(Response(307, "moved"))),
    "408": (http(408), Ambiguous),
    "502": (http(502, b'{"error":"upstream_failed"}'), Ambiguous("502", 502, "upstream_failed")),
    "520 of a proxy": (http(520, b"<html>"), Ambiguous("520", 520)),
}


@pytest.mark.parametrize(("answer", "expected"), TABLE.values(), ids=TABLE.keys())
def test_an_answer_is_classified(send, answer, expected):
    outcome = send(answer)

    assert (type(outcome) if isinstance(expected, type) else outcome) == expected


@pytest.mark.parametrize("answer", [lambda _: time.sleep(2), drip], ids=["silence", "drip"])
def test_the_deadline_is_for_the_whole_request(send, answer):
    """A read timeout alone would let a drip of 60 bytes hold a worker for 6 s."""
    assert send(answer, timeout_s=0.5) == Ambiguous("timeout")


def test_the_request_is_as_the_vendor_documents(send, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert send(http(202, b'{"ok":true,"count":2}')) == Delivered(2)
    ((_, head, body),) = send.vendor.requests

    assert body == b'{"events":[{"event":"a"},{"event":"b"}]}'
    assert head.startswith(b"POST /v1/batch HTTP/1.1")
    assert b"Authorization: Bearer sk_test_abc_s3cret_-x" in head
    assert b"Content-Type: application/json" in head
    assert b"User-Agent: mm-tasks/" in head


@pytest.mark.parametrize("key", ["pk_test_a_b", "rk_test_a_b", "ak_test_a_b", "sk_test", "x", ""])
def test_only_a_secret_key_is_accepted(key):
    with pytest.raises(ConfigurationError, match="MILLIMETRIC_KEY"):
        vendor_access("https://api.millimetric.ai", SecretStr(key))


@pytest.mark.parametrize(
    "host", ["http://example.com", "ftp://x", "x", "https://a:b@example.com", "https://x/?q=1"]
)
def test_a_host_that_would_leak_the_key_is_refused(host):
    with pytest.raises(ConfigurationError, match="MILLIMETRIC_HOST"):
        vendor_access(host, KEY)


@pytest.mark.parametrize("host", ["https://☃.example", "https://*.example", "https://x:0"])
def test_a_host_to_which_nothing_can_be_sent_is_refused(host):
    with pytest.raises(ConfigurationError, match="MILLIMETRIC_HOST"):
        vendor_access(host, KEY)


def session_of(server):
    session = requests.Session()
    session.mount("http://", WireAdapter(Dialer(server.url, tls=SSLContext)))
    return session


def test_the_transport_answers_as_requests_does(vendor):
    server = vendor(http(404, b"page", "A: b", "A: c"))
    with session_of(server) as session:
        response = session.post(server.url, data=b"x", timeout=5)

    assert response.headers == {"Content-Length": "4", "A": "b, c"}
    assert (response.status_code, response.content) == (404, b"page")
    with pytest.raises(requests.HTTPError, match="404"):
        response.raise_for_status()


@pytest.mark.parametrize(
    ("answer", "error"), [(None, NotSent("refused")), (closing(b""), InDoubt("cut"))]
)
def test_a_request_without_an_answer_says_whether_it_left(vendor, answer, error):
    """And nothing of the request."""
    server = vendor(answer)
    if answer is None:
        server.stop()
    with session_of(server) as session, pytest.raises(type(error)) as caught:
        session.post(f"{server.url}/s3cret", data=b"s3cret", timeout=5)

    assert (caught.value.args, caught.value.kind) == (error.args, error.kind)


def test_the_key_is_in_no_repr():
    access = vendor_access("https://api.millimetric.ai/", KEY)

    assert "s3cret" not in repr(access) + repr(Client(access))
