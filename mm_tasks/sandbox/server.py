"""The server: keys, limits, routes, faults, and what arrived.

One process, one event loop. Rate buckets are the vendor's: 5 a second and a
burst of 20 for batches, 50 and 200 for single events.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from mm_tasks.sandbox import rules

KEY = re.compile(r"(pk|sk|rk|ak)_[^_]+_[^_]+_.+")
BATCH_EVENTS_MAX = 500


@dataclass
class Config:
    """How strict and how fast. `keys`: the only valid ones; none given: any well-shaped key."""

    host: str = "127.0.0.1"
    port: int = 8787
    keys: tuple[str, ...] = ()
    validated: bool = True
    limited: bool = True
    latency_s: float = 0
    batch_bytes_max: int = 256_000


@dataclass
class Bucket:
    """A token bucket, full at first. Time is an argument."""

    rate: float
    burst: float
    tokens: float = field(default=-1)
    at: float = 0

    def take(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        if self.tokens < 0:
            self.tokens, self.at = self.burst, now
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0
        return (1 - self.tokens) / self.rate


@dataclass
class Arrival:
    """One request as it was seen: when, where, how big, and what was answered."""

    at: float
    route: str
    bytes: int
    events: int
    status: int | None
    stored: bool
    fault: str | None = None


class Sandbox:
    """Everything that arrived, and the faults in force."""

    def __init__(self, config: Config) -> None:
        """Start empty."""
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget everything: arrivals, rows, buckets and faults."""
        self.arrivals: list[Arrival] = []
        self.bodies: list[tuple[str, bytes]] = []
        self.forgotten: list[str] = []
        self.violations: Counter[str] = Counter()
        self.faults: list[dict[str, Any]] = []
        self.buckets: dict[tuple[str, str], Bucket] = {}

    async def call(self, request: web.Request) -> web.StreamResponse:
        """Answer one call of the API, or break off as a fault demands."""
        at = time.time()
        fault = self._fault(request.path)
        if fault and fault["kind"] == "close_before_read":
            self.arrivals.append(Arrival(at, request.path, 0, 0, None, False, fault["kind"]))
            return self._abort(request)
        body = await request.read()
        status, answer, headers, events = self._answer(request, body)
        is_ok = status < 300  # noqa: PLR2004 - HTTP
        stores = is_ok and (fault is None or fault.get("store", False))
        if stores:
            self.bodies.append((request.path, body))
        name = fault["kind"] if fault else None
        arrival = Arrival(at, request.path, len(body), events, status, stores, name)
        self.arrivals.append(arrival)
        latency_s = self.config.latency_s if fault is None else fault.get("latency_s", 0)
        if latency_s:
            await asyncio.sleep(latency_s)
        if fault:
            return await self._break(request, fault, arrival)
        return web.json_response(answer, status=status, headers=headers)

    def _fault(self, route: str) -> dict[str, Any] | None:
        for fault in self.faults:
            if fault.get("route", "/v1/batch") != route or fault.get("times", 1) <= 0:
                continue
            if fault.get("after", 0) > 0:
                fault["after"] -= 1
                continue
            fault["times"] = fault.get("times", 1) - 1
            return fault
        return None

    async def _break(
        self, request: web.Request, fault: dict[str, Any], arrival: Arrival
    ) -> web.StreamResponse:
        arrival.status = None
        match fault["kind"]:
            case "status":
                arrival.status = fault["status"]
                text = fault.get("body", '{"error":"internal_error"}')
                headers = fault.get("headers", {})
                return web.Response(status=fault["status"], text=text, headers=headers)
            case "cut_headers":
                return await self._raw(request, b"HTTP/1.1 202 Accepted\r\nContent-Ty")
            case "cut_body":
                raw = b'HTTP/1.1 202 Accepted\r\nContent-Length: 99\r\n\r\n{"ok":tr'
                return await self._raw(request, raw)
            case "giant":
                return web.Response(status=202, body=b"x" * 4_000_000)
            case "hang":
                await asyncio.sleep(fault.get("for_s", 60))
        return self._abort(request)

    async def _raw(self, request: web.Request, raw: bytes) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.write(raw)
            await asyncio.sleep(0.05)
        return self._abort(request)

    def _abort(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    def _answer(
        self, request: web.Request, body: bytes
    ) -> tuple[int, dict[str, Any], dict[str, str], int]:
        refused = self._key_problem(request)
        if refused:
            return refused[0], {"error": refused[1]}, {}, 0
        wait_s = self._limited(request)
        if wait_s:
            after = max(1, math.ceil(wait_s))
            said = {"error": "rate_limited", "retry_after_s": after}
            return 429, said, {"Retry-After": str(after)}, 0
        self._notice(request)
        if len(body) > self.config.batch_bytes_max:
            # Inferred: the vendor names no code for a body above its limit.
            return 413, {"error": "payload_too_large"}, {}, 0
        if request.path == "/v1/batch" and not self.config.validated:
            return 202, {"ok": True, "count": body.count(b'{"event":')}, {}, 0
        try:
            parsed = json.loads(body.decode(), parse_constant=_refuse_constant)
        except ValueError:
            return 400, {"error": "invalid_payload"}, {}, 0
        status, said = self._route(request.path, parsed)
        return status, said, {}, _count(parsed)

    def _route(self, path: str, parsed: Any) -> tuple[int, dict[str, Any]]:  # noqa: ANN401 - JSON
        invalid = 400, {"error": "invalid_payload"}
        if path == "/v1/batch":
            events = parsed.get("events") if isinstance(parsed, dict) else None
            if not isinstance(events, list) or not 1 <= len(events) <= BATCH_EVENTS_MAX:
                return invalid
            bad = next((p for p in map(rules.event_problem, events) if p), None)
            return invalid if bad else (202, {"ok": True, "count": len(events)})
        if path == "/v1/track":
            bad = rules.event_problem(parsed)
            return invalid if bad else (202, {"ok": True, "event_id": parsed.get("event_id")})
        if path == "/v1/identify":
            return invalid if rules.identify_problem(parsed) else (200, {"ok": True})
        if not isinstance(parsed, dict) or parsed.keys() != {"user_id"}:
            return invalid
        self.forgotten.append(parsed["user_id"])
        return 200, {"ok": True, "queued": True}

    def _key_problem(self, request: web.Request) -> tuple[int, str] | None:
        header = request.headers.get("Authorization", "")
        key = header.removeprefix("Bearer ")
        if not header.startswith("Bearer ") or not key:
            return 401, "missing_bearer_token"
        if not KEY.fullmatch(key):
            return 401, "malformed_api_key"
        if self.config.keys and key not in self.config.keys:
            return 401, "invalid_api_key"
        if request.path == "/v1/forget" and not key.startswith("sk_"):
            return 403, "forget_requires_secret_key"
        return (403, "insufficient_scope") if key[:2] in {"rk", "ak"} else None

    def _limited(self, request: web.Request) -> float:
        quota = {"/v1/batch": (5, 20), "/v1/track": (50, 200)}.get(request.path)
        if quota is None or not self.config.limited:
            return 0
        project = request.headers["Authorization"].rsplit("_", 1)[0]
        bucket = self.buckets.setdefault((project, request.path), Bucket(*quota))
        return bucket.take(time.monotonic())

    def _notice(self, request: web.Request) -> None:
        """Count what a strict server sees without refusing it."""
        headers = request.headers
        if headers.get("Content-Type") != "application/json":
            self.violations["content_type"] += 1
        if "Content-Encoding" in headers or "Transfer-Encoding" in headers:
            self.violations["encoding"] += 1
        if not headers.get("User-Agent", "").startswith("mm-tasks/"):
            self.violations["user_agent"] += 1

    def ids(self) -> list[str]:
        """Return the event_id of every stored row, in order."""
        rows = (json.loads(body) for path, body in self.bodies if path != "/v1/identify")
        return [row.get("event_id") for body in rows for row in body.get("events", [body])]

    def summary(self) -> dict[str, Any]:
        """Return the totals; parses what is stored, so not for a hot path."""
        ids = self.ids()
        batches = [a for a in self.arrivals if a.route == "/v1/batch"]
        stored = [a for a in batches if a.stored]
        return {
            "requests": Counter(f"{a.route} {a.status}" for a in self.arrivals),
            "events": len(ids),
            "distinct": len(set(ids)),
            "duplicates": len(ids) - len(set(ids)),
            "identifies": sum(path == "/v1/identify" for path, _ in self.bodies),
            "forgotten": len(self.forgotten),
            "violations": dict(self.violations),
            "throttled": sum(a.status == 429 for a in self.arrivals),  # noqa: PLR2004 - HTTP
            "batches": len(stored),
            "body_bytes_max": max((a.bytes for a in batches), default=0),
            "body_bytes_sum": sum(a.bytes for a in stored),
            "over_rate": over_rate([a.at for a in batches], 5, 20),
        }


def over_rate(starts: list[float], rate: float, slack: float) -> int:
    """Return by how many requests the fullest window exceeds `rate * w + slack`, at least 0."""
    worst, least = 0.0, math.inf
    for index, start in enumerate(sorted(starts)):
        # In the window from start i to start j there are j - i + 1 requests.
        least = min(least, index - rate * start)
        worst = max(worst, index - rate * start - least + 1 - slack)
    return math.ceil(worst)


def application(config: Config) -> web.Application:
    """Return the application; `/_sandbox/` needs no key."""
    box = Sandbox(config)
    app = web.Application(client_max_size=64 << 20)
    for path in ("/v1/track", "/v1/batch", "/v1/identify", "/v1/forget"):
        app.router.add_post(path, box.call)

    async def summary(_: web.Request) -> web.Response:
        return web.json_response(box.summary())

    async def ids(_: web.Request) -> web.Response:
        return web.json_response(box.ids())

    async def requests(_: web.Request) -> web.Response:
        return web.json_response([vars(arrival) for arrival in box.arrivals])

    async def bodies(_: web.Request) -> web.Response:
        return web.json_response([[path, body.decode()] for path, body in box.bodies])

    async def faults(request: web.Request) -> web.Response:
        box.faults = await request.json()
        return web.json_response({"ok": True})

    async def reset(_: web.Request) -> web.Response:
        box.reset()
        return web.json_response({"ok": True})

    for name, handler in (("summary", summary), ("ids", ids), ("requests", requests)):
        app.router.add_get(f"/_sandbox/{name}", handler)
    app.router.add_get("/_sandbox/bodies", bodies)
    app.router.add_post("/_sandbox/faults", faults)
    app.router.add_post("/_sandbox/reset", reset)
    return app


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; print one line once it accepts (port 0 takes a free one)."""
    asyncio.run(_serve(config))


async def _serve(config: Config) -> None:
    runner = web.AppRunner(application(config), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, config.host, config.port)
    await site.start()
    port = runner.addresses[0][1]
    print(f"sandbox listening on http://{config.host}:{port}", flush=True)  # noqa: T201 - its output
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    await runner.cleanup()


def _refuse_constant(_: str) -> None:
    msg = "NaN and infinities are no JSON"
    raise ValueError(msg)


def _count(parsed: Any) -> int:  # noqa: ANN401 - JSON
    events = parsed.get("events") if isinstance(parsed, dict) else None
    return len(events) if isinstance(events, list) else 1
