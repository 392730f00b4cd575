"""Every key of this package in Redis, and the layout of a stored record.

This module and `lua/` document everything that is stored. All keys of a project share the
hash tag `{mm:<project>}`, so that a script may use several of them on a cluster. A lane is
part of the key: `track`, `identify` and `backfill` are three buffers of the same shape.
`track` and `backfill` share an endpoint of the vendor, so a key of the endpoint is one key
for both.

A record is a header of 46 bytes and the event's JSON, verbatim:

    "1"           1 byte    format version
    accepted_ms  13 digits  the project's clock when it was stored, or when it is due if it was
                            scheduled; ms since the epoch
    user tag     16 bytes   tag of `user_id`, or zeros
    anonymous    16 bytes   tag of `anonymous_id`, or zeros

`append.lua` and `scheduled_store.lua` write the first 14 bytes.
"""

from __future__ import annotations

from mm_tasks.events.lanes import sharing

# The only key that all projects of a server share. Hash of a project to the instant (ms) of a
# heartbeat of one of its workers. No name of a project is empty.
PROJECTS = "{mm:}:projects"


class ProjectKeys:
    """Keys shared by all lanes of one project."""

    def __init__(self, project: str) -> None:
        """Take the name of the project."""
        self.name = project
        self.prefix = prefix = f"{{mm:{project}}}:"
        # Hash of whole numbers: `<lane>:<place>` counts events, `held_bytes` bytes. The fields
        # are listed in `lua/common.lua`.
        self.counts = prefix + "counts"
        # Set of tags of erased subjects; append, claim, begin and revive check it.
        self.fence = prefix + "fence"
        # Hash: the owner of `fence`, and whether the fence is complete. `store` (id of the audit
        # store), `run_id` (of the server that it was loaded for: a restart or a failover changes
        # it, FLUSHALL removes it), `log_size` and `log_head` (the audit log has at least so many
        # entries, and that is the hash of the last of them); during a load `loading` (its token)
        # and `loading_ms` (its last heartbeat); while loads fail `why` and `since_ms`.
        self.fences = prefix + "fences"
        # Hash: the state of the audit log, as workers and commands found it: see `audit_state`.
        self.audit = prefix + "audit"
        # String, present until the next time stamp of a checkpoint is due.
        self.timestamp = prefix + "timestamp"
        # Set of tags that becomes `fence` once it is complete.
        self.fence_draft = prefix + "fence_draft"
        # Hash of tag to number of stored records that the fence removed from claims, batches and
        # revived letters, until the erasure of that subject takes the number over.
        self.caught = prefix + "caught"
        # String: end of the last reserved slot, µs since the epoch (GCRA's TAT).
        self.rate = prefix + "rate"
        # Hash, present while the key or the host is refused: reason, start, the next probe.
        self.pause = prefix + "pause"
        # Hash of `worker:<name>` and `beat:<host>` to `<ms> <queues>`: its last heartbeat, and
        # with commas between those of our queues that the worker serves, then
        # `broker=<fingerprint>`, which a worker of an earlier release does not write.
        self.heartbeats = prefix + "signs"
        # Hash of a kind of queue to `<asked_us> <times>`: when a flush or sweep was asked for that
        # has not begun, and how often it had been asked for before; and of `<kind>:last` to when it
        # was asked for last, begun or not: see `nudges`.
        self.nudges = prefix + "nudges"
        # Hash of the fingerprint of a broker to `<ms> <host>`: when a process of that host last
        # published there: see `heartbeats`.
        self.publishers = prefix + "publishers"
        # Never present. To overwrite it changes nothing, and fails on a server without writes.
        self.void = prefix + "void"
        # Hash of dead letters: `<lane>:<batch>:<n>` to a line of JSON, then the record.
        self.dead = prefix + "dead"
        # Hash: the clock of the project, see `lua/common.lua`. Every stored instant is of it.
        self.clock = clock_beside(prefix)
        # Zset of ids of dead letters, scored by the time of burial (ms).
        self.dead_at = prefix + "dead_at"
        # Hash of whole numbers that only grow: see `histograms`.
        self.histogram_counters = prefix + "tallies"
        # Hash of an import's name to its position: `<lines done> <SHA-256 of those lines>`.
        self.imports = prefix + "imports"

    def lane(self, lane: str) -> LaneKeys:
        """Return the keys of one lane."""
        return LaneKeys(self, lane)


class LaneKeys:
    """Keys of one lane of one project, and those of its endpoint."""

    def __init__(self, project: ProjectKeys, lane: str) -> None:
        """Take the keys of the project and the name of the lane."""
        self.prefix = prefix = f"{project.prefix}{lane}:"
        # List of records, oldest first.
        self.waiting = prefix + "waiting"
        # Zset of records that become waiting later, scored by when they are due (ms). Before each
        # member are 16 digits that no other member has: an identify may be stored twice.
        self.scheduled = prefix + "scheduled"
        # Zset of batches that wait for their slot, scored by the slot (µs).
        self.claimed = prefix + "claimed"
        # Zset of all batches, scored by the time at which a flush must handle them (ms).
        self.leases = prefix + "leases"
        # String: until when (ms) an attempt may be under way whose batch is gone already.
        self.orphaned_request = prefix + "stray"

        endpoint = f"{project.prefix}{sharing(lane)[0]}:"
        # String `until_us since_ms`, present during the wait of a 429 and shortly after.
        self.throttle = endpoint + "throttle"
        # Hash as `pause`, present while the endpoint does not answer, or only refuses.
        self.outage = endpoint + "outage"
        # String: attempts in a row without a usable answer.
        self.failures = endpoint + "failures"
        # String: events in a row that were refused alone, with nothing accepted in between.
        self.refusals = endpoint + "refusals"

    def batch(self, batch_id: str) -> str:
        """Hash of one batch.

        `state` (claimed, sending, released), `token` of its holder, `attempt`, `sent` (number
        of records in that attempt), `due_ms`, `held` (bytes), `cut` (its generation: how often
        records left its head, so that a late answer never counts for other records),
        `answered` (the attempt of the last definite answer, from which waits grow), and while
        a refused event is sought: `suspect` (it is one of the first so many), `refused`
        (events refused alone), `accepted`, `buried`, `passed` (events that the endpoint had
        delivered when a filter refused this batch first). `doubt` (how often it was
        sent in doubt; records sent alone in doubt count in `sole`, and once when that were all).
        """
        return f"{self.prefix}batch:{batch_id}"

    def records(self, batch_id: str) -> str:
        """List of the batch's records."""
        return f"{self.prefix}records:{batch_id}"


def clock_beside(key: str) -> str:
    """Return the key of the clock of the project that a key belongs to."""
    return key[: key.index("}:") + 2] + "clock"
