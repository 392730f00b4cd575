"""The connections of one process to Redis: few, none idle for long, and a breaker before them.

A call that finds all connections in use waits for its turn, first come first served, within the
same bound as its answer. So a burst of threads or greenlets takes no more connections than a
few threads do. Idle connections are closed by the next call; there is no thread for it.

`call` sends commands that are packed already: redis-py packs a call, counts it and borrows a
connection in about the time that Redis takes to answer (ADR 6). redis-py's own client may use the
pool too. All waiting is by `threading`, which gevent replaces.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any

import redis
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mm_tasks.connections.breaker import Away, Breaker, NotApplied

# Each call is one short round trip of a process that runs one thread at a time: more connections
# make nothing faster. With those of the event loop and of a worker they stay below 20.
CONNECTIONS_MAX = 8
# Shorter than what proxies and firewalls allow, which may drop a connection without a word.
IDLE_MAX_S = 30.0
# What remains of a call's time for the answer, at least, after the wait for its turn.
_ANSWER_MIN_S = 0.2
# Time for a late loop of greenlets to read the reply that has arrived.
_GRACE_S = 0.01
# redis-py reports these answers of Redis as lost connections.
ANSWERS = (ResponseError, AuthenticationError, AuthorizationError, BusyLoadingError)


class Pool(redis.ConnectionPool):
    """A pool of redis-py with the promises of this module."""

    def __init__(
        self, breaker: Breaker, *, connect_s: float, answer_s: float, **options: Any
    ) -> None:
        """Take the timeouts of connecting and of an answer, and redis-py's other options.

        Both timeouts together bound a call, the wait for its turn included. Opens nothing.
        """
        super().__init__(socket_connect_timeout=connect_s, socket_timeout=answer_s, **options)
        self.breaker = breaker
        self._call_s = connect_s + answer_s
        self._answer_s = answer_s
        # Each turn is an idle connection, with the time of its last use, or one not made yet.
        # Taking one is a single step of the interpreter, so that no lock is needed and a signal
        # handler may track an event.
        self._idle: list[tuple[Any, float]] = []
        self._unmade: list[None] = [None] * CONNECTIONS_MAX
        self._freed = threading.Condition()  # reentrant
        self._waiting = 0

    def call(self, command: bytes, script: str) -> Any:
        """Run a packed EVALSHA of this script and return the reply.

        Raises `NotApplied` or redis-py's `ResponseError` if it was surely not applied, and other
        errors of redis-py if it may have been: it was sent, and no answer came. After such an
        error the connection is closed, so that no late reply is taken for another's.
        """
        began_s = monotonic()
        try:
            connection = self.get_connection()
        except Away:
            raise
        except RedisError as error:
            raise NotApplied(type(error).__name__) from None
        try:
            try:
                reply = self._exchange(connection, command, began_s)
            except NoScriptError:
                self._load(connection, script)
                reply = self._exchange(connection, command, began_s)
        except ANSWERS as error:
            self.breaker.answered()
            self._after_refusal(connection, error)
            raise
        except RedisTimeoutError:
            self.breaker.failed()
            connection.disconnect()
            raise
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self.release(connection)
        self.breaker.answered()
        return reply

    def get_connection(self, *_: Any, **__: Any) -> Any:
        """Return a connection that is connected; raises redis-py's errors.

        `release` gives it back.
        """
        connection = self._turn(is_probe=self.breaker.check())
        try:
            _ensure_connected(connection)
        except BaseException as error:
            connection.disconnect()
            self.release(connection)
            if isinstance(error, RedisError):
                self.breaker.failed()
            raise
        return connection

    def release(self, connection: Any) -> None:
        """Take a connection back, connected or not; wake the call that waits longest."""
        if connection._sock is not None:  # noqa: SLF001 - redis-py 6.4 has no name for it
            now_s = monotonic()
            self._idle.append((connection, now_s))
            self._close_idle(now_s - IDLE_MAX_S)
        else:
            self._unmade.append(None)
        if self._waiting:
            with self._freed:
                self._freed.notify()

    def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002 - redis-py's
        """Close all idle connections; those in use belong to their callers."""
        self._close_idle(monotonic())

    def _turn(self, *, is_probe: bool) -> Any:
        if not self._waiting:
            try:
                return self._free()
            except IndexError:
                pass
        ends_at_s = monotonic() + self._call_s - _ANSWER_MIN_S
        with self._freed:
            self._waiting += 1
            try:
                return self._wait_until(ends_at_s, is_probe=is_probe)
            except BaseException:
                # The turn that woke this call is for the next one.
                self._freed.notify()
                raise
            finally:
                self._waiting -= 1

    def _wait_until(self, ends_at_s: float, *, is_probe: bool) -> Any:
        while True:
            # It may have opened meanwhile: then all that wait fail together.
            is_probe = is_probe or self.breaker.check()
            try:
                return self._free()
            except IndexError:
                left_s = ends_at_s - monotonic()
                if left_s <= 0:
                    msg = "no connection became free"
                    raise RedisConnectionError(msg) from None
                self._freed.wait(left_s)

    def _free(self) -> Any:
        """Return a connection that nobody uses; raise `IndexError` if there is none."""
        try:
            connection, used_s = self._idle.pop()
        except IndexError:
            self._unmade.pop()
            return self.connection_class(**self.connection_kwargs)
        if monotonic() - used_s > IDLE_MAX_S:
            connection.disconnect()
        return connection

    def _close_idle(self, since_s: float) -> None:
        """Close the connections that were not used since then; the first is the oldest."""
        try:
            while self._idle[0][1] <= since_s:
                connection, _ = self._idle.pop(0)
                connection.disconnect()
                self._unmade.append(None)
        except IndexError:
            # None is left, or another thread took it.
            pass

    def _load(self, connection: Any, script: str) -> None:
        try:
            connection.send_command("SCRIPT", "LOAD", script, check_health=False)
            connection.read_response()
        except RedisError as error:
            connection.disconnect()
            if isinstance(error, RedisTimeoutError):
                self.breaker.failed()
            raise NotApplied(type(error).__name__) from None

    def _exchange(self, connection: Any, command: bytes, began_s: float) -> Any:
        connection.send_packed_command((command,), check_health=False)
        left_s = began_s + self._call_s - monotonic()
        # Seldom: it waited for its turn, or connecting was slow.
        if left_s < self._answer_s and not connection.can_read(timeout=max(0.0, left_s)):
            msg = "no answer in time"
            raise RedisTimeoutError(msg)
        try:
            return connection.read_response(disconnect_on_error=False)
        except RedisTimeoutError:
            # A loop of greenlets that was held up finds the time over before it reads the reply.
            if not connection.can_read(timeout=_GRACE_S):
                raise
            return connection.read_response()

    def _after_refusal(self, connection: Any, error: Exception) -> None:
        """Keep the connection, whose reply was read to its end, unless another may help.

        Raises `NotApplied` for an answer that redis-py reports as a lost connection.
        """
        if isinstance(error, ReadOnlyError):
            # A primary that became a replica keeps its connections: find the new primary.
            connection.disconnect()
            self.disconnect()
        if not isinstance(error, ResponseError):
            connection.disconnect()
            raise NotApplied(type(error).__name__) from None


def _ensure_connected(connection: Any) -> None:
    """Connect, also when the server closed an idle connection."""
    connection.connect()
    try:
        is_stale = connection.can_read(timeout=0)
    except (RedisConnectionError, RedisTimeoutError, OSError):
        is_stale = True
    if is_stale:
        connection.disconnect()
        connection.connect()
