"""The sandbox served for tests: our own client sends, and the test reads the arrived rows."""

import subprocess
import sys
from urllib.error import URLError

import pytest
from pydantic import SecretStr

from mm_tasks.client.access import vendor_access
from mm_tasks.client.api import Client
from mm_tasks.client.outcome import Ambiguous, Delivered
from mm_tasks.sandbox import client as served_by
from mm_tasks.testing import serve_sandbox


@pytest.fixture(scope="module")
def served():
    with serve_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(served):
    served.reset()
    return served


@pytest.fixture
def client(sandbox):
    variables = sandbox.variables
    access = vendor_access(variables["MILLIMETRIC_HOST"], SecretStr(variables["MILLIMETRIC_KEY"]))
    client = Client(access, request_timeout_s=5)
    yield client
    client.close()


def test_arrived_events_and_identifies_are_returned(sandbox, client):
    client.send("track", [b'{"event":"a","user_id":"u1","properties":{"n":1}}', b'{"event":"b"}'])
    client.send_track(b'{"event":"c"}')
    client.send("identify", [b'{"anonymous_id":"a1","user_id":"u1"}'])

    first = {"event": "a", "user_id": "u1", "properties": {"n": 1}}
    assert sandbox.events() == [first, {"event": "b"}, {"event": "c"}]
    assert sandbox.identifies() == [{"anonymous_id": "a1", "user_id": "u1"}]
    assert len(sandbox.rows()) == 4


def test_a_forget_has_run_when_its_response_arrives(sandbox, client):
    """Otherwise every test would have to wait for it."""
    client.send_track(b'{"event":"a","user_id":"u1"}')
    client.send_track(b'{"event":"b","user_id":"u2"}')
    client.forget("u1")

    assert [call["user_id"] for call in sandbox.forgets()] == ["u1"]
    assert [row["event"] for row in sandbox.rows()] == ["b"]


def test_faults_apply_until_they_are_ended_and_unknown_ones_are_refused(sandbox, client):
    """A test whose fault never applies must not pass."""
    sandbox.fault("status", route="/v1/track", status=503, times=2)
    first = client.send_track(b'{"event":"a"}')
    sandbox.faults()

    assert isinstance(first, Ambiguous)
    assert isinstance(client.send_track(b'{"event":"a"}'), Delivered)
    with pytest.raises(ValueError, match="the sandbox refused"):
        sandbox.fault("no such fault")


def test_reset_removes_rows_calls_and_faults(sandbox, client):
    client.send_track(b'{"event":"a"}')
    sandbox.fault("hang", route="/v1/track", for_s=60)
    sandbox.reset()

    assert sandbox.events() == sandbox.rows() == sandbox.forgets() == []
    assert isinstance(client.send_track(b'{"event":"b"}'), Delivered)


def test_its_process_ends_with_the_block():
    with serve_sandbox() as sandbox:
        sandbox.reset()
    with pytest.raises(URLError):
        sandbox.reset()


def test_a_sandbox_that_does_not_start_reports_the_reason(monkeypatch):
    monkeypatch.setattr(served_by, "_COMMAND", ("-c", "raise SystemExit('no room')"))

    with pytest.raises(served_by.SandboxUnavailable, match="no room"), serve_sandbox():
        pass


def test_a_module_of_the_working_directory_is_not_imported(tmp_path):
    """Projects have files of any name."""
    (tmp_path / "asyncio.py").write_text("raise SystemExit('the wrong one')")
    code = "from mm_tasks.testing import serve_sandbox\nwith serve_sandbox() as s: s.reset()"
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True, timeout=30)
