"""Clocks that step, by libfaketime: every process has a clock of its own, in a file.

Only the wall clock steps. Timers of the process run on, as on a host whose clock is corrected.

Under libfaketime 0.9.10 (Debian 12) `time.sleep` of Python fails with EINVAL, because the
library mishandles the absolute time of `clock_nanosleep`. A Python gets another `sleep` at its
start.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

LIBRARIES = (
    "/usr/lib/*/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
    "/opt/homebrew/lib/faketime/libfaketime.1.dylib",
)

SLEEP = """import select, time
time.sleep = lambda seconds: select.select((), (), (), seconds) and None
"""


def library() -> str | None:
    """Return the path of libfaketime (Debian: `apt-get install faketime`), None without it."""
    root = Path("/")
    for pattern in LIBRARIES:
        with suppress(StopIteration):
            return str(next(root.glob(pattern[1:])))
    return None


class Clock:
    """The clock of one process, or of several."""

    def __init__(self, file: Path, ahead_s: float = 0) -> None:
        """Take the file that holds the difference from the true time."""
        found = library()
        if found is None:
            msg = "this scenario steps clocks: it needs libfaketime (apt-get install faketime)"
            raise RuntimeError(msg)
        self._file = file
        self.set(ahead_s)
        start = file.parent / "sleep"
        start.mkdir(exist_ok=True)
        (start / "sitecustomize.py").write_text(SLEEP)
        self.python_path = str(start)
        self.env = {
            "LD_PRELOAD": found,
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, ahead_s: float) -> None:
        """Step to this difference from the true time."""
        # A reader sees the old difference or the new one, never half a file.
        draft = self._file.with_suffix(".draft")
        draft.write_text(f"{ahead_s:+.3f}\n")
        draft.replace(self._file)
