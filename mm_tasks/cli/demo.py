"""`mm-tasks demo`: a small shop's events, from `track.delay` to the sandbox, for real."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import requests
from redis import Redis
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mm_tasks import runtime
from mm_tasks.cli import stack
from mm_tasks.erasure.audit.log import head
from mm_tasks.errors import ConfigurationError
from mm_tasks.monitoring import status
from mm_tasks.settings import Settings, variable

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOPPERS = 3
VISITS = 200
LIMIT_S = 300
KEY = "sk_test_demo_not-a-real-secret"

_SHOPPER = """
import random, sys
from mm_tasks import identify, track
who = sys.argv[1]
for visit in range({visits}):
    ids = {{"anonymous_id": f"visitor-{{who}}-{{visit}}", "user_id": f"shopper-{{who}}"}}
    url = "https://shop.example/cart?utm_source=demo"
    track.delay("product_viewed", url=url, properties={{"sku": visit}}, **ids)
    if visit % 10 == 0:
        track.delay("order_placed", properties={{"total": 1999, "currency": "EUR"}}, **ids)
identify.delay(anonymous_id=f"visitor-{{who}}-0", user_id=f"shopper-{{who}}")
"""
_BULK = """
from mm_tasks import track
track.delay_many(
    {{"event": "order_imported", "user_id": f"shopper-{{i}}", "properties": {{"row": i}}}}
    for i in range({bulk})
)
"""
_PRIVACY_OFFICER = """
import json, time
from mm_tasks import forget, runtime, track
asked = forget.delay(user_id="shopper-0", requested_by="demo", ticket="DEMO-1")
is_refused = not track.delay("product_viewed", user_id="shopper-0").accepted
show = runtime.current().erasure_queries.show
while (found := show(asked.id))["state"] != "completed":
    time.sleep(0.2)
