"""Record events in the tests of a program that uses this package, instead of storing them.

    from mm_tasks.testing import record

    with record() as events:
        sign_up("u1")
    events.assert_tracked("signup", user_id="u1")

Needs no Redis, no broker and no settings. The pytest plugin adds the fixtures
`mm_tasks_events` and `sandbox`, and a guard: see docs/testing.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_tasks.sandbox.client import Sandbox, serve_sandbox
    from mm_tasks.testing.recorder import Recorder, record
    from mm_tasks.testing.records import Recorded

__all__ = ["Recorded", "Recorder", "Sandbox", "record", "serve_sandbox"]

_MODULES = {
    "Recorded": "mm_tasks.testing.records",
    "Recorder": "mm_tasks.testing.recorder",
    "Sandbox": "mm_tasks.sandbox.client",
    "record": "mm_tasks.testing.recorder",
    "serve_sandbox": "mm_tasks.sandbox.client",
}


def __getattr__(name: str) -> Any:
    # Lazily: pytest loads `plugin` in every run, and must not import the rest.
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_MODULES[name]), name)
