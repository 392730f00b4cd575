"""Each fault as it is seen on the wire, what it leaves stored, and when it applies."""

import socket
import time

import pytest

from tests.sandbox.conftest import SECRET

BATCH = {"events": [{"event": "a", "event_id": "id-1"}, {"event": "b", "event_id": "id-2"}]}
FINE = b'{"ok": true, "count": 2}'


def stored(sandbox):
    return sandbox.seen("ids") == ["id-1", "id-2"]


STATUSES = {
    "429 with seconds": (429, '{"error":"rate_limited"}', {"Retry-After": "3"}),
    "429 with a date": (429, "{}", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    "429 without it": (429, "{}", {}),
    "429 with 0": (429, "{}", {"Retry-After": "0"}),
    "429 with less than 0": (429, "{}", {"Retry-After": "-5"}),
    "429 with garbage": (429, "{}", {"Retry-After": "soon"}),
    "500": (500, '{"error":"internal_error"}', {}),
    "502": (502, '{"error":"upstream_failed"}', {}),
    "503": (503, "", {}),
    "504": (504, "", {}),
    "HTML with 200": (200, "<html>fine</html>", {}),
    "HTML with 520": (520, "<html>web server is down</html>", {}),
    "202 that says no": (202, '{"ok":false}', {}),
    "401": (401, '{"error":"invalid_api_key"}', {}),
    "403": (403, '{"error":"insufficient_scope"}', {}),
    **{str(s): (s, "", {"Location": "http://127.0.0.1:1/"}) for s in (301, 302, 303, 307, 308)},
}


@pytest.mark.parametrize("store", [False, True], ids=["before storing", "after storing"])
@pytest.mark.parametrize(("status", "body", "headers"), STATUSES.values(), ids=STATUSES.keys())
def test_any_answer_can_be_given_before_or_after_storing(sandbox, status, body, headers, store):
    sandbox.fault(kind="status", status=status, body=body, headers=headers, store=store)
    reply = sandbox.post("batch", BATCH)

    assert (reply.status, reply.body) == (status, body.encode())
    assert reply.headers.get("Retry-After") == headers.get("Retry-After")
    assert reply.headers.get("Location") == headers.get("Location")
    assert reply.headers.get_content_subtype() == ("html" if body.startswith("<") else "json")
    assert stored(sandbox) is store


HEAD = b"HTTP/1.1 202 Accepted\r\nContent-Ty"
BODY = b'HTTP/1.1 202 Accepted\r\nContent-Length: 99\r\n\r\n{"ok":tr'
BROKEN = {
    "close_before_read": ({}, b"", False),
    "close_after_store": ({}, b"", True),
    "cut_headers": ({}, HEAD, False),
    "cut_headers, stored": ({"store": True}, HEAD, True),
    "cut_body": ({}, BODY, False),
    "cut_body, stored": ({"store": True}, BODY, True),
    "hang": ({"for_s": 0.3}, b"", False),
    "hang, stored": ({"for_s": 0.3, "store": True}, b"", True),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_answer_that_breaks_off_ends_where_it_should(sandbox, name):
    options, seen, is_stored = BROKEN[name]
    kind = name.partition(",")[0]
    sandbox.fault(kind=kind, **options)
    began = time.monotonic()

    assert sandbox.wire(BATCH) == seen
    assert time.monotonic() - began >= options.get("for_s", 0)
    assert stored(sandbox) is is_stored
    (line,) = sandbox.lines("journal")
    assert (line["status"], line["stored"], line["fault"]) == (None, is_stored, kind)


def test_close_before_read_does_not_wait_for_the_body(sandbox):
    sandbox.fault(kind="close_before_read")
    head = f"POST /v1/batch HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\nX: {SECRET}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", sandbox.port), 5) as sock:
        sock.sendall(head.encode())

        assert sock.recv(1) == b""


def test_a_giant_answer_is_four_million_bytes_that_are_no_json(sandbox):
    sandbox.fault(kind="giant")
    reply = sandbox.post("batch", BATCH)
    assert (reply.status, len(reply.body), set(reply.body)) == (202, 4_000_000, set(b"x"))
    assert not stored(sandbox)


SLOW = {"drip": {"every_s": 0.005}, "slow": {"latency_s": 0.3}}


@pytest.mark.parametrize(("kind", "options"), SLOW.items(), ids=SLOW.keys())
def test_a_slow_response_is_the_proper_one_late_or_a_byte_at_a_time(sandbox, kind, options):
    sandbox.fault(kind=kind, **options)
    began = time.monotonic()
    raw = sandbox.wire(BATCH)

    assert time.monotonic() - began >= options.get("latency_s", 0.005 * len(raw))
    assert raw.startswith(b"HTTP/1.1 202 Accepted\r\n")
    assert raw.endswith(b"\r\n\r\n" + FINE)
    assert stored(sandbox)
    assert sandbox.lines("journal")[0]["status"] == 202


def test_a_drip_to_a_closed_connection_is_broken_off(sandbox):
    sandbox.fault(kind="drip", every_s=0.02)
    with sandbox.sent(BATCH) as sock:
        assert sock.recv(1) == b"H"
    time.sleep(0.3)

    assert sandbox.lines("journal")[0]["status"] is None


