"""A Flask application that tracks.

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
    """Say under which id the visit was noted: url, path, referrer and anonymous_id are in it."""
    return {"id": track.delay("pricing_viewed").id}


@app.get("/healthz")
def healthz() -> dict[str, bool]:
    """Answer the load balancer; nothing of such a request would be added to events."""
    return {"ok": True}
