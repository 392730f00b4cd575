"""Forks, spawns, threads and event loops in one program: no hang, nothing shared, nothing lost.

Redis reports on which connection each process called.
"""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.system.monitor import Monitor
from tests.system.programs import assert_each_is_there_once, run_program

FORK = """
tell(call(600))
children = [fork(lambda: tell(call(300))) for _ in range(4)]
tell(call(300))
join(*children)
tell(call(10))
"""
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
FUTURES = """
def of(n):
    return call(n)

if __name__ == "__main__":
    ids = call(1)
    context = multiprocessing.get_context("{method}")
    with ProcessPoolExecutor(4, context, watch) as processes, ThreadPoolExecutor(8) as threads:
        futures = [executor.submit(of, 50) for _ in range(12) for executor in (processes, threads)]
        ids += [event_id for future in futures for event_id in future.result(40)]
    tell(ids)
"""
IN_A_THREADS_SIGHT = """
tell(call(700))
threading.Thread(target=threading.Event().wait, daemon=True).start()
sys.exit(0)
"""
IN_A_FORKED_CHILD = """
tell(call(700))
join(fork(lambda: (tell(call(700)), sys.exit(0))))
"""
AFTER_A_LOOP = """
tell(asyncio.run(acall(100)))
children = [fork(lambda: (tell(asyncio.run(acall(100))), tell(call(50)))) for _ in range(3)]
tell(call(50))
tell(asyncio.run(acall(100)))
join(*children)
"""
# The child must take no reply that is the parent's.
INSIDE_A_LOOP = """
def child():
    # As a framework does: run a loop of its own after leaving the parent's.
    asyncio.events._set_running_loop(None)
    tell(asyncio.run(acall(50)))
    tell(call(50))

async def main():
    # Calls are under way, on connections that the child inherits.
    calls = [asyncio.create_task(acall(20)) for _ in range(10)]
    await asyncio.sleep(0.005)
    pid = fork(child)
    for ids in await asyncio.gather(*calls):
        tell(ids)
    tell(await acall(50))
    await asyncio.to_thread(join, pid)

asyncio.run(main())
"""
LOOPS_AND_THREADS = """
def loop(_):
    return asyncio.run(acall(150))

with ThreadPoolExecutor(6) as threads:
    futures = [threads.submit(of, n) for n in (150, 150, 150) for of in (loop, call)]
    for future in futures:
        tell(future.result(30))
for _ in range(5):
    tell(asyncio.run(acall(10)))
"""
FROM_A_LOOP = """
def of(n):
    return asyncio.run(acall(n)) + call(n)

async def main():
    loop = asyncio.get_running_loop()
    ids = await acall(50)
    context = multiprocessing.get_context("{method}")
    with ProcessPoolExecutor(3, context, watch) as processes:
        results = [loop.run_in_executor(processes, of, 20) for _ in range(9)]
        ids += await acall(50)
        for more in await asyncio.gather(*results):
            ids += more
    return ids

if __name__ == "__main__":
    tell(asyncio.run(main()))
"""
IN_A_CHILD = """
def child():
    for _ in range(2):
        join(fork(lambda: tell(call(50))))
    with ThreadPoolExecutor(2) as threads:
        for ids in threads.map(call, [50] * 2):
            tell(ids)

join(fork(child))
"""
# A call of `delay_many` runs several scripts.
WITHIN_DELAY_MANY = """
def many(n):
    receipts = track.delay_many({"event": f"pid_{os.getpid()}"} for _ in range(n))
    return [receipt.id for receipt in receipts]

with threads_of(lambda: tell(many(5_000))):
    pid = fork(lambda: tell(many(2_500)))
    tell(many(2_500))
join(pid)
"""
# A lock that one of the threads holds stays locked in the child, which has no threads.
FORK_AMONG_THREADS = """
tell(call(1))
stop = threading.Event()

def go_on():
    while not stop.is_set():
        tell(call(1))

with threads_of(*[go_on] * 8):
    for _ in range(20):
        join(fork(lambda: tell(call(2))))
    stop.set()
"""
FORKS_AMONG_LOOPS_AND_THREADS = """
stop = threading.Event()

def go_on():
    while not stop.is_set():
        tell(call(3))

def go_on_in_a_loop():
    async def main():
        while not stop.is_set():
            tell(await acall(3))

    asyncio.run(main())

children = []
with threads_of(go_on, go_on_in_a_loop, go_on_in_a_loop):
    for n in range(12):
        # A child makes both kinds of call; a thread of the parent is in the middle of each.
        children.append(fork(lambda: (tell(call(5)), tell(asyncio.run(acall(5))))))
        tell(call(2))
    stop.set()
join(*children)
"""
# The locks under which a process makes its clients are held, or about to be.
FORK_AT_THE_FIRST_CALL = """
import random
import time

for _ in range(60):
    # As a process that never called: the first call makes its clients again.
    runtime._process.runtime = None
    with threads_of(*[lambda: tell(call(1))] * 4):
        time.sleep(random.uniform(0, 0.004))
        child = fork(lambda: tell(call(1)))
    join(child)
"""
# Objects that libraries make at their first use are half made, and stay so in a child.
FORK_AT_THE_VERY_FIRST_CALL = """
def is_within_pydantic(thread):
    frame = sys._current_frames().get(thread.ident)
    return frame is not None and frame.f_code.co_filename.endswith("pydantic/main.py")

def first_call():
    thread = threading.Thread(target=lambda: tell(call(1)))
    thread.start()
    while thread.is_alive() and not is_within_pydantic(thread):
        pass
    child = os.fork()
    watch()
    tell(call(1))
    if child:
        thread.join()
        join(child)

sys.setswitchinterval(1e-6)
for _ in range(60):
    # Each child makes the first call that its process ever made.
    join(fork(first_call))
"""
KILLED = """
pid = fork(lambda: (tell(call(700)), os.kill(os.getpid(), signal.SIGKILL)))
assert os.waitpid(pid, 0)[1] == signal.SIGKILL
"""
METHODS = ("fork", "spawn", "forkserver")
# The program, how many events it stores and in how many processes, where that is certain.
PROGRAMS = {
    "parent and children at once after a fork": (FORK, 600 + 5 * 300 + 10, 5),
    "a fork after the first call of a loop": (AFTER_A_LOOP, 100 + 4 * 150, 4),
    "a fork inside a running loop": (INSIDE_A_LOOP, 10 * 20 + 50 + 100, 2),
    "a fork within delay_many": (WITHIN_DELAY_MANY, 10_000, 2),
    "the first call in the threads of a child that forked": (IN_A_CHILD, 200, 3),
    "loops and threads side by side": (LOOPS_AND_THREADS, 6 * 150 + 5 * 10, 1),
    **{f"a pool by {way}": (POOL.format(method=way), 2_210, None) for way in METHODS},
    **{
        f"a pool started by a loop, by {way}": (FROM_A_LOOP.format(method=way), 460, None)
        for way in METHODS
    },
    **{
        f"futures in threads and in processes by {way}": (FUTURES.format(method=way), 1_201, None)
        for way in ("fork", "spawn")
    },
    "forks while threads are within calls": (FORK_AMONG_THREADS, None, 21),
    "forks while threads and loops are within calls": (FORKS_AMONG_LOOPS_AND_THREADS, None, 13),
    "a fork within the first call of new clients": (FORK_AT_THE_FIRST_CALL, 60 * 5, None),
    "a fork within the first call in any library": (FORK_AT_THE_VERY_FIRST_CALL, 60 * 3, None),
    # Nothing is flushed at exit: an event is in Redis once its call has returned.
    "a process that ends by itself": ("tell(call(700))", 700, 1),
    "a process that ends by os._exit": ("tell(call(700))\nos._exit(0)", 700, 1),
    "a process that ends by sys.exit in a thread's sight": (IN_A_THREADS_SIGHT, 700, 1),
    "a process that is killed": (KILLED, 700, 1),
    "a process that ends in a forked child": (IN_A_FORKED_CHILD, 1_400, 2),
}


