"""An audit store in one line, and an erasure taken as far as a test needs it."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

from sqlalchemy import NullPool, create_engine, text

from mm_tasks.erasure.audit.checkpoint_hook import CheckpointHook
from mm_tasks.erasure.audit.checkpoints import CheckpointSinks
from mm_tasks.erasure.audit.continuity import Continuity
from mm_tasks.erasure.audit.database import Database
from mm_tasks.erasure.audit.log import AuditLog
from mm_tasks.erasure.audit.pseudonyms import Pseudonyms
from mm_tasks.erasure.audit.session import AuditSession
from mm_tasks.erasure.commands import ErasureCommands
from mm_tasks.erasure.models import VendorAck
from mm_tasks.erasure.queries import ErasureQueries
from mm_tasks.erasure.request import ErasureRequest
from mm_tasks.erasure.steps import ErasureSteps

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
KEY = "a key for tests, of no use elsewhere"
PASSES_S = (0, 900, 86_400)
DONE = VendorAck(200, "acknowledged")
USER, VISITOR = "user-4f1c-secret", "visitor-77aa-secret"


class Timed:
    """A part of a store. An instant among the arguments of a call sets the database's clock."""

    def __init__(self, store, part):
        self._store = store
        self._part = part

    def __getattr__(self, name):
        value = getattr(self._part, name)
        return partial(self._call, value) if callable(value) else value

    def _call(self, method, *arguments, **named):
        for now in (one for one in arguments if isinstance(one, datetime)):
            self._store.now = now
        return method(*(one for one in arguments if not isinstance(one, datetime)), **named)


class Store:
    """The parts over one database, as one process has them. The database's clock is the test's."""

    def __init__(self, url, folder, project="p", hook=None, clock=None):
        self.url = url
        self.folder = folder
        self.now = NOW
        self.clock = clock or (lambda: self.now)
        self.database = Database(url, lambda _: self.clock())
        key, hooks = Pseudonyms(KEY), () if hook is None else (CheckpointHook(hook),)
        outside = CheckpointSinks(folder / "checkpoints", hooks)
        self.log = AuditLog(self.database, outside, lambda: key)
        self.session = AuditSession(self.log, key, project)
        self.continuity = Continuity(self.session)
        self.steps = Timed(self, ErasureSteps(self.session))
        self.commands = Timed(self, ErasureCommands(self.session))
        self.queries = Timed(self, ErasureQueries(self.session))

    def ask(self, user_id=USER, now=NOW, delay_s=0, **fields):
        request = ErasureRequest(user_id, fields.pop("requested_by", "dpo"), **fields)
        return self.commands.open_request(request, now, delay_s=delay_s)

    def quiesced(self, now=NOW, **fields):
        """An erasure whose first pass is due; its claim."""
        claim = self.ask(now=now, **fields).claim
        claim = self.steps.mark_fenced(claim, now)
        claim = self.steps.mark_purged(claim, {"track:waiting": 2, "dead": 0}, now)
        return self.steps.mark_quiesced(claim, PASSES_S, now)

    def call(self, claim, answer=DONE, now=NOW):
        return self.steps.result(self.steps.intent(claim, now), answer, now)

    def completed(self, now=NOW, aof="", **fields):
        return self.complete(self.quiesced(now, **fields), now, aof)

    def complete(self, claim, now=NOW, aof=""):
        """Call the vendor for every pass, and complete the erasure."""
        for wait_s in PASSES_S:
            now += timedelta(seconds=wait_s)
            self.call(claim, now=now)
        erasure = self.steps.complete(claim, now)
        if aof:
            self.steps.record_aof([claim.id], aof)
        return erasure

    def entries(self):
        with self.database.read() as connection:
            query = text("SELECT line FROM mm_erasure_audit ORDER BY seq")
            return list(connection.execute(query).scalars())

    def parsed(self, kind=None):
        """Return the entries of the log, or those of one kind."""
        entries = map(json.loads, self.entries())
        return [entry for entry in entries if kind in {None, entry["entry"]}]

    def kinds(self):
        return [entry["entry"] for entry in self.parsed()]

    @contextmanager
    def tampering(self):
        """A connection of the database's owner, who dropped the guards."""
        with self.database.write() as connection:
            for table in ("mm_erasure_audit", "mm_checkpoints"):
                for kind in ("no_update", "no_delete", "next"):
                    on = "" if self.database.is_sqlite else f" ON {table}"
                    connection.execute(text(f"DROP TRIGGER IF EXISTS {table}_{kind}{on}"))
            # SQLite's indexes refuse a line that is not JSON.
            for name in ("erasure", "added"):
                connection.execute(text(f"DROP INDEX IF EXISTS mm_erasure_audit_{name}"))
            yield connection


def after(**duration):
    return NOW + timedelta(**duration)


def at_once(call, count=8):
    """Call a function in this many threads that start together; return the results."""
    start = threading.Barrier(count)

    def run(_):
        start.wait()
        return call()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def raw_engine(url, **options):
    """What any client of the database has: nothing of ours in between."""
    named = url.replace("postgresql://", "postgresql+psycopg://")
    return create_engine(named, poolclass=NullPool, **options)
