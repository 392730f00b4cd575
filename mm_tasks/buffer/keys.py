"""Every key this package has in Redis, and the layout of a stored record.

Whoever reads this file and `lua/` knows all that is stored. All keys of a
project share the hash tag `{mm:<project>}`, so that a script may touch several
of them on a cluster. A lane is part of the key: `track`, `identify` and `backfill`
are three buffers of the same shape. `backfill` holds what `track` does and goes
to the same endpoint, after it; what concerns the endpoint is one key for both.

A record is a header of 46 bytes and the event's JSON, verbatim:

    "1"           1 byte    format version
    accepted_ms  13 digits  Redis's clock when it was stored, ms since the epoch
    user tag     16 bytes   tag of `user_id`, or zeros
    anonymous    16 bytes   tag of `anonymous_id`, or zeros

The first 14 bytes are put there by `append.lua`.
"""

from __future__ import annotations

from typing import NamedTuple

from mm_tasks.events.lanes import sharing


class ProjectKeys(NamedTuple):
    """Keys shared by all lanes of one project."""

    project: str

    def _key(self, name: str) -> str:
        return f"{{mm:{self.project}}}:{name}"

    @property
    def counts(self) -> str:
        """Hash of whole numbers: `<lane>:<place>` counts events, `held_bytes` bytes.

        See `lua/common.lua` for the fields.
        """
        return self._key("counts")

    @property
    def fence(self) -> str:
        """Set of tags of erased subjects: looked at by append, claim and begin."""
        return self._key("fence")

    @property
    def fences(self) -> str:
        """Hash: whose fences `fence` holds, and whether they are all of them.

        `store` (id of the audit store), `run_id` (of the server that they were loaded for:
        a restart or a failover makes it another one, FLUSHALL removes it), `log_size` (entries
        its audit log had at least), while a load goes on `loading` (its token) and
        `loading_ms` (when it gave a sign), and while loads fail `why` and `since_ms`.
        """
        return self._key("fences")

    @property
    def fence_draft(self) -> str:
        """Set of tags that becomes `fence` once it is complete."""
        return self._key("fence_draft")

    @property
    def caught(self) -> str:
        """Hash of tag to number of records that the fence took out on their way.

        Until the erasure of that subject has taken the number over.
        """
        return self._key("caught")

    @property
    def rate(self) -> str:
        """String: end of the last reserved slot, µs since the epoch (GCRA's TAT)."""
        return self._key("rate")

    @property
    def pause(self) -> str:
        """Hash, there while the key or the host is refused: why, since when, the next probe."""
        return self._key("pause")

    @property
    def heartbeats(self) -> str:
        """Hash of `worker:<name>` and `beat:<host>` to when it was last seen (ms), and its queues.

        The queues are ours that the worker serves: `<ms> mm.forget,mm.deliver`.
        """
        return self._key("signs")

    @property
    def void(self) -> str:
        """Never there: to overwrite it changes nothing, and fails where nothing is written."""
        return self._key("void")

    @property
    def dead(self) -> str:
        """Hash of dead letters: `<lane>:<batch>:<n>` to a line of JSON, then the record."""
        return self._key("dead")

    @property
    def dead_at(self) -> str:
        """Zset of ids of dead letters, scored by the time of burial (ms)."""
        return self._key("dead_at")

    @property
    def histogram_counters(self) -> str:
        """Hash of whole numbers that only grow: see `histograms`."""
        return self._key("tallies")

    @property
    def imports(self) -> str:
        """Hash of an import's name to where it stands: `<lines done> <SHA-256 of those lines>`."""
        return self._key("imports")

    def lane(self, lane: str) -> LaneKeys:
        """Return the keys of one lane."""
        return LaneKeys(self.project, lane)


class LaneKeys(NamedTuple):
    """Keys of one lane of one project; those of its endpoint are its neighbours' too."""

    project: str
    lane: str

    def _key(self, name: str) -> str:
        return f"{{mm:{self.project}}}:{self.lane}:{name}"

    def _shared_key(self, name: str) -> str:
        return f"{{mm:{self.project}}}:{sharing(self.lane)[0]}:{name}"

    @property
    def waiting(self) -> str:
        """List of records, oldest first."""
        return self._key("waiting")

    @property
    def claimed(self) -> str:
        """Zset of batches that wait for their slot, scored by the slot (µs)."""
        return self._key("claimed")

    @property
    def leases(self) -> str:
        """Zset of all batches, scored by when a flush looks at them again (ms)."""
        return self._key("leases")

    @property
    def throttle(self) -> str:
        """String `until_us since_ms`, there while and shortly after a 429's wait."""
        return self._shared_key("throttle")

    @property
    def outage(self) -> str:
        """Hash as `pause`, there while the endpoint gives no answer, or refusals alone."""
        return self._shared_key("outage")

    @property
    def failures(self) -> str:
        """String: attempts in a row that reached nobody or were not understood."""
        return self._shared_key("failures")

    @property
    def refusals(self) -> str:
        """String: events refused by themselves in a row, nothing accepted in between."""
        return self._shared_key("refusals")

    @property
    def orphaned_request(self) -> str:
        """String with an expiry: an attempt may be on its way whose batch is gone already."""
        return self._key("stray")

    @property
    def nudge(self) -> str:
        """String with an expiry: a flush was asked for a moment ago."""
        return self._key("nudge")

    def batch(self, batch_id: str) -> str:
        """Hash of one batch.

        `state` (claimed, sending, released), `token` of its holder, `attempt`, `sent` (how
        many records that carried), `due_ms`, `held` (bytes), `cut` (how often its head was
        taken off, so that a late answer is not taken for another part's), `answered` (the
        attempt of the last answer that left no doubt, from which waits grow), and while a
        refused event is sought: `suspect` (the first so many hold it), `refused` (alone),
        `accepted`, `buried`, `passed` (events that the endpoint had delivered when a filter refused
        this batch first).
        """
        return self._key(f"batch:{batch_id}")

    def records(self, batch_id: str) -> str:
        """List of the batch's records."""
        return self._key(f"records:{batch_id}")
