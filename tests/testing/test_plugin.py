"""The plugin as pytest loads it: by its entry point, in a process of its own."""

REACH = """
import threading
import unittest
import pytest
from pydantic import SecretStr
from mm_tasks.client.access import VendorAccess
from mm_tasks.client.api import Client

def reach(host="https://real.invalid"):
    client = Client(VendorAccess(host, SecretStr("sk_test_abc_x")), request_timeout_s=2)
    try:
        return client.send_track(b"{}")
    finally:
        client.close()

def swallow(host="https://real.invalid"):
    try:
        reach(host)
    except Exception:
        pass
"""


def test_the_fixtures_record_and_serve(run_pytest):
    """Each test begins with nothing recorded and nothing arrived."""
    outcomes = run_pytest(
        test_fixtures="""
        import urllib.request
        import pytest
        from mm_tasks import track

        def send(sandbox):
            key = sandbox.variables["MILLIMETRIC_KEY"]
            request = urllib.request.Request(f"{sandbox.url}/v1/track", b'{"event":"a"}')
            request.add_header("Authorization", f"Bearer {key}")
            request.add_header("Content-Type", "application/json")
            urllib.request.urlopen(request).close()

        @pytest.mark.parametrize("n", [1, 2])
        def test_recorded(mm_tasks_events, n):
            track.delay("a")
            mm_tasks_events.assert_tracked_once("a")

        @pytest.mark.parametrize("n", [1, 2])
        def test_served(sandbox, mm_tasks_sandbox, n):
            assert sandbox is mm_tasks_sandbox
            send(sandbox)
            assert sandbox.events() == [{"event": "a"}]

        def test_traceback(mm_tasks_events):
            mm_tasks_events.assert_tracked("a")  # the line shown
        """
    )

    assert outcomes == {"recorded": "passed", "served": "passed", "traceback": "failed"}
    assert "the line shown" in outcomes.output
    assert "AssertionError: track('a') was not recorded." in outcomes.output
    assert "_missing" not in outcomes.output


def test_a_project_s_own_sandbox_wins_and_unused_fixtures_import_nothing(run_pytest):
    outcomes = run_pytest(
        conftest="""
        import pytest

        @pytest.fixture
        def sandbox():
            return "my own"
        """,
        test_own="""
        import sys

        def test_own(sandbox):
            assert sandbox == "my own"

        def test_cost():
            assert not {"celery", "redis", "requests", "pydantic"} & sys.modules.keys()
        """,
    )

    assert outcomes == {"own": "passed", "cost": "passed"}


def test_the_sandbox_names_the_missing_extra(run_pytest):
    outcomes = run_pytest(
        conftest="import sys; sys.modules['aiohttp'] = None",
        test_missing="def test_missing(sandbox): pass",
    )

    assert outcomes == {"missing": "error"}
    assert "another exception" not in outcomes.output
    assert "pip install 'mm-tasks[sandbox]'" in outcomes.output


# How a test may end after its code swallowed the exception of the guard.
ENDS = {
    "swallows": "pass",
    "skips": "pytest.skip('no')",
    "gives_up": "pytest.xfail('some day')",
    "other_failure": "assert 1 == 2",
    "own_words": "pytest.fail('for another reason')",
}
TESTS = """
def test_raises():
    reach()

def test_in_a_thread():
    thread = threading.Thread(target=swallow)
    thread.start()
    thread.join()

@pytest.fixture
def at_setup():
    swallow()

def test_setup(at_setup):
    pass

@pytest.fixture
def at_teardown():
    yield
    swallow()

def test_teardown(at_teardown):
    pass

def test_unaffected():
    pass

@pytest.mark.parametrize("host", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"])
def test_loopback(host):
    assert type(reach(host)).__name__ == "Unavailable"

@pytest.mark.mm_tasks_real_host
def test_allowed():
    assert reach().kind == "dns"

def test_last():
    pass

class TestOfUnittest(unittest.TestCase):
    def test_in_unittest(self):
        swallow()
"""


def test_a_test_that_would_reach_a_real_host_fails(run_pytest):
    """Whatever its code does with the exception, in any phase, thread and kind of test."""
    ends = [f"\ndef test_{name}():\n    swallow()\n    {end}\n" for name, end in ENDS.items()]
    outcomes = run_pytest(test_guard="".join([REACH, *ends, TESTS]))

    assert outcomes == {
        **dict.fromkeys([*ENDS, "raises", "in_a_thread", "in_unittest"], "failed"),
        **dict.fromkeys(["setup", "teardown"], "error"),
        **dict.fromkeys(["unaffected", "loopback", "allowed", "last"], "passed"),
    }
    message = "about to send to the real host https://real.invalid; nothing was sent"
    assert outcomes.output.count(message) >= 10
    assert "assert 1 == 2" in outcomes.output
    assert "Failed: for another reason" in outcomes.output


def test_the_guard_can_be_switched_off(run_pytest):
    test_off = REACH + "def test_off(): assert reach().kind == 'dns'"
    assert run_pytest("mm_tasks_guard = false", test_off=test_off) == {"off": "passed"}
