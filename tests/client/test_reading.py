"""Answers are read to their end, and none is taken for the answer to another request."""

import gzip
import socket
import time
import zlib
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_tasks.client.access import vendor_access
from mm_tasks.client.api import Client
from mm_tasks.client.outcome import Ambiguous, Delivered, Filtered, Outcome, Rejected, Throttled
from tests.client.conftest import KEY
from tests.client.servers import OK, Vendor, closing, http

BODY = b'{"ok":true,"count":1}'
REFUSED = http(400, b'{"error":"invalid_payload"}')
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
ZIPPED = gzip.compress(BODY)
EVENT = [b'{"event":"a"}']


def chunked(*chunks, end=b"0\r\n\r\n"):
    raw = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 202 A\r\nTransfer-Encoding: chunked\r\n\r\n" + raw + end


def raw_deflate(data):
    encoder = zlib.compressobj(wbits=-15)
    return encoder.compress(data) + encoder.flush()


def coded(coding, body, status=202):
    return http(status, body, f"Content-Encoding: {coding}")


READ = {
    "after 103": (HINT + OK, Delivered(1)),
    "after 100 and 102": (b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 102 P\r\n\r\n" + OK, Delivered(1)),
    "after fifty 103s": (HINT * 50 + OK, Delivered(1)),
    "refused after 103": (HINT + REFUSED, Rejected),
    "in chunks": (chunked(BODY[:5], BODY[5:]), Delivered(1)),
    "in chunks with trailers": (chunked(BODY, end=b"0\r\nA: b\r\n\r\n"), Delivered(1)),
    "gzip": (coded("gzip", ZIPPED), Delivered(1)),
    "x-gzip": (coded("X-Gzip", ZIPPED), Delivered(1)),
    "deflate": (coded("deflate", zlib.compress(BODY)), Delivered(1)),
    "deflate without its header": (coded("deflate", raw_deflate(BODY)), Delivered(1)),
    "identity": (coded("identity", BODY), Delivered(1)),
    "one length twice": (http(202, BODY, "Content-Length: 21"), Delivered(1)),
    "lines end in LF": (OK.replace(b"\r\n", b"\n"), Delivered(1)),
    "a count no int can hold": (http(202, b'{"ok":true,"count":%s}' % (b"9" * 5000)), Delivered()),
    "a count no float can hold": (http(202, b'{"ok":true,"count":1e999}'), Delivered()),
    "a negative count": (http(202, b'{"ok":true,"count":-1}'), Delivered()),
    "a count that is no number": (http(202, b'{"ok":true,"count":NaN}'), Delivered()),
}
UNREAD = {
    "interim only": (HINT, Ambiguous("cut")),
    "interim without end": (HINT * 1000, Ambiguous("unusable")),
    "another protocol": (b"HTTP/1.1 101 S\r\nUpgrade: h2c\r\n\r\n", Ambiguous("101", 101)),
    "no HTTP": (b"220 mail.example ESMTP\r\n", Ambiguous("unusable")),
    "no status": (b"HTTP/1.1 2 OK\r\n\r\n", Ambiguous("unusable")),
    "a head without end": (b"HTTP/1.1 202 A\r\n" + b"A: b\r\n" * 20_000, Ambiguous("unusable")),
    "a line without end": (b"HTTP/1.1 202 " + b"a" * 100_000, Ambiguous("unusable")),
    "two lengths": (http(202, BODY, "Content-Length: 7"), Ambiguous("unusable", 202)),
    "a negative length": (b"HTTP/1.1 202 A\r\nContent-Length: -1\r\n\r\n" + BODY, Ambiguous),
    "a length of digits": (
        b"HTTP/1.1 202 A\r\nContent-Length: %s\r\n\r\n" % (b"9" * 5000),
        Ambiguous("unusable", 202),
    ),
    "a bad chunk": (chunked(BODY).replace(b"\r\n15\r\n", b"\r\n-5\r\n"), Ambiguous),
    "another transfer coding": (
        chunked(BODY).replace(b"chunked", b"gzip, chunked"),
        Ambiguous("unusable", 202),
    ),
    "chunks cut": (chunked(BODY, end=b""), Ambiguous("cut", 202)),
    "br": (coded("br", b"\x8b\x0a\x80" + BODY + b"\x03"), Ambiguous("unusable", 202)),
    "gzip twice": (
        coded("gzip, gzip", gzip.compress(ZIPPED)),
        Ambiguous("unusable", 202),
    ),
    "gzip cut": (coded("gzip", ZIPPED[:-4]), Ambiguous("unusable", 202)),
    "gzip and more": (coded("gzip", ZIPPED + b"x"), Ambiguous("unusable", 202)),
    "no gzip": (coded("gzip", BODY), Ambiguous("unusable", 202)),
    "a bomb": (coded("gzip", gzip.compress(BODY + b" " * 10**7)), Ambiguous("unusable", 202)),
    "two glued together": (http(202, BODY + BODY), Ambiguous("unusable", 202)),
    "an HTML 202": (http(202, b"<html>"), Ambiguous("unusable", 202)),
}
UNREAD_REFUSALS = {
    "400 gzip cut": (coded("gzip", gzip.compress(b"{}")[:-4], 400), Rejected),
    "400 cut": (REFUSED[:-3], Rejected),
    "403 br": (coded("br", b"page", 403), Filtered),
    "404 two lengths": (http(404, b"page", "Content-Length: 9"), Filtered),
    "429 cut": (http(429, b"{", "Retry-After: 3")[:-1], Throttled),
    "429 a giant": (http(429, b" " * 100_000), Throttled),
}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [*READ.values(), *UNREAD.values(), *UNREAD_REFUSALS.values()],
    ids=[*READ, *UNREAD, *UNREAD_REFUSALS],
)
def test_an_answer_is_read_or_in_doubt(vendor, client, answer, expected):
    """An unreadable body leaves a doubt after a success only: a refusal is said by its status."""
    outcome = client(vendor(closing(answer)).url).send("track", EVENT)

    assert (type(outcome) if isinstance(expected, type) else outcome) == expected


