"""The page for people: one self-contained HTML document that reloads itself.

It shows the newest of everything and counts the rest. Everything that came from
a request is escaped. It parses few bodies, so it may stay open under load.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from datetime import UTC, datetime
from html import escape
from itertools import islice
from typing import TYPE_CHECKING

from mm_tasks.sandbox import faults, payload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mm_tasks.sandbox.api import Api
    from mm_tasks.sandbox.journal import Arrival

REQUESTS, EVENTS = 50, 20
_EVENT_CHARACTERS = 400

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<meta name="viewport" content="width=device-width"><title>Sandbox</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bad: #c22; --good: #287a3c }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
h1 { font-size: 1.3rem; margin: 0 } h2 { font-size: 1rem; margin: 2rem 0 .5rem }
p { margin: .3rem 0; opacity: .75 }
dl { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.2rem 0 0 }
dl div { background: var(--soft); border-radius: .5rem; padding: .6rem 1rem; min-width: 7rem }
dt { font-size: .8rem; opacity: .75 } dd { margin: 0; font-size: 1.4rem }
div.wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: .86rem }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: 600; opacity: .75 } td { font-variant-numeric: tabular-nums; vertical-align: top }
td.text { font-family: ui-monospace, monospace; overflow-wrap: anywhere }
.bad { color: var(--bad) } .good { color: var(--good) }
</style></head><body>
<h1>Sandbox of the vendor's API</h1>
<p>Everything here is in memory and gone when the process ends. Reloads every two seconds.</p>
"""


def render(api: Api) -> str:
    """Return the page as it is now."""
    return "".join(
        [
            _HEAD,
            _totals(api),
            _section("Requests by route and status", ("route", "status", "requests"), _counts(api)),
            _section("Faults in force", ("fault", "hits"), _faults(api)),
            _section("Forget calls", ("received", "runs", "project", "user_id"), _forgets(api)),
            _section(
                f"Last {REQUESTS} requests",
                ("at", "took", "route", "bytes", "events", "status", "stored", "fault"),
                map(_request, islice(reversed(api.arrivals), REQUESTS)),
            ),
            _section(f"Last {EVENTS} events", ("stored", "event"), islice(_newest(api), EVENTS)),
            "</body></html>\n",
        ]
    )


def _totals(api: Api) -> str:
    stored = [a for a in api.arrivals if a.is_stored]
    events = sum(a.events for a in stored if a.route in {"/v1/track", "/v1/batch"})
    totals = {
        "requests": len(api.arrivals),
        "events stored": events,
        "batches stored": sum(a.route == "/v1/batch" for a in stored),
        "identifies stored": sum(a.route == "/v1/identify" for a in stored),
        "forget calls": len(api.store.forgets),
        "answers of 429": sum(a.status == 429 for a in api.arrivals),  # noqa: PLR2004 - HTTP
        "broken off": sum(a.status is None for a in api.arrivals),
        "odd headers": sum(api.violations.values()),
    }
    boxes = (f"<div><dt>{name}</dt><dd>{number:,}</dd></div>" for name, number in totals.items())
    return f"<dl>{''.join(boxes)}</dl>"


def _section(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the cells are HTML already."""
    lines = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    if not lines:
        return f"<h2>{title}</h2><p>None.</p>"
    head = "".join(f"<th>{name}</th>" for name in columns)
    return f'<h2>{title}</h2><div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def _cell(value: object, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(str(value))}</td>'


def _status(status: int | None) -> str:
    if status is None:
        return _cell("broken off", "bad")
    return _cell(status, "good" if status < 300 else "bad")  # noqa: PLR2004 - HTTP


def _counts(api: Api) -> Iterator[list[str]]:
    counts = Counter((a.route, a.status) for a in api.arrivals)
    for (route, status), number in sorted(counts.items(), key=str):
        yield [_cell(route), _status(status), _cell(f"{number:,}")]


def _faults(api: Api) -> Iterator[list[str]]:
    for fault in api.faults:
        found = faults.shown(fault)
        hits = found.pop("hits")
        yield [_cell(json.dumps(found), "text"), _cell(hits)]


def _forgets(api: Api) -> Iterator[list[str]]:
    now = time.time()
    for forget in islice(reversed(api.store.forgets), REQUESTS):
        is_done = forget.due_at <= now
        runs = f"{_clock(forget.due_at)}, {'done' if is_done else 'queued'}"
        cells = _cell(_clock(forget.at)), _cell(runs)
        yield [*cells, _cell(forget.project), _cell(forget.user_id, "text")]


def _request(arrival: Arrival) -> list[str]:
    done_at = arrival.done_at
    return [
        _cell(_clock(arrival.at)),
        _cell("under way" if done_at is None else f"{(done_at - arrival.at) * 1000:.0f} ms"),
        _cell(arrival.route),
        _cell(f"{len(arrival.body):,}"),
        _cell(arrival.events),
        _status(arrival.status),
        _cell("yes" if arrival.is_stored else "no"),
        _cell(arrival.fault or ""),
    ]


def _newest(api: Api) -> Iterator[list[str]]:
    for deposit in islice(reversed(api.store.deposits), EVENTS):
        for event in reversed(payload.rows(deposit.route, deposit.body)):
            text = json.dumps(event, ensure_ascii=False)
            is_long = len(text) > _EVENT_CHARACTERS
            shown = text[:_EVENT_CHARACTERS] + "…" if is_long else text
            yield [_cell(_clock(deposit.at)), _cell(shown, "text")]


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]
