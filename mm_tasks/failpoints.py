"""Points where a test can kill the process: before and after each Redis script and vendor request.

`MM_TASKS_FAILPOINTS="batch_ack.after=0.01,send.before=0.02"` kills the process (SIGKILL) with
that probability at that point. A step is the name of a script, or `send` for the request to the
vendor. Without the variable nothing happens. Used by `scripts/faults`.
"""

from __future__ import annotations

import os
import random
import signal

VARIABLE = "MM_TASKS_FAILPOINTS"


def _armed() -> dict[str, float]:
    rules = os.environ.get(VARIABLE, "").split(",")
    pairs = (rule.partition("=") for rule in rules if rule)
    return {name.strip(): float(chance) for name, _, chance in pairs}


_CHANCES = _armed()


def reach(step: str, side: str) -> None:
    """Kill the process with the probability of this point; `side` is `before` or `after`."""
    if _CHANCES and random.random() < _CHANCES.get(f"{step}.{side}", 0):  # noqa: S311 - no secret
        os.kill(os.getpid(), signal.SIGKILL)
