"""Hooks that can veto an outgoing request. Only the pytest plugin installs one.

Elsewhere a request costs one read of an empty list. See `testing/guard`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_guards: list[Callable[[str], None]] = []


def admit(host: str) -> None:
    """Call each guard with the host of a request; a guard raises to veto it."""
    for guard in _guards:
        guard(host)


@contextmanager
def guarded(by: Callable[[str], None]) -> Iterator[None]:
    """Call `by` with the host of every request of this process meanwhile."""
    _guards.append(by)
    try:
        yield
    finally:
        _guards.remove(by)
