"""Options of the sandbox, fixed at its start, except for the valid keys."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Config:
    """The options of one sandbox.

    `keys` are the valid keys, and `origins` the permitted origins of pages with a
    pk_ key; empty permits any.
    """

    host: str = "127.0.0.1"
    port: int = 8787
    keys: tuple[str, ...] = ()
    validated: bool = True
    limited: bool = True
    latency_s: float = 0
    # The reference says "256 KB", 256 000 or 262 144 bytes: this is the stricter one.
    batch_bytes_max: int = 256_000
    forget_lag_s: float = 0.5
    origins: tuple[str, ...] = ()
