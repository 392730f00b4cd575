"""A producer that goes on calling `track.delay` and writes down what each call said."""

from __future__ import annotations

from collections import defaultdict

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
        said = "stored"
    except BufferFull:
        said = "full"
    except BufferUnavailable as error:
        said = "maybe" if error.maybe_stored else "unavailable"
    print(said, event_id, time.monotonic() - before, flush=True)
    time.sleep(0.01)
"""


class Caller:
    """One process; a call that takes 30 s ends it with a traceback."""

    def __init__(self, stack):
        (stack.log_dir / "caller.py").write_text(_PROGRAM)
        self._stack = stack
        self.process = stack.start("caller", "caller")

    def said(self):
        """Return the event ids by what their call said."""
        ids = defaultdict(list)
        for said, event_id, _ in self._lines():
            ids[said].append(event_id)
        return ids

    def longest_s(self):
        return max(float(took_s) for _, _, took_s in self._lines())

    def wait_for(self, said, more=1, within_s=30):
        """Wait until that was said `more` times from now on."""
        before = len(self.said()[said])
        self._stack.wait(lambda: len(self.said()[said]) >= before + more, within_s)

    def end(self):
        """Let it end by itself, and return the event ids by what their call said."""
        (self._stack.log_dir / "stop").touch()
        self.process.wait(40)

        assert self.process.returncode == 0, self._stack.read(self.process)
        return self.said()

    def _lines(self):
        lines = [line.split() for line in self._stack.read(self.process).splitlines()]
        return [line for line in lines if len(line) == 3]
