"""Faults of the answers, and the requests that they apply to.

A fault applies to its route and one of: the next `times` requests (default 1),
every `every`-th, all that begin `between` two instants, or all that contain the
`poison` event. The first fault of the list that applies is used. The models are
the format: an unknown kind or key is refused, because a test whose fault never
applies must not pass. `wire` has their bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from mm_tasks.sandbox import payload

Seconds: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Route: TypeAlias = Literal[
    "/v1/track", "/v1/batch", "/v1/identify", "/v1/forget", "/v1/query", "/v1/stats"
]


def _one_line(value: str) -> str:
    if "\r" in value or "\n" in value:
        msg = "must be one line"
        raise ValueError(msg)
    return value


Line: TypeAlias = Annotated[str, AfterValidator(_one_line)]


class Rule(BaseModel):
    """When a fault applies. It ignores the first `after` requests.

    `poison` needs the name of an `event`. `poison`, `every` and `between` apply without
    end unless `times` bounds them. `latency_s` delays every answer.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    route: Route = "/v1/batch"
    times: int | None = Field(default=None, ge=1)
    after: int = Field(default=0, ge=0)
    every: int | None = Field(default=None, ge=1)
    between: tuple[float, float] | None = None
    poison: bool = False
    event: str | None = None
    latency_s: Seconds = 0
    _seen: int = PrivateAttr(default=0)
    _hits: int = PrivateAttr(default=0)

    @model_validator(mode="after")
    def _can_apply(self) -> Self:
        msg = None
        if self.poison != (self.event is not None):
            msg = "poison and event need one another"
        elif self.poison and self.route not in {"/v1/batch", "/v1/track"}:
            msg = "poison: only bodies of /v1/batch and /v1/track hold events"
        elif self.between is not None and self.between[0] >= self.between[1]:
            msg = "between: must end after it begins"
        if msg:
            raise ValueError(msg)
        if self.times is None and not (self.every or self.between or self.poison):
            self.times = 1
        return self

    @property
    def hits(self) -> int:
        """Return the number of requests that it was used for."""
        return self._hits

    def take(self, route: str, at: float, body: bytes | None) -> bool:
        """Return whether it applies to this request, and count the request."""
        if route != self.route or (self.times is not None and self._hits >= self.times):
            return False
        if self.between is not None and not self.between[0] <= at < self.between[1]:
            return False
        if self.poison and not self._is_poisoned(body or b""):
            return False
        self._seen += 1
        turn = self._seen - self.after
        if turn < 1 or (self.every is not None and turn % self.every):
            return False
        self._hits += 1
        return True

    def _is_poisoned(self, body: bytes) -> bool:
        return any(event.get("event") == self.event for event in payload.events(self.route, body))


class Status(Rule):
    """Any answer: its status, body and headers. With `store` the rows are stored anyway."""

    kind: Literal["status"]
    status: int = Field(ge=200, le=599)
    body: str = '{"error":"internal_error"}'
    headers: dict[str, Line] = Field(default_factory=dict)
    store: bool = False


class CloseBeforeRead(Rule):
    """The connection ends before the body is read; after it if there is a poison fault."""

    kind: Literal["close_before_read"]

    @model_validator(mode="after")
    def _reads_nothing(self) -> Self:
        if self.poison:
            msg = "close_before_read cannot know of a poison event"
            raise ValueError(msg)
        return self


class CloseAfterStore(Rule):
    """The rows are stored and the connection ends without an answer."""

    kind: Literal["close_after_store"]
    store: Literal[True] = True


class CutHeaders(Rule):
    """The answer ends within its headers."""

    kind: Literal["cut_headers"]
    store: bool = False


class CutBody(Rule):
    """The answer ends within its body."""

    kind: Literal["cut_body"]
    store: bool = False


class Hang(Rule):
    """The connection ends after `for_s` seconds without an answer."""

    kind: Literal["hang"]
    for_s: Seconds = 60
    store: bool = False


class Giant(Rule):
    """202 with four million bytes that are not JSON."""

    kind: Literal["giant"]
    store: bool = False


class Drip(Rule):
    """The correct answer, a byte at a time."""

    kind: Literal["drip"]
    every_s: Seconds = 0.2
    store: bool = True


class Slow(Rule):
    """The correct answer, late."""

    kind: Literal["slow"]
    latency_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    store: bool = True


class LateApply(Rule):
    """A gateway times out, or closes if `status` is null; the rows are stored later."""

    kind: Literal["late_apply"]
    after_s: Seconds
    status: int | None = Field(default=504, ge=200, le=599)


Fault: TypeAlias = (
    Status
    | CloseBeforeRead
    | CloseAfterStore
    | CutHeaders
    | CutBody
    | Hang
    | Giant
    | Drip
    | Slow
    | LateApply
)
_LIST: TypeAdapter[list[Fault]] = TypeAdapter(list[Annotated[Fault, Field(discriminator="kind")]])


def parse(body: bytes) -> list[Fault]:
    """Return the faults of a JSON list; raise ValueError that names the rule and its place."""
    try:
        return _LIST.validate_json(body)
    except ValidationError as error:
        found = (
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)
        )
        raise ValueError("; ".join(found)) from None


def shown(fault: Fault) -> dict[str, Any]:
    """Return a fault as it was posted, with `hits`."""
    return {**fault.model_dump(exclude_unset=True), "hits": fault.hits}


def needs_body(faults: list[Fault], route: str) -> bool:
    """Return whether a fault of this route depends on the body."""
    return any(fault.poison and fault.route == route for fault in faults)


def choose(faults: list[Fault], route: str, at: float, body: bytes | None) -> Fault | None:
    """Return the first fault that applies to a request, or None; counts the hit."""
    return next((fault for fault in faults if fault.take(route, at, body)), None)
