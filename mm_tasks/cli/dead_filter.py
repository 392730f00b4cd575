"""The options by which the `dead` commands say which letters they mean, in one place."""

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
    """Give a command the options of a filter; it is called with the filter as `chosen`.

    `chosen` has no limit and no ids: what those mean is for the command to say.
    """
    # Typer makes options of a signature: of ours, and of the command's but `chosen`.
    options = inspect.signature(_filter, eval_str=True).parameters
    signature = inspect.signature(command, eval_str=True)
    own = [one for name, one in signature.parameters.items() if name != "chosen"]

    @wraps(command)
    def with_filter(**given: Any) -> None:
        chosen = _filter(**{name: given.pop(name) for name in options})
        command(chosen=chosen, **given)

    merged = signature.replace(parameters=[*own, *options.values()])
    with_filter.__signature__ = merged  # type: ignore[attr-defined]
    return with_filter


def meant(chosen: Filter, limit: int | None, ids: list[str] | None, *, everything: bool) -> Filter:
    """Return what a change is about; refuse to guess, and to change all unless told so."""
    if sum([bool(ids), chosen != Filter(), everything]) != 1:
        rule = "give ids, or filters such as --reason, or --all"
        raise typer.BadParameter(rule, param_hint="ID")
    if ids and limit is not None:
        rule = "goes with filters or --all, not with ids"
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
    reason: Annotated[str | None, typer.Option(help="For example rejected, ambiguous.")] = None,
    code: Annotated[
        str | None, typer.Option(help="The vendor's code, for example invalid_payload.")
    ] = None,
    status: Annotated[
        int | None, typer.Option(min=0, max=599, help="The status of HTTP; 0: no answer came.")
    ] = None,
    lane: Annotated[
        Literal["track", "identify", "backfill"] | None, typer.Option(help="What it was sent by.")
    ] = None,
    event: Annotated[str | None, typer.Option(help="The event's name.")] = None,
    since: Annotated[
        int | None, typer.Option(**_TIME, help="Buried then or later: ISO 8601, or 7d, 2h ago.")
    ] = None,
    until: Annotated[
        int | None, typer.Option(**_TIME, help="Buried before: ISO 8601, or 7d, 2h ago.")
    ] = None,
) -> Filter:
    if since is not None and until is not None and until <= since:
        rule = "must be later than --since"
        raise typer.BadParameter(rule, param_hint="--until")
    return Filter(reason, code, status, lane, event, since, until)
