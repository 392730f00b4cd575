"""Count what came through, from the vendor's journal: lost, repeated, unexpected, too fast.

The producers' files say which ids were acknowledged and which may be stored. The
journal says what was sent, and what was stored. A repeat must be explained: each
request that was stored and whose events were sent again has a cause of its own, and
one kill explains no more requests than the dead process had under way.

Pure: values in, values out. See `faults_scenarios` for what produces them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Row = dict[str, Any]

# The vendor's quota of /v1/batch, which is also the bound of P4.
RATE_PER_S, RATE_SLACK = 5, 20
# From the end of an answer to its record in Redis, on a machine with much to do.
RECORD_S = 2.0
# A request may be read when its sender is dead already.
UNREAD_S = 0.5
# From the admission of an attempt to its arrival: connecting has a deadline of 2 s.
ADMITTED_S = 2.5
PLACES = ("waiting", "leased", "delivered", "dead", "erased", "discarded")


@dataclass(frozen=True)
class Kill:
    """A worker's SIGKILL, as soon as it was seen; it had at most `capacity` requests under way."""

    at: float
    capacity: int


@dataclass(frozen=True)
class Leaver:
    """A person whose erasure was accepted; fenced at this instant, None if not at once."""

    person: str
    ids: list[str]
    fenced_at: float | None


@dataclass(frozen=True)
class Planned:
    """A fault that was to happen: how often it did, and how often it had to."""

    hits: int
    wanted: int


@dataclass(frozen=True)
class Run:
    """What one run left behind."""

    acknowledged: frozenset[str]
    maybe: frozenset[str]
    poison: frozenset[str]
    rows: Sequence[Row]
    dead: Sequence[str]
    counts: dict[str, int]
    kills: Sequence[Kill] = ()
    outages: Sequence[tuple[float, float]] = ()
    planned: dict[str, Planned] = field(default_factory=dict)
    # Dead letters that a worker with MM_TASKS_ON_AMBIGUOUS=park made: stored or not.
    parked: frozenset[str] = frozenset()
    # Bounds of a scenario's own, already judged: what is not as promised, in words.
    broken: Sequence[str] = ()
    leavers: Sequence[Leaver] = ()
    # Instants at which a hop spoiled an answer of the vendor, so that nobody could read it.
    spoiled: Sequence[float] = ()


@dataclass(frozen=True)
class Verdict:
    """What was found: figures to print, promises broken, reasons why the run proves nothing."""

    figures: dict[str, float | str]
    broken: list[str]
    invalid: list[str]

    @property
    def code(self) -> int:
        """Return the exit code: 1 broken, 2 invalid, 0 kept."""
        return 1 if self.broken else 2 if self.invalid else 0


@dataclass(frozen=True)
class Repeats:
    """Requests whose events were sent again although they were stored, by cause."""

    copies: int
    causes: dict[str, int]
    unexplained: list[Row]

    @property
    def requests(self) -> int:
        """Return how many requests that were."""
        return sum(self.causes.values()) + len(self.unexplained)


def check(run: Run) -> Verdict:
    """Judge a run."""
    stored = Counter(i for row in run.rows if row["stored"] for i in row["ids"])
    dead = Counter(run.dead)
    repeats = repeated(run)
    excess = rate_excess(row["at"] for row in run.rows if row["route"] == "/v1/batch")
    left = run.counts["waiting"] + run.counts["leased"]
    erasable = {event_id for leaver in run.leavers for event_id in leaver.ids}
    lost = set() if left else run.acknowledged - set(stored) - set(dead) - erasable
    unexpected = (set(stored) | set(dead)) - run.acknowledged - run.maybe
    findings = {
        f"lost: {_some(lost)}": lost,
        f"unexpected: {_some(unexpected)}": unexpected,
        f"sent again without a cause: {_shown(repeats.unexplained)}": repeats.unexplained,
        f"over the rate: {excess:.1f} requests above 5 w + 20": excess > 0,
        **_dead_letters(run, stored, dead),
        **_counts(run, stored, repeats),
        **_erased(run),
    }
    broken = [text for text, is_found in findings.items() if is_found]
    invalid = [
        f"{name}: happened {planned.hits} times, not {planned.wanted}"
        for name, planned in run.planned.items()
        if planned.hits < planned.wanted
    ]
    if left:
        invalid.append(f"not drained: {left} events are still waiting or leased")
    figures = _figures(run, stored, repeats)
    figures |= {"lost": len(lost), "unexpected": len(unexpected), "largest rate excess": excess}
    return Verdict(figures, [*broken, *run.broken], invalid)


def repeated(run: Run) -> Repeats:
    """Find every request that was stored and sent again, and its cause."""
    by_id: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(run.rows):
        if row["stored"]:
            for event_id in row["ids"]:
                by_id[event_id].append(index)
    superseded: set[int] = set()
    for found in by_id.values():
        superseded.update(sorted(found, key=lambda index: run.rows[index]["at"])[:-1])
    causes: Counter[str] = Counter()
    unclear = []
    for row in (run.rows[index] for index in sorted(superseded)):
        if not is_clean(row):
            causes["answer"] += 1
        elif any(
            since <= row["done_at"] + RECORD_S and row["at"] <= until + RECORD_S
            for since, until in run.outages
        ):
            causes["outage"] += 1
        else:
            unclear.append(row)
    unexplained = unexplained_by_kills(unclear, run.kills)
    causes["kill"] = len(unclear) - len(unexplained)
    unclear = unexplained
    unexplained = unexplained_by_kills(unclear, [Kill(at, 1) for at in run.spoiled])
    causes["hop"] = len(unclear) - len(unexplained)
    copies = sum(len(found) - 1 for found in by_id.values())
    return Repeats(copies, dict(causes), unexplained)


