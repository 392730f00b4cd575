"""Row evidence: whether the work row of an erasure is the one that the log says, before a call.

Somebody who may change rows must not make us name another person to the vendor, nor one whose
erasure has ended. The entries are looked at by their MAC; a store of an earlier release
has entries without one, which `verify` holds against the chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import protocol, tables
from mm_tasks.erasure.audit.log import fences_of

if TYPE_CHECKING:
    from sqlalchemy import RowMapping as Row
    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.audit.protocol import ErasureState
    from mm_tasks.erasure.audit.pseudonyms import Pseudonyms

# The entries whose kind tells the state after them: not a result, which may come after the end.
_STATES = [kind for kind, entry in protocol.ENTRIES.items() if entry.to and kind != "intent"]


def logged_state(connection: Connection, erasure: str, key: Pseudonyms) -> ErasureState | None:
    """Return the state of an erasure by its entries; None unless each holds."""
    state = None
    try:
        for entry in audit_log.entries(connection, erasure):
            if "mac" in entry and fences_of(entry, key.seals) is None:
                return None
            state = protocol.step(state, entry["entry"], entry["details"], erasure)
    except (protocol.IllegalTransition, LookupError, TypeError):
        return None
    return state


def holds(connection: Connection, row: Row, key: Pseudonyms) -> bool:
    """Return whether state, ids and tags of an erasure are those that the log says.

    Reads a few entries: there may be thousands.
    """
    named = audit_log.naming(connection, row["id"])
    stated = audit_log.last(connection, row["id"], _STATES)
    called = audit_log.last(connection, row["id"], ["intent"])
    read = [*named, *stated, *called]
    are_ours = all("mac" not in each or fences_of(each, key.seals) is not None for each in read)
    if row["ids"] is None or not (are_ours and named and stated):
        return False
    last, states = stated[0], {protocol.ENTRIES[stated[0]["entry"]].to}
    if called and called[0]["seq"] > last["seq"]:
        states.add("submitted")
    is_subject = key.of(row["ids"].user) == named[0]["subject"] == row["pseudonym"]
    return row["state"] in states and is_subject and _are_tags(connection, row, key, named)


def _are_tags(
    connection: Connection, row: Row, key: Pseudonyms, named: list[dict[str, Any]]
) -> bool:
    """Return whether the ids are as many as the log names, and the rows of the fence are theirs.

    Nobody seals a tag without the key, so that these are the ids that were asked for.
    """
    sealed = (
        key.seals.seal(tag, row["project"], row["id"], kind)
        for kind, tag in row["ids"].tags(row["project"])
    )
    query = select(tables.suppressions.c.sealed).where(tables.suppressions.c.erasure == row["id"])
    found = sorted(connection.execute(query).scalars())
    count = 1 + sum(entry["details"]["anonymous"] for entry in named)
    return len(found) == count and found == sorted(each.text for each in sealed)
