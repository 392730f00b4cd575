"""`forget`: requests the erasure of a person, in the caller or through the broker.

Once `delay` has returned, the request is in the database. So is one with a countdown or an eta,
which begins at its time. A message gives weaker guarantees: it may be lost with the broker or wait
in it, and nothing is fenced meanwhile.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

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
    from typing import Unpack

    from celery.canvas import Signature

    from mm_tasks.events.typed_dicts import ForgetDetails


class ForgetTask(InProcessTask):
    """`forget.delay(user_id=…, requested_by=…)`: requests the erasure of a person."""

    name = "mm_tasks.forget"
    positional = ("user_id", "requested_by")
    retried_errors = (AuditUnavailable, ConfigurationError)

    if TYPE_CHECKING:

        def delay(
            self, user_id: str, requested_by: str, **details: Unpack[ForgetDetails]
        ) -> ErasureReceipt:
            """Commit the request and its audit entry, raise the fence, and start the erasure.

            Raises `InvalidEvent`, `AuditUnavailable` or `ConfigurationError`; then nothing was
            accepted.
            """

        def s(
            self, user_id: str, requested_by: str, **details: Unpack[ForgetDetails]
        ) -> Signature[Any]:
            """Return a signature. A message gives weaker guarantees: see `docs/celery.md`."""

    def _accept_message(self, fields: dict[str, Any]) -> None:
        is_message = self.request.id and not self.request.is_eager
        self._accept(fields, via="message" if is_message else "call")

    def _accept(
        self, fields: dict[str, Any], delay_s: float = 0.0, via: str = "call"
    ) -> ErasureReceipt:
        # The clock of this host cannot judge the sender of a message.
        request = request_of(fields, datetime.now(UTC) if via == "call" else None)
        current = runtime.current()
        if request.grace_s is None:
            request = replace(request, grace_s=current.settings.erasure_grace_s)
        # Before the request, which lets a worker remove the events.
        seen = None
        if via == "call":
            seen = current.traces.is_known(request.user_id, request.anonymous_ids)
        accepted = current.erasure_service.request(request, via=via, delay_s=delay_s)
        if not delay_s:
            nudge(RUN_ERASURE, (accepted.id,), FORGET_QUEUE)
        return ErasureReceipt(accepted.id, accepted.is_fenced, seen=seen)

    def _message_fields(self, args: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - events differ
        # The month starts now, however long the message waits in the broker.
        if fields.get("received_at") is None:
            return {**fields, "received_at": now()}
        return fields

    def _check(self, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        request_of(self._by_name(args, fields), datetime.now(UTC))
