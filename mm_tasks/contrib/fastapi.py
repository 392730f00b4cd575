"""FastAPI and Starlette: add the visit of a request to the events tracked in it.

    add_visits(app, issue_cookie=True)

Equivalent to `app.add_middleware(VisitMiddleware, issue_cookie=True)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.contrib.asgi import VisitMiddleware

if TYPE_CHECKING:
    from typing import Unpack

    from mm_tasks.contrib.request_context import VisitKeywords

__all__ = ["VisitMiddleware", "add_visits"]


def add_visits(app: Any, **options: Unpack[VisitKeywords]) -> None:
    """Add the middleware to an application, with the options of `VisitOptions`."""
    app.add_middleware(VisitMiddleware, **options)
