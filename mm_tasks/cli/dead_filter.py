"""The options of the `dead` commands that select letters."""

from __future__ import annotations

import inspect
import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mm_tasks.buffer.dead_letters import Filter

if TYPE_CHECKING:
    from collections.abc import Callable

_AGO = re.compile(r"([0-9]{1,5})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a filter to a command, which gets the filter as `chosen`.

    `chosen` has no limit and no ids: the command adds its own.
    """
    # Typer makes options from a signature: `_filter`'s, and the command's without `chosen`.
    options = inspect.signature(_filter, eval_str=True).parameters
    signature = inspect.signature(command, eval_str=True)
    own = [option for name, option in signature.parameters.items() if name != "chosen"]

    @wraps(command)
    def with_filter(**values: Any) -> None:
        chosen = _filter(**{name: values.pop(name) for name in options})
        command(chosen=chosen, **values)

    merged = signature.replace(parameters=[*own, *options.values()])
    with_filter.__signature__ = merged  # type: ignore[attr-defined] # Typer reads it
    return with_filter


def selected(
    chosen: Filter, limit: int | None, ids: list[str] | None, *, everything: bool
) -> Filter:
    """Return the filter of a change; require ids, or filters, or --all, and only one of them."""
    if sum([bool(ids), chosen != Filter(), everything]) != 1:
        rule = "give ids, or filters such as --reason, or --all"
        raise typer.BadParameter(rule, param_hint="ID")
    if ids and limit is not None:
        rule = "can be combined with filters or --all, not with ids"
        raise typer.BadParameter(rule, param_hint="--limit")
    return replace(chosen, limit=limit, ids=tuple(ids) if ids else None)


def _time_ms(text: str) -> int:
    ago = _AGO.fullmatch(text)
    if ago:
        return round((time.time() - int(ago[1]) * _UNIT_S[ago[2]]) * 1000)
    try:
        at = datetime.fromisoformat(text)
        return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        rule = "must be ISO 8601 (UTC unless it has an offset) or an age such as 90s, 15m, 2h, 7d"
        raise typer.BadParameter(rule) from None


_TIME = {"parser": _time_ms, "metavar": "TIME"}


def _filter(  # noqa: PLR0913 - one for each option
    *,
    reason: Annotated[
        str | None, typer.Option(help="Reason, for example rejected or ambiguous.")
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="The vendor's code, for example invalid_payload.")
    ] = None,
    status: Annotated[
        int | None, typer.Option(min=0, max=599, help="HTTP status; 0: no response.")
    ] = None,
    lane: Annotated[
        Literal["track", "identify", "backfill"] | None, typer.Option(help="Lane of the event.")
    ] = None,
    event: Annotated[str | None, typer.Option(help="The event's name.")] = None,
    since: Annotated[
        int | None,
        typer.Option(
            **_TIME, help="Buried at this time or later: ISO 8601, or an age such as 7d, 2h."
        ),
    ] = None,
    until: Annotated[
        int | None,
        typer.Option(**_TIME, help="Buried before this time: ISO 8601, or an age such as 7d, 2h."),
    ] = None,
) -> Filter:
    if since is not None and until is not None and until <= since:
        rule = "must be later than --since"
        raise typer.BadParameter(rule, param_hint="--until")
    return Filter(reason, code, status, lane, event, since, until)
