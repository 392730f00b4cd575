"""The runtime of a process whose events are recorded: the attributes that `tasks` uses.

It opens no connection. Events arrive validated and encoded, as always; a record is read back
from the bytes that would be sent.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery.utils import uuid
from kombu import serialization

from mm_tasks import runtime
from mm_tasks.buffer.batches import new_id
from mm_tasks.buffer.producer import Appended
from mm_tasks.buffer.refusals import Refusals
from mm_tasks.erasure.models import Opened
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
    """Takes the place of `Runtime`."""

    has_broker = False

    def __init__(self, records: Records) -> None:
        """Take the records to add to."""
        self._records = records
        self.producers = {lane: RecordingProducer(records, _RECORDED[lane]) for lane in LANES}
        self.async_clients = NoClients()
        self.refusals = Refusals("recorded")
        self.erasure_service = RecordingErasureService(records)
        self.subjects = self.traces = RecordingSubjects(records)

    @cached_property
    def settings(self) -> Settings:
        """Return the settings of the environment."""
        return runtime.load_settings()

    @cached_property
    def event_bytes_max(self) -> int:
        """Return the limit of one event."""
        return self.settings.batch_bytes_max - BATCH_BRACKETS_BYTES

    def publish(
        self,
        task: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Any:
        """Run the task at once as a worker would later; return the result object of Celery.

        The arguments are converted to JSON and back, as in a message. A refused call raises
        here, so that the test sees it. Later tasks of a chain do not run.
        """
        written = serialization.dumps([list(args), dict(kwargs)], serializer="json")
        content_type, encoding, payload = written
        args, kwargs = serialization.loads(payload, content_type, encoding)
        task_id = options.get("task_id") or uuid()
        task.app.finalize()  # `apply` looks the task up, as a worker does
        with self._records.through_broker(options):
            task.apply(args, kwargs, task_id=task_id, throw=True)
        return task.AsyncResult(task_id)

    def __getattr__(self, name: str) -> Any:
        """Refuse any attribute that would need Redis, SQL or the vendor."""
        msg = f"events are recorded here and not stored, so there is no runtime.{name}"
        raise AttributeError(msg)


class RecordingProducer:
    """Takes the place of `Producer`."""

    def __init__(self, records: Records, lane: Lane) -> None:
        """Take the records to add to."""
        self._records = records
        self._lane: Lane = lane

    def append(self, entries: Sequence[Record]) -> Appended:
        """Record all entries, in order; those of suppressed persons as not accepted."""
        return self.schedule(entries, 0)

    def schedule(self, entries: Sequence[Record], delay_ms: int) -> Appended:
        """As `append`, for later."""
        self._records.fail(self._lane)
        positions = [n for n, entry in enumerate(entries) if not self._is_added(entry, delay_ms)]
        return Appended(frozenset(positions), nudge=False)

    async def aappend(self, pool: None, entries: Sequence[Record]) -> Appended:  # noqa: ARG002 - as `Producer`
        """As `append`."""
        return self.append(entries)

    def _is_added(self, entry: Record, delay_ms: int) -> bool:
        fields = json.loads(entry.body)
        is_accepted = not self._records.is_suppressed(entry.user_id, entry.anonymous_id)
        about = (self._lane, fields, fields.get("event_id"), delay_ms / 1000)
        self._records.add(*about, is_accepted=is_accepted)
        return is_accepted


class RecordingErasureService:
    """Takes the place of `ErasureService` for callers."""

    def __init__(self, records: Records) -> None:
        """Take the records to add to."""
        self._records = records

    def request(
        self, request: ErasureRequest, *, via: str = "call", delay_s: float = 0.0
    ) -> Opened:
        """Record a request, and suppress its person as the fence would; not if it is for later.

        A request through the broker has `via="message"`, although it ran at once.
        """
        request.check()
        self._records.fail("forget")
        erasure = self._records.erasures.setdefault(request.user_id, new_id())
        if not delay_s:
            self._records.suppress([request.user_id], request.anonymous_ids)
        values = {name: plain(getattr(request, name)) for name in request.__dataclass_fields__}
        fields = {name: value for name, value in values.items() if value not in (None, [])}
        fields["via"] = "message" if self._records.is_through_broker() else via
        self._records.add("forget", fields, erasure, delay_s)
        return Opened(erasure, is_fenced=not delay_s)


class RecordingSubjects:
    """Takes the place of `Subjects`, whose tags are here the ids, and of `TraceFinder`."""

    def __init__(self, records: Records) -> None:
        """Take the records to read."""
        self._records = records

    def tags(self, user_id: str | None, anonymous_ids: Sequence[str]) -> list[tuple[Any, Any]]:
        """Return pairs as `Records.is_suppressed` takes them."""
        users = [] if user_id is None else [(user_id, None)]
        return users + [(None, id_) for id_ in anonymous_ids]

    def are_fenced(self, tags: Sequence[tuple[Any, Any]]) -> list[bool]:
        """Return whether each id is of a suppressed person."""
        return [self._records.is_suppressed(*ids) for ids in tags]

    async def are_fenced_async(self, pool: None, tags: Sequence[tuple[Any, Any]]) -> list[bool]:  # noqa: ARG002 - as `Subjects`
        """As `are_fenced`."""
        return self.are_fenced(tags)

    def is_known(self, user_id: str, anonymous_ids: Sequence[str]) -> None:
        """Return None: a test says itself who is known."""


class NoClients:
    """Takes the place of `AsyncClients`."""

    def current(self) -> None:
        """Return None: no event loop needs a client."""

    async def close(self) -> None:
        """Do nothing: nothing was opened."""
