"""`mm-tasks demo`: a small shop's events, from `track.delay` to the sandbox, in real processes."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from redis import Redis
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mm_tasks import runtime
from mm_tasks.cli import stack
from mm_tasks.cli.output import fail
from mm_tasks.erasure.audit.log import head
from mm_tasks.errors import ConfigurationError
from mm_tasks.monitoring import status
from mm_tasks.sandbox.client import Sandbox, SandboxUnavailable, served_by
from mm_tasks.settings import Settings, variable

if TYPE_CHECKING:
    from mm_tasks.cli.stack import Processes

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
show = runtime.current().audit_store.queries.show
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
    """Run the demo on stores of its own or of the settings; return 1 if a promise broke.

    Raises `ConfigurationError` if the stores of the settings are not empty.
    """
    with tempfile.TemporaryDirectory() as folder, stack.Processes() as processes:
        stores = _configured(Path(folder)) if on_settings else _own(processes, Path(folder))
        processes.env = {
            **stores.env,
            "MM_TASKS_STATE_DIR": folder,
            "MILLIMETRIC_KEY": KEY,
            "MM_TASKS_ERASURE_PASSES_S": _PASSES_S,
        }
        return _run(Console(), processes, stores, bulk)


def _own(processes: Processes, folder: Path) -> _Stores:
    """Return stores in a folder; the stores of the settings stay as they are."""
    server = processes.start_redis(folder)
    # An empty variable is none.
    env = dict.fromkeys(map(variable, Settings.model_fields), "")
    env["MM_TASKS_REDIS_URL"] = f"redis://127.0.0.1:{server.port}/0"
    return _Stores(env, Redis(port=server.port), Settings.model_fields["project"].default)


def _configured(folder: Path) -> _Stores:
    """Return the stores of the settings, if they are empty."""
    runtime.configure(state_dir=folder)
    current = runtime.current()
    # The whole database, since all projects share its memory and the log.
    if current.worker_redis.dbsize():
        msg = "MM_TASKS_REDIS_URL: must name an empty database, since the demo leaves its own there"
        raise ConfigurationError(msg)
    with current.audit_store.log.database.read() as connection:
        if head(connection).size:
            msg = "MM_TASKS_AUDIT_URL: must name a database without entries, since those would stay"
            raise ConfigurationError(msg)
    return _Stores({}, current.worker_redis, current.settings.project)


def _run(out: Console, processes: Processes, stores: _Stores, bulk: int) -> int:
    try:
        options = ("-m", "mm_tasks.sandbox", "--port", "0")
        sandbox = served_by(processes.start(*options, stdout=subprocess.PIPE))
    except SandboxUnavailable as error:
        fail(str(error))
    processes.env["MILLIMETRIC_HOST"] = sandbox.url
    processes.start(*stack.WORKER, "-c", "4")
    processes.start(*stack.BEAT)
    shoppers = [
        processes.start("-c", _SHOPPER.format(visits=VISITS), str(number))
        for number in range(SHOPPERS)
    ]
    shoppers.append(processes.start("-c", _BULK.format(bulk=bulk)))
    expected = bulk + SHOPPERS * (VISITS + VISITS // 10 + 1)
    began = time.monotonic()
    counts = _watch(out, processes, stores, expected)
    if counts is None or any(shopper.wait() for shopper in shoppers):
        fail("a process of the demo failed; see its output above")
    summary = sandbox.summary()
    took_s = time.monotonic() - began
    erasure = _erase(out, processes, sandbox)
    return _report(out, counts, summary, erasure, expected, took_s=took_s)


def _erase(out: Console, processes: Processes, sandbox: Sandbox) -> tuple[bool, int, int]:
    """Erase a shopper; return whether they were fenced, acknowledgements, and rows left."""
    out.print("and now the erasure of one shopper: the vendor is called three times")
    officer = processes.start("-c", _PRIVACY_OFFICER, stdout=subprocess.PIPE)
    try:
        answer, _ = officer.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        return False, 0, -1
    is_fenced, acknowledged = json.loads(answer or "[false, 0]")
    return is_fenced, acknowledged, _rows_of(sandbox, "shopper-0")


def _rows_of(sandbox: Sandbox, user_id: str) -> int:
    """Return how many rows of a person the vendor has, after 10 s for its deletions at most."""
    ends_at = time.monotonic() + 10
    while True:
        rows = sum(1 for row in sandbox.rows() if row.get("user_id") == user_id)
        if not rows or time.monotonic() > ends_at:
            return rows
        time.sleep(0.2)


def _watch(
    out: Console, processes: Processes, stores: _Stores, expected: int
) -> dict[str, int] | None:
    """Show progress until all is delivered or `LIMIT_S` is over; return the counts.

    Return None as soon as a process has failed, since then not all can be delivered.
    """
    ends_at = time.monotonic() + LIMIT_S
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=out) as progress:
        accepted = progress.add_task("in Redis ", total=expected)
        delivered = progress.add_task("delivered", total=expected)
        while not any(processes.ended()):
            counts: dict[str, int] = status.read(stores.redis, stores.project)["counts"]
            progress.update(accepted, completed=counts["accepted"])
            progress.update(delivered, completed=counts["delivered"])
            if counts["delivered"] >= expected or time.monotonic() > ends_at:
                return counts
            time.sleep(0.2)
    return None


def _report(  # noqa: PLR0913 - the rows of the table
    out: Console,
    counts: dict[str, int],
    summary: dict[str, Any],
    erasure: tuple[bool, int, int],
    expected: int,
    *,
    took_s: float,
) -> int:
    is_fenced, acknowledged, rows_left = erasure
    arrived = summary["events"] + summary["identifies"]
    violations = len(summary["violations"])
    rows = [
        ("events accepted", counts["accepted"], expected),
        ("events delivered", counts["delivered"], expected),
        ("arrived at the vendor", arrived, expected),
        ("arrived twice", summary["duplicates"], 0),
        ("answers of 429", summary["throttled"], 0),
        ("requests above the allowance", summary["over_rate"], 0),
        ("breaches of the vendor's contract", violations, 0),
        ("erasure: acknowledged by the vendor", acknowledged, len(_PASSES_S.split(","))),
        ("erasure: the person's rows left there", rows_left, 0),
        ("erasure: stopped at once", int(is_fenced), 1),
    ]
    table = Table("what", "number", "", title="the demo in numbers")
    for name, number, promised in rows:
        kept = "[green]kept[/]" if number == promised else "[red]broken[/]"
        table.add_row(name, f"{number:,}", kept)
    mean = summary["events"] / max(1, summary["batches"])
    table.add_row("batches, and events in each", f"{summary['batches']:,} / {mean:.0f}", "")
    table.add_row("batches a second (allowed: 5)", f"{summary['batches'] / took_s:.2f}", "")
    out.print(table)
    is_kept = all(number == promised for _, number, promised in rows)
    return 0 if is_kept else 1