@pytest.mark.parametrize("status", [504, None])
def test_late_apply_stores_after_the_client_was_let_down(sandbox, status):
    """As behind a gateway that times out: the rows are stored although the response is an error."""
    sandbox.fault(kind="late_apply", after_s=0.3, status=status)
    seen = sandbox.wire(BATCH)
    before = stored(sandbox)
    time.sleep(0.4)

    assert seen.startswith(b"HTTP/1.1 504 ") if status else seen == b""
    assert not before
    assert stored(sandbox)
    (line,) = sandbox.lines("journal")
    assert line["stored_at"] >= line["done_at"]


def test_a_bad_request_is_stored_by_no_fault(sandbox):
    sandbox.fault(kind="status", status=503, store=True)
    sandbox.post("batch", {"events": [{"event": ""}]})
    assert not sandbox.lines("journal")[0]["stored"]


APPLIES = {
    "once unless told": ({}, [1, 0, 0, 0, 0, 0]),
    "so many times": ({"times": 3}, [1, 1, 1, 0, 0, 0]),
    "after so many": ({"after": 2, "times": 2}, [0, 0, 1, 1, 0, 0]),
    "each third": ({"every": 3}, [0, 0, 1, 0, 0, 1]),
    "each second, once": ({"every": 2, "times": 1}, [0, 1, 0, 0, 0, 0]),
    "each second after one": ({"every": 2, "after": 1}, [0, 0, 1, 0, 1, 0]),
    "within a window": ({"between": [0, 9e9]}, [1, 1, 1, 1, 1, 1]),
    "before a window": ({"between": [9e9, 9.1e9]}, [0, 0, 0, 0, 0, 0]),
    "on another route": ({"route": "/v1/track"}, [0, 0, 0, 0, 0, 0]),
    "with its poison": ({"poison": True, "event": "b"}, [1, 1, 1, 1, 1, 1]),
    "with another's poison": ({"poison": True, "event": "c"}, [0, 0, 0, 0, 0, 0]),
}


@pytest.mark.parametrize(("rule", "hits"), APPLIES.values(), ids=APPLIES.keys())
def test_a_fault_applies_by_its_rule_and_is_counted(sandbox, rule, hits):
    sandbox.fault(kind="status", status=503, **rule)
    seen = [int(sandbox.post("batch", BATCH).status == 503) for _ in hits]

    assert seen == hits
    (shown,) = sandbox.seen("faults")
    assert shown.items() >= {"kind": "status", "status": 503, **rule, "hits": sum(hits)}.items()


def test_poison_is_found_at_any_position_and_its_neighbours_pass(sandbox):
    sandbox.fault(kind="status", status=400, poison=True, event="bad")
    good, bad = {"event": "good"}, {"event": "bad"}
    batches = [[good, bad], [good], [bad], [good, good]]

    assert [sandbox.post("batch", {"events": b}).status for b in batches] == [400, 202, 400, 202]


def test_a_window_ends(sandbox):
    sandbox.fault(kind="status", status=503, between=[time.time(), time.time() + 0.3])
    during = sandbox.post("batch", BATCH).status
    time.sleep(0.4)

    assert (during, sandbox.post("batch", BATCH).status) == (503, 202)


def test_the_first_fault_that_applies_is_taken(sandbox):
    rules = [{"status": 500}, {"status": 502, "times": 2}, {"status": 503, "route": "/v1/track"}]
    sandbox.switch("faults", [{"kind": "status", **rule} for rule in rules])
    seen = [sandbox.post("batch", BATCH).status for _ in range(4)]

    assert seen == [500, 502, 502, 202]
    assert [fault["hits"] for fault in sandbox.seen("faults")] == [1, 2, 0]


POISON = {"poison": True, "event": "a"}
TWO_LINES = {"A": "b\r\nC: d"}
REFUSED = {
    "an unknown kind": ({"kind": "explode"}, "explode"),
    "no kind": ({"status": 500}, "kind"),
    "an unknown key": ({"kind": "hang", "colour": "red"}, "colour"),
    "a key of another kind": ({"kind": "hang", "status": 500}, "status"),
    "a key that is needed": ({"kind": "status"}, "status"),
    "a text for a number": ({"kind": "status", "status": "500"}, "status"),
    "an unknown route": ({"kind": "hang", "route": "/v1/bach"}, "route"),
    "never": ({"kind": "hang", "times": 0}, "times"),
    "a window that is none": ({"kind": "hang", "between": [2, 1]}, "between"),
    "poison without its name": ({"kind": "hang", "poison": True}, "poison"),
    "a name without poison": ({"kind": "hang", "event": "a"}, "poison"),
    "poison without events": ({"kind": "hang", "route": "/v1/forget", **POISON}, "poison"),
    "poison that is not read": ({"kind": "close_before_read", **POISON}, "poison"),
    "storing what was not read": ({"kind": "close_before_read", "store": True}, "store"),
    "two lines in a header": ({"kind": "status", "status": 500, "headers": TWO_LINES}, "headers"),
    "no list": ("explode", "array"),
}


@pytest.mark.parametrize(("fault", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_a_fault_that_could_never_apply_is_refused_by_name(sandbox, fault, named):
    """A test that posts a misspelt fault must not pass because nothing went wrong."""
    sandbox.fault(kind="status", status=503, times=9)
    good = {"kind": "giant"}
    reply = sandbox.switch("faults", [good, fault] if isinstance(fault, dict) else fault)

    assert reply.status == 400
    assert named in reply.json["details"]
    assert sandbox.seen("faults") == [{"kind": "status", "status": 503, "times": 9, "hits": 0}]
    assert sandbox.post("batch", BATCH).status == 503
