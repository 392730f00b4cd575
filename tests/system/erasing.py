"""Erasures by real processes, and the person's traces in Redis and on disk."""

import base64
import json
from typing import NamedTuple

import requests
from redis import Redis

from mm_tasks.erasure.audit.verification import verify
from mm_tasks.monitoring import status
from tests.erasure.stores import KEY as PSEUDONYM_KEY
from tests.erasure.stores import Store
from tests.system.processes import run

PERSON = "person-4f1c-secret"

_FORGET = """
import json, time
from mm_tasks import forget
receipt = forget.delay({user_id!r}, "dpo", **{fields!r})
print(json.dumps([receipt.id, receipt.fenced, receipt.accepted, time.time()]))
"""


class Receipt(NamedTuple):
    """The result of `forget.delay` in a process of its own, and when it returned."""

    id: str
    fenced: bool
    accepted: bool
    returned_at: float


class Erasing:
    """The stack, and the audit store as its processes have it."""

    def __init__(self, stack):
        self.stack = stack
        stack.env.update(MM_TASKS_REQUEST_TIMEOUT_S="1", MM_TASKS_LEASE_S="6")
        stack.env.update(MM_TASKS_FLUSH_INTERVAL_S="0.5", MM_TASKS_LINGER_S="0.5")
        stack.env.update(MM_TASKS_PSEUDONYM_KEY=PSEUDONYM_KEY, MM_TASKS_ERASURE_PASSES_S="0")
        stack.env["MM_TASKS_ERASURE_GRACE_S"] = "0"

    @property
    def store(self):
        url = f"sqlite:///{self.stack.log_dir}/audit.sqlite"
        return Store(self.stack.env.get("MM_TASKS_AUDIT_URL", url), self.stack.log_dir, "default")

    def forget(self, user_id=PERSON, **fields):
        program = _FORGET.format(user_id=user_id, fields=fields)
        return Receipt(*json.loads(self.stack.produce(program)))

    def shown(self, erasure):
        return self.store.queries.show(erasure)

    def listed(self):
        return self.store.queries.listed()

    def state(self, erasure):
        return self.shown(erasure)["state"]

    def wait_until_completed(self, *erasures, within_s=60):
        self.stack.wait(lambda: set(map(self.state, erasures)) == {"completed"}, within_s)
        verify(self.store.log)

    def entries(self, erasure):
        """Return kind and details of the log's entries, in order."""
        lines = map(json.loads, self.store.entries())
        return [(line["entry"], line["details"]) for line in lines if line["erasure"] == erasure]

    def calls(self, erasure):
        """Return the pass of each attempt and its outcome, None without one."""
        calls = {}
        for kind, details in self.entries(erasure):
            if kind == "intent":
                calls[details["attempt"]] = [details["pass"], None]
            elif kind == "result":
                calls[details["attempt"]][1] = details["outcome"]
        return list(map(tuple, calls.values()))

    def counts(self):
        """Return the number of events in each place."""
        with Redis.from_url(self.stack.env["MM_TASKS_REDIS_URL"]) as redis:
            return status.read(redis, "default")["counts"]

    def counts_shown(self):
        return json.loads(run(self.stack.env, "status", "--json").stdout)["counts"]

    def wait_until_all_is_sent(self):
        """Wait, and return the counts, which must add up."""

        def settled():
            counts = self.counts()
            return None if counts["waiting"] or counts["leased"] else counts

        counts = self.stack.wait(settled)
        places = ("delivered", "dead", "erased", "discarded")

        assert counts["accepted"] == sum(counts[place] for place in places), counts
        return counts

    def lines(self, name):
        text = requests.get(f"{self.stack.host}/_sandbox/{name}", timeout=60).text
        return list(map(json.loads, text.splitlines()))

    def rows_of(self, person):
        """Return the rows that the vendor holds of a person."""
        return [row for row in self.lines("rows") if row["user_id"] == person]

    def calls_of_forget(self):
        return [call for call in self.stack.get("requests") if call["route"] == "/v1/forget"]


def _traces(text):
    """Return the forms that show a text: itself, and base64 at any place in a longer text."""
    yield text.encode()
    for before in range(3):
        raw = base64.b64encode(b"\0" * before + text.encode())
        yield raw[-(-before * 4 // 3) : len(raw) // 4 * 4 - 4]


def holders(stack, redis, text):
    """Return every key of every database and every file of this test that shows a text."""
    traces = list(_traces(text))
    port = redis.connection_pool.connection_kwargs["port"]
    names = []
    for number in range(int(redis.config_get("databases")["databases"])):
        with Redis(port=port, db=number) as client:
            for key in client.scan_iter(count=1000):
                raw = key + b"\n" + (client.dump(key) or b"")
                names += [key.decode()] if any(trace in raw for trace in traces) else []
    for path in stack.log_dir.rglob("*"):
        raw = path.read_bytes() if path.is_file() else b""
        names += [path.name] if any(trace in raw for trace in traces) else []
    return names
