"""Run the Lua scripts of `lua/` by their digest, and load a script that the server lacks.

Every script starts with `lua/base.lua` and, except append, `lua/common.lua`. Its last key is the
clock of the project. Redis forgets scripts when it restarts. Then the call is repeated once after
loading, which is safe: a missing script has not run.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import NoScriptError

from mm_tasks import failpoints
from mm_tasks.buffer.keys import clock_beside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from redis import Redis

Item = TypeVar("Item")


class Script:
    """One script of `lua/`, by name. Holds no connection."""

    def __init__(self, name: str) -> None:
        """Read the script; `name` is a file of `lua/` without its ending."""
        self.name = name
        starts = ("base",) if name == "append" else ("base", "common")
        self.text = "".join(map(_text, (*starts, name)))
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, redis: Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run it atomically and return its reply; raises redis-py's errors."""
        keys = with_clock(keys)
        failpoints.reach(self.name, "before")
        try:
            reply = redis.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            redis.script_load(self.text)
            reply = redis.evalsha(self.sha, len(keys), *keys, *args)
        failpoints.reach(self.name, "after")
        return reply


def packed(words: Sequence[object]) -> bytes:
    """Return a command as Redis reads it."""
    return b"*%d\r\n%b" % (len(words), bulk_strings(str(word).encode() for word in words))


def bulk_strings(words: Iterable[bytes]) -> bytes:
    """Return words as bulk strings of RESP, the protocol of Redis."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def with_clock(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the keys of a script and, last, the clock of their project."""
    return (*keys, clock_beside(keys[0]))


def pages(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of at most `size`, as many as one script takes."""
    rest = iter(items)
    while page := list(islice(rest, size)):
        yield page


@cache
def _text(name: str) -> str:
    return files("mm_tasks.buffer").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
