import pytest
from pydantic import SecretStr

from mm_tasks.client.access import vendor_access
from mm_tasks.client.api import Client
from tests.client.servers import Authority, Proxy, Vendor

KEY = SecretStr("sk_test_abc_s3cret_-x")


@pytest.fixture
def vendor():
    """Start servers that give these answers."""
    yield from started(Vendor)


@pytest.fixture
def proxy():
    """Start proxies."""
    yield from started(Proxy)


def started(kind):
    servers = []

    def start(*args, **options):
        servers.append(kind(*args, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def client():
    """Return a client of a URL, closed at the end."""
    clients = []

    def make(url, **options):
        clients.append(Client(vendor_access(url, KEY), **options))
        return clients[-1]

    yield make
    for one in clients:
        one.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))