LEFT_OVER = {
    "103 after the answer": OK + HINT,
    "two answers": OK + OK,
    "a byte after the body": OK + b"x",
    "bytes after the last chunk": chunked(BODY) + b"x",
    "chunks and a length": chunked(BODY).replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n", 1),
    "one length twice": http(202, BODY, "Content-Length: 21"),
    "two lengths": http(202, BODY, "Content-Length: 7"),
    "a line that is no header": http(202, BODY, "garbage"),
    "connection: close": http(202, BODY, "Connection: Close"),
    "HTTP/1.0": OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a giant": http(202, b" " * 70_000),
    "a bad encoding": coded("gzip", BODY),
    "another protocol": b"HTTP/1.1 101 S\r\n\r\n",
    "a page": http(204) + b"<html>",
}


@pytest.mark.parametrize("first", LEFT_OVER.values(), ids=LEFT_OVER.keys())
def test_nothing_left_over_answers_the_next_request(vendor, client, first):
    server = vendor(first, http(400, b'{"error":"invalid_payload"}'))
    to = client(server.url)
    to.send("track", EVENT)

    assert isinstance(to.send("track", EVENT), Rejected)
    assert server.connections == [0, 1]


def test_a_connection_without_leftovers_is_used_again(vendor, client):
    server = vendor(OK, HINT + OK, chunked(BODY), REFUSED, http(204), OK)
    to = client(server.url)
    for _ in range(6):
        to.send("track", EVENT)

    assert server.connections == [0] * 6


def test_a_refused_batch_is_not_acknowledged_by_an_older_answer(vendor, client):
    """The reported loss: of each pair, the second batch was refused and counted delivered."""
    to = client(vendor(HINT + OK, HINT + REFUSED, HINT + OK, HINT + REFUSED).url)

    outcomes = [type(to.send("track", EVENT)) for _ in range(4)]

    assert outcomes == [Delivered, Rejected, Delivered, Rejected]


