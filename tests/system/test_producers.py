"""`track.delay` in every kind of process that calls it: forked, spawned, threaded, short-lived.

Each program runs under a watchdog, so that a call that hangs fails its test with a traceback.
Events are named after the process that stored them, and Redis says on which connection each came.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.system.books import assert_balanced, waiting_ids
from tests.system.monitor import Monitor

_PREAMBLE = """
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from mm_tasks import runtime, track
from mm_tasks.tasks.publisher import _PUBLISH_TIMEOUT_S

# How soon a call gives up is for other tests. Here none may fail however busy the machine is,
# so whatever would have waited for ever is ended by the watchdog.
runtime.PRODUCER_CONNECT_S = runtime.PRODUCER_ANSWER_S = _PUBLISH_TIMEOUT_S = 30


def watch():
    # Not `dump_traceback_later`: in a forked child it waits for the parent's thread.
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(50)


def call(n):
    # A full batch is among them, so that flushes are asked for too.
    return [track.delay(f"pid_{os.getpid()}", user_id=f"u{i}").id for i in range(n)]


def tell(ids):
    os.write(1, "".join(f"{event_id}\\n" for event_id in ids).encode())


watch()
"""


def run(stack, program):
    """Run it as a file of its own, as `spawn` needs it; return what it printed, by lines."""
    path = stack.log_dir / "program.py"
    path.write_text(_PREAMBLE + program)
    done = subprocess.run(
        [sys.executable, path],
        env=stack.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "nudge_failed" not in done.stderr
    return done.stdout.split()


def assert_each_is_there_once(redis, ids, n):
    """Every receipt names one record that waits, and there is no other record."""
    assert len(ids) == len(set(ids)) == n
    assert sorted(waiting_ids(redis)) == sorted(ids)
    assert assert_balanced(redis)["accepted"] == n


def assert_no_connection_is_shared(monitor, processes):
    """All processes were heard, and no two of them on one connection."""
    heard = monitor.processes()

    assert all(len(pids) == 1 for pids in heard.values()), heard
    assert len(set.union(*heard.values())) == processes


WSGI = """
import os
import sys

from mm_tasks import track

print("stored", track.delay(f"pid_{os.getpid()}", user_id="u").id, flush=True)


def app(environ, start_response):
    receipt = track.delay(f"pid_{os.getpid()}", user_id="u")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {receipt.id}".encode()]
"""


@pytest.mark.parametrize("kind", [("sync",), ("gthread", "--threads", "4")], ids=lambda k: k[0])
def test_gunicorn_that_preloads_shares_nothing_with_its_workers(stack, redis, kind):
    """The app stored an event at import, before the workers were forked."""
    (stack.log_dir / "wsgi.py").write_text(WSGI)
    with Monitor(redis) as monitor:
        server = stack.start(
            "gunicorn",
            *("gunicorn", "--preload", "-w", "2", "-b", "127.0.0.1:0", "--no-control-socket"),
            *("-k", *kind, "wsgi:app"),
        )
        where = stack.wait(
            lambda: re.search(r"Listening at: (http://\S+)", stack.read(server)), 30
        )[1]
        at_import = re.search(r"stored (\S+)", stack.read(server))[1]
        with ThreadPoolExecutor(8) as callers:
            answers = [
                answer.text.split()
                for answer in callers.map(lambda _: requests.get(where, timeout=30), range(700))
            ]

    workers = {int(pid) for pid, _ in answers}
    assert len(workers) == 2
    assert_each_is_there_once(redis, [at_import, *(event_id for _, event_id in answers)], 701)
    assert_no_connection_is_shared(monitor, 3)


FORK = """
tell(call(600))
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        watch()
        tell(call(300))
        os._exit(0)
    children.append(pid)
tell(call(300))
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
tell(call(10))
"""


def test_parent_and_children_call_at_once_after_a_fork(stack, redis):
    with Monitor(redis) as monitor:
        ids = run(stack, FORK)

    assert_each_is_there_once(redis, ids, 600 + 5 * 300 + 10)
    assert_no_connection_is_shared(monitor, 5)


FORK_AMONG_THREADS = """
call(1)
stop = threading.Event()


def go_on():
    while not stop.is_set():
        tell(call(1))


threads = [threading.Thread(target=go_on) for _ in range(8)]
for thread in threads:
    thread.start()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        watch()
        call(2)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
