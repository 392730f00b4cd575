"""How strict and how fast the sandbox is. Fixed at its start, but for the valid keys."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Config:
    """What one sandbox is started with.

    `keys` are the only valid ones, and `origins` the only ones a page with a
    pk_ key may come from; where none is given, any is valid.
    """

    host: str = "127.0.0.1"
    port: int = 8787
    keys: tuple[str, ...] = ()
    validated: bool = True
    limited: bool = True
    latency_s: float = 0
    # "256 KB" is not said to be 256 000 or 262 144 bytes: the stricter of the two.
    batch_bytes_max: int = 256_000
    forget_lag_s: float = 0.5
    origins: tuple[str, ...] = ()
