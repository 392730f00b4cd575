"""docker-compose.yml must match the code: a container that cannot start is found here."""

import re
import shlex
import sys
from importlib.metadata import entry_points
from urllib.parse import urlsplit

import pytest
import yaml
from celery.bin.celery import celery as celery_command

import mm_tasks
from mm_tasks.client.access import vendor_access
from mm_tasks.erasure.audit.database import Database
from mm_tasks.events.lanes import queue_names
from mm_tasks.settings import SECRETS_DIR, Settings, variable
from mm_tasks.tasks.celery_app import app
from tests.architecture.tree import COMMANDS, ROOT, assert_passes, options, text

TEXT = text("docker-compose.yml")
COMPOSE = yaml.safe_load(TEXT)
DOCKERFILE = text("Dockerfile")
SERVICES = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
CELERYS = [name for name in OURS if SERVICES[name]["command"][0] == "celery"]
REDISES = ["redis", "sandbox-redis"]
WORKERS = [name for name in CELERYS if "worker" in SERVICES[name]["command"]]
REAL = [name for name in WORKERS if "profiles" not in SERVICES[name]]


def option(name, flag):
    """Return the value of an option of a service's command."""
    command = SERVICES[name]["command"]
    return command[command.index(flag) + 1]


def named(words):
    return [word for word in words if word.startswith("-")]


def database(name):
    """The audit database of a worker."""
    return Database(SERVICES[name]["environment"]["MM_TASKS_AUDIT_URL"])


def state_volume(name):
    """The volume of a worker's state directory."""
    (volume,) = SERVICES[name]["volumes"]
    source, _, target = volume.partition(":")
    assert f"MM_TASKS_STATE_DIR={target}\n" in DOCKERFILE
    assert f"--home-dir {target} " in DOCKERFILE  # there, and the user's, so that it may write
    assert source in COMPOSE["volumes"]
    return source


@pytest.mark.parametrize("name", OURS)
def test_each_command_exists_with_its_options(name):
    """The image's PATH has the programs that pip installs, and no other.

    Celery finds our app by the package's name, then a command, then its options.
    """
    programs = {script.name for script in entry_points(group="console_scripts")}
    check = SERVICES[name]["healthcheck"]["test"][1:]

    assert mm_tasks.app is app
    assert SERVICES[name]["command"][0] in programs
    if name in CELERYS:
        _, dash_a, package, command, *words = SERVICES[name]["command"]
        assert (dash_a, package) == ("-A", "mm_tasks")
        assert set(named(words)) <= options(celery_command.commands[command])
    for program, command, *words in (SERVICES[name]["command"], check):
        if program == "mm-tasks":
            assert set(named(words)) <= options(COMMANDS[command])
    if name in {*WORKERS, "beat"}:
        assert check[:2] == ["mm-tasks", "health"]


def test_no_port_is_open_to_other_machines():
    """Redis has no password here, and the audit log is nobody else's business."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_queue_has_a_worker_and_forget_has_its_own():
    """An erasure never waits behind a delivery."""
    forget, deliver, identify = queue_names("default")
    queues = {name: option(name, "-Q").split(",") for name in WORKERS}

    assert sorted(map(queues.get, REAL)) == [[deliver, identify], [forget]]
    assert queues["sandbox-worker"] == [forget, deliver, identify]
    # The audit log's checkpoints are logged at INFO; Celery's own level is WARNING.
    assert option("forget-worker", "--loglevel") == "info"


def test_the_sandbox_is_loopback_for_its_worker():
    """`http` is refused for any other host, rightly: the key would travel in the clear."""
    environment = SERVICES["sandbox-worker"]["environment"]
    port = SERVICES["sandbox"]["command"][-1]
    health = SERVICES["sandbox"]["healthcheck"]["test"][-1]
    key, host = environment["MILLIMETRIC_KEY"], environment["MILLIMETRIC_HOST"]
    settings = Settings(millimetric_key=key, millimetric_host=host)
    access = vendor_access(settings.millimetric_host, settings.millimetric_key)

    assert SERVICES["sandbox"]["network_mode"] == "service:sandbox-worker"
    assert access.host == f"http://127.0.0.1:{port}"
    assert f":{port}/" in health


def test_the_real_workers_share_their_state_and_the_sandbox_has_its_own():
    """One pseudonym key for all; but two logs' checkpoints in one file contradict each other."""
    (shared,) = set(map(state_volume, REAL))
    (volume,) = SERVICES["sandbox-worker"]["volumes"]
    url = SERVICES["sandbox-worker"]["environment"]["MM_TASKS_AUDIT_URL"]

    assert state_volume("sandbox-worker") != shared
    assert database("sandbox-worker").is_sqlite
    assert url.startswith(f"sqlite:///{volume.partition(':')[2]}/")


