"""docker-compose.yml must match the code: a container that cannot start is found here.

Docker itself is not asked; what is read is what the file says.
"""

from __future__ import annotations

import shlex
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
import yaml
from celery.bin.celery import celery as celery_command

import mm_tasks
from mm_tasks import celery_app, cli
from mm_tasks.client import is_loopback, vendor_access
from mm_tasks.database import Database
from mm_tasks.settings import Settings, variable

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SERVICES = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
CELERYS = [name for name in OURS if SERVICES[name]["command"][0] == "celery"]
WORKERS = [name for name in CELERYS if "worker" in SERVICES[name]["command"]]
REAL = [name for name in WORKERS if "profiles" not in SERVICES[name]]


def queues(name):
    command = SERVICES[name]["command"]
    return command[command.index("-Q") + 1].split(",")


def names(command):
    """The names of a command's options, long and short."""
    return {option for parameter in command.params for option in parameter.opts}


def database(name):
    """The audit database of a worker, with a password as a person would give one."""
    url = SERVICES[name]["environment"]["MM_TASKS_AUDIT_URL"]
    return Database(url.replace("${MM_TASKS_POSTGRES_PASSWORD:-}", "secret"))


def state_volume(name):
    """The volume of a worker's state directory."""
    (volume,) = SERVICES[name]["volumes"]
    source, _, target = volume.partition(":")
    assert f"MM_TASKS_STATE_DIR={target} " in DOCKERFILE
    assert f"--home-dir {target} " in DOCKERFILE  # there, and the user's, so that it may write
    assert source in COMPOSE["volumes"]
    return source


@pytest.mark.parametrize("name", OURS)
def test_each_command_is_a_program_that_the_image_has(name):
    """What pip installs, and nothing else, is on the image's PATH."""
    programs = {script.name for script in entry_points(group="console_scripts")}

    assert SERVICES[name]["command"][0] in programs


@pytest.mark.parametrize("name", CELERYS)
def test_each_celery_command_exists_with_its_options(name):
    """Celery finds our app by the package's name, then a command, then its options."""
    _, dash_a, package, command, *options = SERVICES[name]["command"]
    given = {option for option in options if option.startswith("-")}

    assert (dash_a, package) == ("-A", "mm_tasks")
    assert mm_tasks.app is celery_app.app
    assert given <= names(celery_command.commands[command])


def test_the_sandbox_command_exists_with_its_options():
    """A renamed option would end the container at its start."""
    _, command, option, port = SERVICES["sandbox"]["command"]
    known = typer.main.get_command(cli.app).commands

    assert option in names(known[command])
    assert f":{port}/" in SERVICES["sandbox"]["healthcheck"]["test"][-1]


def test_redis_keeps_what_it_accepted():
    """P2: an AOF on a volume, and no eviction."""
    redis = SERVICES["redis"]
    flags = shlex.join(redis["command"])

    assert redis["command"][0] == "redis-server"
    assert "--appendonly yes" in flags
    assert "--maxmemory-policy noeviction" in flags
    assert redis["volumes"] == ["redis-data:/data"]
    assert "redis-data" in COMPOSE["volumes"]


