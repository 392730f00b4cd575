"""Dead letters: records set aside for a person to inspect, revive or discard.

Every letter is in one place, and each change is one script that moves the counts with it.
A revived record is checked like a new one: the record of a fenced subject is erased instead.
It is sent byte for byte as before, so its `event_id` is the same.

Not here: burial (`batches`), its reasons (`delivery.retry`), output (`cli.dead_letters`).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple

from mm_tasks.buffer import clock
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import HEADER_BYTES, STAMP_BYTES
from mm_tasks.buffer.scripts import Script, pages
from mm_tasks.events.lanes import LANES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from redis import Redis

log = getLogger(__name__)

# Letters read or moved in one step: no step blocks Redis for more than a few ms.
_PAGE = 200
# One trim removes at most this many pages: more than the vendor's rate can bury in a second.
_TRIM_PAGES = 20

_REVIVE, _DISCARD = Script("dead_revive"), Script("dead_discard")
_TRIM, _RECOUNT = Script("dead_trim"), Script("dead_recount")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record and the reason of its burial. `body` is the event's JSON, as it was sent.

    `kind` is the kind of doubt if `reason` is `ambiguous`, otherwise ''. Its instants are of
    Redis's clock, whatever steps that has made.
    """

    id: str
    lane: str
    buried_at_ms: int
    accepted_at_ms: int
    reason: str
    status: int
    code: str
    attempts: int
    kind: str
    # Personal data; a repr may be logged.
    body: bytes = field(repr=False)

    @property
    def fields(self) -> dict[str, Any] | None:
        """Return the event's fields; None when the body is not a JSON object."""
        try:
            parsed = json.loads(self.body)
        except ValueError:
            return None
        return parsed if isinstance(parsed, dict) else None

    @property
    def event(self) -> str | None:
        """Return the event's name; None for an identify, or if it is not a string."""
        name = (self.fields or {}).get("event")
        return name if isinstance(name, str) else None


