"""The composition root: reads the settings once a process and builds the parts.

Import opens nothing. A forked child uses nothing of its parent: two processes that share a
socket would receive each other's replies.
"""

from __future__ import annotations

import atexit
import os
import threading
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from mm_tasks.buffer.audit_state import AuditState
from mm_tasks.buffer.batches import Batches, BatchLimits
from mm_tasks.buffer.dead_letters import DeadLetters
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.nudges import Nudges
from mm_tasks.buffer.pauses import Pauses
from mm_tasks.buffer.producer import Producer
from mm_tasks.buffer.purge import Purge
from mm_tasks.buffer.rate_limiter import Limiter
from mm_tasks.buffer.refusals import Refusals
from mm_tasks.buffer.subjects import Subjects
from mm_tasks.client.access import vendor_access
from mm_tasks.client.api import Client
from mm_tasks.connections import redis_client
from mm_tasks.connections.async_client import AsyncClients
from mm_tasks.connections.breaker import Breaker
from mm_tasks.delivery.slots import Delivery, Policy
from mm_tasks.erasure.audit import checkpoint_hook
from mm_tasks.erasure.audit.checkpoint_hook import CheckpointHook
from mm_tasks.erasure.fence_sync import PATIENCE_S, FenceSync
from mm_tasks.erasure.service import ErasureService
from mm_tasks.erasure.traces import TraceFinder
from mm_tasks.erasure.workflow import ErasurePolicy, ErasureWorkflow
from mm_tasks.errors import ConfigurationError
from mm_tasks.events.lanes import BACKFILL, IDENTIFY, TRACK
from mm_tasks.events.limits import BATCH_BRACKETS_BYTES
from mm_tasks.settings import LogFormat, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import SecretStr

    from mm_tasks.erasure.adoption import Adoption
    from mm_tasks.erasure.audit.checkpoints import Checkpoint
    from mm_tasks.erasure.daily_verification import DailyVerification
    from mm_tasks.erasure.store import AuditStore

# A web request waits at most this long for Redis: connect, then one answer. No blind
# repeats, because a write that timed out may have been applied.
PRODUCER_CONNECT_S = 0.4
PRODUCER_ANSWER_S = 0.5
WORKER_TIMEOUT_S = 5.0


