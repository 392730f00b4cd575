"""Random ids that no other process makes, however the process was forked.

uuid_utils draws from a generator of each thread, and a fork copies the one of its thread. Python's
own forks seed it anew. A program such as uWSGI forks without Python: all its workers would give
their visitors, and their events, the same ids.
"""

from __future__ import annotations

import os
import threading

import uuid_utils


class _Seeded(threading.local):
    """The process in which the generator of this thread was seeded."""

    pid = 0


_seeded = _Seeded()


def uuid7() -> str:
    """Return a UUIDv7 (RFC 9562): it begins with the time, in ms."""
    _seed()
    return str(uuid_utils.uuid7())


def uuid4() -> str:
    """Return a UUIDv4, random in all parts."""
    _seed()
    return str(uuid_utils.uuid4())


def _seed() -> None:
    if _seeded.pid != os.getpid():
        uuid_utils.reseed_rng()
        _seeded.pid = os.getpid()
