"""Run the Lua scripts of `lua/` by their digest, loading one only when it is missing.

Every script starts with `lua/common.lua`. Redis forgets scripts when it
restarts; then the call is repeated once after loading, which is safe: a script
that was not found has not run.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis


class Script:
    """One script of `lua/`, by name. Holds no connection."""

    def __init__(self, name: str) -> None:
        """Read the script; `name` is a file of `lua/` without its ending."""
        self.text = _text("common") + _text(name)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, redis: Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:  # noqa: ANN401 - replies differ by script
        """Run it atomically and return its reply; raises what redis-py raises."""
        try:
            return redis.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)  # type: ignore[no-untyped-call]
        except NoScriptError:
            redis.script_load(self.text)
            return redis.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)  # type: ignore[no-untyped-call]

    def command(self, keys: Sequence[str], args: Sequence[object]) -> tuple[int, bytes]:
        """Return how many words a call with these keys and first arguments has, and their RESP."""
        words = ("EVALSHA", self.sha, len(keys), *keys, *args)
        return len(words), b"".join(word(str(text).encode()) for text in words)

    def call_packed(self, redis: Redis, command: Sequence[bytes]) -> Any:  # noqa: ANN401
        """Send a command that was packed before; otherwise as `__call__`.

        redis-py packs and dispatches a call in about the time that Redis takes
        to answer it, which a web request would pay for each event. A connection
        that fails is closed by redis-py, so no late reply is taken for another's.
        """
        pool = redis.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_packed_command(command)  # type: ignore[no-untyped-call]
            try:
                return connection.read_response()
            except NoScriptError:
                connection.send_command("SCRIPT", "LOAD", self.text)  # type: ignore[no-untyped-call]
                connection.read_response()
                connection.send_packed_command(command)  # type: ignore[no-untyped-call]
                return connection.read_response()
        finally:
            pool.release(connection)


def word(text: bytes) -> bytes:
    """Return one bulk string of RESP, the protocol of Redis."""
    return b"$%d\r\n%b\r\n" % (len(text), text)


@cache
def _text(name: str) -> str:
    return files("mm_tasks").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
