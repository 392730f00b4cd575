"""`mm-tasks demo` and `mm-tasks up` end each process they started, on every signal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import free_port

MARK = "MM_TASKS_TEST_MARK"


@pytest.fixture(autouse=True)
def _interruptible():
    """A shell lets programs in the background ignore SIGINT, and their children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def started(mark, folder):
    """Return the processes that inherited a mark, or run in a folder, as Redis does."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_marked = f"{MARK}={mark}".encode() in (path / "environ").read_bytes()
            if is_marked or (path / "cwd").resolve().is_relative_to(folder):
                found[path.name] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def start(mark, tmp_path, *command, **env):
    inherited = {name: value for name, value in os.environ.items() if "MM_TASKS" not in name}
    return subprocess.Popen(
        [sys.executable, "-m", "mm_tasks.cli", *command],
        env={**inherited, MARK: mark, "TMPDIR": str(tmp_path), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_all_end(process, mark, folder, *signals):
    """Send signals, one shortly after the other, and wait until the command has ended."""
    before = started(mark, folder)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.05)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()

    assert len(before) > 1, output
    assert not started(mark, folder), output


@pytest.mark.parametrize(
    ("number", "after_s"),
    [
        (signal.SIGTERM, 0),
        (signal.SIGTERM, 0.5),
        (signal.SIGTERM, 3),
        (signal.SIGINT, 1),
        (signal.SIGHUP, 2),
    ],
)
def test_no_process_of_the_demo_outlives_a_signal(tmp_path, number, after_s):
    """A supervisor sends SIGTERM, a closed terminal SIGHUP; a person presses Ctrl-C twice."""
    mark = f"demo-{number}-{after_s}-{os.getpid()}"
    process = start(mark, tmp_path, "demo")
    ends_at = time.monotonic() + 30
    while len(started(mark, tmp_path)) < 2 and time.monotonic() < ends_at:
        time.sleep(0.01)
    time.sleep(after_s)
    assert_all_end(process, mark, tmp_path, number, signal.SIGTERM)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_process_of_up_outlives_a_signal(tmp_path, number):
    mark = f"up-{number}-{os.getpid()}"
    port = free_port()
    env = {
        "MM_TASKS_REDIS_URL": f"redis://127.0.0.1:{port}/0",
        "MM_TASKS_STATE_DIR": str(tmp_path),
        "MILLIMETRIC_KEY": "sk_test_abc_not-a-real-secret",
        "MILLIMETRIC_HOST": "http://127.0.0.1:1",
    }
    process = start(mark, tmp_path, "up", **env)
    assert "up: " in process.stdout.readline()
    assert_all_end(process, mark, tmp_path, number)

    assert process.returncode == 0


@pytest.mark.usefixtures("redis")
def test_the_demo_ends_at_once_when_a_process_failed(redis_url, tmp_path):
    """It waited 300 s for events that no shopper stored."""
    env = {"MM_TASKS_REDIS_URL": redis_url, "MM_TASKS_BUFFER_BYTES_MAX": "1000"}
    began_s = time.monotonic()
    process = start("failed", tmp_path, "demo", "--on-settings", "--bulk", "300", **env)
    output, _ = process.communicate(timeout=100)

    assert process.returncode == 1
    assert "mm-tasks: a process of the demo failed; see its output above" in output
    assert time.monotonic() - began_s < 60
