from pathlib import Path

import pytest

from tests.connections.servers import Servers
from tests.erasure.conftest import postgresql, sqlite_url

__all__ = ["postgresql", "sqlite_url"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """One set for all tests of this folder."""
    users = (ROOT / "deploy" / "redis" / "users.acl").read_text()
    servers = Servers(tmp_path_factory.mktemp("servers"), users)
    yield servers
    servers.end()
