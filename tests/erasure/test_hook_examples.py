"""The examples of checkpoint hooks: what arrives outside verifies the log, and stays."""

import subprocess
import sys
import time
import urllib.request
from importlib import import_module
from pathlib import Path

import boto3
import pytest
from aiosmtpd.controller import Controller
from botocore.exceptions import ClientError

from mm_tasks import forget, runtime
from tests.conftest import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture
def use(redis, redis_url, fresh, tmp_path, monkeypatch):  # noqa: ARG001 - `redis` empties the server
    """Return a function that makes this process use the hook of an example."""
    monkeypatch.syspath_prepend(ROOT / "examples")

    def use_hook(example, **variables):
        fresh(
            MM_TASKS_REDIS_URL=redis_url,
            MM_TASKS_STATE_DIR=str(tmp_path / "state"),
            MM_TASKS_CHECKPOINT_HOOK=f"{example}:hook",
            **variables,
        )
        return import_module(example)

    return use_hook


def assert_verifies_the_log(checkpoints, tmp_path):
    """A stranger's tool takes the lines that the example kept."""
    export, kept = tmp_path / "audit.jsonl", tmp_path / "kept"
    log = runtime.current().audit_store.log
    export.write_text("".join(f"{line}\n" for line in log.export()))
    kept.write_text(checkpoints)
    tool = (sys.executable, ROOT / "scripts" / "verify_audit.py", export, kept)
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Mailbox:
    def __init__(self):
        self.messages = []

    async def handle_DATA(self, _server, _session, envelope):  # noqa: N802 - aiosmtpd's
        self.messages.append(envelope)
        return "250 OK"


def test_a_mailed_checkpoint_verifies_the_log(use, tmp_path):
    box = Mailbox()
    server = Controller(box, hostname="127.0.0.1", port=free_port())
    server.start()
    try:
        officer = {"CHECKPOINT_MAIL_TO": "officer@example.org"}
        use("checkpoint_mail", SMTP_PORT=str(server.port), **officer)
        for n in range(3):
            forget.delay(f"user_{n}", "dpo")
    finally:
        server.stop()

    [mail] = box.messages
    assert mail.rcpt_tos == ["officer@example.org"]
    headers, _, body = mail.content.decode().replace("\r\n", "\n").partition("\n\n")
    assert "Subject: Audit log of erasures: 2 entries" in headers
    assert_verifies_the_log(body, tmp_path)


@pytest.fixture
def bucket(monkeypatch):
    """A bucket with object lock, on moto's server."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("REGION", "x")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    command = (sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(url)
        client = boto3.client("s3")
        client.create_bucket(Bucket="kept", ObjectLockEnabledForBucket=True)
        yield client
        client.close()
    finally:
        server.terminate()
        server.wait(10)


def wait_for(url):
    for _ in range(200):
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("moto's server did not start")


def test_a_checkpoint_in_a_bucket_verifies_the_log_and_cannot_be_deleted(use, bucket, tmp_path):
    use("checkpoint_bucket", CHECKPOINT_BUCKET="kept")
    forget.delay("user_42", "dpo")
    forget.delay("user_43", "dpo")

    stored = bucket.list_object_versions(Bucket="kept")["Versions"]
    keys = [version["Key"] for version in stored]
    assert keys == ["checkpoints/000000000002", "checkpoints/000000000004"]
    bodies = [bucket.get_object(Bucket="kept", Key=key)["Body"].read().decode() for key in keys]
    assert_verifies_the_log("".join(bodies), tmp_path)
    with pytest.raises(ClientError, match="AccessDenied"):
        bucket.delete_object(Bucket="kept", Key=keys[0], VersionId=stored[0]["VersionId"])
