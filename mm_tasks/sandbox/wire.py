"""The bytes of a fault on the wire. `api` has already stored its rows, or not.

An answer that breaks off is written past aiohttp, straight to the socket.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, assert_never

from aiohttp import web

from mm_tasks.sandbox import faults

if TYPE_CHECKING:
    from mm_tasks.sandbox.answer import Answer
    from mm_tasks.sandbox.faults import Fault

GIANT_BYTES = 4_000_000
_CUT_HEADERS = b"HTTP/1.1 202 Accepted\r\nContent-Ty"
_CUT_BODY = b'HTTP/1.1 202 Accepted\r\nContent-Length: 99\r\n\r\n{"ok":tr'


def status_of(fault: Fault, answer: Answer) -> int | None:
    """Return the status that a fault answers, or None if the answer never ends."""
    match fault:
        case faults.Status() | faults.LateApply():
            return fault.status
        case faults.Slow() | faults.Drip():
            return answer.status
        case faults.Giant():
            return 202
        case _:
            return None


async def play(request: web.Request, fault: Fault, answer: Answer) -> web.StreamResponse:
    """Answer as the fault demands; `answer` is the correct answer."""
    match fault:
        case faults.Status():
            return _stated(fault)
        case faults.Slow():
            return answer.response()
        case faults.Giant():
            return web.Response(status=202, body=b"x" * GIANT_BYTES)
        case faults.LateApply(status=int(status)):
            return web.Response(status=status, text="the upstream gave up")
        case faults.LateApply() | faults.CloseBeforeRead() | faults.CloseAfterStore():
            pass
        case faults.CutHeaders():
            await _write(request, _CUT_HEADERS)
        case faults.CutBody():
            await _write(request, _CUT_BODY)
        case faults.Hang():
            await asyncio.sleep(fault.for_s)
        case faults.Drip():
            await _drip(request, fault.every_s, answer)
            return web.Response()  # the caller ends the connection
        case _:
            assert_never(fault)
    return abort(request)


def is_gone(request: web.Request) -> bool:
    """Return whether the client has ended the connection."""
    return request.transport is None or request.transport.is_closing()


def abort(request: web.Request) -> web.StreamResponse:
    """End the connection at once; the returned response is not sent."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _stated(fault: faults.Status) -> web.Response:
    is_page = fault.body.lstrip().startswith("<")
    headers = {"Content-Type": "text/html" if is_page else "application/json", **fault.headers}
    return web.Response(status=fault.status, body=fault.body.encode(), headers=headers)


async def _write(request: web.Request, raw: bytes) -> None:
    if request.transport is not None:
        request.transport.write(raw)
        await asyncio.sleep(0.05)  # sends it before the connection ends


async def _drip(request: web.Request, every_s: float, answer: Answer) -> None:
    body = answer.text()
    reason = HTTPStatus(answer.status).phrase
    head = (
        f"HTTP/1.1 {answer.status} {reason}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    for byte in head.encode() + body:
        if request.transport is None or request.transport.is_closing():
            break
        request.transport.write(bytes([byte]))
        await asyncio.sleep(every_s)
