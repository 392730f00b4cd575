"""`python -m mm_tasks.sandbox`: the stand-in as a process of its own."""

from __future__ import annotations

import argparse

from mm_tasks.sandbox.config import Config
from mm_tasks.sandbox.server import serve

parser = argparse.ArgumentParser(prog="mm_tasks.sandbox")
parser.add_argument("--port", type=int, default=8787)
parser.add_argument("--key", action="append", default=[], help="a valid key; none: any")
parser.add_argument("--origin", action="append", default=[], help="of pk_ keys; none: any")
parser.add_argument("--unvalidated", action="store_true")
parser.add_argument("--no-limits", action="store_true")
parser.add_argument("--latency-ms", type=int, default=0)
parser.add_argument("--forget-lag-s", type=float, default=0.5, help="until a forget has run")
given = parser.parse_args()
serve(
    Config(
        port=given.port,
        keys=tuple(given.key),
        origins=tuple(given.origin),
        validated=not given.unvalidated,
        limited=not given.no_limits,
        latency_s=given.latency_ms / 1000,
        forget_lag_s=given.forget_lag_s,
    )
)
