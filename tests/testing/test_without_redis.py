"""The kit needs nothing: no variable, no server, no socket."""

from .conftest import python

NO_SOCKET = """
import os, sys
from mm_tasks import forget, identify, track
from mm_tasks.testing import record

def no_socket(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        os.write(2, f"{event} {args}".encode())
        os._exit(9)

sys.addaudithook(no_socket)
assert not [name for name in os.environ if name.startswith(("MM_", "MILLI"))]
"""


def test_recording_opens_no_socket():
    """A connection attempt ends the process, whoever would swallow its exception."""
    program = """
import asyncio
with record() as events:
    track.delay("a", user_id="u1")
    track.delay_many([{"event": "b"}] * 2500)
    asyncio.run(track.adelay("c"))
    identify.delay("a1", "u1")
    forget.delay(user_id="u9", requested_by="dpo")
    track.apply_async(("d",), countdown=5)
    forget.apply_async((), {"user_id": "u9", "requested_by": "dpo"}, countdown=5)
print(len(events.events))
"""

    assert python(NO_SOCKET + program) == "2506\n"


def test_a_forked_child_records_too():
    """Without it, a child of a test would store for real."""
    program = """
with record() as events:
    track.delay("a")
    child = os.fork()
    if not child:
        track.delay("b")
        os._exit(len(events.events))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(events.events))
"""

    assert python(NO_SOCKET + program) == "2 1\n"


def test_the_plugin_imports_nothing_that_takes_time():
    """pytest loads it in every run of everybody who has this package installed."""
    heavy = {"celery", "kombu", "redis", "requests", "pydantic", "sqlalchemy", "aiohttp"}
    printed = python("import sys, mm_tasks.testing.plugin; print(*sys.modules)")
    assert not heavy & set(printed.split())
