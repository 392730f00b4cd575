"""`mm-tasks audit adopt --restored`: what it shows, asks, refuses and does."""

import os
import sys

import pytest

from mm_tasks.buffer import heartbeats
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.keys import ProjectKeys
from tests.cli.in_process import in_this_process
from tests.erasure.stores import KEY, Store
from tests.system.processes import on_terminal, read_to_end

KEYS = ProjectKeys("default")
ADOPT = ("audit", "adopt", "--restored")
BY = ("--requested-by", "dpo")
QUESTIONS = 3


@pytest.fixture
def lost(redis, stack, tmp_path):
    """A log that has one entry, where Redis and the checkpoints know of four; the store."""
    stack.env["MM_TASKS_PSEUDONYM_KEY"] = KEY
    (tmp_path / "old").mkdir()
    url = f"sqlite:///{tmp_path}/audit.sqlite"
    store = Store(url, tmp_path, "default")
    store.ask("kept")
    tags = set(store.queries.fences())
    for path in tmp_path.glob("audit.sqlite*"):
        (tmp_path / "old" / path.name).write_bytes(path.read_bytes())
    for n in range(3):
        store.ask(f"lost-{n}")
    fence = Fence(redis, "default")
    known = store.continuity.end(fence.state().known)
    fence.load(store.queries.store_id, store.queries.fences)
    fence.adopt(known)
    for path in tmp_path.glob("audit.sqlite*"):
        path.unlink()
    for path in (tmp_path / "old").iterdir():
        path.rename(tmp_path / path.name)
    store = Store(url, tmp_path, "default")
    assert set(store.queries.fences()) == tags
    return store


def command(stack, *words):
    return in_this_process(stack.env, words, "")


def on_a_terminal(stack, typed, *words):
    """Return the exit code, and what was shown on screen and on stdout."""
    command = (sys.executable, "-m", "mm_tasks.cli", *ADOPT, *words)
    process, ours = on_terminal(command, stack.env)
    os.write(ours, typed.encode())
    on_screen = read_to_end(ours).decode()
    os.close(ours)
    stdout, _ = process.communicate(timeout=60)
    return process.returncode, on_screen, stdout


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("audit", "adopt"), "--restored"),
        ((*ADOPT, "--yes"), "is needed with --yes"),
        (ADOPT, "answer the questions on a terminal, or give"),
        ((*ADOPT, "--yes", "--requested-by", "anna@example.com"), "requested_by: must"),
    ],
    ids=["no reason", "nobody", "no terminal", "an address"],
)
def test_it_refuses_to_guess(redis, stack, lost, words, rule):
    before = lost.entries()
    done = command(stack, *words)

    assert done.returncode != 0
    assert rule in done.stderr
    assert lost.entries() == before
    assert redis.hget(KEYS.fences, "log_size") == b"4"


def test_it_shows_what_is_gone_and_enters_it_again(redis, stack, lost, tmp_path):
    heartbeats.write(redis, "default", "worker", "w@host", ["mm.forget"])
    done = command(stack, *ADOPT, "--yes", *BY)

    assert done.returncode == 0, done.stderr
    assert "Redis knows 4 entries, head " in done.stdout
    assert "the log has 1 entries, head " in done.stdout
    assert "audit_log_cut: entries 2 to 4 are gone, 3 at most" in done.stdout
    assert "should stand meanwhile: worker w@host" in done.stderr
    assert "adopted: 3 tags" in done.stdout
    assert "Request again, from your tickets" in done.stdout
    assert redis.scard(KEYS.fence) == len(set(lost.queries.fences())) == 4
    assert len(list(tmp_path.glob("checkpoints.*"))) == 1
    assert command(stack, "audit", "verify").returncode in {0, 3}
    assert "nothing is missing" in command(stack, *ADOPT).stdout


def test_it_asks_on_a_terminal(redis, stack, lost):
    code, on_screen, stdout = on_a_terminal(stack, "y\n" * QUESTIONS + "dpo\n")

    assert code == 0, on_screen
    assert on_screen.count("[y/N]") == QUESTIONS
    assert "adopted: 3 tags" in stdout
    assert lost.parsed("restored")[0]["details"]["requested_by"] == "dpo"
    assert redis.scard(KEYS.fence) == 4


def test_a_no_changes_nothing(redis, stack, lost):
    before = lost.entries()
    code, _, _ = on_a_terminal(stack, "y\nn\n")

    assert code == 1
    assert lost.entries() == before
    assert redis.hget(KEYS.fences, "log_size") == b"4"
