"""The fence in Redis: tags of erased subjects, which append, claim, begin and revive look at.

SQL is the truth, and this can be rebuilt from it at any time. Nothing is claimed or sent on
a server for which that was not done: after a restart, a failover or FLUSHALL all fences are
loaded first. Fences of two audit stores do not mix, since neither store would know of the
other's when it loads; the first one that comes owns them.

To lower a fence is to load all of them again, so there is one way to be exact.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple

import uuid_utils

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.scripts import Script
from mm_tasks.errors import AuditChainBroken, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from redis import Redis

# Lua's unpack fails near 8 000 values.
_TAGS_MAX = 1000
# A load starts over where the server lost what it had, and nobody else loads.
_LOADS_MAX = 10
# A load gives a sign with each page.
_LEASE_MS = 10_000

_CUT = (
    "the audit log has fewer entries than when a fence was last raised or loaded: its tail "
    "is gone, or a backup was put back. The fences stay as they are; see docs/erasure.md"
)

_RAISE, _FAILED = Script("fence_add"), Script("fence_load_failed")
_BEGIN, _ADD, _END = map(Script, ("fence_load_begin", "fence_load_add", "fence_load_commit"))


# Whether there is anything to load, for whoever asks.
When = Literal["always", "unless loading", "unless loaded"]
_ASKS: dict[When, tuple[int, str]] = {
    "always": (0, ""),
    "unless loading": (_LEASE_MS, ""),
    "unless loaded": (_LEASE_MS, "1"),
}


class FenceState(NamedTuple):
    """How many tags are fenced, and the audit store that they are of; None before the first.

    `is_loading` says that a load goes on, or died.
    """

    tags: int
    store_id: str | None
    is_loading: bool = False


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
        pipeline.hget(self._keys.fences, "loading")
        tags, store_id, loading = pipeline.execute()
        found = None if store_id is None else store_id.decode()
        return FenceState(tags, found, loading is not None)

    def check_store(self, store_id: str) -> None:
        """Raise `ConfigurationError` when the fences here are those of another audit store."""
        if self.state().store_id not in {None, store_id}:
            raise _another_store()

    def add(self, tags: Collection[bytes], store_id: str, log_size: int = 0) -> None:
        """Put up the fence for these tags; once this returns it holds. Safe to repeat.

        `log_size` is how many entries the audit log has, by now: see `load`.
        Raises `ConfigurationError` when the fences here are those of another audit store.
        """
        places = (self._keys.fence, self._keys.fences, self._keys.fence_draft)
        for page in _pages(tags):
            args = (store_id, log_size, *page)
            if not _RAISE(self._redis, places, args):
                raise _another_store()

    def load(
        self,
        store_id: str,
        read: Callable[[], Iterable[bytes]],
        log_size: Callable[[], int] = lambda: 0,
        *,
        when: When = "always",
    ) -> bool:
        """Make the fence what `read` returns, and let this server count as loaded.

        Another load that goes on is overtaken: its `read` was earlier. Not so when it is
        "unless loading": who only found that fences are missing leaves it to that one, unless
        that gave no sign for ten seconds. Otherwise many would overtake each other for ever.
        "unless loaded" moreover finds nothing to do where all is loaded by now.

        False where it was left to another. Fences that are raised meanwhile are in it, and what
        `read` returned a moment ago never replaces what is newer. `log_size` says how many
        entries the audit log has. Raises `ConfigurationError` as `add`, and
        `AuditChainBroken` when that log was longer before: what it forgot stays fenced.
        """
        keys, token = self._keys, str(uuid_utils.uuid7())
        for _ in range(_LOADS_MAX):
            args = (store_id, token, *_ASKS[when])
            begun = _BEGIN(self._redis, (keys.fences, keys.fence_draft), args)
            if not begun:
                raise _another_store()
            run_id, known = begun
            if run_id in {b"loaded", b"loading"}:
                return bool(run_id == b"loaded")
            try:
                # Asked after that, so that whatever was raised before is in it.
                size = _checked(log_size(), int(known))
                is_whole = self._draft(token, read())
            except Exception:
                self._end(token, b"", 0)
                raise
            if is_whole and self._end(token, run_id, size):
                return True
            # Whoever overtook this one read later; if nobody did, the server lost all.
            when = "unless loading" if when == "always" else when
        return False

    def _draft(self, token: str, tags: Iterable[bytes]) -> bool:
        places = (self._keys.fences, self._keys.fence_draft)
        return all(_ADD(self._redis, places, (token, *page)) for page in _pages(tags))

    def _end(self, token: str, run_id: bytes, size: int) -> bool:
        places = (self._keys.fences, self._keys.fence_draft, self._keys.fence)
        return bool(_END(self._redis, places, (token, run_id, size)))

    def note_failed(self, why: str) -> None:
        """Let `status` say why the fences could not be loaded, in a fixed word."""
        _FAILED(self._redis, (self._keys.fences,), (why,))


def _checked(size: int, known: int) -> int:
    if size < known:
        raise AuditChainBroken(_CUT)
    return size


def _another_store() -> ConfigurationError:
    return ConfigurationError(
        "MM_TASKS_AUDIT_URL: this Redis has the fences of another audit store; every process "
        "of a project needs the same one"
    )


def _pages(tags: Iterable[bytes]) -> Iterator[tuple[bytes, ...]]:
    rest = iter(tags)
    while page := tuple(islice(rest, _TAGS_MAX)):
        yield page
