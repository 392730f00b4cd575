"""The sandbox on a free loopback port, in a thread of its own: all requests use a socket."""

import asyncio
import http.client
import json
import socket
import threading
from contextlib import closing
from dataclasses import dataclass

import pytest
from aiohttp import web

from mm_tasks.sandbox.server import Config, runner

SECRET = "sk_test_abc_not-a-real_secret"
PUBLIC = "pk_test_abc_not-a-real_secret"
READ = "rk_test_abc_not-a-real_secret"


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Server:
    """A running sandbox and the requests that a test sends to it."""

    def __init__(self, **config):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.runner = runner(Config(**config))
        self.port = self.on_loop(self.start())

    async def start(self):
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return self.runner.addresses[0][1]

    def on_loop(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def stop(self):
        self.on_loop(self.runner.cleanup())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def request(self, method, path, body=None, headers=None):
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())

    def post(self, route, body, key=SECRET, **headers):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", **headers}
        return self.request("POST", f"/v1/{route}", raw, sent)

    def get(self, path, key=READ):
        return self.request("GET", f"/v1/{path}", None, {"Authorization": f"Bearer {key}"})

    def seen(self, name):
        return self.request("GET", f"/_sandbox/{name}").json

    def lines(self, name):
        reply = self.request("GET", f"/_sandbox/{name}")
        assert reply.headers["Content-Type"] == "application/x-ndjson"
        return [json.loads(line) for line in reply.body.splitlines()]

    def switch(self, name, value):
        return self.request("POST", f"/_sandbox/{name}", json.dumps(value).encode())

    def fault(self, **fault):
        reply = self.switch("faults", [fault])
        assert reply.status == 200, reply.body

    def sent(self, body):
        """Return the socket over which a batch was sent."""
        raw = json.dumps(body).encode()
        head = f"POST /v1/batch HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n"
        head += f"Authorization: Bearer {SECRET}\r\nConnection: close\r\n\r\n"
        sock = socket.create_connection(("127.0.0.1", self.port), 5)
        sock.sendall(head.encode() + raw)
        return sock

    def wire(self, body):
        """Return the raw bytes of the answer to a batch, up to the end of the connection."""
        with self.sent(body) as sock:
            return b"".join(iter(lambda: receive(sock), b""))


def receive(sock):
    try:
        return sock.recv(65536)
    except ConnectionResetError:
        return b""


@pytest.fixture
def start():
    """Start a sandbox with a configuration; it ends with the test."""
    servers = []

    def start(**config):
        servers.append(Server(**config))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def sandbox(start):
    return start()
