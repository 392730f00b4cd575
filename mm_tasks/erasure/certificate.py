"""The receipt of an erasure, as plain text for the person or an auditor.

It is made from the erasure's entries alone, so that each sentence can be checked against the
log, and ends with the log's size and head. It states the vendor's acknowledgements, and
nothing else about the vendor.

The longer sentences are in `certificate.toml`. Pure: no clock, no I/O after the import.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_tasks.erasure.audit import protocol
from mm_tasks.erasure.audit.protocol import ACKNOWLEDGED, BLOCKED, OPEN, SCHEDULED
from mm_tasks.erasure.deadlines import one_month_after
from mm_tasks.errors import AuditChainBroken
from mm_tasks.timestamps import moment, stamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mm_tasks.erasure.audit.checkpoints import Checkpoint
    from mm_tasks.erasure.audit.protocol import ErasureState

    Entries = Sequence[dict[str, Any]]

_SENTENCES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))


def text(entries: Entries, end: Checkpoint, *, is_sqlite: bool, is_wal_empty: bool) -> str:
    """Return the receipt of an erasure.

    `end` is the head of the log when the entries were read. `is_wal_empty` is whether
    SQLite's write-ahead log was truncated after the ids were wiped.
    """
    state = _replayed(entries)
    kinds = [entry["entry"] for entry in entries]
    newest = max((n for n, kind in enumerate(kinds) if kind == "anonymous_added"), default=0)
    fresh = entries[newest:]
    database = ""
    if not is_sqlite:
        database = _SENTENCES["database"]["postgresql"]
    elif state.wiped:
        database = _SENTENCES["database"]["emptied" if is_wal_empty else "left"]
    sections = {
        "Asked for": _requests(entries),
        "Stopped and removed here": _removal(entries, fresh),
        "At the vendor": _calls(entries, state),
        "The plain ids": [_ids(entries)],
        "Not done": _not_done(entries, fresh, state),
        "What stays readable": _readable(entries, database),
        "To be matched with": [f"the audit log of {end.size} entries, head {end.head}"],
    }
    first = entries[0]
    receipt = (
        f"Receipt of erasure {first['erasure']}\n"
        f"project {first['details']['project']}, state {state.state}\n"
        f"subject {first['subject']}, a pseudonym by key {first['epoch']}"
    )
    for title, lines in sections.items():
        if body := "".join(f"\n  {line}" for line in lines):
            receipt += f"\n\n{title}{body}"
    return receipt


def _replayed(entries: Entries) -> ErasureState:
    state: ErasureState | None = None
    try:
        for entry in entries:
            state = protocol.step(state, entry["entry"], entry["details"], entry["erasure"])
    except protocol.IllegalTransition:
        msg = "the entries of this erasure do not follow the protocol; see mm-tasks audit verify"
        raise AuditChainBroken(msg) from None
    assert state is not None, "an erasure has entries"
    return state


def _requests(entries: Entries) -> Iterable[str]:
    for entry in _of(entries, "received", "ticket_added"):
        details = entry["details"]
        ticket = f", ticket {details['ticket']}" if details["ticket"] is not None else ""
        later = f", not to begin before {details['not_before']}" if "not_before" in details else ""
        yield (
            f"received {details['received_at']}, on the ground {details['reason']}{ticket}, "
            f"requested by {details['requested_by']}{_SENTENCES['via'][details['via']]}{later}"
        )
    yield f"due {_due_at(entries)}"


def _removal(entries: Entries, fresh: Entries) -> Iterable[str]:
    if fenced := _of(entries, "fenced"):
        yield f"Since {fenced[0]['at']} at the latest, no event of this person is accepted, and"
        yield "no request with such an event is started."
    if len(fresh) < len(entries) and (again := _of(fresh, "fenced")):
        yield f"For the anonymous ids added later, this applies since {again[-1]['at']}."
    for entry in _of(entries, "lifted", *_SENTENCES["uncalled"]):
        yield f"This ended at {entry['at']} ({entry['entry']})."
    if purged := _of(entries, "purged"):
        yield "Removed from our own copies:"
        removed: Counter[str] = Counter()
        for entry in purged:
            removed.update(entry["details"]["removed"])
        places = _SENTENCES["places"]
        for place, number in removed.items():
            yield f"  {number:>7} {place}: {places.get(place.rpartition(':')[2], 'events')}"
    if quiesced := _of(fresh, "quiesced"):
        yield f"At {quiesced[-1]['at']} none was on its way to the vendor any more."


def _calls(entries: Entries, state: ErasureState) -> Iterable[str]:
    results = _of(entries, "result")
    good = [entry for entry in results if entry["details"]["outcome"] == ACKNOWLEDGED]
    others = [entry for entry in results if entry["details"]["outcome"] != ACKNOWLEDGED]
    if good:
        yield f"Acknowledged by the vendor {len(good)} {'time' if len(good) == 1 else 'times'}:"
    else:
        yield "Nothing was acknowledged by the vendor."
    for entry in good:
        call = "at {at}, call {details[attempt]} (pass {details[pass]}, {details[status]})"
        yield f"  {call.format(**entry)}"
    if others:
        last = "the last one at {at}: {details[outcome]}".format(**others[-1])
        yield f"{_failures(results)} more calls were not acknowledged; {last}"
    if state.waiting:
        yield f"The results of {len(state.waiting)} calls are not on record, or were as before."
    if good:
        yield "The vendor's actions after its acknowledgement cannot be observed from here."


def _failures(results: Entries) -> int:
    """Return the number of calls that were not acknowledged: of several, only the last may be."""
    calls = sum(int(entry["details"].get("calls", 1)) for entry in results)
    return calls - len([one for one in results if one["details"]["outcome"] == ACKNOWLEDGED])


def _ids(entries: Entries) -> str:
    sentence: str = _SENTENCES["wiped" if _of(entries, "wiped") else "not_wiped"]
    return sentence.format(*(entry["at"] for entry in _of(entries, "wiped")))


def _not_done(entries: Entries, fresh: Entries, state: ErasureState) -> Iterable[str]:
    if state.state in _SENTENCES["uncalled"]:
        end = _of(entries, state.state)[-1]
        how = _SENTENCES["uncalled"][state.state].format(**end["details"])
        yield f"This erasure was {how} at {end['at']}, before the vendor was called."
        yield "It was not carried out, and does not stop events of this person any more."
    if state.state not in OPEN:
        return
    yield f"This erasure is NOT finished. It is due {_due_at(entries)}. Not done yet:"
    if state.state == SCHEDULED:
        yield f"- beginning it, at {_begins_at(entries)}; until then nothing is stopped or removed"
    steps = _SENTENCES["missing"].items()
    yield from (f"- {missing}" for kind, missing in steps if not _of(fresh, kind))
    if not _of(fresh, "quiesced"):
        yield "- the calls to the vendor that follow"
    elif state.acknowledged < state.passes:
        yield f"- of {state.passes} passes, {state.acknowledged} were acknowledged"
    yield "- completing it, and wiping the plain ids"
    if state.state in BLOCKED:
        next_at = _of(entries, state.state)[-1]["details"]["next_at"]
        when = f"the next call is due {next_at}" if next_at else _SENTENCES["blocked"][state.state]
        yield f"It is blocked ({state.state}): {when}."


def _readable(entries: Entries, database: str) -> Iterable[str]:
    aof = _SENTENCES["no_aof"]
    if rewritten := _of(entries, "aof_rewritten"):
        word, at = rewritten[-1]["details"]["outcome"], rewritten[-1]["at"]
        aof = _SENTENCES["aof"].get(word, f"{word} was recorded at {{at}}.").format(at=at)
    yield f"- Redis's AOF {aof}"
    yield "- Earlier backups, snapshots, and exports of dead letters keep their content."
    if database:
        yield f"- {database}"
    yield "- Kept on purpose: this log with its pseudonym, and a hash of each id for the fence."


def _due_at(entries: Entries) -> str:
    repeated = [entry["details"]["received_at"] for entry in _of(entries, "ticket_added")]
    due = [stamp(one_month_after(moment(at))) for at in repeated]
    return str(min([entries[0]["details"]["due_at"], *due]))


def _begins_at(entries: Entries) -> str:
    later = (entry["details"].get("not_before") for entry in entries)
    return min(str(at) for at in later if at is not None)


def _of(entries: Entries, *kinds: str) -> Entries:
    return [entry for entry in entries if entry["entry"] in kinds]
