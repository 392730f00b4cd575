"""Product events and erasure requests to Millimetric, through Redis and Celery."""
