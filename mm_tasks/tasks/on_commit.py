"""Events that are stored when Django's transaction commits, and not if it rolls back.

`track.delay_on_commit("signup", user_id="42")` validates at once and raises `InvalidEvent` in
the caller; the event's time, and url, path, referrer and ids of the request, are those of the
call. Outside of a transaction it is stored at once.

Not promised: that Redis answers once the transaction is committed. Then `BufferUnavailable`
or `BufferFull` is raised where it was committed, out of `atomic()`, and later callbacks of the
transaction do not run; with `robust=True` Django logs the error and goes on.
"""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Planned:
    """An event that is stored when the transaction commits; `id` is what it is known by."""

    id: str


def delay_on_commit(
    task: Any,
    /,
    *args: Any,
    using: str | None = None,
    robust: bool = False,
    **fields: Any,
) -> Planned:
    """Validate now and store on commit; `using` names the database, as for Django."""
    encoded = task._encoded(args, fields)  # noqa: SLF001 - half of its `delay`

    def store() -> None:
        task._append((encoded,))  # noqa: SLF001 - the other half

    _on_commit(store, using, robust=robust)
    return Planned(encoded.id)


def apply_async_on_commit(
    task: Any,
    args: Sequence[Any] | None = None,
    kwargs: dict[str, Any] | None = None,
    *,
    using: str | None = None,
    robust: bool = False,
    **options: Any,
) -> None:
    """As `apply_async` on commit, options such as `countdown` included."""
    args, kwargs = tuple(args or ()), dict(kwargs or {})
    if all(value is None for value in options.values()):
        delay_on_commit(task, *args, using=using, robust=robust, **kwargs)
        return
    task._encoded(args, dict(kwargs))  # noqa: SLF001 - raises what `delay` would
    # What the request gives to its events is taken from here, wherever the commit will be.
    run = copy_context().run

    def send() -> None:
        run(task.apply_async, args, kwargs, **options)

    _on_commit(send, using, robust=robust)


def _on_commit(call: Callable[[], None], using: str | None, *, robust: bool) -> None:
    """Give it to Django; it must be a function, as Django wants to log its name."""
    from django.db import transaction  # noqa: PLC0415 - callers without Django import this too

    transaction.on_commit(call, using=using, robust=robust)
