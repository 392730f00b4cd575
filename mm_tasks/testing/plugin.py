"""The pytest plugin. pytest loads it in every run, so a fixture imports what it uses.

Fixtures: `mm_tasks_events` records; `sandbox`, also named `mm_tasks_sandbox`, serves the
stand-in. With the ini option `mm_tasks_guard` (default true) a test fails if it would send to
a real host; `@pytest.mark.mm_tasks_real_host` permits one test to. See docs/testing.md.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from mm_tasks.client.egress import guarded
from mm_tasks.testing.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from mm_tasks.sandbox.client import Sandbox
    from mm_tasks.testing.recorder import Recorder

_MARK = "mm_tasks_real_host"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `mm_tasks_guard`."""
    text = "make a test fail when mm_tasks would send to a host that is not loopback"
    parser.addini("mm_tasks_guard", text, type="bool", default=True)


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker, and install the guard if the ini option is true."""
    line = f"{_MARK}: let mm_tasks send to a real host in this test."
    config.addinivalue_line("markers", line)
    if config.getini("mm_tasks_guard"):
        guard = Guard()
        until_the_end = ExitStack()
        until_the_end.enter_context(guarded(guard))
        config.add_cleanup(until_the_end.close)
        config.pluginmanager.register(_GuardHooks(guard), "mm_tasks_guard")


class _GuardHooks:
    """Fails a test whose request the guard refused, even if its code caught the exception."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._phase(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._phase(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._phase(item))

    def _phase(self, item: pytest.Item) -> Generator[None, object, object]:
        self._guard.is_open = item.get_closest_marker(_MARK) is not None
        try:
            result = yield
        except (Exception, pytest.skip.Exception, pytest.fail.Exception) as error:
            seen = self._guard.take()
            if seen and isinstance(error, (pytest.skip.Exception, pytest.xfail.Exception)):
                raise pytest.fail.Exception(seen, pytrace=False) from None
            if seen and seen not in str(error):
                error.add_note(seen)
            raise
        if seen := self._guard.take():
            pytest.fail(seen, pytrace=False)
        return result


@pytest.fixture
def mm_tasks_events() -> Iterator[Recorder]:
    """Record the calls of `track`, `identify` and `forget` instead of storing them."""
    from mm_tasks.testing.recorder import record

    with record() as recorder:
        yield recorder


@pytest.fixture(scope="session")
def _mm_tasks_sandbox_served() -> Iterator[Sandbox]:
    from mm_tasks.sandbox.client import SandboxUnavailable, serve_sandbox

    with ExitStack() as until_the_end:
        try:
            served = until_the_end.enter_context(serve_sandbox())
        except SandboxUnavailable as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        yield served


@pytest.fixture
def mm_tasks_sandbox(_mm_tasks_sandbox_served: Sandbox) -> Sandbox:
    """Return a stand-in of the vendor's API, reset to its start."""
    _mm_tasks_sandbox_served.reset()
    return _mm_tasks_sandbox_served


@pytest.fixture
def sandbox(mm_tasks_sandbox: Sandbox) -> Sandbox:
    """Return a stand-in of the vendor's API, reset to its start."""
    return mm_tasks_sandbox