def is_clean(row: Row) -> bool:
    """Say whether the answer was the vendor's own success, whole: nobody could doubt it."""
    is_whole = row["status"] in {200, 202} and row["done_at"] is not None
    return is_whole and row["fault"] in {None, "slow"}


def unexplained_by_kills(rows: Sequence[Row], kills: Sequence[Kill]) -> list[Row]:
    """Return the rows for which no kill is left that came before their record was made.

    Each kill takes those whose time ends first, which explains as many as can be.
    """
    open_rows = sorted(rows, key=lambda row: row["done_at"])
    for kill in sorted(kills, key=lambda kill: kill.at):
        mine = [
            row for row in open_rows if row["at"] - UNREAD_S <= kill.at <= row["done_at"] + RECORD_S
        ]
        for row in mine[: kill.capacity]:
            open_rows.remove(row)
    return open_rows


def rate_excess(starts: Iterable[float]) -> float:
    """Return by how much the fullest window exceeds `5 w + 20`; negative while it is kept."""
    worst, least = float("-inf"), float("inf")
    for index, start in enumerate(sorted(starts)):
        level = index - RATE_PER_S * start
        least = min(least, level)
        worst = max(worst, level - least + 1 - RATE_SLACK)
    return worst


def _dead_letters(run: Run, stored: Counter[str], dead: Counter[str]) -> dict[str, Any]:
    good = set(dead) - run.poison - run.parked
    both = set(dead) & set(stored) - run.parked
    twice = {event_id for event_id, number in dead.items() if number > 1}
    passed = run.poison & set(stored)
    return {
        f"dead letters that the vendor would take: {_some(good)}": good,
        f"dead letters that were stored too: {_some(both)}": both,
        f"dead letters twice: {_some(twice)}": twice,
        f"poison that was stored: {_some(passed)}": passed,
    }


def _counts(run: Run, stored: Counter[str], repeats: Repeats) -> dict[str, Any]:
    """Return what does not add up. Events that are leased may be stored already, or not."""
    counts, known = run.counts, len(run.acknowledged)
    total = sum(counts[place] for place in PLACES)
    accepted, delivered, dead = counts["accepted"], counts["delivered"], counts["dead"]
    at_most = known + len(run.maybe)
    is_settled = counts["leased"] == 0
    arrived = len(set(stored) - run.parked)
    # An event that was stored may be erased before that was recorded.
    gone = len({i for leaver in run.leavers for i in leaver.ids} & set(stored))
    return {
        f"counts: {accepted} accepted, {total} in all places": accepted != total,
        f"counts: {accepted} accepted, {known} to {at_most} expected": not (
            known <= accepted <= at_most
        ),
        f"counts: {delivered} delivered, {arrived} stored": (
            is_settled and not arrived - gone <= delivered <= arrived
        ),
        f"counts: {dead} dead, {len(run.dead)} dead letters": dead != len(run.dead),
        f"counts: {counts['ambiguous']} ambiguous, {repeats.requests} requests sent again": (
            is_settled and counts["ambiguous"] < repeats.requests
        ),
    }


def _erased(run: Run) -> dict[str, Any]:
    """Return who was sent after the fence, by the instant at which the vendor had the request."""
    fenced = {
        event_id: leaver.fenced_at
        for leaver in run.leavers
        if leaver.fenced_at is not None
        for event_id in leaver.ids
    }
    late = {
        event_id
        for row in run.rows
        for event_id in row["ids"]
        if event_id in fenced and row["at"] > fenced[event_id] + ADMITTED_S
    }
    return {f"sent after the fence: {_some(late)}": late}


def _figures(run: Run, stored: Counter[str], repeats: Repeats) -> dict[str, float | str]:
    batches = [row for row in run.rows if row["route"] == "/v1/batch"]
    return {
        "acknowledged": len(run.acknowledged),
        "maybe stored": len(run.maybe),
        "requests": len(run.rows),
        "of these batches": len(batches),
        "own 429s of the vendor": sum(
            row["status"] == 429 and row["fault"] is None for row in batches
        ),
        "events stored": len(stored),
        "dead letters": len(run.dead),
        "copies beyond the first": repeats.copies,
        "requests sent again": repeats.requests,
        **{f"  because of: {cause}": number for cause, number in sorted(repeats.causes.items())},
        "  without a cause": len(repeats.unexplained),
        "counted ambiguous": run.counts["ambiguous"],
        "people erased": len(run.leavers),
        "kills of workers": len(run.kills),
        "outages of Redis": len(run.outages),
    }


def _some(ids: Iterable[str]) -> str:
    found = sorted(map(str, ids))
    return f"{len(found)}, such as {found[:3]}"


def _shown(rows: Sequence[Row]) -> str:
    names = ("at", "done_at", "status", "fault")
    parts = [f"{[row[name] for name in names]} with {row['ids'][:1]}" for row in rows[:3]]
    return f"{len(rows)}, such as {'; '.join(parts)}"
