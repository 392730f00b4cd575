"""A producer that goes on calling `track.delay` and writes down how each call ended."""

from collections import defaultdict

from tests.system.accounting import wait_until_all_is_sent
from tests.system.processes import BATCH, assert_alive

# Connecting, one answer, asking for a flush: 2 s at most, and this machine may be busy.
CALL_S = 6

_PROGRAM = """
import faulthandler
import pathlib
import time
import uuid

from mm_tasks import track
from mm_tasks.errors import BufferFull, BufferUnavailable

while not pathlib.Path("stop").exists():
    event_id = str(uuid.uuid4())
    faulthandler.dump_traceback_later(30, exit=True)
    before = time.monotonic()
    try:
        track.delay("noted", event_id=event_id, user_id="u", properties={"text": "x" * 200})
        result = "stored"
    except BufferFull:
        result = "full"
    except BufferUnavailable as error:
        result = "maybe" if error.maybe_stored else "unavailable"
    print(result, event_id, time.monotonic() - before, flush=True)
    time.sleep(0.01)
"""


class Caller:
    """One process; a call that takes 30 s ends it with a traceback."""

    def __init__(self, stack):
        (stack.log_dir / "caller.py").write_text(_PROGRAM)
        self._stack = stack
        self.process = stack.start("caller", "caller")

    def results(self):
        """Return the event ids by the result of their call."""
        ids = defaultdict(list)
        for result, event_id, _ in self._lines():
            ids[result].append(event_id)
        return ids

    def wait_for(self, result, more=1, within_s=30):
        """Wait until `more` calls from now on ended with this result."""
        before = len(self.results()[result])
        self._stack.wait(lambda: len(self.results()[result]) >= before + more, within_s)

    def end(self):
        """Let it end by itself, no call having taken long, and return the results."""
        (self._stack.log_dir / "stop").touch()
        self.process.wait(40)

        assert self.process.returncode == 0, self._stack.read(self.process)
        assert max(float(took_s) for _, _, took_s in self._lines()) < CALL_S
        return self.results()

    def _lines(self):
        lines = [line.split() for line in self._stack.read(self.process).splitlines()]
        return [line for line in lines if len(line) == 3]


def assert_all_go_on(stack, caller, processes, redis, safe):
    """After a failover to `redis`, all that was safe before and all that came later arrives."""
    caller.wait_for("stored", 2 * BATCH)
    after = caller.results()["stored"][-BATCH:]
    results = caller.end()
    numbers = wait_until_all_is_sent(stack, redis)
    arrived = set(stack.get("ids"))

    assert_alive(*processes)
    assert set(safe) | set(after) <= arrived
    assert arrived <= set(results["stored"]) | set(results["maybe"])
    assert numbers["accepted"] == numbers["delivered"]
