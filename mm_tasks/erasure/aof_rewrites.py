"""The rewrite of Redis's AOF, after which removed events can no longer be read in it.

One rewrite serves all erasures that completed before it began. A sweep starts it, later sweeps look
whether it ended, and nothing waits for it. After a restart of Redis in between it is started again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mm_tasks.buffer.purge import Purge
    from mm_tasks.erasure.steps import ErasureSteps

# With so many a rewrite starts although others are about to complete.
_WAITING_MAX = 100


def follow(steps: ErasureSteps, purge: Purge, *, is_idle: bool) -> None:
    """Record the result of a rewrite that ended, and start one for the erasures without a result.

    While erasures are due (`is_idle` is False) it starts none: those that complete next are served
    by the same one. Raises Redis's errors and `AuditUnavailable`.
    """
    waiting = steps.without_aof(_WAITING_MAX)
    if not waiting:
        return
    aof = purge.aof()
    if aof.is_running:
        return
    if not aof.is_on:
        steps.record_aof(waiting, "off")
        return
    served = [erasure for erasure, run_id in waiting.items() if run_id == aof.run_id]
    if served:
        steps.record_aof(served, "rewritten" if aof.is_rewritten else "failed")
    due = [erasure for erasure in waiting if erasure not in served]
    if due and (is_idle or len(due) == _WAITING_MAX):
        started = purge.rewrite_aof()
        if started == "refused":
            steps.record_aof(due, started)
        elif started == "started":
            # After the start: a worker that dies in between causes one rewrite too many.
            steps.await_aof(due, aof.run_id)
