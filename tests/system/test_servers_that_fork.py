"""Forks without Python's hooks, as uWSGI does by default, and bursts of greenlets.

Redis reports on which connection each process called.
"""

import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from redis import Redis

from tests.conftest import free_port
from tests.system.monitor import Monitor
from tests.system.programs import assert_each_is_there_once, run_program

# PyDLL keeps the lock of the interpreter, as uWSGI does: the child has only the calling thread.
RAW_FORK = """
import ctypes

def raw_fork(run):
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        watch()
        run()
        os._exit(0)
    return pid
"""
AFTER_THE_FIRST_CALL = """
tell(call(600))
children = [raw_fork(lambda: tell(call(300) + asyncio.run(acall(50)))) for _ in range(4)]
tell(call(300))
join(*children)
tell(call(10))
"""
# Threads of the parent wait for answers, and for their turn. The child has none of them.
AMONG_THREADS = """
import time

tell(call(1))
with threads_of(*[lambda: tell(call(3))] * 20):
    redis = runtime.current().worker_redis
    redis.execute_command("CLIENT", "PAUSE", 1000, "WRITE")
    time.sleep(0.3)
    children = [raw_fork(lambda: tell(call(5))) for _ in range(4)]
join(*children)
tell(call(1))
"""
# A thread of the parent holds the lock of the first call; in the child nobody releases it.
AT_THE_FIRST_CALL = """
lock = runtime._process.lock
held, stop = threading.Event(), threading.Event()

def hold():
    with lock:
        held.set()
        stop.wait()

with threads_of(hold):
    held.wait()
    join(raw_fork(lambda: (tell(call(3)), join(fork(lambda: tell(call(2)))))))
    stop.set()
tell(call(1))
"""
INSIDE_A_LOOP = """
def child():
    asyncio.events._set_running_loop(None)
    tell(asyncio.run(acall(50)) + call(50))

async def main():
    calls = [asyncio.create_task(acall(20)) for _ in range(10)]
    await asyncio.sleep(0.005)
    pid = raw_fork(child)
    for ids in await asyncio.gather(*calls):
        tell(ids)
    await asyncio.to_thread(join, pid)

asyncio.run(main())
"""
# What a grandchild would take from its parent is neither its parent's nor the first one's.
OF_A_CHILD = """
tell(call(5))
join(raw_fork(lambda: (tell(call(5)), join(raw_fork(lambda: tell(call(5)))), tell(call(5)))))
join(fork(lambda: (tell(call(5)), join(raw_fork(lambda: tell(call(5)))))))
tell(call(5))
"""
PROGRAMS = {
    "after the first call": (AFTER_THE_FIRST_CALL, 600 + 4 * 350 + 310, 5),
    "while threads are within calls": (AMONG_THREADS, 2 + 60 + 20, 5),
    "while a thread makes the clients": (AT_THE_FIRST_CALL, 6, 3),
    "inside a running loop": (INSIDE_A_LOOP, 300, 2),
    "of a child": (OF_A_CHILD, 35, 5),
}


