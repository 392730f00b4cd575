"""Checkpoints outside: after each commit, and not undone by a disk that fails."""

import logging

from mm_tasks.erasure.audit.checkpoints import Checkpoint, CheckpointSinks
from tests.erasure.stores import USER, Store

ONE = Checkpoint(1, "a" * 64, "2026-01-31T12:00:00.000Z")
TWO = Checkpoint(2, "b" * 64, "2026-01-31T12:00:00.000Z")


def test_published_checkpoints_are_read_again_and_a_cut_line_is_skipped(tmp_path, caplog):
    """The machine went down while the line was written."""
    path = tmp_path / "state" / "checkpoints"
    assert CheckpointSinks(path).read() == []
    CheckpointSinks(path).publish(ONE)
    with path.open("a") as file:
        file.write("2 bbbb")
    CheckpointSinks(path).publish(TWO)

    assert CheckpointSinks(path).read() == [ONE, TWO]
    assert "checkpoints_unreadable" in caplog.text
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_checkpoint_that_cannot_be_written_does_not_undo_the_commit(tmp_path, caplog):
    """The entry is committed: an error would say that it was not."""
    (tmp_path / "blocked").write_text("a file, not a folder")
    store = Store(f"sqlite:///{tmp_path}/a.sqlite", tmp_path / "blocked")

    assert store.ask().id
    assert "checkpoint_not_written" in caplog.text


def test_every_commit_reaches_the_file_the_log_output_and_the_hook(url, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mm_tasks")
    told = []
    store = Store(url, tmp_path, hook=told.append)

    store.completed()

    assert told == store.log.outside.read()
    assert told[-1].size == len(store.entries())
    logged = [one.message for one in caplog.records if one.message.startswith("audit_checkpoint")]
    said = "audit_checkpoint size={} head={} at={}"
    assert logged == [said.format(*one) for one in told]


def test_a_hook_that_raises_is_logged_by_its_kind_alone(url, tmp_path, caplog):
    def hook(_checkpoint):
        raise RuntimeError(USER)

    assert Store(url, tmp_path, hook=hook).ask().id
    assert "checkpoint_hook_failed" in caplog.text
    assert USER not in caplog.text
