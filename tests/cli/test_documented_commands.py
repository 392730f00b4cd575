"""Each command of docs/erasure.md runs as it stands there: a reader copies it."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mm_tasks.erasure.models import VendorAck
from tests.erasure.stores import KEY, USER, Store
from tests.system.processes import ROOT

PAGE = (ROOT / "docs" / "erasure.md").read_text("utf-8")
PROGRAMS = "mm-tasks|redis-cli|printf|python|awk|mv|MM_TASKS_[A-Z_]+="
# In prose, as the name of a command.
NAMED = {
    "mm-tasks erasure request",
    "mm-tasks dead export",
    "python -m mm_tasks.verify_export",
}
# The state of the erasure that stands for ID in each command; '' where there is none.
RECEIPT = "mm-tasks erasure show ID --receipt"
COMMANDS = {
    "MM_TASKS_AUDIT_URL=postgresql://owner:…@db/audit mm-tasks check": "",
    "mm-tasks audit adopt --restored --yes --requested-by dpo": "",
    "mm-tasks audit adopt --restored": "",
    "mm-tasks audit checkpoint": "",
    "mm-tasks audit export": "",
    "mm-tasks audit export audit.jsonl": "",
    "mm-tasks audit export old.jsonl": "",
    "mm-tasks audit verify": "",
    "mm-tasks audit verify FILE": "",
    "mm-tasks check": "",
    "mm-tasks erasure duplicate ID --of OTHER --requested-by dpo": "received",
    "mm-tasks erasure find < user_id.txt": "",
    "mm-tasks erasure lift ID --requested-by dpo": "completed",
    "mm-tasks erasure list --limit 1000 --json": "",
    "mm-tasks erasure list --ticket GDPR-1093": "",
    "mm-tasks erasure reject ID --outcome not_verified --requested-by dpo": "received",
    "mm-tasks erasure retry ID --requested-by dpo": "waiting_key",
    "mm-tasks erasure scan < user_id.txt": "",
    "mm-tasks erasure show ID --receipt": "completed",
    f"{RECEIPT} --for authority --format html --lang de > nachweis.html": "completed",
    f"{RECEIPT} --for person --format html > receipt.html": "completed",
    "mm-tasks status": "",
    "mm-tasks status --json": "",
    "redis-cli HDEL '{mm:<project>}:fences' store": "",
    "redis-cli HDEL '{mm:default}:fences' store log_size log_head": "",
    "mv checkpoints checkpoints.2026-01-14": "",
    'printf %s "$id" | openssl dgst -sha256 -hmac "$key"': "",
    "python verify_export.py audit.jsonl checkpoints-kept-elsewhere": "",
}
REFUSED = VendorAck(401, "unauthorized:invalid_api_key", "waiting_key", 3600)


def documented():
    """Return the commands of the page: indented lines, and those between backticks."""
    lines = re.findall(rf"^ {{4,}}((?:{PROGRAMS})\S* .*)$", PAGE, re.MULTILINE)
    return {*lines, *re.findall(rf"`((?:{PROGRAMS})\S* [^`\n]*)`", PAGE)} - NAMED


def test_each_command_of_the_page_has_a_row_and_each_row_is_on_the_page():
    assert documented() == set(COMMANDS)


@pytest.fixture
def shell(stack, tmp_path):
    """A host of the stack, in its state directory, with an erasure in each state."""
    stack.env |= {"MM_TASKS_PSEUDONYM_KEY": KEY, "id": USER, "key": KEY}
    stack.env["MM_TASKS_CONTROLLER"] = "Example Ltd"
    store, now = Store(f"sqlite:///{tmp_path}/audit.sqlite", tmp_path, "default"), datetime.now(UTC)
    ids = {"completed": store.completed(ticket="GDPR-1093").id, "OTHER": store.ask("other").id}
    ids["received"] = store.ask("another").id
    blocked = store.quiesced(user_id="blocked", now=now)
    store.call(blocked, REFUSED, now=now)
    ids["waiting_key"] = blocked.id
    (tmp_path / "user_id.txt").write_text(f"{USER}\n")
    (tmp_path / "verify_export.py").symlink_to(ROOT / "mm_tasks" / "verify_export.py")
    lines = "\n".join(store.log.export())
    (tmp_path / "before").write_text(f"{lines}\n")
    kept = (tmp_path / "checkpoints").read_text()
    (tmp_path / "checkpoints-kept-elsewhere").write_text(kept)
    (tmp_path / "redis-cli").write_text(
        f"#!{sys.executable}\nimport os, sys, redis\n"
        "url = os.environ['MM_TASKS_REDIS_URL']\n"
        "print(redis.Redis.from_url(url).execute_command(*sys.argv[1:]))\n"
    )
    (tmp_path / "redis-cli").chmod(0o700)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(command, state):
        words = {"ID": ids.get(state, ""), "OTHER": ids["OTHER"], "<project>": "default"}
        words["FILE"] = "audit.jsonl"
        new = f"sqlite:///{tmp_path}/new.sqlite MM_TASKS_STATE_DIR={tmp_path}/new"
        words["postgresql://owner:…@db/audit"] = new
        for word, value in words.items():
            command = command.replace(word, value)
        if command.startswith("python") or "verify audit.jsonl" in command:
            (tmp_path / "before").rename(tmp_path / "audit.jsonl")
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            env={**stack.env, "PATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.parametrize(("command", "state"), COMMANDS.items(), ids=COMMANDS)
def test_a_command_of_the_page_runs_as_written(shell, command, state):
    done = shell(command, state)

    assert done.returncode == 0, done.stdout + done.stderr
    assert USER not in done.stdout + done.stderr
