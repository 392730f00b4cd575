"""Who may refuse a request to the vendor before it is sent: nobody, but in tests.

One look at an empty list is what it costs elsewhere. See `testing.guard`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_guards: list[Callable[[str], None]] = []


def admit(host: str) -> None:
    """Let each guard look at where a request goes; one that refuses it raises."""
    for guard in _guards:
        guard(host)


@contextmanager
def guarded(by: Callable[[str], None]) -> Iterator[None]:
    """Let `by` look at every request of this process meanwhile."""
    _guards.append(by)
    try:
        yield
    finally:
        _guards.remove(by)
