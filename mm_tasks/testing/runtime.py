"""The runtime of a process whose events are recorded: what `tasks` needs of one, and no more.

It opens nothing. Events were validated and encoded before they come here, as always; what
is recorded was read back from the bytes that would be sent.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery.utils import uuid
from kombu import serialization

from mm_tasks import runtime
from mm_tasks.buffer.batches import new_id
from mm_tasks.buffer.producer import Appended
from mm_tasks.erasure.service import Accepted
from mm_tasks.events.lanes import BACKFILL, IDENTIFY, LANES, TRACK
from mm_tasks.events.limits import BATCH_BRACKETS_BYTES
from mm_tasks.testing.matching import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mm_tasks.buffer.producer import Record
    from mm_tasks.erasure.request import ErasureRequest
    from mm_tasks.settings import Settings
    from mm_tasks.testing.records import Lane, Records

# A backfill's events are recorded as what they are.
_RECORDED: dict[str, Lane] = {TRACK: TRACK, IDENTIFY: IDENTIFY, BACKFILL: TRACK}


class RecordingRuntime:
    """Stands where `Runtime` does."""

    has_broker = False

    def __init__(self, journal: Records) -> None:
        """Take where to record."""
        self._journal = journal
        self.producers = {lane: RecordingProducer(journal, _RECORDED[lane]) for lane in LANES}
        self.async_clients = NoClients()
        self.erasure_service = RecordingErasureService(journal)

    @cached_property
    def settings(self) -> Settings:
        """Return the settings as they would be; where nothing is set, the defaults."""
        return runtime.load_settings()

    @cached_property
    def event_bytes_max(self) -> int:
        """Return what one event may have."""
        return self.settings.batch_bytes_max - BATCH_BRACKETS_BYTES

    def publish(
        self,
        task: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Any:
        """Do at once what a worker would do later; return what Celery would.

        The arguments become JSON and back, as in a message. What a worker would refuse raises
        here, so that a test sees it. Tasks that would follow in a chain do not.
        """
        written = serialization.dumps([list(args), dict(kwargs)], serializer="json")
        content_type, encoding, payload = written
        args, kwargs = serialization.loads(payload, content_type, encoding)
        task_id = options.get("task_id") or uuid()
        task.app.finalize()  # `apply` looks the task up, as a worker does
        with self._journal.through_broker(options):
            task.apply(args, kwargs, task_id=task_id, throw=True)
        return task.AsyncResult(task_id)

    def __getattr__(self, name: str) -> Any:
        """Say why there is nothing that would need Redis, SQL or the vendor."""
        msg = f"events are recorded here and not stored, so there is no runtime.{name}"
        raise AttributeError(msg)


class RecordingProducer:
    """Stands where `Producer` does."""

    def __init__(self, journal: Records, lane: Lane) -> None:
        """Take where to record."""
        self._journal = journal
        self._lane: Lane = lane

    def append(self, entries: Sequence[Record]) -> Appended:
        """Record all entries whose person is not suppressed, in order."""
        self._journal.fail(self._lane)
        positions = [n for n, entry in enumerate(entries) if not self._is_added(entry)]
        return Appended(frozenset(positions), nudge=False)

    async def aappend(self, redis: None, entries: Sequence[Record]) -> Appended:  # noqa: ARG002 - as `Producer`
        """As `append`."""
        return self.append(entries)

    def _is_added(self, entry: Record) -> bool:
        fields = json.loads(entry.body)
        is_suppressed = self._journal.is_suppressed(entry.user_id, entry.anonymous_id)
        add = self._journal.add_suppressed if is_suppressed else self._journal.add
        add(self._lane, fields, fields.get("event_id"))
        return not is_suppressed


class RecordingErasureService:
    """Stands where `ErasureService` does, for callers."""

    def __init__(self, journal: Records) -> None:
        """Take where to record."""
        self._journal = journal

    def request(self, asked: ErasureRequest, *, via: str = "call") -> Accepted:
        """Record a request, and suppress its person as the fence would.

        A message is one here too, though it was done at once.
        """
        asked.check(datetime.now(UTC))
        self._journal.fail("forget")
        erasure = self._journal.erasures.setdefault(asked.user_id, new_id())
        self._journal.suppress([asked.user_id], asked.anonymous_ids)
        given = {name: plain(getattr(asked, name)) for name in asked.__dataclass_fields__}
        fields = {name: value for name, value in given.items() if value not in (None, [])}
        fields["via"] = "message" if self._journal.is_through_broker() else via
        self._journal.add("forget", fields, erasure)
        return Accepted(erasure, is_fenced=True)


class NoClients:
    """Stands where `LoopClients` does."""

    def current(self) -> None:
        """Return nothing: no loop needs a client."""

    async def close(self) -> None:
        """Do nothing: nothing was opened."""
