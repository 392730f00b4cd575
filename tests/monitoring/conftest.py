from tests.delivery.conftest import flow, make_flow, sandbox, sandbox_url
from tests.erasure.conftest import postgresql, postgresql_url, sqlite_store, sqlite_url, store, url

__all__ = ["flow", "make_flow", "postgresql", "postgresql_url", "sandbox", "sandbox_url"]
__all__ += ["sqlite_store", "sqlite_url", "store", "url"]
