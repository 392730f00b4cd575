"""A Django project that tracks events.

pip install mm-tasks django gunicorn
export MM_TASKS_REDIS_URL=redis://127.0.0.1:6379/0
python manage.py migrate --run-syncdb
gunicorn --preload -w 2 shop.wsgi:application
curl -H 'Cookie: aid=u_abc' 'http://127.0.0.1:8000/pricing?utm_source=letter'
curl 'http://127.0.0.1:8000/buy'          # tracked when the order is committed
curl 'http://127.0.0.1:8000/buy?fail=1'   # rolled back: nothing is tracked
python manage.py mm_tasks status
"""

from __future__ import annotations

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    execute_from_command_line(sys.argv)
