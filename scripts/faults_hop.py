"""A proxy between a worker and the vendor that changes, delays and cuts answers at random.

    python scripts/faults_hop.py --upstream http://127.0.0.1:8787 --fault gzip=0.2 --fault cut=0.1

Prints its address in one line, and the counts as JSON at the end. Each fault is drawn for each
request by itself, so that they meet in every mixture. `GET /_hop` returns the counts, and
`POST /_hop` replaces the faults: `{"gzip": 0.5}`. `GET /_hop/spoiled` returns the instants at which
an answer was made unreadable or late. The vendor answered already, and has perhaps stored,
whatever becomes of its answer; only `filter` and a cut of the request come before.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import random
import re
import signal
import time
from collections import Counter
from typing import NamedTuple
from urllib.parse import urlsplit

KINDS = {
    "interim": "one to three answers of 102 and 103 come before the vendor was asked",
    "gzip": "the body is gzipped, although identity was asked for",
    "page": "an HTML page with 200 or 202 takes the place of a success",
    "late": "the answer comes `--late-s` late",
    "cut": "the connection ends at a random byte of the request or of the answer",
    "leftover": "bytes that belong to no answer come behind it, perhaps a whole answer",
}
SPOILING = {"page", "late", "cut"}
PAGE = b"<!doctype html><title>Please sign in</title>"
INTERIM = (b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n")
OK = b'HTTP/1.1 202 Accepted\r\nContent-Length: 11\r\n\r\n{"ok":true}'
LEFTOVERS = (b"\r\n", b"x", PAGE, OK, INTERIM[0])
# Of one connection only; the hop keeps its own.
HOP_BY_HOP = re.compile(rb"(?im)^(connection|content-length|transfer-encoding):.*\r\n")


class Message(NamedTuple):
    """A request or an answer; the head ends with its empty line."""

    head: bytes
    body: bytes


class Hop:
    """The faults in force, and the number of requests that met each."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Take the command line."""
        self.upstream = urlsplit(options.upstream)
        self.late_s: float = options.late_s
        self.filter: bytes = options.filter.encode()
        self.faults: dict[str, float] = dict(options.fault)
        self.random = random.Random(options.seed)  # noqa: S311 - no secret
        self.counts = Counter[str]()
        self.spoiled: list[float] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with contextlib.suppress(OSError, EOFError):
            while await self.answer(await read_request(reader), writer):
                pass
        writer.close()

    async def answer(self, request: Message, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection can carry another."""
        path = request.head.split()[1]
        if path == b"/_hop/spoiled":
            body = json.dumps(self.spoiled).encode()
            writer.write(framed(b"HTTP/1.1 200 OK\r\n\r\n", body))
            return True
        if path == b"/_hop":
            writer.write(framed(b"HTTP/1.1 200 OK\r\n\r\n", self.control(request.body)))
            return True
        self.counts["requests"] += 1
        drawn = {kind for kind, share in self.faults.items() if self.random.random() < share}
        is_cut = "cut" in drawn
        if is_cut and self.random.random() < 1 / 3:
            self.counts["cut"] += 1
            return False
        if "interim" in drawn:
            self.counts["interim"] += 1
            writer.write(b"".join(self.random.choices(INTERIM, k=self.random.randint(1, 3))))
        answer = await self.fetched(request)
        if answer is None:
            return False
        raw = self.changed(answer, drawn)
        if drawn & SPOILING:
            self.spoiled.append(time.time())
        if "late" in drawn:
            self.counts["late"] += 1
            await asyncio.sleep(self.late_s)
        if is_cut:
            self.counts["cut"] += 1
            raw = raw[: self.random.randrange(len(raw))]
        writer.write(raw)
        await writer.drain()
        return not is_cut

    def control(self, body: bytes) -> bytes:
        """Replace the faults if there is a body; return the counts."""
        if body:
            self.faults = known(json.loads(body))
        return json.dumps(self.counts).encode()

    async def fetched(self, request: Message) -> Message | None:
        """Return the vendor's answer, or the page of the filter; None without an answer."""
        if self.filter and self.filter in request.body:
            self.counts["filtered"] += 1
            return Message(b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\n\r\n", PAGE)
        reader, writer = await asyncio.open_connection(self.upstream.hostname, self.upstream.port)
        try:
            writer.write(framed(request.head, request.body, "close"))
            raw = await reader.read()
        finally:
            writer.close()
        head, mark, body = raw.partition(b"\r\n\r\n")
        return Message(head + mark, body) if mark else None

    def changed(self, answer: Message, drawn: set[str]) -> bytes:
        """Return the bytes of an answer with the drawn faults, and count them."""
        head, body = answer
        if "page" in drawn and head[9:12] in {b"200", b"202"}:
            status = self.random.choice([b"200 OK", b"202 Accepted"])
            head, body = b"HTTP/1.1 %s\r\nContent-Type: text/html\r\n\r\n" % status, PAGE
            self.counts["page"] += 1
        if "gzip" in drawn:
            head, body = head[:-2] + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(body)
            self.counts["gzip"] += 1
        raw = framed(head, body)
        if "leftover" in drawn:
            raw += self.random.choice(LEFTOVERS)
            self.counts["leftover"] += 1
        return raw


def framed(head: bytes, body: bytes, connection: str = "keep-alive") -> bytes:
    """Return a message with the length of its body."""
    fields = f"Content-Length: {len(body)}\r\nConnection: {connection}\r\n\r\n"
    return HOP_BY_HOP.sub(b"", head)[:-2] + fields.encode() + body


async def read_request(reader: asyncio.StreamReader) -> Message:
    """Return the next request; raise `EOFError` at the end."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?im)^content-length: *(\d+)\r$", head)
    return Message(head, await reader.readexactly(int(length[1]) if length else 0))


def known(faults: dict[str, float]) -> dict[str, float]:
    """Return the faults; raise `ValueError` if a kind is unknown."""
    if unknown := faults.keys() - KINDS.keys():
        msg = f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}"
        raise ValueError(msg)
    return faults


def fault(text: str) -> tuple[str, float]:
    """Return kind and share of `kind=0.1`."""
    kind, _, share = text.partition("=")
    known({kind: 0})
    return kind, float(share)


async def main(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    hop = Hop(options)
    server = await asyncio.start_server(hop.serve, "127.0.0.1", options.port)
    print(f"hop listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    print(json.dumps(hop.counts), flush=True)


if __name__ == "__main__":
    kinds = "\n".join(f"  {kind:9} {what}" for kind, what in KINDS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nfaults:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--upstream", required=True, help="http://host:port of the vendor")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", type=fault, action="append", default=[], metavar="KIND=SHARE")
    parser.add_argument("--late-s", type=float, default=1.0)
    parser.add_argument("--filter", default="", help="refuse each body that contains this text")
    asyncio.run(main(parser.parse_args()))
