"""Real processes: sandbox, worker, beat and commands, each ended by its own pid."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

KEY = "sk_test_abc_not-a-real-secret"
# Events of a batch in `Stack.sandbox_of_small_batches`.
BATCH = 100
# Options of a worker that is ready as soon as it can be.
FAST = ("--without-gossip", "--without-mingle", "--without-heartbeat")
ROOT = Path(__file__).parents[2]
# The scripts are programs, not a package: add their folder to the import path.
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

_MANY = """
from mm_tasks import track
track.delay_many({{"event": "signed_up", "user_id": f"u{{i}}", "properties": {{"n": i}}}}
                 for i in range({n}))
"""


def run_python(*words, env, timeout=60, **options):
    """Run this Python to its end, and return its exit code, output and errors."""
    return subprocess.run(
        [sys.executable, *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def run(env, *command):
    """Run one of our commands to its end."""
    return run_python("-m", "mm_tasks.cli", *command, env=env)


def children(process):
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def on_terminal(command, env):
    """Start a command at a terminal of its own; return the process, and our end of the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command,
        env=env,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        start_new_session=True,
    )
    os.close(theirs)
    return process, ours


def read_to_end(terminal):
    """Return the rest of the output, once the last process that has the terminal is gone.

    One read returns no more than a page. At the end Linux raises EIO (pty(7)).
    """
    output = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(terminal, 65536):
            output += chunk
    return output


def assert_alive(*processes):
    assert [process.poll() for process in processes] == [None] * len(processes)


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
        """Start a module of this Python."""
        name = f"{name}-{len(self.processes)}"
        return self.start_command(name, [sys.executable, "-m", *args], {**self.env, **env})

    def start_command(self, name, command, env, **options):
        log = (self.log_dir / f"{name}.log").open("w+")
        process = subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=self.log_dir, **options
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

    def sandbox_of_small_batches(self, latency_ms):
        """Start a slow vendor, with short leases too: much happens in little time."""
        self.env.update(MM_TASKS_LEASE_S="8", MM_TASKS_REQUEST_TIMEOUT_S="3")
        self.env["MM_TASKS_BATCH_EVENTS_MAX"] = str(BATCH)
        self.sandbox("--latency-ms", str(latency_ms))

    def worker(self, *args, **env):
        words = ("-A", "mm_tasks", "worker", "-c", "4", "-l", "info", *args)
        return self.start("worker", "celery", *words, **env)

    def beat(self):
        return self.start("beat", "celery", "-A", "mm_tasks", "beat")

    def worker_and_beat(self, *args):
        return self.worker(*args), self.beat()

    def produce(self, code):
        """Run a program that calls our tasks, and return what it printed."""
        done = run_python("-c", code, env=self.env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def produce_events(self, n):
        self.produce(_MANY.format(n=n))

    def get(self, name):
        return requests.get(f"{self.host}/_sandbox/{name}", timeout=30).json()

    def fault(self, *rules):
        requests.post(f"{self.host}/_sandbox/faults", data=json.dumps(rules), timeout=5)

    @staticmethod
    def read(process):
        process.log.flush()
        return Path(process.log.name).read_text()

    @staticmethod
    def wait(condition, within_s=60):
        """Wait until the condition returns something true, and return it."""
        ends_at = time.monotonic() + within_s
        while time.monotonic() < ends_at:
            value = condition()
            if value:
                return value
            time.sleep(0.2)
        pytest.fail("it did not happen in time")

    def wait_for_events(self, n, within_s=60):
        self.wait(lambda: self.get("summary")["distinct"] >= n, within_s)

    def wait_for_batches(self, n):
        self.wait(lambda: self.get("summary")["batches"] >= n)

    def wait_until_ended(self, process):
        self.wait(lambda: process.poll() is not None, 30)

    @staticmethod
    def stop(processes):
        """Stop them as a supervisor does: SIGTERM, then SIGKILL for each that does not end."""
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