def test_no_port_is_open_to_other_machines():
    """Redis has no password here, and the audit log is nobody else's business."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_queue_has_a_worker_and_forget_has_its_own():
    """An erasure never waits behind a delivery."""
    assert sorted(map(queues, REAL)) == [
        [celery_app.DELIVER, celery_app.IDENTIFY],
        [celery_app.FORGET],
    ]
    assert queues("sandbox-worker") == [
        celery_app.FORGET,
        celery_app.DELIVER,
        celery_app.IDENTIFY,
    ]


def test_the_sandbox_is_loopback_for_its_worker():
    """`http` is refused for any other host, rightly: the key would travel in the clear."""
    environment = SERVICES["sandbox-worker"]["environment"]
    port = SERVICES["sandbox"]["command"][-1]
    settings = Settings(
        millimetric_key=environment["MILLIMETRIC_KEY"],
        millimetric_host=environment["MILLIMETRIC_HOST"],
    )
    access = vendor_access(settings.millimetric_host, settings.millimetric_key)

    assert SERVICES["sandbox"]["network_mode"] == "service:sandbox-worker"
    assert access.host == f"http://127.0.0.1:{port}"
    assert is_loopback("127.0.0.1")


def test_the_sandbox_and_the_real_events_never_meet():
    """A trial must not reach the vendor, nor a real event count as delivered to a stand-in."""
    real = SERVICES["worker"]["environment"]
    trial = SERVICES["sandbox-worker"]["environment"]

    assert real["MM_TASKS_REDIS_URL"] != trial["MM_TASKS_REDIS_URL"]
    assert "MM_TASKS_PROJECT" not in real
    assert trial["MM_TASKS_PROJECT"] != Settings.model_fields["project"].default
    assert SERVICES["sandbox"]["profiles"] == SERVICES["sandbox-worker"]["profiles"] == ["sandbox"]


@pytest.mark.parametrize("name", OURS)
def test_each_variable_is_a_setting(name):
    """A misspelled variable would be ignored without a word."""
    known = set(map(variable, Settings.model_fields))

    assert set(SERVICES[name].get("environment", {})) <= known


def test_only_what_sends_has_the_key_and_the_file_has_none():
    """P8: the key comes from outside, and goes where it is needed."""
    holders = {
        name: service["environment"]["MILLIMETRIC_KEY"]
        for name, service in SERVICES.items()
        if "MILLIMETRIC_KEY" in service.get("environment", {})
    }

    assert holders == {
        "worker": "${MILLIMETRIC_KEY:-}",
        "forget-worker": "${MILLIMETRIC_KEY:-}",
        "sandbox-worker": "sk_test_sandbox_not-a-secret",
    }


@pytest.mark.parametrize("name", OURS)
def test_everything_waits_for_a_redis_that_answers(name):
    """While Redis loads its AOF it refuses; a worker would exit and start again."""
    assert SERVICES[name]["depends_on"]["redis"]["condition"] == "service_healthy"
    assert "healthcheck" in SERVICES["redis"]


def test_the_image_does_not_run_as_root():
    """Nothing here needs it."""
    lines = DOCKERFILE.splitlines()

    assert [line.split()[1] for line in lines if line.startswith("USER")] == ["mm_tasks"]


@pytest.mark.parametrize("name", REAL)
def test_every_real_worker_has_the_same_audit_log_and_it_is_no_file(name):
    """All look at it before they send; a file in each container would be a truth of its own."""
    worker = SERVICES[name]["environment"]
    ours = {one: worker[one] for one in ("MM_TASKS_AUDIT_URL", "MM_TASKS_PSEUDONYM_KEY")}

    assert not database(name).is_sqlite
    assert ours.items() <= SERVICES["forget-worker"]["environment"].items()
    assert SERVICES[name]["depends_on"]["postgres"]["condition"] == "service_healthy"


def test_the_real_workers_share_their_state_and_the_sandbox_has_its_own():
    """One pseudonym key for all; but two logs' checkpoints in one file contradict each other."""
    (shared,) = set(map(state_volume, REAL))

    assert state_volume("sandbox-worker") != shared


def test_the_audit_log_of_the_sandbox_is_a_file_that_is_kept():
    """Redis remembers whose fences it has: a new file with an old Redis would be refused."""
    (volume,) = SERVICES["sandbox-worker"]["volumes"]
    url = SERVICES["sandbox-worker"]["environment"]["MM_TASKS_AUDIT_URL"]

    assert database("sandbox-worker").is_sqlite
    assert url.startswith(f"sqlite:///{volume.partition(':')[2]}/")


def test_only_a_worker_knows_the_audit_log():
    """Beat publishes and looks at nothing; the sandbox must not know of us at all."""
    knowing = [
        name
        for name in OURS
        if "MM_TASKS_AUDIT_URL" in SERVICES[name].get("environment", {})
        or SERVICES[name].get("volumes")
    ]

    assert sorted(knowing) == sorted(WORKERS)


def test_postgresql_is_the_one_that_the_workers_name_and_keeps_what_it_has():
    """Its user, database and host are spelled twice; its password comes from outside."""
    postgres = SERVICES["postgres"]
    given = postgres["environment"]
    user, name, password = (given[f"POSTGRES_{one}"] for one in ("USER", "DB", "PASSWORD"))

    url = SERVICES["worker"]["environment"]["MM_TASKS_AUDIT_URL"]
    assert url == f"postgresql://{user}:{password}@postgres/{name}"
    assert password == "${MM_TASKS_POSTGRES_PASSWORD:-}"
    assert postgres["volumes"] == ["postgres-data:/var/lib/postgresql/data"]
    assert "postgres-data" in COMPOSE["volumes"]
    assert {user, name} <= set(postgres["healthcheck"]["test"])


def test_the_image_can_talk_to_postgresql():
    """The driver is an extra."""
    assert "'.[postgres,sandbox]'" in DOCKERFILE


def test_the_sandbox_needs_no_variable_and_no_postgresql():
    """Compose reads the whole file first: one required variable would refuse every service."""
    needed = [set(SERVICES[name]["depends_on"]) for name in ("sandbox", "sandbox-worker")]

    assert needed == [{"redis"}, {"redis"}]
    assert ":?" not in TEXT
    assert "$" not in repr([SERVICES["sandbox"], SERVICES["sandbox-worker"]])


def test_the_checkpoints_are_in_the_output_of_the_worker_that_erases():
    """They are told at INFO; Celery's own level is WARNING."""
    command = SERVICES["forget-worker"]["command"]

    assert command[command.index("--loglevel") + 1] == "info"