@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("late", [OK, b"\r\n", None], ids=["an answer", "a line", "the end"])
def test_what_arrives_between_two_requests_answers_none(vendor, client, authority, late, is_tls):
    arrived = Event()

    def answer(sock):
        sock.sendall(OK)
        if late:
            sock.sendall(late)
        else:
            sock.shutdown(socket.SHUT_WR)
        arrived.set()
        return late is None

    server = vendor(answer, REFUSED, tls=authority.server("127.0.0.1") if is_tls else None)
    to = client(server.url, ca_file=authority.file)
    to.send("track", EVENT)
    arrived.wait(5)

    assert isinstance(to.send("track", EVENT), Rejected)
    assert server.connections == [0, 1]


def test_a_late_answer_answers_nothing_else(vendor, client):
    """The first answer comes when nobody waits for it any more, over the same connection."""
    is_over = Event()

    def answer(sock):
        is_over.wait(5)
        sock.sendall(OK)

    to = client(vendor(answer, REFUSED).url, request_timeout_s=0.2)

    assert to.send("track", EVENT) == Ambiguous("timeout")
    is_over.set()
    assert isinstance(to.send("track", EVENT), Rejected)


def test_a_refusal_that_comes_before_the_body_was_read_counts(vendor, client):
    """A filter may close as soon as it has seen enough; what it refused was not stored."""

    def refuse(sock):
        sock.sendall(http(413, b"<html>"))
        return True

    server = vendor(refuse)
    server.serve = refuse

    assert isinstance(client(server.url).send("track", [b"x" * 10_000_000]), Rejected)


TZ_DATES = {
    "asctime": "%a %b %d %H:%M:%S %Y",
    "without a zone": "%a, %d %b %Y %H:%M:%S",
    "-0000": "%a, %d %b %Y %H:%M:%S -0000",
    "GMT": "%a, %d %b %Y %H:%M:%S GMT",
    "RFC 850": "%A, %d-%b-%y %H:%M:%S GMT",
}


@pytest.fixture
def new_york(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("form", TZ_DATES.values(), ids=TZ_DATES.keys())
@pytest.mark.usefixtures("new_york")
def test_a_date_is_utc_wherever_the_worker_is(vendor, client, form):
    date = time.strftime(form, time.gmtime(time.time() + 60))

    outcome = client(vendor(http(429, b"", f"Retry-After: {date}")).url).send("track", EVENT)

    assert 55 < outcome.retry_after_s <= 60


def test_a_date_is_judged_by_the_clock_that_wrote_it(vendor, client):
    """The clock of the worker may be an hour ahead."""
    dates = "Date: Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After: Wed, 21 Oct 2015 07:28:07 GMT"

    outcome = client(vendor(http(429, b"", *dates)).url).send("track", EVENT)

    assert outcome.retry_after_s == 7


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("-5", 0),
        ("2.5", 2.5),
        ("9" * 400, 900),
        ("-" + "9" * 5000, 0),
        ("soon", None),
        ("٣", None),
        ("nan", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 900),
        ("Wed, 99 Foo 2015 77:28:00 GMT", None),
    ],
)
def test_retry_after_is_clamped_or_unknown(vendor, client, header, seconds):
    line = f"Retry-After: {header}".encode()
    answer = http(429).replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n")

    assert client(vendor(answer).url).send("track", EVENT).retry_after_s == seconds


@pytest.mark.parametrize(
    ("number", "seconds"),
    [
        *(("3", 3), ("-1", 0), ("9" * 5000, 900), ("9" * 400, 900), ("1e999", 900)),
        *(("-1e999", 0), ("NaN", None), ("true", None), ('"3"', None)),
    ],
)
def test_a_number_of_the_body_is_clamped_or_unknown(vendor, client, number, seconds):
    answer = http(429, b'{"error":"rate_limited","retry_after_s":%s}' % number.encode())

    assert client(vendor(answer).url).send("track", EVENT).retry_after_s == seconds


