"""`mm-tasks metrics`: an exporter for Prometheus that runs until a signal."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import typer

from mm_tasks import runtime
from mm_tasks.cli.output import fail

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


def run(address: str, port: int) -> None:
    """Serve `/metrics` until SIGTERM or Ctrl-C. Raises `ConfigurationError` before it serves."""
    try:
        from prometheus_client import CollectorRegistry, start_http_server

        from mm_tasks.monitoring.metrics import collector
    except ImportError:
        fail("prometheus-client is missing: pip install 'mm-tasks[metrics]'")
    registry: CollectorRegistry = CollectorRegistry()
    registry.register(collector(runtime.current()))
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        fail(f"cannot listen on {address}:{port}: {error.strerror}")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    typer.echo(f"metrics: http://{address}:{server.server_port}/metrics")
    ended.wait()
    server.shutdown()
    server.server_close()
    thread.join()
