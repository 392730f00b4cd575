"""The audit store of one process, wired: its log, its work rows, and what is built on them.

Apart from `runtime`, which imports this when it is first needed: SQLAlchemy takes as long to
import as all the rest, and most processes only track.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.erasure.audit import pseudonyms
from mm_tasks.erasure.audit.checkpoints import Checkpoint, CheckpointSinks
from mm_tasks.erasure.audit.database import Database
from mm_tasks.erasure.audit.log import AuditLog
from mm_tasks.erasure.audit.pseudonyms import Pseudonyms
from mm_tasks.erasure.commands import Register, summed
from mm_tasks.erasure.rows import ErasureRows
from mm_tasks.erasure.steps import ErasureSteps
from mm_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from mm_tasks.erasure.models import ErasureDeadline

CHECKPOINTS = "checkpoints"


class AuditStore:
    """What is kept of erasures. Opens nothing until it is asked."""

    def __init__(
        self,
        url: str,
        project: str,
        state_dir: Path,
        *,
        pseudonym_key: str | None = None,
        hook: Callable[[Checkpoint], None] | None = None,
    ) -> None:
        """Take the URL of the database, and where the checkpoints and the key are.

        Without `pseudonym_key` the state directory has one, which is made when it is first
        needed. `hook` is called with each checkpoint.
        """
        self._project = project
        self._state_dir = state_dir
        self._pseudonym_key = pseudonym_key
        self.log = AuditLog(Database(url), CheckpointSinks(state_dir / CHECKPOINTS, hook))
        self._work: ErasureRows | None = None

    @property
    def steps(self) -> ErasureSteps:
        """Return the steps of erasures; raises `ConfigurationError` without a usable key."""
        return ErasureSteps(self._opened())

    @property
    def register(self) -> Register:
        """Return what is known of erasures; raises `ConfigurationError` without a usable key."""
        return Register(self._opened())

    def look(self, now: datetime) -> tuple[dict[str, Any], list[ErasureDeadline]]:
        """Return the numbers of erasures, as `Register.summary`, and all open ones.

        Nothing is made by looking: no database, no key. Raises `AuditUnavailable` or
        `ConfigurationError`.
        """
        if self.log.database.is_missing:
            return summed([], now), []
        key_file = self._state_dir / pseudonyms.FILE
        if self._pseudonym_key is None and not key_file.exists():
            msg = f"{pseudonyms.SETTING}: not set, and the state directory has none"
            raise ConfigurationError(msg)
        known = self.register.deadlines(now)
        return summed(known, now), known

    def _opened(self) -> ErasureRows:
        if self._work is None:
            mine = Pseudonyms.load(self._pseudonym_key, self._state_dir)
            self._work = ErasureRows(self.log, mine, self._project)
        return self._work