acknowledged = [one for one in found["passes"] if one["outcome"] == "acknowledged"]
print(json.dumps([asked.fenced and is_refused, len(acknowledged)]))
"""
_PASSES_S = "0,1,2"


class _Stores(NamedTuple):
    """The Redis and the audit database of a demo: variables that name them, and a client."""

    env: dict[str, str]
    redis: Redis
    project: str


def run(bulk: int, *, on_settings: bool) -> int:
    """Run it all, on stores of its own or on those of the settings; return 1 if a promise broke.

    Raises `ConfigurationError` where those of the settings hold anything.
    """
    made = _given if on_settings else _own
    with tempfile.TemporaryDirectory() as folder, made(Path(folder)) as stores:
        env = {
            **stores.env,
            "MM_TASKS_STATE_DIR": folder,
            "MILLIMETRIC_KEY": KEY,
            "MM_TASKS_ERASURE_PASSES_S": _PASSES_S,
        }
        with stack.processes(env) as start:
            return _run(Console(), start, env, stores, bulk)


@contextmanager
def _own(folder: Path) -> Iterator[_Stores]:
    """Yield stores in a folder. Whatever the settings name stays as it is."""
    server = stack.embedded(None, folder)
    # An empty variable is none.
    env = dict.fromkeys(map(variable, Settings.model_fields), "")
    env["MM_TASKS_REDIS_URL"] = f"redis://127.0.0.1:{server.port}/0"
    try:
        yield _Stores(env, Redis(port=server.port), Settings.model_fields["project"].default)
    finally:
        server.stop()


@contextmanager
def _given(folder: Path) -> Iterator[_Stores]:
    """Yield the stores of the settings, if they are empty."""
    runtime.configure(state_dir=folder)
    current = runtime.current()
    # Not of our project alone: queues are shared by all, and so is the log.
    if current.worker_redis.dbsize():
        msg = "MM_TASKS_REDIS_URL: must name an empty database, since the demo leaves its own there"
        raise ConfigurationError(msg)
    with current.audit_log.database.read() as connection:
        if head(connection).size:
            msg = "MM_TASKS_AUDIT_URL: must name a database without entries, since those would stay"
            raise ConfigurationError(msg)
    yield _Stores({}, current.worker_redis, current.settings.project)


def _run(out: Console, start: Any, env: dict[str, str], stores: _Stores, bulk: int) -> int:
    box = start("mm_tasks.sandbox", "--port", "0", stdout=subprocess.PIPE)
    env["MILLIMETRIC_HOST"] = host = box.stdout.readline().split()[-1]
    start(*stack.WORKER, "-c", "4")
    start(*stack.BEAT)
    shoppers = [
        start("mm_tasks.cli.snippet", _SHOPPER.format(visits=VISITS), str(n))
        for n in range(SHOPPERS)
    ]
    shoppers.append(start("mm_tasks.cli.snippet", _BULK.format(bulk=bulk)))
    expected = bulk + SHOPPERS * (VISITS + VISITS // 10 + 1)
    began = time.monotonic()
    found = _watch(out, stores, expected, began)
    failed = any(shopper.wait() for shopper in shoppers)
    summary = requests.get(f"{host}/_sandbox/summary", timeout=30).json()
    took_s = time.monotonic() - began
    erasure = _erase(out, start, host)
    return _report(out, found, summary, erasure, expected, took_s=took_s, failed=failed)


def _erase(out: Console, start: Any, host: str) -> tuple[bool, int, int]:
    """Erase a shopper; return whether they were fenced, acknowledgements, and rows left."""
    out.print("and now the erasure of one shopper, whom the vendor is told of three times")
    officer = start("mm_tasks.cli.snippet", _PRIVACY_OFFICER, stdout=subprocess.PIPE)
    try:
        answer, _ = officer.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        return False, 0, -1
    is_fenced, acknowledged = json.loads(answer or "[false, 0]")
    return is_fenced, acknowledged, _rows_of(host, "shopper-0")


def _rows_of(host: str, user_id: str) -> int:
    """Return how many rows of a person the vendor has, once its deletions had their time."""
    ends_at = time.monotonic() + 10
    while True:
        lines = requests.get(f"{host}/_sandbox/rows", timeout=30).iter_lines()
        left = sum(1 for line in lines if json.loads(line).get("user_id") == user_id)
        if not left or time.monotonic() > ends_at:
            return left
        time.sleep(0.2)


def _watch(out: Console, stores: _Stores, expected: int, began: float) -> dict[str, Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=out) as progress:
        accepted = progress.add_task("in Redis ", total=expected)
        delivered = progress.add_task("delivered", total=expected)
        while True:
            found = status.read(stores.redis, stores.project)
            progress.update(accepted, completed=found["counts"]["accepted"])
            progress.update(delivered, completed=found["counts"]["delivered"])
            is_over = time.monotonic() - began > LIMIT_S
            if found["counts"]["delivered"] >= expected or is_over:
                return found
            time.sleep(0.2)


def _report(  # noqa: PLR0913 - what the table shows
    out: Console,
    found: dict[str, Any],
    summary: dict[str, Any],
    erasure: tuple[bool, int, int],
    expected: int,
    *,
    took_s: float,
    failed: bool,
) -> int:
    counts = found["counts"]
    arrived = summary["events"] + summary["identifies"]
    batches = max(1, summary["batches"])
    passes = len(_PASSES_S.split(","))
    rows = [
        ("events accepted", counts["accepted"], counts["accepted"] == expected and not failed),
        ("events delivered", counts["delivered"], counts["delivered"] == expected),
        ("arrived at the vendor", arrived, arrived == expected),
        ("arrived twice", summary["duplicates"], summary["duplicates"] == 0),
        ("answers of 429", summary["throttled"], summary["throttled"] == 0),
        ("requests above the allowance", summary["over_rate"], summary["over_rate"] == 0),
        (
            "breaches of the vendor's contract",
            len(summary["violations"]),
            not summary["violations"],
        ),
        ("erasure: acknowledged by the vendor", erasure[1], erasure[1] == passes),
        ("erasure: the person's rows left there", erasure[2], erasure[2] == 0),
        ("erasure: stopped at once", int(erasure[0]), erasure[0]),
    ]
    table = Table("what", "number", "", title="the demo in numbers")
    for what, number, is_kept in rows:
        table.add_row(what, f"{number:,}", "[green]kept[/]" if is_kept else "[red]broken[/]")
    mean = summary["events"] / batches
    table.add_row("batches, and events in each", f"{summary['batches']:,} / {mean:.0f}", "")
    table.add_row("batches a second (allowed: 5)", f"{summary['batches'] / took_s:.2f}", "")
    out.print(table)
    return 0 if all(is_kept for _, _, is_kept in rows) else 1
