"""The audit store of one process: its log, and the steps, commands and queries on it.

`runtime` imports this module at its first use: importing SQLAlchemy takes as long as all
the rest, and most processes only track.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mm_tasks.erasure.adoption import Adoption
from mm_tasks.erasure.audit import pseudonyms, timestamping
from mm_tasks.erasure.audit.checkpoints import CheckpointSinks
from mm_tasks.erasure.audit.continuity import Continuity
from mm_tasks.erasure.audit.database import Database
from mm_tasks.erasure.audit.log import AuditLog
from mm_tasks.erasure.audit.pseudonyms import Pseudonyms
from mm_tasks.erasure.audit.session import AuditSession
from mm_tasks.erasure.certificate.issuing import CertificateIssuer
from mm_tasks.erasure.commands import ErasureCommands
from mm_tasks.erasure.daily_verification import DailyVerification
from mm_tasks.erasure.queries import ErasureQueries, summarize
from mm_tasks.erasure.steps import ErasureSteps
from mm_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mm_tasks.buffer.audit_state import AuditState
    from mm_tasks.buffer.fence import Fence
    from mm_tasks.erasure.audit.checkpoint_hook import CheckpointHook
    from mm_tasks.erasure.models import ErasureDeadline

CHECKPOINTS = "checkpoints"


@dataclass
class AuditStore:
    """The audit store of one project. Opens nothing until it is used.

    `url` is the database's; `state_dir` has the checkpoints and the key. Without
    `pseudonym_key` the first use creates a key there. The hooks get each checkpoint.
    `controller` is named on receipts.
    """

    url: str = field(repr=False)
    project: str
    state_dir: Path
    pseudonym_key: str | None = field(default=None, repr=False)
    hooks: tuple[CheckpointHook, ...] = ()
    controller: str | None = None

    @cached_property
    def log(self) -> AuditLog:
        """Return the log; raises `ConfigurationError` for a URL of another database."""
        outside = CheckpointSinks(self.state_dir / CHECKPOINTS, self.hooks)
        return AuditLog(Database(self.url), outside, self._find_key)

    @property
    def steps(self) -> ErasureSteps:
        """Return the steps of erasures; raises `ConfigurationError` without a usable key."""
        return ErasureSteps(self._session)

    @property
    def commands(self) -> ErasureCommands:
        """Return the commands on erasures; raises as `steps`."""
        return ErasureCommands(self._session)

    @property
    def queries(self) -> ErasureQueries:
        """Return the queries of erasures; raises as `steps`."""
        return ErasureQueries(self._session)

    @property
    def certificates(self) -> CertificateIssuer:
        """Return the issuer of receipts; raises as `steps`."""
        return CertificateIssuer(self._session, self.controller)

    @cached_property
    def continuity(self) -> Continuity:
        """Return the comparison of the log with its witnesses; raises as `steps`."""
        return Continuity(self._session)

    def daily_verification(
        self, state: AuditState, check_store: Callable[[], None], check_log: Callable[[], None]
    ) -> DailyVerification:
        """Return the daily verification, which keeps its findings in `state`; raises as `steps`."""
        return DailyVerification(self._session, self.queries, state, check_store, check_log)

    def adoption(self, fence: Fence, state: AuditState) -> Adoption:
        """Return the adoption of a log that lost entries; raises as `steps`."""
        return Adoption(self._session, fence, state)

    def record(self, kind: str, details: Mapping[str, object]) -> None:
        """Append an entry about the store itself, one of `protocol.STORE_ENTRIES`."""
        timestamping.record(self._session, kind, details)

    def check(self) -> None:
        """Raise `ConfigurationError` unless tables and key fit; an owner upgrades older tables.

        Without a key nothing is compared, and none is created.
        """
        if self._find_key() is not None:
            _ = self._session.store_id

    def open_erasures(self) -> tuple[dict[str, Any], list[ErasureDeadline]]:
        """Return the numbers of erasures, as `ErasureQueries.summary`, and all open ones.

        Creates neither the database nor the key. Raises `AuditUnavailable` or
        `ConfigurationError`.
        """
        if self.log.database.is_missing:
            return summarize([]), []
        if self._find_key() is None:
            msg = f"{pseudonyms.SETTING}: not set, and the state directory has none"
            raise ConfigurationError(msg)
        deadlines = self.queries.deadlines()
        return summarize(deadlines), deadlines

    def _find_key(self) -> Pseudonyms | None:
        return Pseudonyms.find(self.pseudonym_key, self.state_dir)

    @cached_property
    def _session(self) -> AuditSession:
        key = Pseudonyms.load(self.pseudonym_key, self.state_dir)
        return AuditSession(self.log, key, self.project)
