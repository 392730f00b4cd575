"""`python -m mm_tasks.sandbox`: the stand-in as a process of its own."""

from __future__ import annotations

import argparse

from mm_tasks.sandbox.config import Config
from mm_tasks.sandbox.server import serve

parser = argparse.ArgumentParser(prog="mm_tasks.sandbox")
parser.add_argument("--port", type=int, default=8787)
parser.add_argument("--key", action="append", default=[], help="a valid key; default: any")
parser.add_argument("--origin", action="append", default=[], help="of pk_ keys; default: any")
parser.add_argument("--unvalidated", action="store_true")
parser.add_argument("--no-limits", action="store_true")
parser.add_argument("--latency-ms", type=int, default=0)
parser.add_argument("--forget-lag-s", type=float, default=0.5, help="until a forget has run")
options = parser.parse_args()
serve(
    Config(
        port=options.port,
        keys=tuple(options.key),
        origins=tuple(options.origin),
        validated=not options.unvalidated,
        limited=not options.no_limits,
        latency_s=options.latency_ms / 1000,
        forget_lag_s=options.forget_lag_s,
    )
)
