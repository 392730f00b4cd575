"""Verify an export of the audit log, with nothing of mm_tasks: exit 0 if it holds, else 1.

    mm-tasks audit export > audit.jsonl
    python scripts/verify_audit.py audit.jsonl [checkpoints ...]

Each further file has checkpoints that were kept elsewhere, a line `<size> <head> <at>` each.
The format is documented in `mm_tasks/erasure/audit/log.py`. Checked: every line is written
the one way, follows the one before and has the next number; every result has its intent;
the log has at least as many entries as each checkpoint, and the same head there.
"""

import hashlib
import json
import sys
from pathlib import Path

FIELDS = {"at", "details", "entry", "epoch", "erasure", "prev", "seq", "subject"}
SEALS = {
    "fences",
    "mac",
}  # earlier releases wrote neither; mm-tasks, which has the key, checks both


def lines_of(path: str) -> list[str]:
    """Return the lines of a file; only a newline ends one."""
    return Path(path).read_bytes().decode().split("\n")[:-1]


def check(holds: object, rule: str) -> None:
    """Stop with the rule unless it holds; unlike an assertion, never switched off."""
    if not holds:
        sys.exit(f"broken: {rule}")


def verify(lines: list[str], checkpoints: list[list[str]]) -> None:
    """Check every line, then every checkpoint, the last line of the export included."""
    heads, intents, is_sealed = ["0" * 64], set(), False
    for seq, line in enumerate(lines[:-1], 1):
        entry = json.loads(line)
        same = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        check(same == line and set(entry) - SEALS == FIELDS, f"entry {seq} is written otherwise")
        check(set(entry) >= SEALS or not is_sealed, f"entry {seq} lacks its mac")
        is_sealed = set(entry) >= SEALS
        check(entry["seq"] == seq, f"entry {seq} has another number")
        check(entry["prev"] == heads[-1], f"entry {seq} does not follow the one before")
        call = (entry["erasure"], *(entry["details"].get(name) for name in ("pass", "attempt")))
        if entry["entry"] == "result":
            check(call in intents, f"entry {seq} is a result without its intent")
        (intents.add if entry["entry"] == "intent" else intents.discard)(call)
        heads.append(hashlib.sha256(line.encode()).hexdigest())
    end = json.loads(lines[-1])
    check(end.get("size") == len(heads) - 1, "the entries do not end in their checkpoint")
    for size, head in [(end["size"], end["head"]), *((int(one[0]), one[1]) for one in checkpoints)]:
        check(size < len(heads), f"a checkpoint saw {size} entries, here are {len(heads) - 1}")
        check(heads[size] == head, f"entry {size} is not the one that a checkpoint saw")
    print(f"verified: {end['size']} entries, head {end['head']}")


if __name__ == "__main__":
    kept = [line.split() for path in sys.argv[2:] for line in lines_of(path)]
    try:
        verify(lines_of(sys.argv[1]), [parts for parts in kept if len(parts) == 3])
    except (ValueError, LookupError, OSError, TypeError, AttributeError) as error:
        sys.exit(f"broken: it cannot be read ({type(error).__name__})")
