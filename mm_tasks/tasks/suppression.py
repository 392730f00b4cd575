"""`is_erased`: asks the fence about a person, for other programs that send events of persons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.errors import BufferUnavailable, ConfigurationError, InvalidEvent, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

_NOT_LOADED = (
    "the fences are not loaded on this Redis, so nobody can say who is erased; a running worker "
    "loads them, and mm-tasks status says why it does not"
)


def is_erased(user_id: str | None = None, *, anonymous_id: str | None = None) -> bool:
    """Return whether events of this person are refused now, because of an erasure.

    One command of Redis. Raises `BufferUnavailable` if Redis does not answer,
    `ConfigurationError` while the fences are not loaded: not to know is not a no.
    """
    subjects = runtime.current().subjects
    tags = subjects.tags(user_id, () if anonymous_id is None else (anonymous_id,))
    _check(tags)
    try:
        return _answer(subjects.are_fenced(tags))
    except RedisError as error:
        failed = _failed(error)
    # Raised outside of the handler: the original may quote the command.
    raise failed


async def ais_erased(user_id: str | None = None, *, anonymous_id: str | None = None) -> bool:
    """As `is_erased`, on the connections of the running event loop."""
    current = runtime.current()
    tags = current.subjects.tags(user_id, () if anonymous_id is None else (anonymous_id,))
    _check(tags)
    try:
        pool = current.async_clients.current()
        return _answer(await current.subjects.are_fenced_async(pool, tags))
    except RedisError as error:
        failed = _failed(error)
    raise failed


def _check(tags: Sequence[bytes]) -> None:
    if not tags:
        raise InvalidEvent([Problem("user_id", "is required, unless there is an anonymous_id")])


def _answer(fenced: list[bool] | None) -> bool:
    if fenced is None:
        raise ConfigurationError(_NOT_LOADED)
    return any(fenced)


def _failed(error: RedisError) -> BufferUnavailable:
    return BufferUnavailable(f"Redis did not say who is erased ({type(error).__name__})")
