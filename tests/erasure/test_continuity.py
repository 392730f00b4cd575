"""A log that went back: every process that could lower a fence finds it, and lowers none."""

import pytest
from sqlalchemy import text

from mm_tasks.buffer.audit_state import AuditState
from mm_tasks.buffer.fence import Fence, LogEnd
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.pauses import Pauses
from mm_tasks.erasure.adoption import Adoption
from mm_tasks.erasure.audit.continuity import CUT, FORKED, Continuity
from mm_tasks.erasure.audit.verification import verify, verify_lines
from mm_tasks.erasure.fence_sync import FenceSync
from mm_tasks.erasure.request import ErasureRequest
from mm_tasks.erasure.service import ErasureService
from mm_tasks.errors import AuditChainBroken, ConfigurationError, InvalidEvent
from tests.erasure.stores import Store

KEYS = ProjectKeys("p")
TABLES = (
    "mm_erasure_audit",
    "mm_checkpoints",
    "mm_erasures",
    "mm_erasure_passes",
    "mm_suppressions",
)


class Host:
    """A process of a host that has a state directory of its own."""

    def __init__(self, redis, url, folder, name):
        folder.mkdir(exist_ok=True)
        self.store = Store(url, folder)
        self.name = name
        self.redis = redis
        self.restart()

    def restart(self):
        """Forget what a process remembers."""
        state = AuditState(self.redis, "p", self.name)
        continuity = Continuity(self.store.session)
        self.fence = Fence(self.redis, "p")
        self.sync = FenceSync(self.fence, self.store.queries, continuity, state)
        pause = Pauses(self.redis, "p", None)
        self.service = ErasureService(self.store.steps, self.store.commands, self.sync, pause)

    def forget(self, user_id):
        return self.service.request(ErasureRequest(user_id, "dpo"))

    def fails_to_load(self):
        """Return the reason why nothing was loaded."""
        with pytest.raises(AuditChainBroken) as broken:
            self.sync.load()
        return broken.value.reason


@pytest.fixture
def host(redis, url, tmp_path):
    return Host(redis, url, tmp_path / "a", "host-a")


@pytest.fixture
def other(redis, url, tmp_path, host):  # noqa: ARG001 - the first one makes the tables
    return Host(redis, url, tmp_path / "b", "host-b")


@pytest.fixture
def database(host):
    return Backup(host.store)


class Backup:
    """Copies of the tables, and their return while everything runs on."""

    def __init__(self, store):
        self.store = store

    def take(self):
        """Copy every table but that of the store's identity."""
        with self.store.database.read() as connection:
            rows = {
                t: connection.execute(text(f"SELECT * FROM {t}")).mappings().all() for t in TABLES
            }
        self.rows = {table: list(map(dict, found)) for table, found in rows.items()}

    def loses_a_request_of(self, host):
        """Go back to the time before a request, which is accepted meanwhile."""
        self.take()
        host.forget("lost")
        self.put_back()

    def put_back(self):
        with self.store.tampering() as connection:
            for table in reversed(TABLES):
                connection.execute(text(f"DELETE FROM {table}"))
            for table, rows in self.rows.items():
                for row in rows:
                    names = ", ".join(row)
                    values = ", ".join(f":{name}" for name in row)
                    connection.execute(
                        text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row
                    )


def fenced(redis):
    return redis.scard(KEYS.fence)


def marks(redis):
    return AuditState(redis, "p").read().differing


@pytest.mark.parametrize("lost", [1, 7, 20])
def test_a_log_that_went_back_and_grew_again_lowers_no_fence(redis, host, database, lost):
    """The person whose request was lost stays fenced, whoever asks for whatever afterwards."""
    host.forget("kept")
    host.sync.load()
    database.take()
    for n in range(lost):
        host.forget(f"lost-{n}")
    database.put_back()
    assert host.fails_to_load() == CUT
    known, later = host.fence.state().known, 0
    while len(host.store.entries()) <= known.size:
        assert host.forget(f"later-{later}").is_fenced
        later += 1

    assert host.fails_to_load() == FORKED
    redis.hdel(KEYS.fences, "run_id")  # as after a restart of Redis
    assert not host.sync.try_load()
    assert redis.hget(KEYS.fences, "why") == FORKED.encode()
    assert host.fence.state().known == known
    assert fenced(redis) == 1 + lost + later
    assert marks(redis) == {"host-a": FORKED}


def test_a_load_that_ignored_the_head_would_be_reported(redis, host, database, monkeypatch):
    """The size alone does not show a log that grew again."""

    def of_size(self, known, *, end=Continuity.end, **how):
        return end(self, known._replace(head=""), **how)

    monkeypatch.setattr(Continuity, "end", of_size)
    host.sync.load()
    database.loses_a_request_of(host)
    (host.store.folder / "checkpoints").unlink()
    host.restart()
    host.forget("later")
    host.sync.load()

    assert fenced(redis) == 1


