"""The fence in Redis: tags of erased subjects, which append, claim, begin and revive look at.

SQL is the truth, and this can be rebuilt from it at any time. Nothing is claimed or sent on
a server for which that was not done: after a restart, a failover or FLUSHALL all fences are
loaded first. Fences of two audit stores do not mix, since neither store would know of the
other's when it loads; the first one that comes owns them.

To lower a fence is to load all of them again, so there is one way to be exact.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import uuid_utils

from mm_tasks.errors import AuditChainBroken, ConfigurationError
from mm_tasks.keys import ProjectKeys
from mm_tasks.scripting import Script

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from redis import Redis

# Lua's unpack fails near 8 000 values.
_TAGS_MAX = 1000
# A load is overtaken by a fence that is raised meanwhile, of which there are a few a day.
_LOADS_MAX = 10

_CUT = (
    "the audit log has fewer entries than when a fence was last raised or loaded: its tail "
    "is gone, or a backup was put back. The fences stay as they are; see docs/erasure.md"
)

_RAISE, _FAILED = Script("raise"), Script("load_failed")
_BEGIN, _ADD, _END = map(Script, ("load_begin", "load_add", "load_end"))


class FenceState(NamedTuple):
    """How many tags are fenced, and the audit store that they are of; None before the first."""

    tags: int
    store_id: str | None


class Fence:
    """The fence of one project. Holds a client, no state of its own."""

    def __init__(self, redis: Redis, project: str) -> None:
        """Take the client; nothing is read here."""
        self._redis = redis
        self._keys = ProjectKeys(project)

    def state(self) -> FenceState:
        """Return how the fence is."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.scard(self._keys.fence)
        pipeline.hget(self._keys.fences, "store")
        tags, store_id = pipeline.execute()
        return FenceState(tags, None if store_id is None else store_id.decode())

    def check_store(self, store_id: str) -> None:
        """Raise `ConfigurationError` when the fences here are those of another audit store."""
        if self.state().store_id not in {None, store_id}:
            raise _another_store()

    def raise_(self, tags: Collection[bytes], store_id: str, log_size: int = 0) -> None:
        """Put up the fence for these tags; once this returns it holds. Safe to repeat.

        `log_size` is how many entries the audit log has, by now: see `load`.
        Raises `ConfigurationError` when the fences here are those of another audit store.
        """
        for page in _pages(tags):
            args = (store_id, log_size, *page)
            if not _RAISE(self._redis, (self._keys.fence, self._keys.fences), args):
                raise _another_store()

    def load(
        self,
        store_id: str,
        read: Callable[[], Collection[bytes]],
        log_size: Callable[[], int] = lambda: 0,
    ) -> bool:
        """Make the fence what `read` returns, and let this server count as loaded.

        Reads again where a fence was raised or all was lost meanwhile, so that what SQL said
        a moment ago never replaces what is newer; False where that never ended. `log_size` says
        how many entries the audit log has. Raises `ConfigurationError` as `raise_`, and
        `AuditChainBroken` when that log was longer before: what it forgot stays fenced.
        """
        keys = self._keys
        for _ in range(_LOADS_MAX):
            token = str(uuid_utils.uuid7())
            begun = _BEGIN(self._redis, (keys.fences, keys.fence_draft), (store_id, token))
            if not begun:
                raise _another_store()
            run_id, known = begun
            # Asked after that, so that whatever was raised before is in it.
            size = log_size()
            if size < int(known):
                raise AuditChainBroken(_CUT)
            is_whole = all(
                _ADD(self._redis, (keys.fences, keys.fence_draft), (token, *page))
                for page in _pages(read())
            )
            places = (keys.fences, keys.fence_draft, keys.fence)
            if is_whole and _END(self._redis, places, (token, run_id, size)):
                return True
        return False

    def note_failed(self, why: str) -> None:
        """Let `status` say why the fences could not be loaded, in a fixed word."""
        _FAILED(self._redis, (self._keys.fences,), (why,))


def _another_store() -> ConfigurationError:
    return ConfigurationError(
        "MM_TASKS_AUDIT_URL: this Redis has the fences of another audit store; every process "
        "of a project needs the same one"
    )


def _pages(tags: Collection[bytes]) -> Iterator[tuple[bytes, ...]]:
    rest = iter(tags)
    while page := tuple(islice(rest, _TAGS_MAX)):
        yield page
