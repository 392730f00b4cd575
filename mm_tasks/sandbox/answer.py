"""The answer to a call, and the exception that carries a refusal.

The code in `error` is the vendor's contract. A comment marks each code that the
vendor's page does not name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NoReturn

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a JSON body."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def is_success(self) -> bool:
        """Return whether the call took effect."""
        return self.status < 300  # noqa: PLR2004 - HTTP

    def text(self) -> bytes:
        """Return the body as it is sent."""
        return json.dumps(self.body).encode()

    def response(self) -> web.Response:
        """Return the answer for aiohttp to send."""
        kind = {"Content-Type": "application/json"}
        return web.Response(status=self.status, body=self.text(), headers={**kind, **self.headers})


class Refused(Exception):
    """The call has no effect; `answer` has the reason."""

    def __init__(
        self,
        status: int,
        code: str,
        headers: dict[str, str] | None = None,
        **more: object,
    ) -> None:
        """Take the code of the error, and further fields of the body."""
        super().__init__(code)
        self.answer = Answer(status, {"error": code, **more}, headers or {})


def reject(*fields: str, why: str = "Invalid") -> NoReturn:
    """Refuse as failed validation, in the form of the vendor's schema library."""
    if not fields:
        raise Refused(400, "invalid_payload") from None
    errors = {name: [why] for name in fields}
    raise Refused(400, "invalid_payload", details={"fieldErrors": errors}) from None
