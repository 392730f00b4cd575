"""Product events and erasure requests to Millimetric, through Redis and Celery.

    from mm_tasks import forget, identify, track

    track.delay("signup", anonymous_id="u_abc", user_id="user_42")
    forget.delay(user_id="user_42", requested_by="dpo", ticket="GDPR-1093")

`celery -A mm_tasks worker` and `celery -A mm_tasks beat` deliver them.
Importing this reads no environment and opens no socket.
"""

from mm_tasks.ambient import context
from mm_tasks.celery_app import app
from mm_tasks.tasks import ErasureReceipt, Receipt, forget, identify, track

__all__ = ["ErasureReceipt", "Receipt", "app", "context", "forget", "identify", "track"]
