"""Verify an export of the audit log of erasures, with nothing of mm_tasks but this file.

    mm-tasks audit export audit.jsonl
    python -m mm_tasks.verify_export audit.jsonl [CHECKPOINTS ...]

A copy of this file does the same, with Python 3.11 and no package: `python verify_export.py …`.
Each further file has checkpoints that were kept elsewhere, a line `<size> <head> <at>` each.
`mm_tasks/erasure/audit/log.py` documents the format.

Checked: every line is in the canonical form, follows the one before and has the next number; every
result has its intent; once a line has a `mac`, every later line has one; the log has at least as
many entries as each checkpoint, and the same head there. Exit 0: it holds. 1: it does not.
3: it holds, but there was no checkpoint to show that the log was not cut or written anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

FIELDS = {"at", "details", "entry", "epoch", "erasure", "prev", "seq", "subject"}
# Lines of the first release lack them.
SEALS = {"fences", "mac"}
CHECKPOINT = re.compile(r"(\d{1,18}) ([0-9a-f]{64}) (\S+)", re.ASCII)
UNCHECKED = "not checked: `mac` and `fences`, which need the pseudonym key (mm-tasks audit verify)"
NO_CHECKPOINT = "warning: no checkpoint was compared, so a log cut or written anew is not detected"


def lines_of(path: str) -> list[str]:
    """Return the lines of a file; only a newline ends one."""
    return Path(path).read_bytes().decode().split("\n")[:-1]


def check(holds: object, rule: str) -> None:
    """Stop with the rule unless it holds; unlike an assertion, never switched off."""
    if not holds:
        sys.exit(f"broken: {rule}")


def heads_of(lines: list[str]) -> tuple[list[str], bool]:
    """Check every entry; return the head at each size, and whether entries have a `mac`."""
    heads, is_sealed = ["0" * 64], False
    intents: set[tuple[object, ...]] = set()
    for seq, line in enumerate(lines, 1):
        entry = json.loads(line)
        same = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        check(same == line and entry.keys() - SEALS == FIELDS, f"entry {seq} is written otherwise")
        seals = entry.keys() & SEALS
        check(seals == SEALS or not (seals or is_sealed), f"entry {seq} lacks its mac")
        check(entry["seq"] == seq, f"entry {seq} has another number")
        check(entry["prev"] == heads[-1], f"entry {seq} does not follow the one before")
        call = (entry["erasure"], *(entry["details"].get(name) for name in ("pass", "attempt")))
        if entry["entry"] == "result":
            check(call in intents, f"entry {seq} is a result without its intent")
        (intents.add if entry["entry"] == "intent" else intents.discard)(call)
        heads.append(hashlib.sha256(line.encode()).hexdigest())
        is_sealed = bool(seals)
    return heads, is_sealed


def verify(lines: list[str], checkpoints: list[str]) -> int:
    """Check every line, then every checkpoint, the last line of the export included."""
    heads, is_sealed = heads_of(lines[:-1])
    size, end = len(heads) - 1, json.loads(lines[-1])
    is_end = (end.get("size"), end.get("head")) == (size, heads[-1])
    check(is_end, "the entries do not end in their checkpoint")
    seen = [match.groups() for match in map(CHECKPOINT.fullmatch, checkpoints) if match]
    for number, head, at in seen:
        rule = f"a checkpoint of {at} saw {number} entries, here are {size}"
        check(int(number) <= size, f"{rule}: the export was cut, or is older; export again")
        check(heads[int(number)] == head, f"entry {number} is not the one that a checkpoint saw")
    sys.stdout.write(f"verified: {size} entries, head {heads[-1]}\n")
    sys.stdout.write(f"checkpoints: {len(seen)} compared\n")
    if is_sealed:
        sys.stdout.write(f"{UNCHECKED}\n")
    if unreadable := len(checkpoints) - len(seen):
        sys.stderr.write(f"warning: {unreadable} lines are no checkpoints, and were left out\n")
    if not seen:
        sys.stderr.write(f"{NO_CHECKPOINT}\n")
    return 0 if seen else 3


def main() -> int:
    """Verify the files that the command line names; return the exit code."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("export", metavar="EXPORT")
    parser.add_argument("checkpoints", metavar="CHECKPOINTS", nargs="*")
    files = parser.parse_args()
    checkpoints = [line for path in files.checkpoints for line in lines_of(path)]
    return verify(lines_of(files.export), checkpoints)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, LookupError, OSError, TypeError, AttributeError) as error:
        sys.exit(f"broken: it cannot be read ({type(error).__name__})")
