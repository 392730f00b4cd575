"""Each form of URL on a real server: producers, event loops, the broker."""

import asyncio
import gc
import socket
import time

import pytest
from kombu.exceptions import OperationalError

from mm_tasks import runtime, track
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.errors import BufferUnavailable
from mm_tasks.tasks import publisher
from mm_tasks.tasks.publisher import publish_options
from tests.connections.servers import until

WAYS = ("unix", "rediss", "sentinel", "sentinels")
WAITING = ProjectKeys("default").lane("track").waiting


@pytest.fixture(autouse=True)
def _empty(servers):
    """All data servers are empty."""
    servers.alone.redis.flushall()
    servers.primary().flushall()


@pytest.fixture(autouse=True)
def _unhurried(request, monkeypatch):
    """Where time is not the question, a busy machine may take it for a handshake of TLS."""
    if "silent" not in request.fixturenames:
        monkeypatch.setattr(runtime, "PRODUCER_CONNECT_S", 20.0)
        monkeypatch.setattr(runtime, "PRODUCER_ANSWER_S", 20.0)
        monkeypatch.setattr(publisher, "_PUBLISH_TIMEOUT_S", 20.0)


@pytest.fixture(params=WAYS)
def _way(request, servers, fresh):
    fresh(MM_TASKS_REDIS_URL=servers.urls[request.param])


def is_stored(event):
    try:
        return track.delay(event).accepted
    except BufferUnavailable:
        return False


def stored():
    return runtime.current().worker_redis.llen(WAITING)


@pytest.mark.usefixtures("_way")
def test_a_producer_stores_and_connects_anew_once_it_was_cut_off(servers):
    """The kept connections of producers are made apart from redis-py's pool."""
    track.delay("a")
    for server in (servers.alone.redis, servers.primary()):
        server.client_kill_filter(_type="normal", skipme=True)
    # What stands in front hears of it a little later.
    until(lambda: is_stored("b"))

    assert stored() >= 2


@pytest.mark.usefixtures("_way")
def test_an_event_loop_stores_and_leaves_nothing_open():
    async def main():
        await asyncio.gather(*(track.adelay("a") for _ in range(20)))

    asyncio.run(main())
    gc.collect()

    assert stored() == 20


@pytest.mark.usefixtures("_way")
def test_the_broker_is_the_same_redis():
    """kombu spells TLS, sockets and sentinels in its own way."""
    options = publish_options()
    with options["connection"] as connection:
        queue = connection.SimpleQueue("mm.deliver")
        queue.put({"n": 1})

        assert queue.get(timeout=5).payload == {"n": 1}
    # In the database of the URL, not in the first.
    assert runtime.current().worker_redis.exists("_kombu.binding.mm.deliver")


def append_by_a_producer():
    track.delay("a")


def append_by_an_event_loop():
    asyncio.run(track.adelay("a"))


def publish():
    with publish_options()["connection"] as connection:
        connection.SimpleQueue("mm.deliver").put({})


@pytest.mark.parametrize("append", [append_by_a_producer, append_by_an_event_loop])
@pytest.mark.parametrize("scheme", ["sentinel", "sentinels"])
def test_a_primary_that_became_a_replica_surely_stored_nothing(append, scheme, servers, fresh):
    """A refusal is no doubt: the caller may repeat it, and the event is there once."""
    fresh(MM_TASKS_REDIS_URL=servers.urls[scheme])
    server = servers.primary() if scheme == "sentinel" else servers.alone.redis
    server.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(BufferUnavailable) as caught:
            append()
    finally:
        server.replicaof("NO", "ONE")
    append()

    assert caught.value.maybe_stored == 0
    assert stored() == 1


CLIENTS = (append_by_a_producer, append_by_an_event_loop, publish)


def secured(servers, host="127.0.0.1", **options):
    return f"rediss://{host}:{servers.front.port}/2?{servers.certificates.options(**options)}"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("scheme", ["rediss", "sentinels"])
def test_a_certificate_of_another_authority_is_refused(client, scheme, servers, fresh):
    """Without a word about verification it is on, for all three kinds of connection."""
    trusted, other = servers.certificates.ca, servers.certificates.other_ca
    fresh(MM_TASKS_REDIS_URL=servers.urls[scheme].replace(str(trusted), str(other)))
    with pytest.raises((BufferUnavailable, OperationalError)):
        client()

    assert not servers.alone.redis.dbsize()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_certificate_of_another_host_is_refused_unless_told_otherwise(client, servers, fresh):
    """It was issued for the number, and not for the name."""
    fresh(MM_TASKS_REDIS_URL=secured(servers, "localhost"))
    with pytest.raises((BufferUnavailable, OperationalError)):
        client()
    fresh(MM_TASKS_REDIS_URL=secured(servers, "localhost", ssl_check_hostname="false"))
    client()
    other_ca = servers.certificates.other_ca
    fresh(MM_TASKS_REDIS_URL=secured(servers, ssl_ca_certs=other_ca, ssl_cert_reqs="none"))
    client()


@pytest.fixture
def silent():
    """Connections are made, and no byte ever comes."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as sock:
        yield f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.parametrize("client", CLIENTS)
def test_sentinels_that_are_silent_are_passed_over(client, silent, servers, fresh):
    """Two of three hosts may be away at once."""
    found = servers.urls["sentinel"].split("@", 1)
    fresh(MM_TASKS_REDIS_URL=f"{found[0]}@{silent},{silent},{found[1]}")
    client()

    assert servers.primary().dbsize()


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("is_sentinel", [True, False], ids=["many sentinels", "TLS handshake"])
def test_silence_costs_a_call_no_more_than_its_timeout(client, is_sentinel, silent, servers, fresh):
    """The promise is 1 s; half a second more is for a busy machine."""
    many = f"sentinel://{','.join([silent] * 30)}/0?master_name=m"
    secured = f"rediss://{silent}/0?{servers.certificates.options()}"
    fresh(MM_TASKS_REDIS_URL=many if is_sentinel else secured)
    began = time.monotonic()
    with pytest.raises((BufferUnavailable, OperationalError)):
        client()

    assert time.monotonic() - began < 1.5
