"""`forget`, by its class: accepted in the caller, or by a worker, which is the weaker way.

A message may be lost with the broker or lie in it, and nothing is fenced meanwhile. What
`delay` returned is in the database.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Unpack, overload

from mm_tasks import runtime
from mm_tasks.erasure.request import request_of
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from mm_tasks.events.lanes import FORGET_QUEUE
from mm_tasks.tasks.celery_app import RUN_ERASURE
from mm_tasks.tasks.direct import InProcessTask
from mm_tasks.tasks.publisher import nudge
from mm_tasks.tasks.receipts import ErasureReceipt
from mm_tasks.timestamps import now

if TYPE_CHECKING:
    from celery.canvas import Signature

    from mm_tasks.events.fields import ForgetDetails, ForgetFields


class ForgetTask(InProcessTask):
    """`forget.delay(user_id=…, requested_by=…)`: asks for the erasure of a person."""

    name = "mm_tasks.forget"
    positional = ("user_id", "requested_by")

    @overload
    def delay(self, /, **fields: Unpack[ForgetFields]) -> ErasureReceipt: ...
    @overload
    def delay(
        self, user_id: str, requested_by: str, /, **fields: Unpack[ForgetDetails]
    ) -> ErasureReceipt: ...
    @overload
    def delay(
        self, user_id: str, /, *, requested_by: str, **fields: Unpack[ForgetDetails]
    ) -> ErasureReceipt: ...
    def delay(self, /, *args: Any, **fields: Any) -> ErasureReceipt:
        """Commit the request and its audit entry, raise the fence, and start the erasure.

        Raises `InvalidEvent`, `AuditUnavailable` or `ConfigurationError`; then nothing was
        accepted.
        """
        return self._asked(self._named(args, fields))

    def run(self, *args: Any, **fields: Any) -> None:
        """Accept a request that came in a message; tried again until the database takes it."""
        named = self._arrived(args, fields) if self.request.id else self._named(args, fields)
        via = "message" if self.request.id and not self.request.is_eager else "call"
        try:
            self._asked(named, via)
        except (AuditUnavailable, ConfigurationError) as error:
            self._again(error)

    def _asked(self, fields: dict[str, Any], via: str = "call") -> ErasureReceipt:
        accepted = runtime.current().erasure_service.request(request_of(fields), via=via)
        nudge(RUN_ERASURE, (accepted.id,), FORGET_QUEUE, expires_s=60)
        return ErasureReceipt(accepted.id, accepted.is_fenced)

    def _to_send(self, args: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - events differ
        # The month runs from here, however long the message will lie in the broker.
        if fields.get("received_at") is None:
            return {**fields, "received_at": now()}
        return fields

    def _check(self, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        request_of(self._named(args, fields)).check(datetime.now(UTC))

    @overload
    def s(self, /, **fields: Unpack[ForgetFields]) -> Signature[Any]: ...
    @overload
    def s(
        self, user_id: str, requested_by: str, /, **fields: Unpack[ForgetDetails]
    ) -> Signature[Any]: ...
    def s(self, /, *args: Any, **fields: Any) -> Signature[Any]:
        """Return a signature. Through the broker this is the weaker way: see `docs/celery.md`."""
        return super().s(*args, **fields)
