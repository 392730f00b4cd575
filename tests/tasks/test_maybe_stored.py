"""`maybe_stored` counts events only if the command was written and no answer came.

A caller repeats a call that surely stored nothing; one that may have stored needs an `event_id`.
"""

import asyncio
import socketserver
import threading
from contextlib import contextmanager

import pytest
from redis import Redis

from mm_tasks import runtime, track
from mm_tasks.connections.pool import CONNECTIONS_MAX
from mm_tasks.errors import BufferFull, BufferUnavailable
from tests.conftest import embedded
from tests.tasks.test_redis_away import frozen, refused, running, silent


class Answering(socketserver.ThreadingTCPServer):
    """Answers what Redis answers to a client that connects, and one line to each script.

    For answers that a real server gives only while it loads, fails to save or loses its cluster.
    Without an answer it closes the connection as soon as it has read a script.
    """

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Session)
        self.answer = answer


class Session(socketserver.StreamRequestHandler):
    def handle(self):
        while words := self._command():
            if words[0] == b"HELLO":
                self.wfile.write(b"%1\r\n$5\r\nproto\r\n:3\r\n")
            elif words[0] != b"EVALSHA":
                self.wfile.write(b"+OK\r\n")
            elif self.server.answer is None:
                return
            else:
                self.wfile.write(b"-" + self.server.answer + b"\r\n")

    def _command(self):
        words = []
        for _ in range(int(self.rfile.readline()[1:] or 0)):
            size = int(self.rfile.readline()[1:])
            words.append(self.rfile.read(size + 2)[:size])
        return words


@contextmanager
def answering(answer):
    server = Answering(answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def own_server(prepare=lambda _: None, login="", **config):
    """A server of this test, in a state that `prepare` brings it to."""
    server = embedded(config=config)
    server.start()
    with Redis(port=server.port) as redis:
        kept = prepare(redis)
        yield f"redis://{login}127.0.0.1:{server.port}/0"
        for one in kept or ():
            one.close()
    server.stop()


def take_all_clients(redis):
    """Take all connections that the server allows."""
    port = redis.connection_pool.connection_kwargs["port"]
    kept = [Redis(port=port) for _ in range(3)]
    for one in kept:
        one.ping()
    redis.config_set("maxclients", 4)
    return kept


def lock(redis):
    redis.config_set("requirepass", "right")


def demote(redis):
    redis.replicaof("127.0.0.1", 1)


def forbid(redis):
    redis.acl_setuser("few", enabled=True, passwords=["+pw"], commands=["+ping", "+client"])


@contextmanager
def url_of(state, form="redis://127.0.0.1:{}/0"):
    with state() as port:
        yield form.format(port)


@contextmanager
def own_url_of_a_sentinel_without_a_primary():
    """A Redis that is no sentinel: it does not know the command."""
    with own_server() as url:
        yield url.replace("redis", "sentinel", 1) + "?master_name=events"


SENTINEL = "sentinel://127.0.0.1:{}/0?master_name=events"
SURELY_NOT = {
    "nobody listens": lambda: url_of(refused),
    "a host that does not exist": lambda: own_url("redis://no-such-host.invalid/0"),
    "a socket that does not exist": lambda: own_url("unix:///nowhere/redis.sock"),
    "connecting takes too long": lambda: url_of(silent),
    "no sentinel answers": lambda: url_of(refused, SENTINEL),
    "no sentinel knows the primary": own_url_of_a_sentinel_without_a_primary,
    "no TLS": lambda: with_scheme("rediss", own_server()),
    "no password": lambda: own_server(lock),
    "a wrong password": lambda: own_server(lock, login=":wrong@"),
    "no permission": lambda: own_server(forbid, login="few:pw@"),
    "all clients are taken": lambda: own_server(take_all_clients),
    "a replica": lambda: own_server(demote),
    "it loads its data": lambda: answering(b"LOADING Redis is loading the dataset in memory"),
    "it cannot save": lambda: answering(b"MISCONF Redis is configured to save RDB snapshots"),
    "the cluster is down": lambda: answering(b"CLUSTERDOWN The cluster is down"),
    "too few replicas": lambda: answering(b"NOREPLICAS Not enough good replicas to write."),
    "it was locked meanwhile": lambda: answering(b"NOAUTH Authentication required."),
    "a script runs for long": lambda: answering(b"BUSY Redis is busy running a script."),
}
MAYBE = {
    "cut after the command": lambda: answering(None),
}


@contextmanager
def own_url(url):
    yield url


@contextmanager
def with_scheme(scheme, context):
    with context as url:
        yield url.replace("redis", scheme, 1)


def call_delay():
    track.delay("e")


def call_delay_many():
    track.delay_many([{"event": "e"}] * 3)


def call_adelay():
    asyncio.run(track.adelay("e"))


def call_adelay_many():
    asyncio.run(track.adelay_many([{"event": "e"}] * 3))


CALLS = {call_delay: 1, call_delay_many: 3, call_adelay: 1, call_adelay_many: 3}


def failure(call):
    with pytest.raises((BufferUnavailable, BufferFull)) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", SURELY_NOT.values(), ids=SURELY_NOT)
def test_nothing_is_maybe_stored_if_nothing_was_sent_or_redis_refused(fresh, state, call):
    with state() as url:
        fresh(MM_TASKS_REDIS_URL=url)
        error = failure(call)

    assert isinstance(error, BufferUnavailable)
    assert (error.stored, error.maybe_stored) == (0, 0)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", MAYBE.values(), ids=MAYBE)
def test_all_are_maybe_stored_if_they_were_sent_without_an_answer(fresh, state, call):
    with state() as url:
        fresh(MM_TASKS_REDIS_URL=url)
        error = failure(call)

    assert (error.stored, error.maybe_stored) == (0, CALLS[call])


@pytest.mark.parametrize("call", CALLS)
def test_a_redis_at_its_maxmemory_stored_nothing(fresh, call):
    def fill(redis):
        redis.config_set("maxmemory", redis.info("memory")["used_memory"] // 2)

    with own_server(fill, **{"maxmemory-policy": "noeviction"}) as url:
        fresh(MM_TASKS_REDIS_URL=url)
        error = failure(call)

    assert isinstance(error, BufferFull)
    assert (error.stored, error.maybe_stored) == (0, 0)


def test_a_call_without_a_turn_or_behind_the_breaker_stored_nothing(fresh):
    with running() as (port, freeze):
        fresh(MM_TASKS_REDIS_URL=f"redis://127.0.0.1:{port}/0")
        track.delay("e")
        pool = runtime.current().producer_redis.connection_pool
        lent = [pool.get_connection() for _ in range(CONNECTIONS_MAX)]
        assert failure(call_delay).maybe_stored == 0
        for connection in lent:
            pool.release(connection)
        freeze()
        assert failure(call_delay_many).maybe_stored == 3

        # The breaker is open now.
        assert [failure(call).maybe_stored for call in CALLS] == [0, 0, 0, 0]


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_never_finished_connecting_got_no_command(fresh, call):
    """redis-py sends its own commands first, and waits for their answers."""
    with frozen() as port:
        fresh(MM_TASKS_REDIS_URL=f"redis://127.0.0.1:{port}/0")

        assert failure(call).maybe_stored == 0
