"""A person at the command line: their ids, and what is here of them.

Ids are read from hidden prompts or from the lines of stdin, never from the command line, which
other users of the host can see and shells remember. No line of output contains one.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.cli.output import fail
from mm_tasks.erasure.slips import slip
from mm_tasks.errors import InvalidEvent, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mm_tasks.erasure.traces import Traces

UNSEEN = (
    "no event of this id is here, and no earlier erasure: check the id. Events that were "
    "delivered leave no trace here, so it may be right"
)
# Steps of 2 000 records, before a person is asked to confirm: about a second.
_STEPS_MAX = 500
_EXACT = "or give --exact if the id is really so"
Exact = Annotated[
    bool,
    typer.Option("--exact", help="Take ids as they are, with blanks and invisible characters."),
]
WithAnonymous = Annotated[
    bool, typer.Option("--anonymous-ids", help="Read anonymous ids after the user id.")
]
Shown = Annotated[
    bool, typer.Option("--show", help="Show ids while they are typed, and ask for each once.")
]


class PersonIds(NamedTuple):
    """The ids of a person. `is_typed`: a person at a terminal typed them."""

    user_id: str
    anonymous_ids: list[str]
    is_typed: bool

    def __repr__(self) -> str:
        """Return no id."""
        return "<PersonIds>"


def read(*, anonymous: bool, exact: bool, shown: bool = False) -> PersonIds:
    """Return the ids of a person; raise `InvalidEvent` for one that looks like a slip."""
    is_typed = sys.stdin is not None and sys.stdin.isatty()
    user_id, others = _typed(anonymous, shown) if is_typed else _lines(anonymous, exact)
    if not user_id:
        raise InvalidEvent([Problem("user_id", "must be text that is not empty")])
    if not exact:
        problems = [*_problems("user_id", [user_id]), *_problems("anonymous_ids", others)]
        if problems:
            raise InvalidEvent(problems)
    return PersonIds(user_id, others, is_typed)


def confirm(ids: PersonIds) -> None:
    """Say what is here of the person, and end the command unless the answer is yes."""
    try:
        finder = runtime.current().patient_traces
        traces = finder.scan(ids.user_id, ids.anonymous_ids, _STEPS_MAX)
        lines = found(traces, len(ids.anonymous_ids))
    except RedisError as error:
        lines = [f"what waits here of this person is unknown: {type(error).__name__} of Redis"]
    for line in lines:
        typer.echo(line, err=True)
    if not typer.confirm("erase this person, here and at the vendor?", err=True):
        fail("nothing was done")


def found(traces: Traces, anonymous: int) -> list[str]:
    """Return lines about a person, without ids."""
    counts = Counter(event.place for event in traces.events)
    by_place = ", ".join(f"{n} {place}" for place, n in sorted(counts.items()))
    least = "" if traces.is_complete else "at least "
    lines = [f"events here: {least}{counts.total()}{f' ({by_place})' if by_place else ''}"]
    if traces.fenced is None:
        lines.append("fence: unknown, the fences are not loaded")
    else:
        user, *others = traces.fenced
        of_others = f", {sum(others)} of {anonymous} anonymous ids" if anonymous else ""
        lines.append(f"fence: {'up' if user else 'not up'} for the user id{of_others}")
    states = ", ".join(f"{row['id']} {row['state']}" for row in traces.erasures)
    lines.append(f"erasures: {states or 'none'}")
    if traces.is_complete and not traces.events and not traces.erasures:
        lines.append(UNSEEN)
    return lines


def _problems(field: str, ids: Iterable[str]) -> Iterator[Problem]:
    for n, id_ in enumerate(ids, 1):
        if found := slip(id_):
            which = "" if field == "user_id" else f" (id {n})"
            yield Problem(f"{field}{which}", f"has {found}: remove it, {_EXACT}")


def _typed(anonymous: bool, shown: bool) -> tuple[str, list[str]]:  # noqa: FBT001 - two of its caller's options
    user_id = _asked("user id", shown=shown)
    others = iter(lambda: _asked("anonymous id (none: done)", shown=shown), "")
    return user_id, list(others) if anonymous else []


def _asked(name: str, *, shown: bool) -> str:
    """Ask for an id, twice if it is not shown, until both entries are the same."""
    while True:
        id_ = _prompted(f"{name} ({'shown' if shown else 'not shown'})", shown=shown)
        if shown or not id_ or _prompted("again", shown=False) == id_:
            return id_
        typer.echo("the two entries differ", err=True)


def _prompted(question: str, *, shown: bool) -> str:
    # On stderr: stdout may be for programs.
    hidden = not shown
    return str(typer.prompt(question, default="", show_default=False, hide_input=hidden, err=True))


def _lines(anonymous: bool, exact: bool) -> tuple[str, list[str]]:  # noqa: FBT001 - two of its caller's options
    text = b"" if sys.stdin is None else sys.stdin.buffer.read()
    try:
        first, *rest = text.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        rest = None
    if rest is None:
        raise InvalidEvent([Problem("user_id", "must be read from text in UTF-8")])
    if not exact and any(line.endswith("\r") for line in (first, *rest)):
        rule = "must be read from lines that end in a newline without a carriage return"
        raise InvalidEvent([Problem("user_id", f"{rule}, {_EXACT}")])
    if any(rest) and not anonymous:
        rule = "must be the only line, unless --anonymous-ids declares the others"
        raise InvalidEvent([Problem("user_id", rule)])
    return first, rest if anonymous else []
