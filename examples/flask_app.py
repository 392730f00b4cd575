"""A Flask application that tracks events.

pip install mm-tasks flask gunicorn
MM_TASKS_REDIS_URL=redis://127.0.0.1:6379/0 gunicorn --preload -w 2 flask_app:app
curl -H 'Cookie: aid=u_abc' 'http://127.0.0.1:8000/pricing?utm_source=letter'
"""

from __future__ import annotations

from flask import Flask

from mm_tasks import track
from mm_tasks.contrib.flask import MMTasks

app = Flask(__name__)
MMTasks(app)


@app.get("/pricing")
def pricing() -> dict[str, str | None]:
    """Track an event, which has url, path, referrer and anonymous_id; return its id."""
    return {"id": track.delay("pricing_viewed").id}


@app.get("/healthz")
def healthz() -> dict[str, bool]:
    """Answer the load balancer; the middleware skips this path."""
    return {"ok": True}
