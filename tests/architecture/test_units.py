"""The systemd units must match the code and docker-compose.yml."""

import configparser
import shlex
import shutil

import pytest
from celery.bin.celery import celery as celery_command

from mm_tasks.settings import Settings, variable
from tests.architecture.test_compose import SERVICES as CONTAINERS
from tests.architecture.test_compose import named
from tests.architecture.tree import COMMANDS, ROOT, assert_passes, options

FOLDER = ROOT / "deploy" / "systemd"
SERVICES = ["worker", "forget-worker", "beat", "metrics"]
BIN = "/opt/mm_tasks/bin/"


class Unit:
    """One file: the lines of its sections, each name with all that it was given."""

    def __init__(self, path):
        self.text = path.read_text(encoding="utf-8")
        parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
        parser.optionxform = str
        parser.read_string(self.text)
        self.sections = parser

    @property
    def command(self):
        """The program and its arguments, as systemd hands them over."""
        program, *args = shlex.split(self.sections["Service"]["ExecStart"])
        assert program.startswith(BIN)
        return [program.removeprefix(BIN), *(arg.replace("%%", "%") for arg in args)]

    @property
    def credentials(self):
        lines = [line for line in self.text.splitlines() if line.startswith("LoadCredential=")]
        return dict(line.partition("=")[2].split(":", 1) for line in lines)


def unit(name):
    return Unit(FOLDER / f"mm_tasks-{name}.service")


@pytest.mark.parametrize("name", SERVICES)
def test_a_unit_runs_the_command_of_the_container(name):
    """Only the exporter stays on loopback here, and only a worker here needs a node's name."""
    words = unit(name).command
    at = words.index("-n") if "-n" in words else len(words)
    command = [word.replace("0.0.0.0", "127.0.0.1") for word in CONTAINERS[name]["command"]]

    assert words[:at] + words[at + 2 :] == command


@pytest.mark.parametrize("name", SERVICES)
def test_a_unit_has_the_secrets_that_the_container_has(name):
    credentials = unit(name).credentials

    assert set(credentials) == set(CONTAINERS[name]["secrets"])
    assert all(path == f"/etc/mm_tasks/secrets/{one}" for one, path in credentials.items())
    assert set(credentials) <= set(map(variable, Settings.model_fields))
    assert "MM_TASKS_SECRETS_DIR=%d" in unit(name).text


@pytest.mark.parametrize("name", ["worker", "forget-worker"])
def test_two_workers_of_one_host_have_names_of_their_own(name):
    """Celery's own default is one name for a host; their signs of life would be one."""
    command = unit(name).command

    assert command[command.index("-n") + 1] in {"deliver@%h", "forget@%h"}
    assert set(named(command)) - {"-A"} <= options(celery_command.commands["worker"])


RIGHTS = {
    "User": "mm_tasks",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "CapabilityBoundingSet": "",
    "StateDirectory": "mm_tasks",
}


@pytest.mark.parametrize("name", [*SERVICES, "health"])
def test_a_unit_has_no_right_that_it_does_not_need(name):
    assert unit(name).sections["Service"].items() >= RIGHTS.items()


@pytest.mark.parametrize("name", SERVICES)
def test_a_worker_has_the_time_to_finish_its_requests(name):
    """Only the main process gets the signal: its pool finishes, and Celery may add 30 s."""
    section = unit(name).sections["Service"]
    request_s = Settings.model_fields["request_timeout_s"].default

    assert section["KillMode"] == "mixed"
    assert int(section["TimeoutStopSec"]) >= request_s + 30
    assert section["Restart"] == "on-failure"


def test_the_health_unit_runs_a_command_of_ours_and_the_target_wants_every_other_unit():
    program, command = unit("health").command
    target = (FOLDER / "mm_tasks.target").read_text(encoding="utf-8")

    assert program == "mm-tasks"
    assert command in COMMANDS
    for path in FOLDER.glob("mm_tasks-*"):
        if path.name != "mm_tasks-health.service":  # its timer starts it
            assert path.name in target


def test_systemd_takes_the_units(tmp_path):
    """Its own checker, where it is installed; the programs are not here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        for program in ("celery", "mm-tasks"):
            text = text.replace(BIN + program, "/bin/true")
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    printed = assert_passes("systemd-analyze", "verify", *sorted(tmp_path.iterdir()))

    assert "mm_tasks" not in printed