class Runtime:
    """The parts of one process, each made at its first use."""

    # False if events are recorded instead of stored: see `testing`.
    has_broker = True

    def __init__(self, settings: Settings) -> None:
        """Take the settings; open nothing."""
        self.settings = settings
        self.event_bytes_max = settings.batch_bytes_max - BATCH_BRACKETS_BYTES
        # A buffer for each lane, on a client that fails fast. Not a `cached_property`: in Python
        # 3.11 its lock belongs to the class. If another thread forks during the first call, the
        # child would wait for the lock for ever.
        breaker = Breaker()
        self.refusals = Refusals(settings.project)
        self.producer_redis = self._redis(PRODUCER_CONNECT_S, PRODUCER_ANSWER_S, breaker)
        self.producers = {
            lane: Producer(
                self.producer_redis,
                self.refusals,
                settings.project,
                lane,
                limits,
                held_bytes_max=settings.buffer_bytes_max,
            )
            for lane, limits in _batch_limits(settings).items()
        }
        self.nudges = Nudges(self.producer_redis, settings.project)
        self.subjects = Subjects(self.producer_redis, settings.project)
        self.async_clients = AsyncClients(
            settings.redis_address,
            sentinels_s=PRODUCER_CONNECT_S,
            wait_s=PRODUCER_CONNECT_S + PRODUCER_ANSWER_S,
            breaker=breaker,
        )

    @cached_property
    def worker_redis(self) -> redis_client.RedisClient:
        """Return the client of workers and commands, without a breaker: they wait for Redis."""
        return self._redis(WORKER_TIMEOUT_S, WORKER_TIMEOUT_S)

    @cached_property
    def client(self) -> Client:
        """Return the HTTP client; raises `ConfigurationError` without a usable key and host."""
        settings = self.settings
        return Client(
            vendor_access(settings.millimetric_host, settings.millimetric_key),
            request_timeout_s=settings.request_timeout_s,
            proxy_url=_text(settings.proxy_url),
            ca_file=settings.ca_file,
        )

    @cached_property
    def deliveries(self) -> dict[str, Delivery]:
        """Return the delivery of each lane."""
        settings, redis = self.settings, self.worker_redis
        policy = Policy(
            flush_interval_s=settings.flush_interval_s,
            lease_s=settings.lease_s,
            probe_interval_s=settings.probe_interval_s,
            park_ambiguous=settings.on_ambiguous == "park",
        )
        limiter = Limiter(
            redis, settings.project, TRACK, settings.batch_rate_per_s, settings.batch_burst
        )
        batches = {
            lane: Batches(redis, settings.project, lane, limits)
            for lane, limits in _batch_limits(settings).items()
        }
        sibling = {TRACK: batches[BACKFILL], BACKFILL: batches[TRACK]}
        return {
            lane: Delivery(
                of_lane,
                None if lane == IDENTIFY else limiter,
                Pauses(redis, settings.project, lane),
                self.client,
                policy,
                partial(self.fence_sync.try_load, PATIENCE_S),
                sibling=sibling.get(lane),
                low_priority=lane == BACKFILL,
            )
            for lane, of_lane in batches.items()
        }

    @cached_property
    def audit_store(self) -> AuditStore:
        """Return the audit store; raises `ConfigurationError` where a setting is of no use."""
        from mm_tasks.erasure.store import AuditStore

        settings = self.settings
        store = AuditStore(
            _audit_url(settings),
            settings.project,
            settings.state_dir,
            pseudonym_key=_text(settings.pseudonym_key),
            controller=settings.controller,
        )
        store.hooks = self._checkpoint_hooks(store)
        return store

    @cached_property
    def erasure_service(self) -> ErasureService:
        """Return the door for erasure requests, on the client that fails fast."""
        store = self.audit_store
        pause = Pauses(self.producer_redis, self.settings.project, None)
        fence_sync = self._fence_sync(self.producer_redis)
        return ErasureService(store.steps, store.commands, fence_sync, pause)

    @property
    def traces(self) -> TraceFinder:
        """Return the finder of what is here of a person, on the client that fails fast."""
        return TraceFinder(self.audit_store.queries, self.subjects)

    @property
    def patient_traces(self) -> TraceFinder:
        """Return the same for commands, which wait for Redis."""
        subjects = Subjects(self.worker_redis, self.settings.project)
        return TraceFinder(self.audit_store.queries, subjects)

    @cached_property
    def fence_sync(self) -> FenceSync:
        """Return the synchronization of the fences in Redis with SQL, for workers and commands."""
        return self._fence_sync(self.worker_redis)

    @cached_property
    def audit_state(self) -> AuditState:
        """Return the findings about the audit log, for workers and commands."""
        return AuditState(self.worker_redis, self.settings.project)

    @property
    def daily_verification(self) -> DailyVerification:
        """Return the daily verification of the audit log."""
        checks = (self.fence_sync.check_store, self.fence_sync.check_log)
        return self.audit_store.daily_verification(self.audit_state, *checks)

    @property
    def adoption(self) -> Adoption:
        """Return the adoption of a log that lost entries."""
        fence = Fence(self.worker_redis, self.settings.project)
        return self.audit_store.adoption(fence, self.audit_state)

    @cached_property
    def erasures(self) -> ErasureWorkflow:
        """Return the erasure workflow."""
        settings = self.settings
        return ErasureWorkflow(
            self.audit_store.steps,
            self.audit_store.commands,
            self.fence_sync,
            Purge(self.worker_redis, settings.project),
            Pauses(self.worker_redis, settings.project, None),
            self.client,
            ErasurePolicy(settings.erasure_passes_s, settings.lease_s, settings.probe_interval_s),
        )

    def trim_dead_letters(self) -> None:
        """Discard dead letters, of all lanes, above the bounds in number and age."""
        settings = self.settings
        age_max_ms = round(settings.dead_age_max_days * 86_400_000)
        dead_letters = DeadLetters(self.worker_redis, settings.project)
        dead_letters.trim(settings.dead_events_max, age_max_ms)

    def _checkpoint_hooks(self, store: AuditStore) -> tuple[CheckpointHook, ...]:
        settings, redis = self.settings, self.worker_redis
        calls: list[Callable[[Checkpoint], None]] = []
        if hook := checkpoint_hook.load(settings.checkpoint_hook):
            calls.append(hook)
        if settings.timestamp_url is not None:
            from mm_tasks.erasure.audit.timestamping import Timestamper, Turns

            calls.append(
                Timestamper(
                    settings.timestamp_url.get_secret_value(),
                    settings.state_dir / "timestamps",
                    store.record,
                    Turns(redis, settings.project),
                    settings.timestamp_interval_s,
                )
            )
        note_failed = self.audit_state.note_hook_failure
        return tuple(CheckpointHook(call, note_failed) for call in calls)

    def _fence_sync(self, redis: redis_client.RedisClient) -> FenceSync:
        project, store = self.settings.project, self.audit_store
        state = AuditState(redis, project)
        return FenceSync(Fence(redis, project), store.queries, store.continuity, state)

    def _redis(
        self, connect_s: float, answer_s: float, breaker: Breaker | None = None
    ) -> redis_client.RedisClient:
        address = self.settings.redis_address
        timeouts = {"connect_s": connect_s, "answer_s": answer_s}
        return redis_client.client(address, **timeouts, breaker=breaker)


