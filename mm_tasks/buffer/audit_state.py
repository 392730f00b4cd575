"""The state of the audit log as workers and commands found it, for every process to see.

The hash `audit` has these fields; instants are of the project's clock, in ms:

    log:<host>     `<ms> <reason>`: the log lacks entries that Redis or a checkpoint file of this
                   host saw. Present until a later comparison on the same host succeeds
    began          `<ms>`: when the daily verification began its last run
    whole          `<ms>`: when it last began with the first entry
    reached        `<size> <head>`: how far it came
    stepping       `<ms>`: a worker takes a step of it
    verified       `<ms> <size>`: the last complete run, and the size of the log
    broken         `<ms> <rule>`: the last run found this, and no later one succeeded
    guards         `<ms> <names>`: triggers that were missing
    hook_failures  `<n>`: how often the checkpoint hook failed
    hook_failed_ms `<ms>`: when it failed last

No value holds an id of a person or a tag.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mm_tasks.buffer import clock
from mm_tasks.buffer.fence import LogEnd
from mm_tasks.buffer.keys import ProjectKeys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

# A mark of a host that is gone ends by itself after this time.
_DAY_S = 86_400
_OF_LOG = "log:"
_RUN = ("began", "whole", "reached")
# A step of the verification takes less time, or its worker died.
_STEP_S = 60


@dataclass(frozen=True, slots=True)
class AuditFindings:
    """The fields at one moment. Ages are in seconds."""

    now_ms: int = 0
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def differing(self) -> dict[str, str]:
        """Return the hosts that found that the log lacks entries, each with the reason."""
        marks = {name: value for name, value in self.fields.items() if name.startswith(_OF_LOG)}
        recent = (name for name in marks if self.age_s(name) < _DAY_S)
        return {name.removeprefix(_OF_LOG): self._text(name) for name in sorted(recent)}

    @property
    def verified_age_s(self) -> float | None:
        """Return the time since the last verification that succeeded; None before the first."""
        return self.age_s("verified") if "verified" in self.fields else None

    @property
    def verified_size(self) -> int:
        """Return the size of the log that was verified last."""
        return int(self._text("verified") or 0)

    @property
    def broken(self) -> str:
        """Return the rule that the last verification found broken; empty if it succeeded."""
        return self._text("broken")

    @property
    def guards_missing(self) -> str:
        """Return the names of missing triggers, with commas between; empty if all are there."""
        return self._text("guards")

    @property
    def has_hook_failed(self) -> bool:
        """Return whether the checkpoint hook failed within a day."""
        return self.age_s("hook_failed_ms") < _DAY_S

    @property
    def reached(self) -> LogEnd:
        """Return how far the daily verification came."""
        size, _, head = self.fields.get("reached", "0 ").partition(" ")
        return LogEnd(int(size), head)

    @property
    def is_running(self) -> bool:
        """Return whether the last verification that began has not ended."""
        return self.age_s("began") < min(self.age_s("verified"), self.age_s("broken"))

    def age_s(self, name: str) -> float:
        """Return the age of a field; 0 for one of the future, infinite without it."""
        at, _, _ = self.fields.get(name, "").partition(" ")
        return max(0, self.now_ms - int(at)) / 1000 if at else float("inf")

    def _text(self, name: str) -> str:
        return self.fields.get(name, "").partition(" ")[2]


class AuditState:
    """The findings about the audit log of one project, kept in Redis."""

    def __init__(self, redis: Redis, project: str, host: str | None = None) -> None:
        """Take the client; read nothing. `host` names the marks of this process."""
        self._redis = redis
        self._project = project
        self._key = ProjectKeys(project).audit
        self.host = host or socket.gethostname()

    def read(self) -> AuditFindings:
        """Return what was found so far."""
        stored: Any = self._redis.hgetall(self._key)
        fields = {name.decode(): value.decode() for name, value in stored.items()}
        return AuditFindings(clock.read(self._redis, self._project).now_ms, fields)

    def mark_log(self, reason: str) -> bool:
        """Note that the log lacks entries; return whether this host had not noted it before."""
        return bool(self._set(f"{_OF_LOG}{self.host}", reason))

    def unmark_log(self) -> None:
        """Note that the log has every entry that this host knows of."""
        self._redis.hdel(self._key, f"{_OF_LOG}{self.host}")

    def claim_step(self, findings: AuditFindings) -> bool:
        """Return whether this process may take a step of the verification.

        Two processes that ask at once may both do so: they find the same.
        """
        if findings.age_s("stepping") < _STEP_S:
            return False
        self._set("stepping")
        return True

    def end_step(self) -> None:
        """Let another process take the next step."""
        self._redis.hdel(self._key, "stepping")

    def begin_run(self, *, whole: bool) -> None:
        """Note that a verification begins, with the first entry or after the last one reached."""
        self._set("began")
        if whole:
            self._set("whole")
            self.reach(LogEnd())

    def reach(self, end: LogEnd) -> None:
        """Note how far the verification came."""
        self._redis.hset(self._key, "reached", f"{end.size} {end.head}")

    def verified(self, size: int) -> None:
        """Note that a log of this size was verified."""
        self._set("verified", str(size))
        self._redis.hdel(self._key, "broken")

    def found_broken(self, rule: str) -> None:
        """Note the first rule that did not hold."""
        self._set("broken", rule)

    def guards(self, missing: str) -> None:
        """Note the triggers that are missing; none is good."""
        if missing:
            self._set("guards", missing)
        else:
            self._redis.hdel(self._key, "guards")

    def note_hook_failure(self) -> None:
        """Count a failure of the checkpoint hook."""
        self._redis.hincrby(self._key, "hook_failures", 1)
        self._set("hook_failed_ms")

    def reset(self) -> None:
        """Forget the marks of all hosts, and verify from the first entry next."""
        marks = [name for name in self.read().fields if name.startswith(_OF_LOG)]
        self._redis.hdel(self._key, *marks, *_RUN, "broken")

    def _set(self, name: str, text: str = "") -> int:
        at = clock.read(self._redis, self._project).now_ms
        return int(self._redis.hset(self._key, name, f"{at} {text}".rstrip()))
