"""The journal, the page, and the process they live in."""

import signal
import socket
import subprocess
import sys
import time

from tests.sandbox.conftest import SECRET


def test_the_journal_has_a_line_for_each_request_in_order(sandbox):
    began = time.time()
    sandbox.post("batch", b'{"events":[{"event":"a","event_id":"1"},{"event":"b"}]}')
    sandbox.post("batch", {"events": [{"event": "", "event_id": "2"}]})
    sandbox.post("track", {"event": "a", "event_id": "3"})
    sandbox.post("identify", {"anonymous_id": "a", "user_id": "u"})
    sandbox.post("forget", {"user_id": "u"})
    sandbox.get("query")
    lines = sandbox.lines("journal")

    assert [(x["route"], x["status"], x["stored"], x["ids"]) for x in lines] == [
        ("/v1/batch", 202, True, ["1", None]),
        ("/v1/batch", 400, False, ["2"]),
        ("/v1/track", 202, True, ["3"]),
        ("/v1/identify", 200, True, ["a|u"]),
        ("/v1/forget", 200, True, []),
        ("/v1/query", 200, False, []),
    ]
    assert all(began <= x["at"] <= x["done_at"] <= time.time() for x in lines)
    assert all((x["stored_at"] is not None) == x["stored"] for x in lines)
    assert lines[0]["bytes"] == 55
    assert {x["fault"] for x in lines} == {None}


def test_a_request_that_its_sender_breaks_off_is_in_the_journal_and_stored_if_whole(start):
    """A killed worker leaves such requests, and a test that counts must know them."""
    sandbox = start(latency_s=0.3)
    head = "POST /v1/batch HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n"
    with socket.create_connection(("127.0.0.1", sandbox.port), 5) as sock:
        sock.sendall(f"{head}Authorization: Bearer {SECRET}\r\n\r\n{{".encode())
        time.sleep(0.1)
    time.sleep(0.2)
    with sandbox.sent({"events": [{"event": "a"}]}):
        time.sleep(0.1)
    time.sleep(0.4)
    lines = sandbox.lines("journal")

    assert [(line["status"], line["stored"]) for line in lines] == [(None, False), (None, True)]
    assert lines[0]["done_at"] is not None


def test_an_unvalidated_sandbox_stores_unreadable_bodies(start):
    """It is for speed: bodies are parsed only when a test reads them, and errors are ignored."""
    sandbox = start(validated=False)
    statuses = [sandbox.post("batch", raw).status for raw in (b"no json", b'{"events":[7]}')]

    assert statuses == [202, 202]
    assert [line["ids"] for line in sandbox.lines("journal")] == [[], []]
    assert sandbox.seen("summary")["batches"] == 2


def test_a_reset_removes_journal_rows_faults_and_keys(sandbox):
    sandbox.post("track", {"event": "a"})
    sandbox.fault(kind="giant")
    sandbox.switch("keys", ["sk_test_abc_other"])
    sandbox.request("POST", "/_sandbox/reset")

    assert sandbox.lines("journal") == sandbox.lines("rows") == sandbox.seen("faults") == []
    assert sandbox.post("track", {"event": "a"}).status == 202


def test_the_page_shows_the_arrived_data_and_escapes_it(sandbox):
    assert sandbox.request("GET", "/_sandbox").status == 200  # while it is empty
    sandbox.post("track", {"event": "<script>alert(1)</script>", "user_id": "<b>u</b>"})
    sandbox.post("forget", {"user_id": "<i>u</i>"})
    sandbox.fault(kind="status", status=503, body="<h1>down</h1>", route="/v1/track")
    sandbox.post("track", {"event": "a"})
    sandbox.request("GET", "/v1/<u>x")
    page = sandbox.request("GET", "/_sandbox/")
    text = page.body.decode()

    assert page.headers.get_content_type() == "text/html"
    assert '<meta http-equiv="refresh" content="2">' in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;i&gt;u&lt;/i&gt;" in text
    excluded = ("<script", "<b>", "<i>", "<h1>down", "<u>", "http://", "https://")
    assert not any(markup in text for markup in excluded)


def test_the_process_prints_its_address_and_ends_while_a_fault_holds_a_request():
    command = [sys.executable, "-m", "mm_tasks.sandbox", "--port", "0", "--forget-lag-s", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            fault = b'[{"kind":"hang","for_s":60,"route":"/v1/track"}]'
            sock.sendall(http("/_sandbox/faults", fault))
            assert b" 200 " in sock.recv(999)
            sock.sendall(http("/v1/track", b'{"event":"a"}'))
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)

            assert process.wait(10) == 0


def http(path, body):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Authorization: Bearer {SECRET}\r\n\r\n".encode() + body
