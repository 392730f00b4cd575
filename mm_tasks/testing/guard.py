"""The guard: refuses a test's requests to any host that is not loopback.

It sees the requests of this process only. A worker that a test starts as a process of its
own needs the `MILLIMETRIC_HOST` of a sandbox.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from mm_tasks.connections.url import is_loopback


class RealHostReached(AssertionError):
    """A test tried to send to a real host. Nothing was sent."""


class Guard:
    """Refuses requests to any host but loopback, and keeps their hosts."""

    def __init__(self) -> None:
        """Start without an attempt."""
        self._attempts: list[str] = []
        self.is_open = False

    def __call__(self, host: str) -> None:
        """Raise `RealHostReached`, unless the host is loopback or the guard is open."""
        if not self.is_open and not is_loopback(urlsplit(host).hostname or ""):
            self._attempts.append(host)
            raise RealHostReached(_message(host))

    def take(self) -> str:
        """Return a message for the first refused request, or "", and clear all of them."""
        attempts, self._attempts = self._attempts, []
        return _message(attempts[0]) if attempts else ""


def _message(host: str) -> str:
    return (
        f"mm_tasks was about to send to the real host {host}; nothing was sent. "
        "Record events (fixture mm_tasks_events), or send to the stand-in (fixture sandbox). "
        "To allow it: @pytest.mark.mm_tasks_real_host, or mm_tasks_guard = false for all tests"
    )
