# The image of our services in docker-compose.yml. It holds no secret: those are mounted.
FROM python:3.13-slim-bookworm AS build

RUN python -m venv /opt/mm_tasks
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY mm_tasks mm_tasks
RUN /opt/mm_tasks/bin/pip install --no-cache-dir '.[metrics,postgres,sandbox]'

FROM python:3.13-slim-bookworm

RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/mm_tasks mm_tasks
COPY --from=build /opt/mm_tasks /opt/mm_tasks

USER 10001
WORKDIR /var/lib/mm_tasks
ENV PATH=/opt/mm_tasks/bin:$PATH PYTHONUNBUFFERED=1 MM_TASKS_STATE_DIR=/var/lib/mm_tasks
CMD ["celery", "-A", "mm_tasks", "worker"]
