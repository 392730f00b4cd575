"""Product events and erasure requests to Millimetric, through Redis and Celery.

    from mm_tasks import forget, identify, track

    track.delay("signup", anonymous_id="u_abc", user_id="user_42")
    forget.delay(user_id="user_42", requested_by="dpo", ticket="GDPR-1093")

`celery -A mm_tasks worker` and `celery -A mm_tasks beat` deliver them; in a Celery app of
your own, `mm_tasks.install(app)`. Importing this reads no environment and opens no socket.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from mm_tasks import errors as errors  # so that `mm_tasks.errors.BufferFull` is there

if TYPE_CHECKING:
    from mm_tasks.events.context import context
    from mm_tasks.tasks.celery_app import app
    from mm_tasks.tasks.install import install
    from mm_tasks.tasks.receipts import ErasureReceipt, Receipt
    from mm_tasks.tasks.registry import aclose, forget, identify, track

__all__ = [
    "ErasureReceipt",
    "Receipt",
    "aclose",
    "app",
    "context",
    "forget",
    "identify",
    "install",
    "track",
]

# Where each name is. Imported when first asked for: a part of the package, such as the
# plugin that pytest loads in each run, does without Celery and all that comes with it.
_PLACES = {
    "context": "events.context",
    "install": "tasks.install",
    "ErasureReceipt": "tasks.receipts",
    "Receipt": "tasks.receipts",
    "app": "tasks.celery_app",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    found: object = getattr(import_module(f"mm_tasks.{_PLACES.get(name, 'tasks.registry')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
