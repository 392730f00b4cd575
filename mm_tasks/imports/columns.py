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
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from mm_tasks.errors import ImportRefused, InvalidEvent, Problem
from mm_tasks.events.models import TRACK_FIELDS
from mm_tasks.imports.reader import CellError, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FIELDS = tuple(TRACK_FIELDS)
_FREE = "properties"
_PREFIX = f"{_FREE}."
_INTEGER = re.compile(r"[+-]?\d{1,30}", re.ASCII)
_NUMBER = re.compile(
    r"[+-]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})(?:[eE][+-]?\d{1,4})?", re.ASCII
)
_SECONDS = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?", re.ASCII)
_MILLISECONDS = re.compile(r"-?\d{1,15}", re.ASCII)
_BOOLS = {"true": True, "false": False, "1": True, "0": False}
_BOOL = re.compile("|".join(_BOOLS))
_OUT_OF_YEARS = "must be between the years 1 and 9999 in UTC"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Source(NamedTuple):
    """The source of one field or property: a column, or a constant for all rows."""

    field: str
    key: str  # of `properties`; '' for a field itself
    type: str
    origin: str  # the column's name, or the constant's text

    @property
    def target(self) -> tuple[str, str]:
        """Return the field and property to fill; no two sources may share one."""
        return self.field, self.key


class Cell(NamedTuple):
    """One column to read: its index, the field and property to fill, and a parser."""

    place: int
    field: str
    key: str
    read: Callable[[str], object] | None


class Mapping:
    """Turns the cells of a row into the fields of `track.delay`."""

    def __init__(self, cells: Sequence[Cell], constants: dict[str, Any]) -> None:
        """Take the columns and constants; see `mapping`."""
        self._cells = cells
        self._properties = constants.pop(_FREE, {})
        self._constants = constants

    def __call__(self, row: list[str]) -> dict[str, Any]:
        """Return the fields of one row; raise `InvalidEvent` with each column that is wrong."""
        fields = dict(self._constants)
        properties = dict(self._properties)
        problems: list[Problem] = []
        for place, field, key, read in self._cells:
            text = row[place]
            if not text:
                continue
            value: Any = text
            if read is not None:
                try:
                    value = read(text)
                except CellError as unfit:
                    problems.append(Problem(field, f"{unfit} (column {place + 1})"))
            if key:
                properties[key] = value
            else:
                fields[field] = value
        if problems:
            raise InvalidEvent(problems)
        if properties:
            fields[_FREE] = properties
        return fields


def source(option: str, words: str) -> Source:
    """Parse `FIELD[:TYPE]=TEXT`, the words of an option; raise `ImportRefused` if malformed."""
    target, _, origin = words.partition("=")
    name, colon, type_ = target.rpartition(":")
    if not colon:
        name, type_ = target, ""
    if not name or not origin:
        msg = f"{option}: must read like FIELD=… or FIELD:TYPE=…"
        raise ImportRefused(msg)
    parsed = _source(name, type_, origin)
    if parsed is None:
        msg = f"{option} {name}: is not a field; fields are {', '.join(FIELDS)}, properties.NAME"
        raise ImportRefused(msg)
    if parsed.type not in _types(parsed):
        msg = f"{option} {name}: its type must be one of {', '.join(_types(parsed))}"
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
    explicit = [*maps, *sets]
    _check_once(explicit)
    filled = {source.target for source in explicit}
    mapped = {source.origin for source in maps}
    own = [
        source
        for name in header
        if name not in mapped and (source := _source(name)) and source.target not in filled
    ]
    if not ignore_unmapped:
        _check_all_used(header, mapped | {source.origin for source in own})
    _check_once([*explicit, *own])
    if ("event", "") not in {source.target for source in (*explicit, *own)}:
        msg = "no column gives `event`: use --map event=COLUMN or --set event=NAME"
        raise ImportRefused(msg)
    cells = [
        Cell(_place(places, source), source.field, source.key, _READ[source.type])
        for source in (*maps, *own)
    ]
    return Mapping(cells, _constants(sets))


def _source(name: str, type_: str = "", origin: str = "") -> Source | None:
    if name.startswith(_PREFIX) and name != _PREFIX:
        return Source(_FREE, name.removeprefix(_PREFIX), type_ or "text", origin or name)
    if name in FIELDS:
        usual = "json" if name == _FREE else "text"
        return Source(name, "", type_ or usual, origin or name)
    return None


def _types(source: Source) -> tuple[str, ...]:
    if source.key:
        return ("text", "int", "float", "bool", "json")
    if source.field == _FREE:
        return ("json",)
    return ("text", "epoch_s", "epoch_ms") if source.field == "timestamp" else ("text",)


def _places(header: Sequence[str]) -> dict[str, int]:
    places: dict[str, int] = {}
    for place, name in enumerate(header):
        if name in places:
            msg = f"columns {places[name] + 1} and {place + 1} of the header have the same name"
            raise ImportRefused(msg)
        places[name] = place
    return places


def _place(places: dict[str, int], source: Source) -> int:
    if source.origin not in places:
        msg = f"--map {source.field}: the header has no column of the name that was given"
        raise ImportRefused(msg)
    return places[source.origin]


def _check_once(sources: Iterable[Source]) -> None:
    for first, second in combinations(sources, 2):
        # All of `properties`, whose key is '', and a part of it cannot both be given.
        is_same = first.key == second.key or not (first.key and second.key)
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
        read = _READ[source.type]
        try:
            value = source.origin if read is None else read(source.origin)
        except CellError as unfit:
            msg = f"--set {source.field}: {unfit}"
            raise ImportRefused(msg) from None
        if source.key:
            fields.setdefault(_FREE, {})[source.key] = value
        else:
            fields[source.field] = value
    if type(fields.get(_FREE, {})) is not dict:
        msg = f"--set {_FREE}: must be a JSON object"
        raise ImportRefused(msg)
    return fields


def _match(pattern: re.Pattern[str], text: str, rule: str) -> re.Match[str]:
    """Return the match of the whole text; raise `CellError` with the rule if there is nsource."""
    match = pattern.fullmatch(text)
    if match is None:
        raise CellError(rule)
    return match


def _integer(text: str) -> int:
    return int(_match(_INTEGER, text, "must be a whole number")[0])


def _float(text: str) -> float:
    return float(_match(_NUMBER, text, "must be a number")[0])


def _bool(text: str) -> bool:
    return _BOOLS[_match(_BOOL, text.lower(), "must be true, false, 1 or 0")[0]]


def _epoch_s(text: str) -> datetime:
    sign, seconds, fraction = _match(_SECONDS, text, "must be seconds since 1970").groups()
    ms = int(seconds) * 1000 + int((fraction or "").ljust(3, "0")[:3])
    return _instant(-ms if sign else ms)


def _epoch_ms(text: str) -> datetime:
    return _instant(int(_match(_MILLISECONDS, text, "must be milliseconds since 1970")[0]))


def _instant(ms: int) -> datetime:
    try:
        return _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        raise CellError(_OUT_OF_YEARS) from None


_READ: dict[str, Callable[[str], object] | None] = {
    "text": None,
    "int": _integer,
    "float": _float,
    "bool": _bool,
    "json": decode,
    "epoch_s": _epoch_s,
    "epoch_ms": _epoch_ms,
}
