"""The mapping of CSV columns to fields, and of their texts to values.

    --map user_id=Customer              a column, by its name in the header
    --map properties.cents:int=Amount   into `properties`, as a number
    --map timestamp:epoch_s=Created     seconds since 1970, in UTC
    --set event=purchased               the same for every row

Columns that are named like a field, or `properties.<name>`, need no mapping. An empty cell
means "not given". Types: text (the default), and for properties int, float, bool and json; for
`timestamp` epoch_s and epoch_ms; for all of `properties` json.

A message names a field or the number of a column, never a name from the file: the first row
of a file without a header holds personal data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from mm_tasks.errors import ImportRefused, InvalidEvent, Problem
from mm_tasks.events.event_fields import TRACK_FIELDS
from mm_tasks.imports.reader import CellError, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_FREE = "properties"
_PREFIX = f"{_FREE}."
_FIELD_TYPES = {_FREE: ("json",), "timestamp": ("text", "epoch_s", "epoch_ms")}
_OUT_OF_YEARS = "must be between the years 1 and 9999 in UTC"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_NUMBER = r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][+-]?\d{1,4})?"


def _bool(text: str) -> bool:
    return text.lower() in {"true", "1"}


def _epoch_ms(text: str) -> datetime:
    return _EPOCH + timedelta(milliseconds=int(text))


def _epoch_s(text: str) -> datetime:
    return _EPOCH + timedelta(milliseconds=int(Decimal(text) * 1000))


# The form of a text, the rule that demands it, and the conversion.
_CELL_TYPES: dict[str, tuple[str, str, Callable[[str], object]]] = {
    "int": (r"[+-]?\d{1,30}", "must be a whole number", int),
    "float": (_NUMBER, "must be a number", float),
    "bool": (r"(?i:true|false)|[01]", "must be true, false, 1 or 0", _bool),
    "epoch_s": (r"-?\d{1,12}(\.\d{1,9})?", "must be seconds since 1970", _epoch_s),
    "epoch_ms": (r"-?\d{1,15}", "must be milliseconds since 1970", _epoch_ms),
}


class Source(NamedTuple):
    """The source of one field or property: a column, or a constant for all rows."""

    target: str  # a field, or `properties.NAME`; no two sources may share one
    type: str  # '' for the default
    origin: str  # the column's name, or the constant's text

    @property
    def field(self) -> str:
        """Return the field that is filled; the name of a property may be personal data."""
        return _FREE if self.target.startswith(_PREFIX) else self.target

    @property
    def types(self) -> tuple[str, ...]:
        """Return the types that the target may have; the first is the default."""
        if self.target.startswith(_PREFIX):
            return ("text", "int", "float", "bool", "json")
        return _FIELD_TYPES.get(self.target, ("text",))

    def fill(self, fields: dict[str, Any], text: str) -> None:
        """Convert a text and set the target; raise `CellError` if the text breaks a rule."""
        value = _converted(text, self.type or self.types[0])
        if self.target.startswith(_PREFIX):
            fields.setdefault(_FREE, {})[self.target.removeprefix(_PREFIX)] = value
        else:
            fields[self.target] = value


@dataclass(slots=True)
class Mapping:
    """Turns the cells of a row into the fields of `track.delay`."""

    columns: list[tuple[int, Source]]  # by their index
    constants: dict[str, Any]

    def __call__(self, row: list[str]) -> dict[str, Any]:
        """Return the fields of one row; raise `InvalidEvent` with each column that is wrong."""
        fields = dict(self.constants)
        if properties := fields.pop(_FREE, None):
            fields[_FREE] = dict(properties)
        problems: list[Problem] = []
        for place, source in self.columns:
            if text := row[place]:
                try:
                    source.fill(fields, text)
                except CellError as unfit:
                    problems.append(Problem(source.field, f"{unfit} (column {place + 1})"))
        if problems:
            raise InvalidEvent(problems)
        return fields


def source(option: str, words: str) -> Source:
    """Parse `FIELD[:TYPE]=TEXT`, the words of an option; raise `ImportRefused` if malformed."""
    target, _, origin = words.partition("=")
    # The name of a property may hold colons: the last one separates the type.
    name, _, type_ = (target if ":" in target else f"{target}:").rpartition(":")
    if not name or not origin:
        msg = f"{option}: must read like FIELD=… or FIELD:TYPE=…"
        raise ImportRefused(msg)
    if not _is_target(name):
        known = ", ".join(TRACK_FIELDS)
        msg = f"{option} {name}: is not a field; fields are {known}, properties.NAME"
        raise ImportRefused(msg)
    parsed = Source(name, type_, origin)
    if type_ and type_ not in parsed.types:
        msg = f"{option} {name}: its type must be one of {', '.join(parsed.types)}"
        raise ImportRefused(msg)
    return parsed


def mapping(
    header: Sequence[str],
    maps: Sequence[Source],
    sets: Sequence[Source],
    *,
    ignore_unmapped: bool = False,
) -> Mapping:
    """Return the mapping of a file with this header.

    A mapping or constant wins over a column's own name. Raises `ImportRefused` for a column that
    is neither a field nor mapped, a name twice in the header, a missing column, a field with two
    sources, and if `event` has none.
    """
    places = _places(header)
    filled = {source.target for source in (*maps, *sets)}
    mapped = {source.origin for source in maps}
    own = [
        Source(name, "", name)
        for name in header
        if _is_target(name) and name not in mapped and name not in filled
    ]
    sources = [*maps, *sets, *own]
    _check_once(sources)
    if not ignore_unmapped:
        _check_all_used(header, mapped | {source.origin for source in own})
    if "event" not in {source.target for source in sources}:
        msg = "no column gives `event`: use --map event=COLUMN or --set event=NAME"
        raise ImportRefused(msg)
    for source in maps:
        if source.origin not in places:
            msg = f"--map {source.field}: the header has no column of the name that was given"
            raise ImportRefused(msg)
    # With the default type resolved once, not for each cell.
    typed = [source._replace(type=source.type or source.types[0]) for source in (*maps, *own)]
    columns = [(places[source.origin], source) for source in typed]
    return Mapping(columns, _constants(sets))


def _is_target(name: str) -> bool:
    return name in TRACK_FIELDS or (name.startswith(_PREFIX) and name != _PREFIX)


def _places(header: Sequence[str]) -> dict[str, int]:
    places: dict[str, int] = {}
    for place, name in enumerate(header):
        if name in places:
            msg = f"columns {places[name] + 1} and {place + 1} of the header have the same name"
            raise ImportRefused(msg)
        places[name] = place
    return places


def _check_once(sources: Iterable[Source]) -> None:
    for first, second in combinations(sources, 2):
        # All of `properties` and a part of it cannot both be given.
        is_same = first.target == second.target or _FREE in {first.target, second.target}
        if first.field == second.field and is_same:
            msg = f"{first.field}: is given twice"
            raise ImportRefused(msg)


def _check_all_used(header: Sequence[str], used: set[str]) -> None:
    unused = [str(place) for place, name in enumerate(header, 1) if name not in used]
    if unused:
        msg = (
            f"of the header, {'column' if len(unused) == 1 else 'columns'} {', '.join(unused)} "
            "would be lost: no field has that name. Use --map FIELD=COLUMN or --ignore-unmapped"
        )
        raise ImportRefused(msg)


def _constants(sets: Sequence[Source]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for source in sets:
        try:
            source.fill(fields, source.origin)
        except CellError as unfit:
            msg = f"--set {source.field}: {unfit}"
            raise ImportRefused(msg) from None
    if type(fields.get(_FREE, {})) is not dict:
        msg = f"--set {_FREE}: must be a JSON object"
        raise ImportRefused(msg)
    return fields


def _converted(text: str, type_: str) -> object:
    if type_ == "text":
        return text
    if type_ == "json":
        return decode(text)
    form, rule, convert = _CELL_TYPES[type_]
    if not re.fullmatch(form, text, re.ASCII):
        raise CellError(rule)
    try:
        return convert(text)
    except OverflowError:
        raise CellError(_OUT_OF_YEARS) from None
