"""Evidence: whether the work row of an erasure is the one that the log says, before a call.

Somebody who may change rows must not make us name another person to the vendor, nor one whose
erasure has ended. The entries are looked at by their MAC; a store of an earlier release
has entries without one, which `verify` holds against the chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from mm_tasks.buffer import records
from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import protocol, tables
from mm_tasks.erasure.audit.log import fences_of

if TYPE_CHECKING:
    from sqlalchemy import RowMapping as Row
    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.audit.protocol import ErasureState
    from mm_tasks.erasure.audit.pseudonyms import Pseudonyms

# After one of these no call follows.
_ENDS = protocol.ENDED | {"wiped", "released", "aof_rewritten"}


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
    """Return whether an erasure is open by its last entry, and ids and tags are its own.

    Reads two entries: there may be thousands.
    """
    ends, ids = audit_log.ends(connection, row["id"]), row["ids"]
    are_ours = all("mac" not in end or fences_of(end, key.seals) is not None for end in ends)
    if not ends or ids is None or not are_ours or ends[-1].get("entry") in _ENDS:
        return False
    is_subject = key.of(ids.user) == ends[0].get("subject") == row["pseudonym"]
    named = [("user", ids.user), *(("anonymous", id_) for id_ in ids.anonymous)]
    tags = (records.tag(row["project"], kind, id_) for kind, id_ in named)
    expected = [
        key.seals.seal(tag, row["project"], row["id"], kind).text
        for (kind, _), tag in zip(named, tags, strict=True)
    ]
    sealed = select(tables.suppressions.c.sealed).where(tables.suppressions.c.erasure == row["id"])
    found = connection.execute(sealed).scalars()
    return is_subject and sorted(expected) == sorted(found)