"""


def test_a_fork_while_threads_are_within_a_call_leaves_the_child_able_to_call(stack, redis):
    """Whatever those threads hold is held for ever in the child, which has none of them."""
    with Monitor(redis) as monitor:
        ids = run(stack, FORK_AMONG_THREADS)

    assert_each_is_there_once(redis, waiting_ids(redis), assert_balanced(redis)["accepted"])
    assert set(ids) <= set(waiting_ids(redis))
    assert len(waiting_ids(redis)) == len(ids) + 1 + 20 * 2
    assert_no_connection_is_shared(monitor, 21)


FORK_AT_THE_FIRST_CALL = """
import random
import time

from mm_tasks import runtime

for _ in range(60):
    # As a process that never called: what the first call makes, it makes again.
    runtime._process.runtime = None
    threads = [threading.Thread(target=call, args=(1,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(random.uniform(0, 0.004))
    pid = os.fork()
    if pid == 0:
        watch()
        call(1)
        os._exit(0)
    for thread in threads:
        thread.join()
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_fork_within_the_first_call_leaves_the_child_able_to_call(stack, redis):
    """The locks under which a process makes its clients are held then, or about to be."""
    run(stack, FORK_AT_THE_FIRST_CALL)

    assert_each_is_there_once(redis, waiting_ids(redis), 60 * 5)


POOL = """
def of(_):
    return call(100)


if __name__ == "__main__":
    ids = call(600)
    with multiprocessing.get_context("{method}").Pool(4, watch) as pool:
        for result in [pool.apply_async(of, (i,)) for i in range(16)]:
            ids += result.get(40)
    tell(ids + call(10))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_processes_stores_every_event_once(stack, redis, method):
    with Monitor(redis) as monitor:
        ids = run(stack, POOL.format(method=method))

    assert_each_is_there_once(redis, ids, 600 + 16 * 100 + 10)
    heard = monitor.processes()
    assert all(len(pids) == 1 for pids in heard.values())


FUTURES = """
def of(n):
    return call(n)


if __name__ == "__main__":
    ids = call(1)
    context = multiprocessing.get_context("{method}")
    with ProcessPoolExecutor(4, context, watch) as processes, ThreadPoolExecutor(8) as threads:
        found = [executor.submit(of, 50) for _ in range(12) for executor in (processes, threads)]
        ids += [event_id for future in found for event_id in future.result(40)]
    tell(ids)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_futures_in_processes_and_threads_together_store_every_event_once(stack, redis, method):
    with Monitor(redis) as monitor:
        ids = run(stack, FUTURES.format(method=method))

    assert_each_is_there_once(redis, ids, 1 + 24 * 50)
    assert all(len(pids) == 1 for pids in monitor.processes().values())


THREADS = """
barrier = threading.Barrier(16)


def of(_):
    barrier.wait()
    return call(200)


with ThreadPoolExecutor(16) as threads:
    for ids in threads.map(of, range(16)):
        tell(ids)
"""


def test_16_threads_from_the_very_first_call_share_no_reply(stack, redis):
    """They use at most a connection each for storing and one each for asking for a flush."""
    with Monitor(redis) as monitor:
        ids = run(stack, THREADS)

    assert_each_is_there_once(redis, ids, 16 * 200)
    assert len(monitor.processes()) <= 2 * 16


ENDS = {
    "by itself": "",
    "by os._exit": "os._exit(0)",
    "by sys.exit in a thread's sight": (
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\nsys.exit(0)"
    ),
    "in a forked child": (
        "pid = os.fork()\n"
        "if pid == 0:\n    watch(); tell(call(700)); sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0"
    ),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_a_process_that_ends_at_once_loses_nothing_and_does_not_linger(stack, redis, end):
    """There is nothing to flush at exit: what a call returned is in Redis."""
    ids = run(stack, "tell(call(700))\n" + end)

    assert_each_is_there_once(redis, ids, len(ids))


def test_a_process_killed_after_its_call_loses_nothing(stack, redis):
    program = "import os, signal\nfrom mm_tasks import track\n"
    program += "os.write(1, track.delay('noted', user_id='u').id.encode())\n"
    program += "os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **stack.env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == -9
    assert_each_is_there_once(redis, [done.stdout], 1)
