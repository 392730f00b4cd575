"""A FastAPI application that tracks events without blocking the event loop.

pip install mm-tasks fastapi uvicorn
MM_TASKS_REDIS_URL=redis://127.0.0.1:6379/0 uvicorn fastapi_app:app
curl -H 'Cookie: aid=u_abc' 'http://127.0.0.1:8000/pricing?utm_source=letter'
"""

from __future__ import annotations

from fastapi import FastAPI

from mm_tasks import track
from mm_tasks.contrib.fastapi import add_visits

app = FastAPI()
add_visits(app)


@app.get("/pricing")
async def pricing() -> dict[str, str | None]:
    """Track an event, which has url, path, referrer and anonymous_id; return its id."""
    receipt = await track.adelay("pricing_viewed")
    return {"id": receipt.id}


@app.get("/healthz")
async def healthz() -> dict[str, bool]:
    """Answer the load balancer; the middleware skips this path."""
    return {"ok": True}
