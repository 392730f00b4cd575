"""The systemd units must match the code and docker-compose.yml."""

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml
from celery.bin.celery import celery as celery_command

from mm_tasks import cli
from mm_tasks.settings import Settings, variable

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "systemd"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
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

    def get(self, name, section="Service"):
        return self.sections[section][name]

    @property
    def command(self):
        """The program and its arguments, as systemd hands them over."""
        program, *args = shlex.split(self.get("ExecStart"))
        assert program.startswith(BIN)
        return [program.removeprefix(BIN), *(arg.replace("%%", "%") for arg in args)]

    @property
    def credentials(self):
        lines = [line for line in self.text.splitlines() if line.startswith("LoadCredential=")]
        return dict(line.partition("=")[2].split(":", 1) for line in lines)


def unit(name):
    return Unit(FOLDER / f"mm_tasks-{name}.service")


def without_name(command):
    """A command without the node's name, which containers do not need."""
    if "-n" not in command:
        return command
    at = command.index("-n")
    return [*command[:at], *command[at + 2 :]]


@pytest.mark.parametrize("name", SERVICES)
def test_a_unit_runs_what_the_container_runs(name):
    """One truth of how it is started; only the exporter stays on loopback here."""
    command = [one.replace("0.0.0.0", "127.0.0.1") for one in COMPOSE[name]["command"]]

    assert without_name(unit(name).command) == command


@pytest.mark.parametrize("name", SERVICES)
def test_a_unit_has_the_secrets_that_the_container_has(name):
    credentials = unit(name).credentials

    assert set(credentials) == set(COMPOSE[name]["secrets"])
    assert all(path == f"/etc/mm_tasks/secrets/{one}" for one, path in credentials.items())
    assert set(credentials) <= set(map(variable, Settings.model_fields))
    assert "MM_TASKS_SECRETS_DIR=%d" in unit(name).text


@pytest.mark.parametrize("name", ["worker", "forget-worker"])
def test_two_workers_of_one_host_have_names_of_their_own(name):
    """Celery's own default is one name for a host; their signs of life would be one."""
    command = unit(name).command

    assert command[command.index("-n") + 1] in {"deliver@%h", "forget@%h"}
    assert {one for one in command if one.startswith("-")} - {"-A"} <= {
        option
        for parameter in celery_command.commands["worker"].params
        for option in parameter.opts
    }


@pytest.mark.parametrize("name", [*SERVICES, "health"])
def test_a_unit_has_no_right_that_it_does_not_need(name):
    given = unit(name)

    assert given.get("User") == "mm_tasks"
    assert given.get("NoNewPrivileges") == "yes"
    assert given.get("ProtectSystem") == "strict"
    assert given.get("CapabilityBoundingSet") == ""
    assert given.get("StateDirectory") == "mm_tasks"


@pytest.mark.parametrize("name", SERVICES)
def test_a_worker_has_the_time_to_finish_its_requests(name):
    """Only the main process is told: it lets its pool finish, and Celery may add 30 s."""
    given = unit(name)
    request_s = Settings.model_fields["request_timeout_s"].default

    assert given.get("KillMode") == "mixed"
    assert int(given.get("TimeoutStopSec")) >= request_s + 30
    assert given.get("Restart") == "on-failure"


def test_the_look_at_all_is_a_command_of_ours():
    program, command = unit("health").command

    assert program == "mm-tasks"
    assert command in typer.main.get_command(cli.app).commands


def test_the_target_wants_every_unit():
    target = (FOLDER / "mm_tasks.target").read_text(encoding="utf-8")

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
    command = ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "mm_tasks" not in done.stderr
