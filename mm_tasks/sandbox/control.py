"""`/_sandbox/`: recorded requests and switches. Needs no key; not part of the vendor's API.

GET  /_sandbox/          the page for people
GET  summary · ids · requests · bodies · forgets
GET  journal · rows      one JSON object a line: every request; the present rows
GET  faults              the faults in force, with their hits
POST faults · keys       a JSON list replaces them at once, or 400 and nothing changes
POST reset               forget everything
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from aiohttp import web

from mm_tasks.sandbox import access, faults, page
from mm_tasks.sandbox.quota import QUOTAS, over_rate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from mm_tasks.sandbox.api import Api
    from mm_tasks.sandbox.store import Row

# A long listing yields to other requests after this many lines.
_LINES_EACH_TURN = 20


def routes(api: Api) -> list[web.RouteDef]:
    """Return every route below `/_sandbox`."""
    shown: dict[str, Callable[[], Any]] = {
        "summary": lambda: summary(api),
        "ids": lambda: ids(api),
        "requests": lambda: [arrival.seen() for arrival in api.arrivals],
        "bodies": lambda: [[d.route, d.body.decode(errors="replace")] for d in api.store.deposits],
        "forgets": lambda: [asdict(forget) for forget in api.store.forgets],
        "faults": lambda: [faults.shown(fault) for fault in api.faults],
    }
    listed: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
        "journal": lambda: (arrival.line() for arrival in list(api.arrivals)),
        "rows": lambda: _rows(api.store.rows(time.time())),
    }
    return [
        web.get("/_sandbox", _page(api)),
        web.get("/_sandbox/", _page(api)),
        *(web.get(f"/_sandbox/{name}", _json(read)) for name, read in shown.items()),
        *(web.get(f"/_sandbox/{name}", _lines(read)) for name, read in listed.items()),
        web.post("/_sandbox/faults", _switch(lambda body: _set_faults(api, body))),
        web.post("/_sandbox/keys", _switch(lambda body: _set_keys(api, body))),
        web.post("/_sandbox/reset", _switch(lambda _: api.reset())),
    ]


def ids(api: Api) -> list[Any]:
    """Return the event_id of every event ever stored, in the order of arrival."""
    events = (a for a in api.arrivals if a.is_stored and a.route != "/v1/identify")
    return [event_id for arrival in events for event_id in arrival.ids]


def summary(api: Api) -> dict[str, Any]:
    """Return the totals. Parses bodies that are not parsed yet, so not for a hot path."""
    stored_ids = ids(api)
    batches = [a for a in api.arrivals if a.route == "/v1/batch"]
    stored = [a for a in batches if a.is_stored]
    identifies = [a for a in api.arrivals if a.route == "/v1/identify" and a.is_stored]
    distinct = len(set(map(str, stored_ids)))
    return {
        "requests": Counter(f"{a.route} {a.status}" for a in api.arrivals),
        "events": len(stored_ids),
        "distinct": distinct,
        "duplicates": len(stored_ids) - distinct,
        "identifies": len(identifies),
        "forgotten": len(api.store.forgets),
        "violations": dict(api.violations),
        "throttled": sum(a.status == 429 for a in api.arrivals),  # noqa: PLR2004 - HTTP
        "batches": len(stored),
        "body_bytes_max": max((len(a.body) for a in batches), default=0),
        "body_bytes_sum": sum(len(a.body) for a in stored),
        "over_rate": over_rate([a.at for a in batches], *QUOTAS["/v1/batch"]),
    }


def _rows(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    for row in rows:
        names = ("event", "event_id", "anonymous_id", "user_id")
        found = {name: row.event.get(name) for name in names}
        yield {"project": row.project, "stored_at": row.stored_at, **found}


def _set_faults(api: Api, body: bytes) -> None:
    api.faults = faults.parse(body)


def _set_keys(api: Api, body: bytes) -> None:
    keys = json.loads(body)
    if not isinstance(keys, list):
        msg = "keys: must be a list"
        raise ValueError(msg)  # noqa: TRY004 - all that is refused is a ValueError
    bad = [index for index, key in enumerate(keys) if not access.is_key(key)]
    if bad:
        msg = f"keys: number {bad[0]} has not the shape (pk|sk|rk|ak)_*_*_*"
        raise ValueError(msg)
    api.keys = frozenset(keys)


def _page(api: Api) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def show(_: web.Request) -> web.Response:
        return web.Response(text=page.render(api), content_type="text/html")

    return show


def _json(read: Callable[[], Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def show(_: web.Request) -> web.Response:
        return web.json_response(read())

    return show


def _lines(
    read: Callable[[], Iterable[dict[str, Any]]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def show(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for number, line in enumerate(read()):
            await response.write(json.dumps(line).encode() + b"\n")
            if number % _LINES_EACH_TURN == 0:
                await asyncio.sleep(0)
        await response.write_eof()
        return response

    return show


def _switch(write: Callable[[bytes], None]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def change(request: web.Request) -> web.Response:
        try:
            write(await request.read())
        except ValueError as error:
            refused = {"error": "refused", "details": str(error)}
            return web.json_response(refused, status=400)
        return web.json_response({"ok": True})

    return change