CUT = {
    "202": (OK, Delivered, Ambiguous),
    "202 in chunks": (chunked(BODY[:9], BODY[9:]), Delivered, Ambiguous),
    "202 to the end": (b"HTTP/1.1 202 A\r\n\r\n" + BODY, Delivered, Ambiguous),
    "202 gzip after 103": (HINT + coded("gzip", ZIPPED), Delivered, Ambiguous),
    "400": (REFUSED, Rejected, Rejected),
    "403": (http(403, b"<html>"), Filtered, Filtered),
    "429": (http(429, b'{"retry_after_s":3}', "Retry-After: 3"), Throttled, Throttled),
}


@pytest.mark.parametrize(("answer", "whole", "cut"), CUT.values(), ids=CUT.keys())
def test_an_answer_cut_at_any_byte_is_in_doubt_or_a_refusal(vendor, client, answer, whole, cut):
    server = vendor(*(closing(answer[:end]) for end in range(len(answer) + 1)))
    to = client(server.url)

    outcomes = [type(to.send("track", EVENT)) for _ in range(len(answer) + 1)]

    assert outcomes[-1] == whole
    assert set(outcomes[:-1]) == {Ambiguous, cut}


FIELDS = [
    *("Content-Length: 21", "Content-Length: 5", "Content-Length: 99999999999999999999"),
    *("Transfer-Encoding: chunked", "Transfer-Encoding: br", "Content-Encoding: gzip"),
    *(
        "Content-Encoding: deflate",
        "Content-Encoding: br",
        "Connection: close",
        "Location: http://[",
    ),
    *("Retry-After: 1e5", "Retry-After: 12", "Retry-After: Sun Nov  6 08:49:37 1994", "Date: x"),
    *(": no name", "no colon", " folded: line", "Content-Length : 21", "Content-Type: text/html"),
]
BODIES = [
    *(BODY, b"", b"<html>", b"[]", b"null", b'"', b"\xff\xfe", b"[" * 60_000, ZIPPED),
    *(b"15\r\n%s\r\n0\r\n\r\n" % BODY, b'{"ok":true}', b'{"error":"invalid_api_key"}', b"{}" * 9),
    b'{"error":"rate_limited","retry_after_s":%s}' % (b"1" * 5000),
]
STATUSES = st.sampled_from([100, 103, 200, 202, 204, 304, 400, 401, 403, 404, 413, 429, 500, 999])


@st.composite
def answers(draw):
    """Return a status and the bytes that a server sends before it ends the connection."""
    status = draw(STATUSES | st.integers(100, 999))
    interim = draw(st.sampled_from([b"", HINT]))
    fields = draw(st.lists(st.sampled_from(FIELDS) | st.text(max_size=20), max_size=4))
    lines = "".join(f"{field}\r\n" for field in fields).encode()
    body = draw(st.sampled_from(BODIES) | st.binary(max_size=40))
    cut = draw(st.none() | st.integers(0, 400))
    return status, (interim + b"HTTP/1.1 %d X\r\n" % status + lines + b"\r\n" + body)[:cut]


@pytest.fixture(scope="module")
def long_lived():
    server = Vendor(OK)
    to = Client(vendor_access(server.url, KEY), request_timeout_s=5)
    yield server, to
    to.close()
    server.stop()


@given(answers())
def test_nothing_but_an_outcome_leaves_the_client(long_lived, sent):
    """And no answer but a whole success is one."""
    server, to = long_lived
    status, answer = sent
    server.answers[:] = [closing(answer)]

    outcome = to.send("track", EVENT)

    assert isinstance(outcome, Outcome)
    if isinstance(outcome, Delivered):
        assert status in {200, 202}
        assert b'"ok":true' in answer or ZIPPED in answer
