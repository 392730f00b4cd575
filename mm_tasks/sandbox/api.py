"""The calls of `/v1/`: each is checked, stored and answered, or broken by a fault.

Checks in this order: route, key, rate, size, JSON, rules. A batch is stored whole
or not at all, its rows exist before its 202 is sent, and one event_id twice is
two rows. A fault changes the answer, and with `store` whether rows are stored.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from aiohttp import ClientError

from mm_tasks.sandbox import access, faults, payload, reports, rules, wire
from mm_tasks.sandbox.answer import Answer, Refused, reject
from mm_tasks.sandbox.journal import Arrival
from mm_tasks.sandbox.quota import QUOTAS, Bucket
from mm_tasks.sandbox.store import Deposit, Forget, Store

if TYPE_CHECKING:
    from aiohttp import web

    from mm_tasks.sandbox.access import Access
    from mm_tasks.sandbox.config import Config
    from mm_tasks.sandbox.faults import Fault

_REPORTS = {"/v1/query": reports.query, "/v1/stats": reports.stats}


class Api:
    """Everything that arrived, the rows, the valid keys and the faults in force."""

    def __init__(self, config: Config) -> None:
        """Start empty."""
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Return to the start: no arrivals, rows, buckets or faults, and the first keys."""
        self.keys = frozenset(self.config.keys)
        self.arrivals: list[Arrival] = []
        self.store = Store()
        self.violations: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.buckets: dict[tuple[str, str], Bucket] = {}

    async def call(self, request: web.Request) -> web.StreamResponse:
        """Answer one call, or break it off if a fault demands it."""
        arrival = Arrival(time.time(), request.path)
        needs_body = faults.needs_body(self.faults, request.path)
        fault = None if needs_body else self._fault(arrival)
        if isinstance(fault, faults.CloseBeforeRead):
            self.arrivals.append(arrival)
            arrival.done_at = arrival.at
            return wire.abort(request)
        try:
            arrival.body = await request.read()
        except (OSError, ClientError):  # the client broke off
            self.arrivals.append(arrival)
            arrival.done_at = time.time()
            return wire.abort(request)
        fault = self._fault(arrival) if needs_body else fault
        self.arrivals.append(arrival)
        answer = self._judge(request, arrival, fault)
        response = await self._respond(request, fault, answer)
        arrival.done_at = time.time()
        if wire.is_gone(request):
            arrival.status = None
        return wire.abort(request) if isinstance(fault, faults.Drip) else response

    def _fault(self, arrival: Arrival) -> Fault | None:
        fault = faults.choose(self.faults, arrival.route, arrival.at, arrival.body)
        arrival.fault = fault.kind if fault else None
        return fault

    def _judge(self, request: web.Request, arrival: Arrival, fault: Fault | None) -> Answer:
        """Decide the answer, and store the rows if the answer and the fault permit it."""
        project = ""
        try:
            who = self._admit(request)
            project = who.project
            answer = self._answer(request, who, arrival)
        except Refused as refused:
            answer = refused.answer
        arrival.status = wire.status_of(fault, answer) if fault else answer.status
        if not answer.is_success or request.method != "POST":
            return answer
        if isinstance(fault, faults.LateApply):
            asyncio.get_running_loop().call_later(
                fault.after_s, self._keep, self.store, arrival, project
            )
        elif fault is None or getattr(fault, "store", False):
            self._keep(self.store, arrival, project)
        return answer

    def _keep(self, store: Store, arrival: Arrival, project: str) -> None:
        """Store the rows of a call in the store of its arrival, so that a reset drops late rows."""
        arrival.stored_at = now = time.time()
        if arrival.route == "/v1/forget":
            user_id = json.loads(arrival.body)["user_id"]
            due_at = now + self.config.forget_lag_s
            store.forgets.append(Forget(arrival.at, due_at, project, user_id))
        else:
            store.deposits.append(Deposit(now, project, arrival.route, arrival.body))

    async def _respond(
        self, request: web.Request, fault: Fault | None, answer: Answer
    ) -> web.StreamResponse:
        latency_s = fault.latency_s if fault else self.config.latency_s
        if latency_s:
            await asyncio.sleep(latency_s)
        return await wire.play(request, fault, answer) if fault else answer.response()

    def _admit(self, request: web.Request) -> Access:
        """Check route, key and rate; a refused request costs no token."""
        access.check_route(request.method, request.path)
        who = access.check_key(request.headers, request.path, self.keys, self.config.origins)
        quota = QUOTAS.get(request.path)
        if quota is not None and self.config.limited:
            bucket = self.buckets.setdefault((who.project, request.path), Bucket(*quota))
            wait_s = bucket.take(time.monotonic())
            if wait_s:
                after = max(1, math.ceil(wait_s))
                raise Refused(429, "rate_limited", {"Retry-After": str(after)}, retry_after_s=after)
        if request.method == "POST":
            self._notice(request)
        return who

    def _notice(self, request: web.Request) -> None:
        """Count violations that a strict server notices but does not refuse."""
        headers = request.headers
        if headers.get("Content-Type") != "application/json":
            self.violations["content_type"] += 1
        if "Content-Encoding" in headers or "Transfer-Encoding" in headers:
            self.violations["encoding"] += 1
        if not headers.get("User-Agent", "").startswith("mm-tasks/"):
            self.violations["user_agent"] += 1

    def _answer(self, request: web.Request, who: Access, arrival: Arrival) -> Answer:
        route, body = arrival.route, arrival.body
        if route in _REPORTS:
            rows = self.store.rows(time.time(), who.project)
            return Answer(200, _REPORTS[route](rows, _parameters(request)))
        if len(body) > self.config.batch_bytes_max:
            # Inferred: the vendor names no code for a body above its limit.
            raise Refused(413, "payload_too_large")
        if route == "/v1/batch" and not self.config.validated:
            arrival.events = body.count(b'{"event":')
            return Answer(202, {"ok": True, "count": arrival.events})
        try:
            parsed = payload.parse(body)
        except ValueError:
            reject()
        arrival.events = _count(parsed)
        return _accepted(route, parsed)


def _accepted(route: str, parsed: Any) -> Answer:
    match route:
        case "/v1/batch":
            return Answer(202, {"ok": True, "count": rules.check_batch(parsed)})
        case "/v1/track":
            rules.check_event(parsed)
            return Answer(202, {"ok": True, "event_id": parsed.get("event_id")})
        case "/v1/identify":
            rules.check_identify(parsed)
            return Answer(200, {"ok": True})
    rules.check_forget(parsed)
    return Answer(200, {"ok": True, "queued": True})


def _count(parsed: Any) -> int:
    events = parsed.get("events") if isinstance(parsed, dict) else None
    return len(events) if isinstance(events, list) else 1


def _parameters(request: web.Request) -> dict[str, str]:
    twice = {name for name in request.query if len(request.query.getall(name)) > 1}
    if twice:
        reject(*sorted(twice))
    return dict(request.query)
