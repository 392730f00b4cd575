"""`python -m mm_tasks.sandbox`: the stand-in as a process of its own."""

from __future__ import annotations

import argparse

from mm_tasks.sandbox.server import Config, serve

parser = argparse.ArgumentParser(prog="mm_tasks.sandbox")
parser.add_argument("--port", type=int, default=8787)
parser.add_argument("--key", action="append", default=[])
parser.add_argument("--unvalidated", action="store_true")
parser.add_argument("--no-limits", action="store_true")
parser.add_argument("--latency-ms", type=int, default=0)
given = parser.parse_args()
serve(
    Config(
        port=given.port,
        keys=tuple(given.key),
        validated=not given.unvalidated,
        limited=not given.no_limits,
        latency_s=given.latency_ms / 1000,
    )
)
