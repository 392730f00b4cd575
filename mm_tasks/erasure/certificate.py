"""The receipt of an erasure: what the audit log says was done, and what nobody can say.

Made of the erasure's entries alone, so that each sentence can be held against the log, whose
size and head it ends with. Of the vendor it says what was acknowledged, and no more.

Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from mm_tasks.erasure.audit import protocol
from mm_tasks.erasure.audit.protocol import ACKNOWLEDGED, BLOCKED, OPEN
from mm_tasks.erasure.deadlines import one_month_after
from mm_tasks.errors import AuditChainBroken
from mm_tasks.timestamps import moment, stamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mm_tasks.erasure.audit.log import Head
    from mm_tasks.erasure.audit.protocol import ErasureState

    Entries = Sequence[dict[str, Any]]

_UNCALLED = ("cancelled", "rejected", "duplicate_of")

_PLACES = {
    "waiting": "waiting to be sent",
    "batches": "in batches that were not being sent",
    "dead": "dead letters",
    "fence": "taken out by the fence on their way",
}
_VIA = {"call": "", "message": ", in a message through the broker"}
_AOF = {
    "rewritten": "was rewritten at {at}, without what was removed until then.",
    "off": "was off at {at}: there was none to rewrite.",
    "running": "was being rewritten at {at}; whether that ended was not waited for. Until it has, "
    "what was removed stays readable there.",
    "failed": "could not be rewritten at {at}: what was removed stays readable there until it is.",
    "refused": "may not be rewritten by us, said Redis at {at}: what was removed stays readable "
    "there until its operator does it.",
}


def text(entries: Entries, end: Head, *, is_sqlite: bool, is_wal_empty: bool) -> str:
    """Return the receipt of an erasure as plain text.

    `end` is the end of the log at the moment the entries were read. `is_wal_empty` says
    whether SQLite's write-ahead log was emptied after the ids were wiped.
    """
    progress = _replayed(entries)
    since = [index for index, one in enumerate(entries) if one["entry"] == "anonymous_added"]
    fresh = entries[since[-1] :] if since else entries
    sections: dict[str, Iterable[str]] = {
        "": _about(entries, progress),
        "Asked for": _asked(entries),
        "Stopped and removed here": _here(entries, fresh),
        "At the vendor": _vendor(entries, progress),
        "The plain ids": _ids(entries),
        "Not done": _not_done(entries, fresh, progress),
        "What stays readable": _readable(
            entries, is_sqlite=is_sqlite, is_wal_empty=is_wal_empty, is_wiped=progress.wiped
        ),
        "To be matched with": [f"the audit log of {end.size} entries, head {end.hash}"],
    }
    parts = []
    for title, lines in sections.items():
        body = "\n".join(lines)
        if body:
            parts.append(f"{title}\n{body}" if title else body)
    return "\n\n".join(parts)


def _replayed(entries: Entries) -> ErasureState:
    progress: ErasureState | None = None
    try:
        for one in entries:
            progress = protocol.step(progress, one["entry"], one["details"], one["erasure"])
    except protocol.IllegalTransition:
        progress = None
    if progress is None:
        msg = "the entries of this erasure do not follow the protocol; see mm-tasks audit verify"
        raise AuditChainBroken(msg)
    return progress


def _about(entries: Entries, progress: ErasureState) -> Iterable[str]:
    first = entries[0]
    yield f"Receipt of erasure {first['erasure']}"
    yield f"project {first['details']['project']}, state {progress.state}"
    yield f"subject {first['subject']}, a pseudonym by key {first['epoch']}"


def _asked(entries: Entries) -> Iterable[str]:
    for one in _all(entries, "received", "ticket_added"):
        said = one["details"]
        ticket = f", ticket {said['ticket']}" if said["ticket"] is not None else ""
        yield (
            f"  received {said['received_at']}, on the ground {said['reason']}{ticket}, "
            f"requested by {said['requested_by']}{_VIA[said['via']]}"
        )
    yield f"  due {_due_at(entries)}"


def _here(entries: Entries, fresh: Entries) -> Iterable[str]:
    fenced = _all(entries, "fenced")
    if fenced:
        yield f"  Since {fenced[0]['at']} at the latest, no event of this person is accepted, and"
        yield "  no request that carries one is begun."
    again = _all(fresh, "fenced")
    if fresh is not entries and again:
        yield f"  For the anonymous ids added later that holds since {again[-1]['at']}."
    for over in _all(entries, "lifted", *_UNCALLED):
        yield f"  That ended at {over['at']} ({over['entry']})."
    if _all(entries, "purged"):
        yield "  Removed of our own copies:"
    yield from _removed(entries)
    quiesced = _all(fresh, "quiesced")
    if quiesced:
        yield f"  At {quiesced[-1]['at']} none was on its way to the vendor any more."


def _removed(entries: Entries) -> Iterable[str]:
    removed: Counter[str] = Counter()
    for one in _all(entries, "purged"):
        removed.update(one["details"]["removed"])
    for place, number in removed.items():
        yield f"    {number:>7} {place}: {_PLACES.get(place.rpartition(':')[2], 'events')}"


def _vendor(entries: Entries, progress: ErasureState) -> Iterable[str]:
    results = _all(entries, "result")
    good = [one for one in results if one["details"]["outcome"] == ACKNOWLEDGED]
    if not good:
        yield "  Nothing was acknowledged by the vendor."
    else:
        yield f"  Acknowledged by the vendor {len(good)} {'time' if len(good) == 1 else 'times'}:"
    for one in good:
        said = one["details"]
        yield f"    at {one['at']}, call {said['attempt']} (pass {said['pass']}, {said['status']})"
    others = [one for one in results if one["details"]["outcome"] != ACKNOWLEDGED]
    if others:
        last = others[-1]
        yield (
            f"  {len(others)} more calls were not acknowledged; the last of them at {last['at']}: "
            f"{last['details']['outcome']}"
        )
    if progress.waiting:
        yield f"  Of {len(progress.waiting)} calls it is not recorded how they ended."
    if good:
        yield "  What the vendor did after that cannot be seen from here."


def _ids(entries: Entries) -> Iterable[str]:
    wiped = _all(entries, "wiped")
    if wiped:
        yield f"  Wiped from our records at {wiped[-1]['at']}."
    else:
        yield "  Not wiped yet: one row of the audit database holds them until the erasure ended."


def _not_done(entries: Entries, fresh: Entries, progress: ErasureState) -> Iterable[str]:
    state = progress.state
    if state in _UNCALLED:
        ended = _all(entries, state)[-1]
        how = {
            "rejected": f"rejected ({ended['details'].get('outcome')})",
            "duplicate_of": f"found to be a duplicate of {ended['details'].get('original')}",
        }
        said = f"  This erasure was {how.get(state, state)} at {ended['at']}, "
        yield f"{said}before the vendor was called."
        yield "  It was not carried out, and does not stop events of this person any more."
    if state not in OPEN:
        return
    yield f"  This erasure is NOT finished. It is due {_due_at(entries)}. Not done yet:"
    steps = {
        "fenced": "stopping the events is not recorded",
        "purged": "removing our own copies is not recorded",
        "quiesced": "whether events are still on their way to the vendor is not settled",
    }
    yield from (f"  - {said}" for kind, said in steps.items() if not _all(fresh, kind))
    if not _all(fresh, "quiesced"):
        yield "  - the calls to the vendor that follow"
    elif progress.acknowledged < progress.passes:
        yield f"  - of {progress.passes} passes, {progress.acknowledged} were acknowledged"
    yield "  - completing it, and wiping the plain ids"
    if state in BLOCKED:
        next_at = _all(entries, state)[-1]["details"]["next_at"]
        when = f"the next call is due {next_at}" if next_at else "a person has to ask for a retry"
        yield f"  It is blocked ({state}): {when}."


def _readable(
    entries: Entries, *, is_sqlite: bool, is_wal_empty: bool, is_wiped: bool
) -> Iterable[str]:
    asked = _all(entries, "aof_rewritten")
    if asked:
        word, at = asked[-1]["details"]["outcome"], asked[-1]["at"]
        said = _AOF.get(word, f"{word} was recorded at {{at}}.").format(at=at)
    else:
        said = "has no rewrite on record: what was removed stays readable there until it has one."
    yield f"  - Redis's AOF {said}"
    yield "  - Backups and snapshots made before, and exports of dead letters, hold what they held."
    if is_sqlite and is_wiped:
        how = "was emptied" if is_wal_empty else "could NOT be emptied yet and may hold them"
        yield f"  - The ids were overwritten in the SQLite file; its write-ahead log {how}."
    elif not is_sqlite:
        yield (
            "  - PostgreSQL: the row that held the ids is readable as a dead tuple until it is "
            "vacuumed, and in the WAL until that is recycled."
        )
    yield "  - Kept on purpose: this log with its pseudonym, and a hash of each id for the fence."


def _due_at(entries: Entries) -> str:
    later = [one["details"]["received_at"] for one in _all(entries, "ticket_added")]
    due = [stamp(one_month_after(moment(at))) for at in later]
    return str(min([entries[0]["details"]["due_at"], *due]))


def _all(entries: Entries, *kinds: str) -> Entries:
    return [one for one in entries if one["entry"] in kinds]
