"""The entries of an erasure in words, for a person who follows it.

A sentence is made from one entry alone. The receipt, `certificate`, is for others.

Pure: no clock, no I/O.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mm_tasks.erasure.audit.protocol import ACKNOWLEDGED

if TYPE_CHECKING:
    from collections.abc import Mapping

SENTENCES: Mapping[str, str] = MappingProxyType(
    {
        "received": "{requested_by} asked for the erasure{of_ticket}. It is due {due_at}.",
        "ticket_added": "{requested_by} asked again{of_ticket}.",
        "started": "The time of the erasure came, or a request for at once.",
        "anonymous_added": "Anonymous ids were added: {anonymous}.",
        "fenced": "The fence is up: events of the person are refused.",
        "purged": "Events removed from our own copies: {removed_total}.",
        "quiesced": "No event of the person is on its way to the vendor.",
        "intent": "Call {attempt} of the vendor begins, for pass {pass}.",
        "result": "Call {attempt} ended: {answer}.",
        "settling": "The next pass is due {next_at}.",
        "retrying": "The vendor is called again{then}.",
        "waiting_key": "The vendor refused the key. It is called again{then}.",
        "attention": "The vendor's answer was unexpected. It is called again{then}.",
        "retried": "{requested_by} asked to call the vendor at once.",
        "completed": "All {acknowledged} passes are acknowledged. The erasure is completed.",
        "cancelled": "{requested_by} cancelled the erasure.",
        "rejected": "{requested_by} rejected the request: {outcome}.",
        "duplicate_of": "{requested_by} marked it as a duplicate of {original}.",
        "lifted": "{requested_by} lifted the fence: events of the person are accepted again.",
        "released": "The fence is lifted, as the request said: events are accepted again.",
        "wiped": "The plain ids are wiped from the audit database.",
        "aof_rewritten": "Rewrite of Redis's AOF: {outcome}.",
    }
)


def sentence(kind: str, details: Mapping[str, Any]) -> str:
    """Return an entry as a sentence; the kind itself if it is of a later release."""
    if kind not in SENTENCES:
        return kind
    ticket, next_at, status = (details.get(name) for name in ("ticket", "next_at", "status"))
    outcome = details.get("outcome")
    answer = f"the vendor acknowledged it ({status})" if outcome == ACKNOWLEDGED else outcome
    shown = {
        **details,
        # An earlier release lifted the fence of mode `once` by itself.
        "requested_by": details.get("requested_by") or "The mode `once`",
    }
    return SENTENCES[kind].format(
        **shown,
        of_ticket="" if ticket is None else f", ticket {ticket}",
        then="" if next_at is None else f" at {next_at}",
        removed_total=sum(details.get("removed", {}).values()),
        answer=answer if status is None or outcome == ACKNOWLEDGED else f"{outcome}, {status}",
    )