@pytest.mark.parametrize("name", REDISES)
def test_redis_keeps_what_it_accepted(name):
    """P2: an AOF on a volume, and no eviction."""
    redis = SERVICES[name]
    flags = shlex.join(redis["command"])
    (volume,) = redis["volumes"]

    assert "redis-server" in flags
    assert "--appendonly yes" in flags
    assert "--maxmemory-policy noeviction" in flags
    assert volume.partition(":")[2] == "/data"
    assert volume.partition(":")[0] in COMPOSE["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_each_variable_and_each_secret_is_a_setting(name):
    """A misspelled variable would be ignored; a secret is mounted by its own name."""
    service = SERVICES[name]
    variables, settings = service.get("environment", {}), set(map(variable, Settings.model_fields))

    assert set(variables) <= {*settings, SECRETS_DIR}
    assert set(service.get("secrets", ())) <= settings
    assert "profiles" in service or variables[SECRETS_DIR] == "/run/secrets"


def test_the_sandbox_and_the_real_events_never_meet():
    """A trial must not reach the vendor, nor a real event count as delivered to a stand-in."""
    for worker, redis in (("worker", "redis"), ("sandbox-worker", "sandbox-redis")):
        url = SERVICES[worker]["environment"]["MM_TASKS_REDIS_URL"]
        assert url == f"redis://{redis}:6379/0"
    assert not set(SERVICES["redis"]["volumes"]) & set(SERVICES["sandbox-redis"]["volumes"])


def test_secrets_are_files_and_each_service_has_those_alone_that_it_needs():
    """P8: only what sends has the key; beat and the exporter send nothing."""
    holders = {name: set(service.get("secrets", ())) for name, service in SERVICES.items()}
    passwords = {"MM_TASKS_REDIS_PASSWORD", "MM_TASKS_AUDIT_PASSWORD"}
    audited = {*passwords, "MM_TASKS_PSEUDONYM_KEY"}

    assert holders == {
        "redis": {"MM_TASKS_REDIS_PASSWORD"},
        "postgres": {"MM_TASKS_AUDIT_PASSWORD"},
        "worker": {*audited, "MILLIMETRIC_KEY"},
        "forget-worker": {*audited, "MILLIMETRIC_KEY"},
        "beat": {"MM_TASKS_REDIS_PASSWORD"},
        "metrics": audited,
        "sandbox": set(),
        "sandbox-worker": set(),
        "sandbox-redis": set(),
    }
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
    assert "/secrets/" in text(".gitignore").splitlines()


def test_no_secret_is_in_a_variable_or_on_a_command_line():
    """`docker inspect` and `ps` show both. The sandbox's key opens nothing."""
    values = []
    for service in SERVICES.values():
        values += [*map(str, service.get("environment", {}).values()), *service.get("command", ())]
    key = SERVICES["sandbox-worker"]["environment"]["MILLIMETRIC_KEY"]

    assert not [value for value in values if re.search("requirepass [^$]|://[^/]*:[^/]*@", value)]
    assert [value for value in values if value.startswith("sk_")] == [key]


@pytest.mark.parametrize("name", OURS)
def test_everything_waits_for_a_redis_that_answers(name):
    """While Redis loads its AOF it refuses; a worker would exit and start again."""
    service = SERVICES["sandbox-worker" if name == "sandbox" else name]
    redis = urlsplit(service["environment"]["MM_TASKS_REDIS_URL"]).hostname

    assert SERVICES[name]["depends_on"][redis]["condition"] == "service_healthy"
    assert "healthcheck" in SERVICES[redis]


@pytest.mark.parametrize("name", SERVICES)
def test_each_container_has_few_rights_and_a_health_check(name):
    """No root, no capability, nothing to write to but volumes and memory."""
    service = SERVICES[name]

    assert service["user"] not in {"root", "0"}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "/tmp" in service["tmpfs"]
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


def test_the_image_has_its_extras_and_runs_as_the_user_that_compose_names():
    """A driver for PostgreSQL, the exporter and the sandbox are extras."""
    lines = DOCKERFILE.splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER")]

    assert users == [SERVICES["worker"]["user"]]
    assert f"--uid {users[0]} " in DOCKERFILE
    assert "'.[metrics,postgres,sandbox]'" in DOCKERFILE


@pytest.mark.parametrize("name", REAL)
def test_every_real_worker_has_the_same_audit_log_and_it_is_no_file(name):
    """All look at it before they send; a file in each container would be a truth of its own."""
    worker = SERVICES[name]["environment"]

    assert not database(name).is_sqlite
    assert worker == SERVICES["forget-worker"]["environment"]
    assert SERVICES[name]["depends_on"]["postgres"]["condition"] == "service_healthy"


def test_postgresql_is_the_one_that_the_workers_name_and_keeps_what_it_has():
    """Its user, database and host are spelled twice; its password is one file for both."""
    postgres = SERVICES["postgres"]
    given = postgres["environment"]
    user, name, password = (given[f"POSTGRES_{one}"] for one in ("USER", "DB", "PASSWORD_FILE"))

    url = SERVICES["worker"]["environment"]["MM_TASKS_AUDIT_URL"]
    assert url == f"postgresql://{user}@postgres/{name}"
    assert password == "/run/secrets/MM_TASKS_AUDIT_PASSWORD"
    assert postgres["volumes"] == ["postgres-data:/var/lib/postgresql/data"]
    assert "postgres-data" in COMPOSE["volumes"]
    assert {user, name} <= set(postgres["healthcheck"]["test"])


def test_the_sandbox_needs_nothing():
    """Neither a secret nor a variable, nor the real stores."""
    trial = [name for name in SERVICES if "profiles" in SERVICES[name]]
    needed = {one for name in trial for one in SERVICES[name].get("depends_on", {})}

    assert sorted(trial) == ["sandbox", "sandbox-redis", "sandbox-worker"]
    assert needed == {"sandbox-redis"}
    assert ":?" not in TEXT
    assert "${" not in repr([SERVICES[name] for name in trial])


def test_the_file_is_one_of_the_compose_specification():
    """By its published schema, where Docker itself is not at hand."""
    schema = ("--builtin-schema", "vendor.compose-spec")
    assert_passes(sys.executable, "-m", "check_jsonschema", *schema, ROOT / "docker-compose.yml")