@dataclass(frozen=True, slots=True)
class Filter:
    """Selects the letters that meet every condition that is not None.

    They were buried at `since_ms` or later and before `until_ms`. `limit` bounds their number.
    """

    reason: str | None = None
    code: str | None = None
    status: int | None = None
    lane: str | None = None
    event: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    ids: tuple[str, ...] | None = None
    limit: int | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether a letter meets the conditions; `letters` applies `ids` and `limit`."""
        names = ("reason", "code", "status", "lane")
        return (
            all(getattr(self, name) in {None, getattr(letter, name)} for name in names)
            and (self.since_ms is None or letter.buried_at_ms >= self.since_ms)
            and (self.until_ms is None or letter.buried_at_ms < self.until_ms)
            # Last, because it parses the JSON.
            and (self.event is None or letter.event == self.event)
        )


class Group(NamedTuple):
    """Letters of one lane with the same reason."""

    lane: str
    reason: str
    status: int
    code: str


class Revived(NamedTuple):
    """Numbers of ids: waiting again, erased because their subject is fenced, not found."""

    revived: int
    erased: int
    unknown: int


class DeadLetters:
    """The dead letters of one project, all lanes. Holds a client, no state of its own."""

    def __init__(self, redis: Redis, project: str) -> None:
        """Take everything as arguments; read and open nothing."""
        # redis-py types every reply as possibly awaitable.
        self._redis: Any = redis
        self._keys = ProjectKeys(project)

    def letters(
        self, chosen: Filter = Filter(), *, newest_first: bool = False
    ) -> Iterator[DeadLetter]:
        """Yield the letters that match, by burial; the ids of a filter keep their own order.

        Reads in pages. A letter that stays throughout is yielded exactly once, even if other
        letters are buried, revived or discarded meanwhile.
        """
        ahead_ms = clock.read(self._redis, self._keys.name).ahead_us // 1000
        if chosen.ids is None:
            burials = self._burials(chosen, ahead_ms, newest_first=newest_first)
        else:
            burials = self._burials_of(chosen.ids)
        letters = (letter for page in burials for letter in self._read(page, ahead_ms))
        return islice(filter(chosen.matches, letters), chosen.limit)

    def counts(self, chosen: Filter = Filter()) -> Counter[Group]:
        """Return the number of matching letters of each group."""
        return Counter(
            Group(letter.lane, letter.reason, letter.status, letter.code)
            for letter in self.letters(chosen)
        )

    def revive(self, ids: Iterable[str]) -> Revived:
        """Append letters to the waiting records of their lanes, in this order.

        Safe to repeat: an id that was revived is unknown from then on.
        """
        keys, ids = self._keys, dict.fromkeys(ids)
        revived = erased = 0
        for lane, page in _by_lane(ids):
            waiting = keys.lane(lane).waiting
            places = (keys.dead, keys.dead_at, waiting, keys.counts, keys.fence, keys.caught)
            again, gone = _REVIVE(self._redis, places, (lane, *page))
            revived += again
            erased += gone
        return Revived(revived, erased, len(ids) - revived - erased)

    def discard(self, ids: Iterable[str]) -> int:
        """Remove letters for good and count them as discarded; return how many."""
        places = (self._keys.dead, self._keys.dead_at, self._keys.counts)
        return sum(
            int(_DISCARD(self._redis, places, (lane, *page)))
            for lane, page in _by_lane(dict.fromkeys(ids))
        )

    def trim(self, events_max: int, age_max_ms: int) -> int:
        """Discard the oldest letters above a number and an age; return how many.

        Removes a bounded part of a large excess; the next call continues. Also counts a part of
        the letters by reason again if these counts are wrong: see `dead_recount.lua`.
        """
        places = (self._keys.dead, self._keys.dead_at, self._keys.counts)
        removed = 0
        for _ in range(_TRIM_PAGES):
            n = int(_TRIM(self._redis, places, (events_max, age_max_ms, _PAGE)))
            removed += n
            if n < _PAGE:
                break
        _RECOUNT(self._redis, places, (_PAGE,))
        if removed:
            log.warning("dead_letters_trimmed", extra={"events": removed})
        return removed

    def _burials(
        self, chosen: Filter, ahead_ms: int, *, newest_first: bool
    ) -> Iterator[Mapping[str, int]]:
        """Yield pages of ids and their times of burial, by time: ranks shift meanwhile.

        Many letters may be buried in one millisecond. So each page starts at the last time of
        the page before and skips the ids that it shares with it.
        """
        first = "-inf" if chosen.since_ms is None else str(chosen.since_ms + ahead_ms)
        last = "+inf" if chosen.until_ms is None else f"({chosen.until_ms + ahead_ms}"
        start, end = (last, first) if newest_first else (first, last)
        how = {"desc": newest_first, "withscores": True, "byscore": True}
        seen: set[str] = set()
        while True:
            num = _PAGE + len(seen)
            rows = self._redis.zrange(self._keys.dead_at, start, end, **how, offset=0, num=num)
            page = {str(id_, "utf-8"): int(at_ms) for id_, at_ms in rows}
            yield {id_: at_ms for id_, at_ms in page.items() if id_ not in seen}
            if len(rows) < num:
                return
            at_ms = int(rows[-1][1])
            seen = {id_ for id_, at in page.items() if at == at_ms}
            start = str(at_ms)

    def _burials_of(self, ids: tuple[str, ...]) -> Iterator[Mapping[str, int]]:
        for page in pages(dict.fromkeys(ids), _PAGE):
            times = zip(page, self._redis.zmscore(self._keys.dead_at, page), strict=True)
            yield {id_: int(at_ms) for id_, at_ms in times if at_ms is not None}

    def _read(self, page: Mapping[str, int], ahead_ms: int) -> Iterator[DeadLetter]:
        if not page:
            return
        texts = self._redis.hmget(self._keys.dead, list(page))
        for (id_, at_ms), text in zip(page.items(), texts, strict=True):
            if text is not None:
                yield _letter(id_, at_ms, text, ahead_ms)


def _letter(id_: str, at_ms: int, text: bytes, ahead_ms: int) -> DeadLetter:
    line, _, record = text.partition(b"\n")
    why = json.loads(line)
    return DeadLetter(
        id=id_,
        lane=id_.partition(":")[0],
        buried_at_ms=at_ms - ahead_ms,
        accepted_at_ms=int(record[1:STAMP_BYTES]) - ahead_ms,
        reason=why.get("reason", "-"),
        status=why.get("status", 0),
        code=why.get("code", "-"),
        attempts=why.get("attempts", 0),
        kind=why.get("kind", ""),
        body=record[HEADER_BYTES:],
    )


def _by_lane(ids: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the ids in pages of one lane, without those that no letter can have."""
    for lane in LANES:
        for page in pages((id_ for id_ in ids if id_.startswith(f"{lane}:")), _PAGE):
            yield lane, page
