"""`track.delay` in the processes of a web server, in a first call, and in one that is killed."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.system.accounting import waiting_ids
from tests.system.monitor import Monitor
from tests.system.processes import run_python
from tests.system.programs import assert_each_is_there_once, run_program

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
        listening = stack.wait(
            lambda: re.search(r"Listening at: (http://\S+)", stack.read(server)), 30
        )
        at_import = re.search(r"stored (\S+)", stack.read(server))[1]
        with ThreadPoolExecutor(8) as callers:
            answers = [
                answer.text.split()
                for answer in callers.map(
                    lambda _: requests.get(listening[1], timeout=30), range(700)
                )
            ]

    workers = {int(pid) for pid, _ in answers}
    assert len(workers) == 2
    assert_each_is_there_once(redis, [at_import, *(event_id for _, event_id in answers)], 701)
    assert len(monitor.unshared()) == 3


# The locks under which a process makes its clients are held, or about to be.
FORK_AT_THE_FIRST_CALL = """
import random
import time

for _ in range(60):
    # As a process that never called: the first call makes its clients again.
    runtime._process.runtime = None
    threads = [threading.Thread(target=call, args=(1,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(random.uniform(0, 0.004))
    child = fork(lambda: call(1))
    for thread in threads:
        thread.join()
    join(child)
"""
# Objects that libraries make at their first use are half made, and stay so in a child.
FORK_AT_THE_VERY_FIRST_CALL = """
def is_within_pydantic(thread):
    frame = sys._current_frames().get(thread.ident)
    return frame is not None and frame.f_code.co_filename.endswith("pydantic/main.py")


def first_call():
    thread = threading.Thread(target=call, args=(1,))
    thread.start()
    while thread.is_alive() and not is_within_pydantic(thread):
        pass
    child = os.fork()
    watch()
    call(1)
    if child:
        thread.join()
        join(child)


sys.setswitchinterval(1e-6)
for _ in range(60):
    # Each child makes the first call that its process ever made.
    join(fork(first_call))
"""


@pytest.mark.parametrize(
    ("program", "events"),
    [(FORK_AT_THE_FIRST_CALL, 60 * 5), (FORK_AT_THE_VERY_FIRST_CALL, 60 * 3)],
    ids=["the first since it forgot its clients", "the first in any library"],
)
def test_a_fork_within_the_first_call_leaves_the_child_able_to_call(stack, redis, program, events):
    run_program(stack, program)

    assert_each_is_there_once(redis, waiting_ids(redis), events)


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
    """They use at most one connection each for storing and one each for publishing a flush."""
    with Monitor(redis) as monitor:
        ids = run_program(stack, THREADS)

    assert_each_is_there_once(redis, ids, 16 * 200)
    assert len(monitor.processes()) <= 2 * 16


KILLED = """
import os, signal
from mm_tasks import track
os.write(1, track.delay('noted', user_id='u').id.encode())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_after_its_call_loses_nothing(stack, redis):
    done = run_python("-c", KILLED, env=stack.env)

    assert done.returncode == -9
    assert_each_is_there_once(redis, [done.stdout], 1)
