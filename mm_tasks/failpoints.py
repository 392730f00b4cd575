"""Places where a test may let a process die: before and after each step outside of it.

`MM_TASKS_FAILPOINTS="batch_ack.after=0.01,send.before=0.02"` kills the process (SIGKILL) with
that probability when it gets there. Steps are the scripts by name, and `send`, the
request to the vendor. Without the variable nothing is looked at. For `scripts/faults`.
"""

from __future__ import annotations

import os
import random
import signal

VARIABLE = "MM_TASKS_FAILPOINTS"


def _armed() -> dict[str, float]:
    given = os.environ.get(VARIABLE, "")
    pairs = (rule.partition("=") for rule in given.split(",") if rule)
    return {name.strip(): float(chance) for name, _, chance in pairs}


_CHANCES = _armed()


def reach(step: str, side: str) -> None:
    """Die here if a test asks for it; `side` is `before` or `after`."""
    if _CHANCES and random.random() < _CHANCES.get(f"{step}.{side}", 0):  # noqa: S311 - no secret
        os.kill(os.getpid(), signal.SIGKILL)
