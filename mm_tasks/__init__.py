"""Product events and erasure requests to Millimetric, through Redis and Celery.

    from mm_tasks import forget, identify, track

    track.delay("signup", anonymous_id="u_abc", user_id="user_42")
    forget.delay(user_id="user_42", requested_by="dpo", ticket="GDPR-1093")

`celery -A mm_tasks worker` and `celery -A mm_tasks beat` deliver them. `mm_tasks.install(app)`
adds the tasks to a Celery app of your own. Importing mm_tasks reads no environment and opens no
socket.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mm_tasks import errors as errors  # so that `mm_tasks.errors.BufferFull` works

if TYPE_CHECKING:
    from mm_tasks import erasures
    from mm_tasks.events.best_effort import best_effort
    from mm_tasks.events.context import context
    from mm_tasks.tasks.celery_app import app
    from mm_tasks.tasks.install import install
    from mm_tasks.tasks.receipts import ErasureReceipt, Receipt
    from mm_tasks.tasks.registry import aclose, forget, identify, track
    from mm_tasks.tasks.suppression import ais_erased, is_erased

__all__ = [
    "ErasureReceipt",
    "Receipt",
    "aclose",
    "ais_erased",
    "app",
    "best_effort",
    "context",
    "erasures",
    "forget",
    "identify",
    "install",
    "is_erased",
    "track",
]

# The module of each name, imported at the first access. The pytest plugin, which is loaded in
# each test run, therefore imports neither Celery nor Redis.
_MODULES = {
    "best_effort": "events.best_effort",
    "context": "events.context",
    "install": "tasks.install",
    "ErasureReceipt": "tasks.receipts",
    "Receipt": "tasks.receipts",
    "app": "tasks.celery_app",
    "is_erased": "tasks.suppression",
    "ais_erased": "tasks.suppression",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    if name == "erasures":
        return import_module("mm_tasks.erasures")
    module = import_module(f"mm_tasks.{_MODULES.get(name, 'tasks.registry')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return __all__
