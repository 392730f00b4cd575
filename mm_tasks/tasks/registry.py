"""The Celery tasks: `track`, `identify` and `forget` for callers, the others for workers.

No message that a worker publishes carries data. If one is lost, a later flush or sweep finds the
work again.
"""

from __future__ import annotations

from typing import Any

from mm_tasks import runtime
from mm_tasks.tasks import heartbeat_writer
from mm_tasks.tasks.celery_app import app, current_app, when_finalized
from mm_tasks.tasks.forget import ForgetTask
from mm_tasks.tasks.identify import IdentifyTask
from mm_tasks.tasks.track import TrackTask
from mm_tasks.tasks.worker import flush, run_erasure, send_batch, sweep_erasures

track, identify, forget = TrackTask(), IdentifyTask(), ForgetTask()
TASKS = (track, identify, forget, flush, send_batch, run_erasure, sweep_erasures)


async def aclose() -> None:
    """Close the connections of the running event loop; the next `adelay` opens new ones.

    `asyncio.run` and servers close them at their end.
    """
    await runtime.current().async_clients.close()


def register(sender: Any, **_: Any) -> None:
    """Register the tasks in a finalized app, if they belong to it; reads its settings."""
    if current_app() is sender:
        for task in TASKS:
            sender.register_task(task)


when_finalized(app, register)
heartbeat_writer.attach(app)