def test_a_sweep_finds_it_without_a_load(redis, host, database):
    host.sync.load()
    database.loses_a_request_of(host)
    host.forget("later")
    host.restart()
    with pytest.raises(AuditChainBroken):
        host.sync.reconcile()

    assert marks(redis) == {"host-a": FORKED}
    assert fenced(redis) == 2


def test_the_file_of_checkpoints_shows_it_where_redis_knows_nothing(redis, host, other, database):
    """Redis lost its memory at the same time. What one host found stops the loads of all."""
    host.forget("kept")
    database.loses_a_request_of(host)
    other.forget("later")
    other.forget("even later")
    redis.flushall()
    other.sync.check_log()
    with pytest.raises(AuditChainBroken):
        host.sync.check_log()
    assert other.fails_to_load() == FORKED
    other.restart()
    assert other.fails_to_load() == FORKED

    # The file is put aside, as the runbook says.
    (host.store.folder / "checkpoints").rename(host.store.folder / "old")
    host.sync.check_log()
    assert marks(redis) == {}
    other.sync.load()


def test_a_process_that_compared_its_file_before_compares_the_end_again(
    redis, host, other, database
):
    """Redis loses its memory after the log went back and before this process looks."""
    host.forget("kept")
    database.take()
    host.forget("lost")
    host.sync.check_log()
    database.put_back()
    other.forget("later")
    other.forget("even later")
    redis.flushall()

    with pytest.raises(AuditChainBroken):
        host.sync.check_log()


def test_an_old_checkpoint_in_a_long_file_counts_at_the_start(redis, host, other, database):
    """Later lines of the same file agree: the log had grown past the old ones."""
    host.forget("kept")
    database.loses_a_request_of(host)
    redis.flushall()
    (host.store.folder / "checkpoints").rename(host.store.folder / "old")
    for n in range(60):
        other.forget(f"later-{n}")
        host.store.log.checkpoint()
    with (host.store.folder / "checkpoints").open("r+") as file:
        new = file.read()
        file.seek(0)
        file.write((host.store.folder / "old").read_text() + new)
    host.forget("one more")  # looks at the last lines only
    assert marks(redis) == {}

    with pytest.raises(AuditChainBroken) as broken:
        host.sync.check_log()
    assert broken.value.reason == FORKED


def test_a_fence_that_was_raised_when_its_entry_was_lost_is_raised_again(
    redis, host, other, database
):
    """A load between the raise and the finding lowered it, and `.fenced` is true all the same."""
    host.sync.load()
    database.take()
    claim = host.store.ask("lost").claim
    database.put_back()
    added = host.fence.add

    def add_and_be_overtaken(*args):
        result = added(*args)
        host.fence.add = added
        other.sync.load()
        assert fenced(redis) == 0
        return result

    host.fence.add = add_and_be_overtaken
    host.sync.add(claim)

    assert fenced(redis) == 1
    assert other.fails_to_load() == CUT


def test_a_sweep_lets_redis_know_each_entry(redis, host, database):
    """Also one that raises no fence: what a later failover loses is found by every host."""
    claim = host.store.ask("somebody").claim
    host.sync.add(claim)
    database.take()
    host.store.steps.mark_fenced(claim)
    host.sync.reconcile()
    assert host.fence.state().known.size == 2
    database.put_back()
    (host.store.folder / "checkpoints").unlink()
    with pytest.raises(AuditChainBroken):
        host.sync.reconcile()
    assert marks(redis) == {"host-a": CUT}


def test_a_process_with_another_store_marks_nothing(redis, host, tmp_path):
    """One wrong setting must not stop the loads of all others."""
    host.forget("somebody")
    (tmp_path / "c").mkdir()
    wrong = Host(redis, f"sqlite:///{tmp_path}/c/audit.sqlite", tmp_path / "c", "host-c")
    wrong.store.ask("another")
    for call in (wrong.sync.reconcile, wrong.sync.check_log, wrong.sync.load):
        with pytest.raises(ConfigurationError):
            call()
    assert marks(redis) == {}

    host.sync.load()


@pytest.mark.parametrize("command", ["cancel", "lift"])
def test_no_fence_is_lowered_on_the_word_of_such_a_log(redis, host, database, command):
    """Otherwise `adopt` would take the fence, which stays in Redis, for that of a lost person."""
    erasure = host.store.completed(user_id="old").id
    if command == "cancel":
        erasure = host.forget("new").id
    host.sync.load()
    before = fenced(redis)
    database.loses_a_request_of(host)
    entries = host.store.entries()
    with pytest.raises(AuditChainBroken):
        getattr(host.service, command)(erasure, "dpo")
    assert host.store.entries() == entries
    adopted(host)
    getattr(host.service, command)(erasure, "dpo")

    assert fenced(redis) == before  # one less, and the lost person
    verify(host.store.log)


