# The image of our services in docker-compose.yml. It holds no key: the
# environment of the container brings it.
FROM python:3.13-slim

RUN useradd --system --create-home --home-dir /var/lib/mm_tasks mm_tasks
WORKDIR /opt/mm_tasks
COPY pyproject.toml README.md LICENSE ./
COPY mm_tasks mm_tasks
RUN pip install --no-cache-dir --root-user-action=ignore '.[postgres,sandbox]'

USER mm_tasks
WORKDIR /var/lib/mm_tasks
ENV MM_TASKS_STATE_DIR=/var/lib/mm_tasks PYTHONUNBUFFERED=1
CMD ["celery", "-A", "mm_tasks", "worker"]