@pytest.mark.parametrize(("program", "events", "processes"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_fork_without_hooks_shares_no_connection(stack, redis, program, events, processes):
    with Monitor(redis) as monitor:
        ids = run_program(stack, RAW_FORK + program)

    assert_each_is_there_once(redis, ids, events or len(ids))
    assert len(monitor.unshared()) == processes


ENDS = """
from mm_tasks.errors import InvalidEvent

def invalid(n):
    for _ in range(n):
        try:
            track.delay("")
        except InvalidEvent:
            pass

invalid(3)
pid = os.fork()
if pid == 0:
    invalid(20)
    sys.exit(0)
os.waitpid(pid, 0)
"""


def test_a_process_and_its_child_store_their_own_counts_of_refused_events_as_they_end(stack, redis):
    """Neither of them stored an event that could have taken the counts along."""
    run_program(stack, ENDS)

    assert redis.hgetall("{mm:default}:counts") == {b"track:refused:invalid": b"23"}


# An answer of another's call would be seen: every third visitor is erased.
WSGI = """
import os

from mm_tasks import track

print("stored", track.delay(f"pid_{os.getpid()}", user_id="u").id, flush=True)

def app(environ, start_response):
    n = int(environ["QUERY_STRING"])
    receipt = track.delay(f"pid_{os.getpid()}", user_id="gone" if n % 3 == 0 else "u")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {receipt.id} {receipt.accepted}".encode()]
"""


@pytest.mark.skipif(shutil.which("uwsgi") is None, reason="uWSGI is not installed")
@pytest.mark.parametrize("threads", [1, 4])
def test_uwsgi_with_four_processes_gives_each_caller_its_own_answer(stack, redis, threads):
    """The app stored an event at import, before uWSGI forked. It runs no hooks of Python."""
    from mm_tasks.buffer.keys import ProjectKeys
    from mm_tasks.buffer.records import tag

    redis.sadd(ProjectKeys("default").fence, tag("default", "user", "gone"))
    (stack.log_dir / "wsgi.py").write_text(WSGI)
    port = free_port()
    words = ("--http-socket", f"127.0.0.1:{port}", "--wsgi-file", "wsgi.py", "--callable", "app")
    words += ("--processes", "4", "--threads", str(threads), "--enable-threads", "--need-app")
    words += ("--virtualenv", sys.prefix)
    with Monitor(redis) as monitor:
        command = [shutil.which("uwsgi"), "--master", "--die-on-term", *words]
        server = stack.start_command("uwsgi", command, stack.env)
        stack.wait(lambda: "spawned uWSGI worker 4" in stack.read(server), 30)
        at_import = re.search(r"stored (\S+)", stack.read(server))[1]
        url = f"http://127.0.0.1:{port}/?"
        with ThreadPoolExecutor(8) as callers:
            answers = list(
                callers.map(
                    lambda n: requests.get(f"{url}{n}", timeout=30).text.split(), range(900)
                )
            )
        kept = len(redis.client_list()) - 2

    assert [accepted for _, _, accepted in answers] == [str(n % 3 != 0) for n in range(900)]
    stored = [event_id for _, event_id, accepted in answers if accepted == "True"]
    assert_each_is_there_once(redis, [at_import, *stored], 601)
    assert len(monitor.unshared()) == 1 + len({pid for pid, *_ in answers})
    assert kept <= 5 * 20


GREENLETS = """
from gevent import monkey
monkey.patch_all()
import os

import gevent
from redis import Redis

from mm_tasks import runtime, track

# How soon a call gives up is not the question here, on a machine that is busy.
runtime.PRODUCER_CONNECT_S = runtime.PRODUCER_ANSWER_S = 30
other = Redis.from_url(os.environ["MM_TASKS_REDIS_URL"])
failed = []

def work(n):
    try:
        is_gone = n % 3 == 0
        receipt = track.delay("e", user_id="gone" if is_gone else "u")
        assert receipt.accepted is not is_gone
        print(receipt.id if receipt.accepted else "", flush=True)
    except Exception as error:
        failed.append(type(error).__name__)

def neighbour():
    for _ in range(50):
        Redis.from_url(os.environ["MM_TASKS_REDIS_URL"]).ping()
        gevent.sleep(0.005)

others = gevent.spawn(neighbour)
gevent.joinall([gevent.spawn(work, n) for n in range(1500)])
others.get()
assert not failed, failed[:3]
assert len(other.client_list()) - 2 <= 20, len(other.client_list())
"""


def test_1500_greenlets_leave_a_server_with_80_clients_to_others(servers, stack):
    pytest.importorskip("gevent", reason="gevent is not installed")
    from mm_tasks.buffer.keys import ProjectKeys
    from mm_tasks.buffer.records import tag

    server = servers(maxclients="80")
    server.redis.sadd(ProjectKeys("default").fence, tag("default", "user", "gone"))
    from tests.system.processes import run_python

    path = stack.log_dir / "program.py"
    path.write_text(GREENLETS)
    done = run_python(path, env=stack.env)

    assert done.returncode == 0, done.stderr
    ids = done.stdout.split()
    assert len(set(ids)) == 1000
    assert Redis(port=server.port).llen(ProjectKeys("default").lane("track").waiting) == 1000
