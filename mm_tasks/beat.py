"""Celery's scheduler of beat, ending when it is told to."""

from __future__ import annotations

from typing import Any

from celery import beat


class Scheduler(beat.Scheduler):
    """The schedule in memory, whose connection is not closed under a publish.

    Celery's handler of SIGTERM closes the scheduler in the middle of whatever beat does, and
    then raises SystemExit there. From 5.7.0 on that closes the connection too: a publish that
    waits for Redis fails with a ValueError in place of the SystemExit, and beat logs it and
    goes on. Here a schedule that ticks stays open; beat closes it again once it has ended.
    """

    _is_ticking = False

    def tick(self, *args: Any, **options: Any) -> float:  # noqa: ANN401
        """Publish what is due, at most one entry; return the seconds until the next tick."""
        self._is_ticking = True
        try:
            return super().tick(*args, **options)
        finally:
            self._is_ticking = False

    def close(self) -> None:
        """Let go of the connection, unless a tick uses it."""
        if not self._is_ticking:
            super().close()
