"""Flask: add the visit of a request to the events tracked in it.

    MMTasks(app, issue_cookie=True)

Equivalent to `app.wsgi_app = VisitMiddleware(app.wsgi_app, issue_cookie=True)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.contrib.wsgi import VisitMiddleware

if TYPE_CHECKING:
    from typing import Unpack

    from mm_tasks.contrib.request_context import VisitKeywords


class MMTasks:
    """The Flask extension, with the options of `VisitOptions`."""

    def __init__(self, app: Any = None, **options: Unpack[VisitKeywords]) -> None:
        """Take the options, and the application if it exists already."""
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Any) -> None:
        """Wrap an application, at most once."""
        if "mm_tasks" not in app.extensions:
            app.wsgi_app = VisitMiddleware(app.wsgi_app, **self._options)
            app.extensions["mm_tasks"] = self
