"""Call a hook with each checkpoint, without holding up the caller or the fence.

The hook is code of the host: it may be slow, hang or raise. It runs in a daemon thread, one at a
time. The caller waits for it, two seconds at most. While it takes longer, nobody waits, and the
newest checkpoint is kept for it: a checkpoint covers all earlier ones.
"""

from __future__ import annotations

import atexit
import threading
import time
from contextlib import contextmanager
from logging import getLogger
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from mm_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mm_tasks.erasure.audit.checkpoints import Checkpoint

WAIT_S = 2.0
# A program that ends waits so long for a call that has begun.
_EXIT_WAIT_S = 5.0
# A call that takes longer counts as failed.
_HANGS_S = 60.0
_LOG_INTERVAL_S = 60.0
_log = getLogger(__name__)
_deferring = threading.local()


class CheckpointHook:
    """The hook of one process."""

    def __init__(
        self,
        call: Callable[[Checkpoint], object],
        note_failed: Callable[[], object] = lambda: None,
    ) -> None:
        """Take the function, and a function that counts a failure. `note_failed` may raise."""
        self._call = call
        self._note_failed = note_failed
        self._newest: Checkpoint | None = None
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None
        self._is_slow = False
        self._hangs_at_s = 0.0
        self._log_at_s = 0.0
        atexit.register(self.wait, _EXIT_WAIT_S)

    def offer(self, checkpoint: Checkpoint) -> None:
        """Call the hook with this checkpoint, or with a newer one. Never raises.

        Inside of `deferred` the call begins at the end of that block.
        """
        with self._lock:
            if self._newest is None or self._newest.size <= checkpoint.size:
                self._newest = checkpoint
        later: set[CheckpointHook] | None = getattr(_deferring, "hooks", None)
        if later is None:
            self._run()
        else:
            later.add(self)

    def wait(self, within_s: float) -> bool:
        """Return whether the hook has been called with the newest checkpoint by then."""
        return self._idle.wait(within_s)

    def _run(self) -> None:
        with self._lock:
            if self._thread is None:
                self._idle.clear()
                self._thread = threading.Thread(
                    target=self._work, name="mm_tasks checkpoint hook", daemon=True
                )
                self._thread.start()
            is_worth_waiting = not self._is_slow and self._thread is not threading.current_thread()
        if is_worth_waiting and not self.wait(WAIT_S):
            self._is_slow = True
        if self._is_slow and time.monotonic() > self._hangs_at_s:
            self._hangs_at_s = float("inf")
            self._failed("TimeoutError")

    def _work(self) -> None:
        while (checkpoint := self._taken()) is not None:
            began_s = time.monotonic()
            self._hangs_at_s = began_s + _HANGS_S
            try:
                self._call(checkpoint)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a host's code raises what it likes
                self._failed(type(error).__name__)
            self._is_slow = time.monotonic() - began_s > WAIT_S

    def _taken(self) -> Checkpoint | None:
        """Return the newest checkpoint; None ends the thread."""
        with self._lock:
            checkpoint, self._newest = self._newest, None
            if checkpoint is None:
                self._thread = None
                self._idle.set()
            return checkpoint

    def _failed(self, kind: str) -> None:
        """Count a failure, and log one of them each minute."""
        try:
            self._note_failed()
        except Exception as error:  # noqa: BLE001 - a failure that is not counted is logged
            kind = f"{kind}, {type(error).__name__}"
        if time.monotonic() >= self._log_at_s:
            self._log_at_s = time.monotonic() + _LOG_INTERVAL_S
            _log.error("checkpoint_hook_failed", extra={"kind": kind})


@contextmanager
def deferred() -> Iterator[None]:
    """Let no hook of this thread begin before the end of the block."""
    outer: set[CheckpointHook] | None = getattr(_deferring, "hooks", None)
    hooks: set[CheckpointHook] = set() if outer is None else outer
    _deferring.hooks = hooks
    try:
        yield
    finally:
        if outer is None:
            _deferring.hooks = None
            for hook in hooks:
                hook._run()  # noqa: SLF001 - of this module


def load(name: str | None) -> Callable[[Checkpoint], None] | None:
    """Return the function that the setting names; raises `ConfigurationError`."""
    if name is None:
        return None
    reason = "it names no function"
    try:
        hook: Callable[[Checkpoint], None] | None = resolve_name(name) if ":" in name else None
        if callable(hook):
            return hook
    except Exception as error:  # noqa: BLE001 - importing a host's module may raise anything
        reason = type(error).__name__
    rule = "must be package.module:function, and can be imported by every process"
    msg = f"MM_TASKS_CHECKPOINT_HOOK: {rule} ({reason})"
    raise ConfigurationError(msg)
