"""The process: one event loop that serves the API and `/_sandbox/` until a signal."""

from __future__ import annotations

import asyncio
import signal

from aiohttp import web

from mm_tasks.sandbox import control
from mm_tasks.sandbox.api import Api
from mm_tasks.sandbox.config import Config

__all__ = ["Config", "application", "runner", "serve"]

# A connection that a fault keeps open must not delay the end of the process.
SHUTDOWN_S = 1


def application(config: Config) -> web.Application:
    """Return the application; every path outside `/_sandbox` is a call of the API."""
    api = Api(config)
    app = web.Application(client_max_size=64 << 20)
    app.router.add_routes(control.routes(api))
    app.router.add_route("*", r"/{path:(?!_sandbox/).*}", api.call)
    return app


def runner(config: Config) -> web.AppRunner:
    """Return the runner of the application, which does not decompress bodies."""
    return web.AppRunner(
        application(config), access_log=None, auto_decompress=False, shutdown_timeout=SHUTDOWN_S
    )


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; print one line once it accepts (port 0 takes a free one)."""
    asyncio.run(_serve(config))


async def _serve(config: Config) -> None:
    running = runner(config)
    await running.setup()
    site = web.TCPSite(running, config.host, config.port)
    await site.start()
    port = running.addresses[0][1]
    print(f"sandbox listening on http://{config.host}:{port}", flush=True)  # noqa: T201 - its output
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    await running.cleanup()
