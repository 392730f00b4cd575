"""The fence in Redis: tags of erased subjects, checked by append, claim, begin and revive.

SQL is authoritative; the fence can be rebuilt from it at any time. No batch is claimed or
sent on a server without a complete fence: after a restart, a failover or FLUSHALL all fences
are loaded first. The fence belongs to the first audit store that uses it. Two stores never
share it, because a load by one would drop the fences of the other.

A fence is lowered by loading all of them again, so there is one way to be exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.scripts import Script, pages
from mm_tasks.errors import AuditChainBroken, ConfigurationError
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

_LOG_TRUNCATED = (
    "the audit log has fewer entries than when a fence was last raised or loaded: its tail "
    "is gone, or a backup was put back. The fences stay as they are; see docs/erasure.md"
)

_ADD, _LOAD_FAILED = Script("fence_add"), Script("fence_load_failed")
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


class FenceState(NamedTuple):
    """The number of fenced tags, and the id of their audit store; None before the first one.

    `is_loading`: a load runs, or died.
    """

    tags: int
    store_id: str | None
    is_loading: bool = False


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
        pipeline.hget(self._keys.fences, "store")
        pipeline.hget(self._keys.fences, "loading")
        tags, store_id, loading = pipeline.execute()
        return FenceState(tags, store_id and store_id.decode(), loading is not None)

    def check_store(self, store_id: str) -> None:
        """Raise `ConfigurationError` when the fence belongs to another audit store."""
        stored = self._redis.hget(self._keys.fences, "store")
        _require_same_store(stored is None or stored == store_id.encode())

    def add(self, tags: Collection[bytes], store_id: str, log_size: int = 0) -> None:
        """Add these tags to the fence; it holds once this returns. Safe to repeat.

        `log_size` is the current number of entries of the audit log: see `load`.
        Raises `ConfigurationError` when the fence belongs to another audit store.
        """
        places = (self._keys.fence, self._keys.fences, self._keys.fence_draft)
        for page in pages(tags, _TAGS_MAX):
            _require_same_store(_ADD(self._redis, places, (store_id, log_size, *page)))

    def load(
        self,
        store_id: str,
        read: Callable[[], Iterable[bytes]],
        log_size: Callable[[], int] = lambda: 0,
        *,
        when: When = "always",
    ) -> bool:
        """Replace the fence by the tags that `read` returns, and mark this server as loaded.

        A new load replaces a running one, whose `read` was earlier. In mode "unless loading" it
        leaves the work to the running one, unless that wrote nothing for ten seconds; otherwise
        many callers that miss fences would replace each other for ever. Mode "unless loaded"
        also does nothing when the fence is complete by now.

        False when another load does the work. Tags that `add` adds meanwhile are kept, and the
        result of an older `read` never replaces a newer one. `log_size` returns the number of
        entries of the audit log. Raises `ConfigurationError` as `add` does, and
        `AuditChainBroken` when the log was longer before: the fence then stays as it is.
        """
        keys, token = self._keys, ids.uuid7()
        for _ in range(_LOADS_MAX):
            args = (store_id, token, *_CONDITIONS[when])
            begun = _LOAD_BEGIN(self._redis, (keys.fences, keys.fence_draft), args)
            _require_same_store(begun)
            run_id, known = begun
            if run_id in {b"loaded", b"loading"}:
                return bool(run_id == b"loaded")
            try:
                # Read after the load began, so that every fence added before is in it.
                size = _checked(log_size(), int(known))
                is_complete = self._draft(token, read())
            except Exception:
                self._commit(token, b"", 0)
                raise
            if is_complete and self._commit(token, run_id, size):
                return True
            # Another load began, and reads later; if none did, the server lost its data.
            when = "unless loading" if when == "always" else when
        return False

    def _draft(self, token: str, tags: Iterable[bytes]) -> bool:
        places = (self._keys.fences, self._keys.fence_draft)
        sent = (_LOAD_ADD(self._redis, places, (token, *page)) for page in pages(tags, _TAGS_MAX))
        return all(sent)

    def _commit(self, token: str, run_id: bytes, size: int) -> bool:
        places = (self._keys.fences, self._keys.fence_draft, self._keys.fence)
        return bool(_LOAD_COMMIT(self._redis, places, (token, run_id, size)))

    def note_failed(self, why: str) -> None:
        """Store a fixed word for `status`: the reason why the fences could not be loaded."""
        _LOAD_FAILED(self._redis, (self._keys.fences,), (why,))


def _checked(size: int, known: int) -> int:
    if size < known:
        raise AuditChainBroken(_LOG_TRUNCATED)
    return size


def _require_same_store(is_same: object) -> None:
    if not is_same:
        msg = (
            "MM_TASKS_AUDIT_URL: this Redis has the fences of another audit store; every process "
            "of a project needs the same one"
        )
        raise ConfigurationError(msg)
