"""Store events when Django's transaction commits, and not if it rolls back.

`track.delay_on_commit("signup", user_id="42")` validates at once and raises `InvalidEvent` in
the caller. The event has the time of the call, and url, path, referrer and ids of its request.
Outside a transaction it is stored at once.

Redis may be away after the commit, when an exception helps nobody: the data is committed. So
Django logs the error and continues, and the event is counted as refused. With `robust=False`
`atomic()` raises `BufferUnavailable` or `BufferFull`, and later callbacks of the transaction do
not run.
"""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mm_tasks.tasks.countdown import delay_s, is_scheduled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Planned:
    """An event that is stored when the transaction commits; `id` is its event id."""

    id: str


def delay_on_commit(
    task: Any, /, *args: Any, using: str | None = None, robust: bool = True, **fields: Any
) -> Planned:
    """Validate now and store on commit; `using` names the database, as in Django."""
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
    robust: bool = True,
    **options: Any,
) -> None:
    """Call `apply_async` on commit, with options such as `countdown`, which begins then."""
    args, kwargs = tuple(args or ()), dict(kwargs or {})
    if all(value is None for value in options.values()):
        delay_on_commit(task, *args, using=using, robust=robust, **kwargs)
        return
    if is_scheduled(options):
        due_in_s = delay_s(options, datetime.now(UTC))
        encoded = task._encoded(args, kwargs, due_in_s)  # noqa: SLF001 - as in `delay_on_commit`

        def schedule() -> None:
            due_in_s = delay_s(options, datetime.now(UTC))
            task._append((encoded,), due_in_s)  # noqa: SLF001 - as in `delay_on_commit`

        _on_commit(schedule, using, robust=robust)
        return
    task._encoded(args, dict(kwargs))  # noqa: SLF001 - raises what `delay` would
    # The commit may run in another context. The fields of the request are in this one.
    run = copy_context().run

    def send() -> None:
        run(task.apply_async, args, kwargs, **options)

    _on_commit(send, using, robust=robust)


def _on_commit(call: Callable[[], None], using: str | None, *, robust: bool) -> None:
    """Register a callback. Django logs its `__qualname__`, so a `partial` will not do."""
    from django.db import transaction

    transaction.on_commit(call, using=using, robust=robust)
