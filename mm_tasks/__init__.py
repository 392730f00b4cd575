"""Product events to Millimetric from Python backends, through Redis and Celery.

    from mm_tasks import track, identify

    track.delay("signup", anonymous_id="u_abc", user_id="user_42")

`celery -A mm_tasks worker` and `celery -A mm_tasks beat` deliver them.
Importing this reads no environment and opens no socket.
"""

from mm_tasks.celery_app import app
from mm_tasks.tasks import Receipt, identify, track

__all__ = ["Receipt", "app", "identify", "track"]
