"""The audit store of one process, wired: its log, its work rows, and what is built on them.

Apart from `runtime`, which imports this when it is first needed: SQLAlchemy takes as long to
import as all the rest, and most processes only track.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from mm_tasks import pseudonyms
from mm_tasks.audit import AuditLog
from mm_tasks.checkpoints import Checkpoint, Outside
from mm_tasks.database import Database
from mm_tasks.errors import ConfigurationError
from mm_tasks.ledger import Ledger
from mm_tasks.pseudonyms import Pseudonyms
from mm_tasks.register import Register, summed
from mm_tasks.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from mm_tasks.erasures import Deadline
    from mm_tasks.settings import Settings

CHECKPOINTS = "checkpoints"


class Archive:
    """What is kept of erasures. Opens nothing until it is asked."""

    def __init__(self, settings: Settings) -> None:
        """Raise `ConfigurationError` where the URL or the hook of the audit log is of no use."""
        self._settings = settings
        outside = Outside(settings.state_dir / CHECKPOINTS, _hook(settings.checkpoint_hook))
        self.log = AuditLog(Database(_url(settings)), outside)
        self._work: Work | None = None

    @property
    def ledger(self) -> Ledger:
        """Return the steps of erasures; raises `ConfigurationError` without a usable key."""
        return Ledger(self._opened())

    @property
    def register(self) -> Register:
        """Return what is known of erasures; raises `ConfigurationError` without a usable key."""
        return Register(self._opened())

    def look(self, now: datetime) -> tuple[dict[str, Any], list[Deadline]]:
        """Return the numbers of erasures, as `Register.summary`, and all open ones.

        Nothing is made by looking: no database, no key. Raises `AuditUnavailable` or
        `ConfigurationError`.
        """
        if self.log.database.is_missing:
            return summed([], now), []
        key_file = self._settings.state_dir / pseudonyms.FILE
        if self._settings.pseudonym_key is None and not key_file.exists():
            msg = f"{pseudonyms.SETTING}: not set, and the state directory has none"
            raise ConfigurationError(msg)
        known = self.register.deadlines(now)
        return summed(known, now), known

    def _opened(self) -> Work:
        if self._work is None:
            key = self._settings.pseudonym_key
            given = None if key is None else key.get_secret_value()
            mine = Pseudonyms.load(given, self._settings.state_dir)
            self._work = Work(self.log, mine, self._settings.project)
        return self._work


def _url(settings: Settings) -> str:
    """Return the URL of the audit database.

    Refused is none where Redis is on another host: each host would keep a truth of its own
    in its own file.
    """
    if settings.audit_url is not None:
        return settings.audit_url.get_secret_value()
    if not settings.redis_address.is_local:
        msg = (
            "MM_TASKS_AUDIT_URL: is required where Redis is on another host, the same for "
            "every process: postgresql://…"
        )
        raise ConfigurationError(msg)
    return f"sqlite:///{settings.state_dir.absolute() / 'audit.sqlite'}"


def _hook(name: str | None) -> Callable[[Checkpoint], None] | None:
    if name is None:
        return None
    hook = None
    try:
        hook = resolve_name(name) if ":" in name else None
        why = "" if callable(hook) else "it names no function"
    except Exception as error:  # noqa: BLE001 - importing a host's module raises what it likes
        why = type(error).__name__
    if why:
        rule = "must be package.module:function, and can be imported by every process"
        msg = f"MM_TASKS_CHECKPOINT_HOOK: {rule} ({why})"
        raise ConfigurationError(msg)
    return hook