@pytest.mark.parametrize(("program", "events", "processes"), PROGRAMS.values(), ids=PROGRAMS)
def test_every_event_is_stored_once_and_no_connection_is_shared(
    stack, redis, program, events, processes
):
    with Monitor(redis) as monitor:
        ids = run_program(stack, program)

    assert_each_is_there_once(redis, ids, events or len(ids))
    pids = monitor.unshared()
    assert len(pids) == (processes or len(pids))


HOST = """
import mm_tasks
from celery import Celery

host = Celery("host", broker=os.environ["MM_TASKS_REDIS_URL"], set_as_current=False)
host.conf.broker_transport_options = {"global_keyprefix": "shop:"}
mm_tasks.install(host)
tell(call(600))
pid = fork(lambda: tell(call(600)))
tell(call(600))
join(pid)
"""


def test_a_forked_host_publishes_on_connections_of_each_process(stack, redis):
    """A full batch is announced through the host's broker, whose connections belong to it."""
    with Monitor(redis) as monitor:
        ids = run_program(stack, HOST)

    assert_each_is_there_once(redis, ids, 1_800)
    assert len(monitor.unshared()) == 2
    assert redis.llen("shop:mm.deliver") >= 1
    assert redis.llen("mm.deliver") == 0


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
        words = ("--preload", "-w", "2", "-b", "127.0.0.1:0", "--no-control-socket", "-k", *kind)
        server = stack.start("gunicorn", "gunicorn", *words, "wsgi:app")
        pattern = r"Listening at: (http://\S+)"
        listening = stack.wait(lambda: re.search(pattern, stack.read(server)), 30)
        at_import = re.search(r"stored (\S+)", stack.read(server))[1]
        with ThreadPoolExecutor(8) as callers:
            responses = callers.map(lambda _: requests.get(listening[1], timeout=30), range(700))
            answers = [response.text.split() for response in responses]

    workers = {int(pid) for pid, _ in answers}
    assert len(workers) == 2
    assert_each_is_there_once(redis, [at_import, *(event_id for _, event_id in answers)], 701)
    assert len(monitor.unshared()) == 3


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
