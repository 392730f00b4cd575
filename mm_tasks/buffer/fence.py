"""The fence in Redis: tags of erased subjects, checked by append, claim, begin and revive.

SQL is authoritative; the fence can be rebuilt from it at any time. No batch is claimed or
sent on a server without a complete fence: after a restart, a failover or FLUSHALL all fences
are loaded first. The fence belongs to the first audit store that uses it. Two stores never
share it, because a load by one would drop the fences of the other.

A fence is lowered by loading all of them again, so there is one way to be exact.

Redis keeps size and head of the audit log. They move forward only for a caller that found them in
the log, so a log that lost entries never lowers a fence, even once it has grown again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.scripts import Script, pages
from mm_tasks.errors import ConfigurationError
from mm_tasks.events import ids

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from redis import Redis

# Lua's unpack fails near 8 000 values.
_TAGS_MAX = 1000
# A load starts over when the server lost its data and no other load runs.
_LOADS_MAX = 10
# A load renews its lease with each page.
_LEASE_MS = 10_000

_ADD, _ADVANCE, _LOAD_FAILED = map(Script, ("fence_add", "fence_advance", "fence_load_failed"))
_LOAD_BEGIN, _LOAD_ADD, _LOAD_COMMIT = map(
    Script, ("fence_load_begin", "fence_load_add", "fence_load_commit")
)

When = Literal["always", "unless loading", "unless loaded"]
# The last two arguments of `fence_load_begin.lua`.
_CONDITIONS: dict[When, tuple[int, str]] = {
    "always": (0, ""),
    "unless loading": (_LEASE_MS, ""),
    "unless loaded": (_LEASE_MS, "1"),
}


class LogEnd(NamedTuple):
    """A size of the audit log, and the hash of its last entry at that size.

    `head` is empty where an earlier release stored the size alone.
    """

    size: int = 0
    head: str = ""


class FenceState(NamedTuple):
    """The number of fenced tags, and the id of their audit store; None before the first one.

    `is_loading`: a load runs, or died. `known` is the longest audit log that Redis knows of.
    """

    tags: int
    store_id: str | None
    is_loading: bool = False
    known: LogEnd = LogEnd()


def _unchanged(known: LogEnd) -> LogEnd:
    return known


class Fence:
    """The fence of one project. Holds a client, no state of its own."""

    def __init__(self, redis: Redis, project: str) -> None:
        """Take the client; read nothing."""
        self._redis = redis
        self._keys = ProjectKeys(project)

    def state(self) -> FenceState:
        """Return the state of the fence."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.scard(self._keys.fence)
        # Not HMGET: the user of producers in users.acl may not run it.
        pipeline.hgetall(self._keys.fences)
        tags, fields = pipeline.execute()
        store_id = fields.get(b"store")
        known = _log_end(fields.get(b"log_size", 0), fields.get(b"log_head", b""))
        return FenceState(tags, store_id and store_id.decode(), b"loading" in fields, known)

    def check_store(self, store_id: str) -> None:
        """Raise `ConfigurationError` when the fence belongs to another audit store."""
        stored = self._redis.hget(self._keys.fences, "store")
        _require_same_store(stored is None or stored == store_id.encode())

    def add(self, tags: Collection[bytes], store_id: str) -> LogEnd:
        """Add these tags to the fence; it holds once this returns. Safe to repeat.

        Returns the known end of the audit log, for `advance`. Raises `ConfigurationError` when
        the fence belongs to another audit store.
        """
        places = (self._keys.fence, self._keys.fences, self._keys.fence_draft)
        known = LogEnd()
        for page in pages(tags, _TAGS_MAX):
            added = _ADD(self._redis, places, (store_id, *page))
            _require_same_store(added)
            known = _log_end(*added)
        return known

    def advance(self, known: LogEnd, end: LogEnd) -> LogEnd:
        """Move the known end of the log to `end`, and return it.

        The caller found `known` in the log. If Redis knows another end by now, nothing changes
        and that is returned.
        """
        return _log_end(*_ADVANCE(self._redis, (self._keys.fences,), (*known, *end)))

    def tags(self) -> set[bytes]:
        """Return the tags of the fence. Not SSCAN: earlier users in users.acl may not run it."""
        tags: Any = self._redis.smembers(self._keys.fence)
        return set(tags)

    def adopt(self, end: LogEnd) -> None:
        """Take this for the end of the log, whatever was known before: a person decided it."""
        self._redis.hset(self._keys.fences, mapping={"log_size": end.size, "log_head": end.head})

    def load(
        self,
        store_id: str,
        read: Callable[[], Iterable[bytes]],
        log_end: Callable[[LogEnd], LogEnd] = _unchanged,
        *,
        when: When = "always",
    ) -> bool:
        """Replace the fence by the tags that `read` returns, and mark this server as loaded.

        A new load replaces a running one, whose `read` was earlier. In mode "unless loading" it
        leaves the work to the running one, unless that wrote nothing for ten seconds; otherwise
        many callers that miss fences would replace each other for ever. Mode "unless loaded"
        also does nothing when the fence is complete by now.

        False when another load does the work. Tags that `add` adds meanwhile are kept, and the
        result of an older `read` never replaces a newer one. `log_end` takes the known end of the
        audit log and returns the present one, or raises `AuditChainBroken` if the log does not
        have the known one. It is called before `read`, and after it: the database may lose
        entries in between. The fence stays as it is if anything is raised. Raises
        `ConfigurationError` as `add` does.
        """
        keys, token = self._keys, ids.uuid7()
        for _ in range(_LOADS_MAX):
            args = (store_id, token, *_CONDITIONS[when])
            begun = _LOAD_BEGIN(self._redis, (keys.fences, keys.fence_draft), args)
            _require_same_store(begun)
            run_id, known = begun[0], _log_end(*begun[1:])
            if run_id in {b"loaded", b"loading"}:
                return bool(run_id == b"loaded")
            try:
                log_end(known)
                # Read after the load began, so that every fence added before is in it.
                is_complete = self._draft(token, read())
                end = log_end(known)
            except Exception:
                self._commit(token, b"", known, known)
                raise
            if is_complete and self._commit(token, run_id, known, end):
                return True
            # Another load began, and reads later; if none did, the server lost its data.
            when = "unless loading" if when == "always" else when
        return False

    def _draft(self, token: str, tags: Iterable[bytes]) -> bool:
        places = (self._keys.fences, self._keys.fence_draft)
        sent = (_LOAD_ADD(self._redis, places, (token, *page)) for page in pages(tags, _TAGS_MAX))
        return all(sent)

    def _commit(self, token: str, run_id: bytes, known: LogEnd, end: LogEnd) -> bool:
        places = (self._keys.fences, self._keys.fence_draft, self._keys.fence)
        return bool(_LOAD_COMMIT(self._redis, places, (token, run_id, *known, *end)))

    def note_failed(self, why: str) -> None:
        """Store a fixed word for `status`: the reason why the fences could not be loaded."""
        _LOAD_FAILED(self._redis, (self._keys.fences,), (why,))


def _log_end(size: bytes | int, head: bytes) -> LogEnd:
    return LogEnd(int(size), head.decode())


def _require_same_store(is_same: object) -> None:
    if not is_same:
        msg = (
            "MM_TASKS_AUDIT_URL: this Redis has the fences of another audit store; every process "
            "of a project needs the same one"
        )
        raise ConfigurationError(msg)
