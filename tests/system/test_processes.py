"""Forks, spawns, threads and event loops in one program: no hang, nothing shared, nothing lost.

What one kind of process does by itself is in `test_producers`; here they meet.
"""

from __future__ import annotations

import pytest

from tests.system.books import assert_balanced, waiting_ids
from tests.system.monitor import Monitor
from tests.system.test_producers import assert_each_is_there_once, run

_ASYNC = """
import asyncio


async def acall(n):
    found = await asyncio.gather(
        *(track.adelay(f"pid_{os.getpid()}", user_id=f"u{i}") for i in range(n))
    )
    return [receipt.id for receipt in found]
"""


def processes_heard(monitor):
    """Return the processes that called, having seen no two of them on one connection."""
    heard = monitor.processes()

    assert all(len(pids) == 1 for pids in heard.values()), heard
    return set.union(*heard.values())


FORK_AFTER_A_LOOP = """
tell(asyncio.run(acall(100)))
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        watch()
        tell(asyncio.run(acall(100)))
        tell(call(50))
        os._exit(0)
    children.append(pid)
tell(call(50))
tell(asyncio.run(acall(100)))
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_fork_after_the_first_call_of_a_loop_shares_nothing(stack, redis):
    with Monitor(redis) as monitor:
        ids = run(stack, _ASYNC + FORK_AFTER_A_LOOP)

    assert_each_is_there_once(redis, ids, 100 + 4 * 150)
    assert processes_heard(monitor)


FORK_INSIDE_A_LOOP = """
async def main():
    # Calls are under way, on connections that the child inherits.
    calls = [asyncio.create_task(acall(20)) for _ in range(10)]
    await asyncio.sleep(0.005)
    pid = os.fork()
    if pid == 0:
        watch()
        # As a framework would: a loop of its own, once it has left the parent's.
        asyncio.events._set_running_loop(None)
        tell(asyncio.run(acall(50)))
        tell(call(50))
        os._exit(0)
    for ids in await asyncio.gather(*calls):
        tell(ids)
    tell(await acall(50))
    assert (await asyncio.to_thread(os.waitpid, pid, 0))[1] == 0


asyncio.run(main())
"""


def test_a_fork_inside_of_a_running_loop_takes_no_reply_from_the_parent(stack, redis):
    with Monitor(redis) as monitor:
        ids = run(stack, _ASYNC + FORK_INSIDE_A_LOOP)

    assert_each_is_there_once(redis, ids, 10 * 20 + 50 + 100)
    assert processes_heard(monitor)


LOOPS_AND_THREADS = """
def loop(_):
    return asyncio.run(acall(150))


with ThreadPoolExecutor(6) as threads:
    found = [threads.submit(of, n) for n in (150, 150, 150) for of in (loop, call)]
    for future in found:
        tell(future.result(30))
for _ in range(5):
    tell(asyncio.run(acall(10)))
"""


def test_loops_and_threads_side_by_side_store_every_event_once(stack, redis):
    ids = run(stack, _ASYNC + LOOPS_AND_THREADS)

    assert_each_is_there_once(redis, ids, 6 * 150 + 5 * 10)


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


threads = [threading.Thread(target=of) for of in (go_on, go_on_in_a_loop, go_on_in_a_loop)]
for thread in threads:
    thread.start()
children = []
for n in range(12):
    pid = os.fork()
    if pid == 0:
        watch()
        # Both kinds, the one that its threads were in the middle of among them.
        tell(call(5))
        tell(asyncio.run(acall(5)))
        os._exit(0)
    children.append(pid)
    # The parent goes on meanwhile, this thread too.
    tell(call(2))
stop.set()
for thread in threads:
    thread.join()
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_forks_while_threads_and_loops_are_within_calls_lose_nothing(stack, redis):
    with Monitor(redis) as monitor:
        ids = run(stack, _ASYNC + FORKS_AMONG_LOOPS_AND_THREADS)

    assert len(ids) == len(set(ids))
    assert sorted(ids) == sorted(waiting_ids(redis))
    assert assert_balanced(redis)["accepted"] == len(ids)
    assert len(processes_heard(monitor)) == 13


SPAWN_FROM_A_LOOP = """
def of(n):
    return asyncio.run(acall(n)) + call(n)


