"""The outcome of one attempt, as a value; `delivery/retry` decides on the next step.

Each class is a row of the table *Outcomes* in `docs/architecture.md`. The bytes on the wire
decide, and doubt is always `Ambiguous`, because the vendor does not deduplicate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args


@dataclass(frozen=True, slots=True)
class Response:
    """HTTP status and the error code of a response; the code is "-" if it has none."""

    status: int
    code: str = "-"


@dataclass(frozen=True, slots=True)
class Delivered:
    """202 or 200 with a complete JSON body that says `ok: true`."""

    count: int | None = None


@dataclass(frozen=True, slots=True)
class Throttled:
    """429. `retry_after_s` is the requested wait, at most 15 min; None if it is unusable."""

    answer: Response
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Refusal:
    """The vendor or a proxy refused the request; nothing was stored."""

    answer: Response


class Rejected(_Refusal):
    """400, 413 or 422: an event of this request is refused."""


class Unauthorized(_Refusal):
    """401 or 403 with a code of the vendor: the key is refused."""


class Misdirected(_Refusal):
    """3xx, or another 4xx with a code of the vendor: the host is wrong, not the data."""


class Filtered(_Refusal):
    """4xx without a code of the vendor: a page of a proxy or filter."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No byte of the request left, so it was provably not sent.

    `kind` is `dns`, `connect`, `refused`, `timeout`, `tls`, `proxy`, or `late`: not even tried.
    """

    kind: str


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """The request may have been stored.

    `kind` is a short word for counting, never text of the response: `timeout`, `cut`, `unusable`,
    `unreadable` (of a forget), `error` (an exception of ours or of Celery), `lease` or the status.
    """

    kind: str
    status: int | None = None
    code: str = "-"


Outcome = (
    Delivered
    | Throttled
    | Rejected
    | Unauthorized
    | Misdirected
    | Filtered
    | Unavailable
    | Ambiguous
)
# The names by which outcomes are counted and logged.
NAMES = {kind: kind.__name__.lower() for kind in get_args(Outcome)}
