"""What is here of a person: their events in Redis, the fence, and their erasures. Reads only.

Events that were delivered leave no trace here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, RedisError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mm_tasks.buffer.subjects import FoundEvent, Subjects
    from mm_tasks.erasure.queries import ErasureQueries

# A caller of `forget` waits for no search through more records: see `Subjects.cost`.
_COST_MAX = 2000


@dataclass(frozen=True, slots=True)
class Traces:
    """The result of a scan. `fenced` has the user id first; it is None if fences are not loaded.

    `is_complete` is False if the search ended before it had looked at all records.
    """

    events: list[FoundEvent] = field(repr=False)
    is_complete: bool
    fenced: list[bool] | None
    erasures: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class TraceFinder:
    """Finds the traces of persons of one project."""

    queries: ErasureQueries
    subjects: Subjects

    def scan(
        self, user_id: str, anonymous_ids: Sequence[str] = (), steps_max: int | None = None
    ) -> Traces:
        """Search for a person, in at most so many steps of 2 000 records.

        Raises Redis's errors and `AuditUnavailable`.
        """
        tags = self.subjects.tags(user_id, anonymous_ids)
        erasures = self.queries.find(user_id)
        fenced = self.subjects.are_fenced(tags)
        events: list[FoundEvent] = []
        for n, found in enumerate(self.subjects.search(tags)):
            if n == steps_max:
                return Traces(events, is_complete=False, fenced=fenced, erasures=erasures)
            events += found
        return Traces(events, is_complete=True, fenced=fenced, erasures=erasures)

    def is_known(self, user_id: str, anonymous_ids: Sequence[str] = ()) -> bool | None:
        """Return whether there is any trace of a person; None if Redis is away or holds too much.

        False does not mean that the id is wrong: see above. Raises `AuditUnavailable`.
        """
        try:
            if self.queries.find(user_id):
                return True
            if not self.subjects.may_search or self.subjects.cost() > _COST_MAX:
                return None
            return any(self.subjects.search(self.subjects.tags(user_id, anonymous_ids)))
        except NoPermissionError:
            # The user of producers: it is not asked again, since Redis logs what it refuses.
            self.subjects.may_search = False
            return None
        except RedisError:
            return None
