"""`mm-tasks check`: each setting, and a verdict on what it points at."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr
from redis.exceptions import RedisError
from rich.table import Table

from mm_tasks import events, runtime
from mm_tasks.client import vendor_access
from mm_tasks.errors import ConfigurationError
from mm_tasks.settings import Settings, variable

if TYPE_CHECKING:
    from rich.console import Console

REDIS_MIN = (6, 2)
CLOCK_SKEW_MAX_S = 1.0


def run(out: Console, *, send: bool) -> int:
    """Print everything; return 1 with a sentence for each problem, otherwise 0."""
    settings = runtime.current().settings
    table = Table("variable", "value")
    for name in Settings.model_fields:
        table.add_row(variable(name), masked(name, getattr(settings, name)))
    out.print(table)
    problems = _vendor(settings)
    warnings: list[str] = []
    try:
        found, warnings = _redis(runtime.current())
        problems += found
    except RedisError as error:
        problems.append(f"MM_TASKS_REDIS_URL: Redis does not answer ({type(error).__name__})")
    for warning in warnings:
        out.print(f"[yellow]warning[/] {warning}")
    for problem in problems:
        out.print(f"[red]problem[/] {problem}", highlight=False)
    if send and not problems:
        body = events.encode_track({"event": "mm_tasks_check"}).body
        out.print(f"the vendor answered: {runtime.current().client.send_track(body)}")
    if not problems:
        out.print("[green]ok[/]")
    return 1 if problems else 0


def masked(name: str, value: Any) -> str:  # noqa: ANN401 - any setting
    """Return a setting for people: of a URL without its password, of a key its public part."""
    if not isinstance(value, SecretStr):
        return "" if value is None else str(value)
    text = value.get_secret_value()
    if name == "millimetric_key":
        return "_".join(text.split("_")[:2]) + "_…"
    parts = urlsplit(text)
    host = parts.netloc.rsplit("@", 1)[-1]
    return parts._replace(netloc=host, query="").geturl()


def _vendor(settings: Settings) -> list[str]:
    try:
        vendor_access(settings.millimetric_host, settings.millimetric_key)
    except ConfigurationError as error:
        return [str(error)]
    return []


def _redis(current: runtime.Runtime) -> tuple[list[str], list[str]]:
    redis = current.worker_redis
    problems, warnings = [], []
    seconds, micros = redis.time()
    if abs(seconds + micros / 1e6 - time.time()) > CLOCK_SKEW_MAX_S:
        warnings.append("the clocks of this machine and of Redis differ by more than a second")
    info: dict[str, Any] = redis.info()
    version = str(info["redis_version"])
    if tuple(map(int, version.split(".")[:2])) < REDIS_MIN:
        problems.append(f"Redis is {version}; 6.2 or newer is needed")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        problems.append(f"Redis evicts ({policy}); set maxmemory-policy noeviction")
    memory = int(info.get("maxmemory", 0))
    if memory and current.settings.buffer_bytes_max > 0.6 * memory:
        problems.append("MM_TASKS_BUFFER_BYTES_MAX: must be at most 60 % of Redis's maxmemory")
    if not info.get("aof_enabled"):
        warnings.append("Redis has no AOF: a restart loses what is waiting")
    return problems, warnings