def test_a_mark_of_a_host_that_is_gone_ends_after_a_day(redis, host):
    host.sync.load()
    AuditState(redis, "p", "gone").mark_log(FORKED)
    assert host.fails_to_load() == FORKED
    at, word = redis.hget(KEYS.audit, "log:gone").decode().split()
    redis.hset(KEYS.audit, "log:gone", f"{int(at) - 86_400_001} {word}")

    host.sync.load()


def test_an_entry_that_is_gone_from_the_middle_is_missed(redis, host):
    """Its number is a checkpoint's, and no other line has it."""
    for n in range(3):
        host.forget(f"somebody-{n}")
    with host.store.tampering() as connection:
        connection.execute(text("DELETE FROM mm_erasure_audit WHERE seq = 2"))

    with pytest.raises(AuditChainBroken):
        host.sync.check_log()
    assert marks(redis) == {"host-a": FORKED}


def test_a_size_that_an_earlier_release_stored_is_compared_as_a_size(redis, host):
    host.forget("somebody")
    size = host.fence.state().known.size
    redis.hdel(KEYS.fences, "log_head")
    host.sync.load()
    assert host.fence.state().known.head
    redis.hset(KEYS.fences, "log_size", size + 5)
    redis.hdel(KEYS.fences, "log_head")

    assert host.fails_to_load() == CUT


def test_an_empty_log_has_no_witness_to_fear(host):
    host.sync.check_log()
    host.sync.load()

    assert host.fence.state().known == LogEnd(0, "0" * 64)


# A person adopts the log.


def adopted(host, by="dpo"):
    adoption = Adoption(host.store.session, host.fence, host.sync._state)  # noqa: SLF001
    result = adoption.adopt(adoption.look(), by)
    host.restart()
    host.sync.load()
    return result


@pytest.mark.parametrize(
    ("lost", "is_redis_restarted"), [(1, False), (20, True)], ids=["one", "twenty"]
)
def test_an_adopted_log_keeps_everybody_fenced_and_verifies(  # noqa: PLR0913, PLR0917 - a scene
    redis, host, other, database, lost, is_redis_restarted
):
    host.forget("kept")
    host.sync.load()
    database.take()
    for n in range(lost):
        host.forget(f"lost-{n}")
    database.put_back()
    for n in range(lost + 3):
        other.forget(f"later-{n}")
    before = redis.smembers(KEYS.fence)
    if is_redis_restarted:
        redis.hdel(KEYS.fences, "run_id")
    assert host.fails_to_load() == FORKED
    loss = Adoption(host.store.session, host.fence, host.sync._state).look()  # noqa: SLF001
    # `fenced` of the first, and of each lost one.
    assert (loss.agreed, loss.seen, loss.reason) == (2, 2 + 2 * lost, FORKED)

    result = adopted(host)
    assert result.tags == lost
    assert result.set_aside.exists()
    assert redis.smembers(KEYS.fence) == before
    assert marks(redis) == {}
    entry = host.store.parsed("restored")[0]["details"]
    assert entry["tags"] == lost
    assert entry["requested_by"] == "dpo"
    assert entry["known_size"] == 1 + 2 * lost  # when the last fence was raised
    verify(host.store.log)
    exported = list(host.store.log.export())
    assert verify_lines(exported).size == len(exported) - 1
    # The other host has its old file until somebody puts it aside.
    other.sync.check_log()
    assert adopted(host).tags == 0
    assert redis.smembers(KEYS.fence) == before


@pytest.mark.parametrize("mode", ["suppress", "once"])
def test_a_restored_person_is_free_once_an_erasure_of_theirs_is_lifted(redis, host, database, mode):
    host.sync.load()
    database.take()
    host.forget("lost")
    host.forget("lost too")
    database.put_back()
    adopted(host)
    assert fenced(redis) == 2
    cancelled = host.forget("lost").id
    host.service.cancel(cancelled, "dpo")
    assert fenced(redis) == 2  # the lost erasure may have been completed

    erasure = host.store.completed(user_id="lost", mode=mode)
    if mode == "suppress":
        host.service.lift(erasure.id, "dpo")
    host.sync.load()
    assert fenced(redis) == 1
    assert host.store.parsed("restored_lifted")[0]["details"]["original"] == erasure.id
    verify(host.store.log)


def test_a_restored_row_that_somebody_changes_is_found(host, database):
    host.sync.load()
    database.loses_a_request_of(host)
    adopted(host)
    with host.store.tampering() as connection:
        connection.execute(text("DELETE FROM mm_suppressions"))

    with pytest.raises(AuditChainBroken):
        host.sync.load()
    with pytest.raises(AuditChainBroken, match="its fences are not what the log says"):
        verify(host.store.log)


def test_a_reference_that_is_none_adopts_nothing(host, database):
    host.sync.load()
    database.loses_a_request_of(host)
    before = host.store.entries()
    with pytest.raises(InvalidEvent):
        adopted(host, "anna@example.com")

    assert host.store.entries() == before
    assert host.fails_to_load() == CUT
