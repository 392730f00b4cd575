"""Programs that call `track.delay` in processes, threads and event loops of their own.

Each runs under a watchdog, so that a call that hangs fails its test with a traceback. Events
are named after the process that stored them.
"""

from tests.system.accounting import assert_balanced, waiting_ids
from tests.system.processes import run_python

_PREAMBLE = """
import asyncio
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

from mm_tasks import runtime, track
from mm_tasks.tasks import publisher

# Other tests check how soon a call gives up. Here no call may fail however busy the machine is:
# the watchdog ends a call that would wait for ever.
runtime.PRODUCER_CONNECT_S = runtime.PRODUCER_ANSWER_S = publisher._PUBLISH_TIMEOUT_S = 30

def watch():
    # Not `dump_traceback_later`: in a forked child it waits for the parent's thread.
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(50)

def call(n):
    # Some calls fill a batch and publish a flush too.
    return [track.delay(f"pid_{os.getpid()}", user_id=f"u{i}").id for i in range(n)]

async def acall(n):
    receipts = await asyncio.gather(
        *(track.adelay(f"pid_{os.getpid()}", user_id=f"u{i}") for i in range(n))
    )
    return [receipt.id for receipt in receipts]

def tell(ids):
    # At most 4096 bytes at once: a pipe does not mix them with those of other processes.
    for start in range(0, len(ids), 100):
        os.write(1, "".join(f"{event_id}\\n" for event_id in ids[start : start + 100]).encode())

def fork(run):
    pid = os.fork()
    if pid == 0:
        watch()
        run()
        os._exit(0)
    return pid

def join(*pids):
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0

@contextmanager
def threads_of(*targets):
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()

watch()
"""


def run_program(stack, program):
    """Run it as a file of its own, as `spawn` needs it; return the event ids it printed."""
    path = stack.log_dir / "program.py"
    path.write_text(_PREAMBLE + program)
    done = run_python(path, env=stack.env)

    assert done.returncode == 0, done.stderr
    assert "nudge_failed" not in done.stderr
    return done.stdout.split()


def assert_each_is_there_once(redis, ids, n):
    """Every receipt names one record that waits, and no other record exists."""
    assert len(ids) == len(set(ids)) == n
    assert sorted(waiting_ids(redis)) == sorted(ids)
    assert assert_balanced(redis)["accepted"] == n