def _batch_limits(settings: Settings) -> dict[str, BatchLimits]:
    linger_ms = round(settings.linger_s * 1000)
    full = BatchLimits(settings.batch_events_max, settings.batch_bytes_max, linger_ms)
    # One record a request; its size was bounded when it was validated.
    single = BatchLimits(1, settings.batch_bytes_max, 0)
    return {TRACK: full, IDENTIFY: single, BACKFILL: full}


def _text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _audit_url(settings: Settings) -> str:
    """Return the URL of the audit database.

    Requires the setting if Redis is remote: each host would have its own truth in its own file.
    """
    if settings.audit_url is not None:
        return settings.audit_url.get_secret_value()
    if not settings.redis_address.is_local:
        msg = (
            "MM_TASKS_AUDIT_URL: is required where Redis is on another host, the same for "
            "every process: postgresql://…"
        )
        raise ConfigurationError(msg)
    return f"sqlite:///{settings.state_dir.absolute() / 'audit.sqlite'}"


class _Process:
    """The runtime of one process, and the lock that guards its creation.

    A child keeps a reference to its parent's: garbage collection would close sockets that the
    parent still uses.
    """

    def __init__(self, parent: _Process | None = None) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.runtime: Runtime | None = None
        self.parent = parent
        self.configured: dict[str, Any] = {} if parent is None else parent.configured
        self.replacements: tuple[Runtime, ...] = () if parent is None else parent.replacements
        self.children: dict[int, _Process] = {}  # of the parent: in it, one at most


_process = _Process()


def _current_process() -> _Process:
    """Return the state of this process; after a fork, by whatever program, a new one."""
    global _process  # noqa: PLW0603 - the state of a process is global
    process = _process
    if process.pid != os.getpid():
        # One step of the interpreter: all threads of a child get the same one. No lock: another
        # thread of the parent may hold it at the fork, and will never release it in the child.
        process = process.children.setdefault(os.getpid(), _Process(process))
        _process = process
    return process


def _before_fork() -> None:
    # Not during another thread's first call: pydantic builds some objects at their first
    # use, and the child would wait for a half-built one for ever.
    _current_process().lock.acquire()


def _after_in_parent() -> None:
    _current_process().lock.release()


# A program that is not written in Python, such as uWSGI, may fork without these.
os.register_at_fork(
    before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_current_process
)


@atexit.register
def _store_refusals() -> None:
    """Let Redis take the last counts of this process, if it answers."""
    current = _current_process().runtime
    if current is not None:
        current.refusals.store(current.producer_redis.connection_pool)


def configure(**values: Any) -> None:
    """Let these settings, by field, win over the environment.

    The first use reads them. Raises `ConfigurationError` after the first use.
    """
    process = _current_process()
    with process.lock:
        if process.runtime is not None and values != process.configured:
            msg = "mm_tasks was used before it was configured; configure it earlier"
            raise ConfigurationError(msg)
        process.configured = values


def current() -> Runtime:
    """Return the runtime of this process; the first call makes it.

    A caller asks here each time, since a forked child gets a runtime of its own.
    """
    process = _current_process()
    if replacements := process.replacements:
        return replacements[-1]
    if process.runtime is None:
        with process.lock:
            if process.runtime is None:
                process.runtime = Runtime(load_settings())
    return process.runtime


def load_settings() -> Settings:
    """Read the settings, with the values of `configure`."""
    return Settings.load(_current_process().configured)


def log_form() -> LogFormat:
    """Return the format of log lines, even if a setting is wrong and the error must be logged."""
    try:
        return load_settings().log_format
    except ConfigurationError:
        return "text"


@contextmanager
def replaced(by: Runtime) -> Iterator[None]:
    """Make `by` the runtime of all threads and forked children meanwhile.

    Of several replacements, the newest counts, in whatever order they end.
    """
    process = _current_process()
    with process.lock:
        process.replacements += (by,)
    try:
        yield
    finally:
        # A child leaves its own.
        process = _current_process()
        with process.lock:
            process.replacements = tuple(r for r in process.replacements if r is not by)