async def main():
    loop = asyncio.get_running_loop()
    ids = await acall(50)
    context = multiprocessing.get_context("{method}")
    with ProcessPoolExecutor(3, context, watch) as processes:
        found = [loop.run_in_executor(processes, of, 20) for _ in range(9)]
        ids += await acall(50)
        for more in await asyncio.gather(*found):
            ids += more
    return ids


if __name__ == "__main__":
    tell(asyncio.run(main()))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_processes_started_by_a_loop_stores_every_event_once(stack, redis, method):
    with Monitor(redis) as monitor:
        ids = run(stack, _ASYNC + SPAWN_FROM_A_LOOP.format(method=method))

    assert_each_is_there_once(redis, ids, 100 + 9 * 40)
    assert processes_heard(monitor)


FORK_WITHIN_THE_VERY_FIRST_CALL = """
def is_within_pydantic(thread):
    frame = sys._current_frames().get(thread.ident)
    return frame is not None and frame.f_code.co_filename.endswith("pydantic/main.py")


sys.setswitchinterval(1e-6)
for _ in range(60):
    # The first call is made in a child, so that each is the first that its process ever made.
    pid = os.fork()
    if pid == 0:
        watch()
        thread = threading.Thread(target=call, args=(1,))
        thread.start()
        while thread.is_alive() and not is_within_pydantic(thread):
            pass
        child = os.fork()
        watch()
        call(1)
        if child:
            thread.join()
            assert os.waitpid(child, 0)[1] == 0
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_fork_within_the_very_first_call_of_a_process_leaves_the_child_able_to_call(stack, redis):
    """What libraries make when they are first used is half made then, and never ends in a child."""
    run(stack, FORK_WITHIN_THE_VERY_FIRST_CALL)

    assert_each_is_there_once(redis, waiting_ids(redis), 60 * 3)


FORK_IN_A_CHILD = """
pid = os.fork()
if pid == 0:
    watch()
    for _ in range(2):
        grandchild = os.fork()
        if grandchild == 0:
            watch()
            tell(call(50))
            os._exit(0)
        assert os.waitpid(grandchild, 0)[1] == 0
    with ThreadPoolExecutor(2) as threads:
        for ids in threads.map(call, [50] * 2):
            tell(ids)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_child_that_forked_itself_lets_its_threads_make_the_first_call(stack, redis):
    ids = run(stack, FORK_IN_A_CHILD)

    assert_each_is_there_once(redis, ids, 200)


MANY_AND_FORK = """
def many(n):
    # Several scripts each.
    receipts = track.delay_many({"event": f"pid_{os.getpid()}"} for _ in range(n))
    return [receipt.id for receipt in receipts]


found = []
thread = threading.Thread(target=lambda: found.extend(many(5_000)))
thread.start()
pid = os.fork()
if pid == 0:
    watch()
    tell(many(2_500))
    os._exit(0)
tell(many(2_500))
thread.join()
assert os.waitpid(pid, 0)[1] == 0
tell(found)
"""


def test_a_fork_in_the_middle_of_delay_many_repeats_and_loses_none(stack, redis):
    ids = run(stack, MANY_AND_FORK)

    assert_each_is_there_once(redis, ids, 10_000)


HOST = """
import mm_tasks
from celery import Celery

host = Celery("host", broker=os.environ["MM_TASKS_REDIS_URL"], set_as_current=False)
host.conf.broker_transport_options = {"global_keyprefix": "shop:"}
mm_tasks.install(host)
tell(call(600))
pid = os.fork()
if pid == 0:
    watch()
    tell(call(600))
    os._exit(0)
tell(call(600))
assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_forked_host_asks_its_workers_on_connections_of_each_process(stack, redis):
    """A full batch is told through the host's broker, whose connections belong to it."""
    with Monitor(redis) as monitor:
        ids = run(stack, HOST)

    assert_each_is_there_once(redis, ids, 1_800)
    assert len(processes_heard(monitor)) == 2
    assert redis.llen("shop:mm.deliver") >= 1
    assert redis.llen("mm.deliver") == 0
