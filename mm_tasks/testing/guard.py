"""The guard: no test reaches a host that is not loopback by accident.

It looks at the requests of this process alone. A worker that a test starts as a process of
its own is not seen: give it `MILLIMETRIC_HOST` of a sandbox.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from mm_tasks.connections.url import is_loopback


class RealHostReached(AssertionError):  # noqa: N818 - what happened, as a test says it
    """A test was about to send to a real host. Nothing was sent."""


class Guard:
    """Refuses requests to any host but loopback, and remembers them."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._attempts: list[str] = []
        self.is_open = False

    def __call__(self, host: str) -> None:
        """Raise `RealHostReached`, unless the host is loopback or the guard is open."""
        if not self.is_open and not is_loopback(urlsplit(host).hostname or ""):
            self._attempts.append(host)
            raise RealHostReached(_message(host))

    def take(self) -> str:
        """Return the message about what was seen, and forget it; empty if nothing was."""
        attempts, self._attempts = self._attempts, []
        return _message(attempts[0]) if attempts else ""


def _message(host: str) -> str:
    return (
        f"mm_tasks was about to send to the real host {host}; nothing was sent. "
        "Record events (fixture mm_tasks_events), or send to the stand-in (fixture sandbox). "
        "To allow it: @pytest.mark.mm_tasks_real_host, or mm_tasks_guard = false for all tests"
    )
