"""Time stamps of checkpoints, by `openssl ts` as the authority behind a small HTTP server."""

import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mm_tasks import forget, runtime
from mm_tasks.buffer.audit_state import AuditState
from mm_tasks.erasure.audit.verification import verify

CONFIG = """
[tsa]
default_tsa = one
[one]
dir = .
serial = $dir/serial
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256
accuracy = secs:1
[req]
distinguished_name = name
prompt = no
[name]
CN = An authority for tests
[stamping]
extendedKeyUsage = critical,timeStamping
"""


def openssl(folder, *arguments):
    done = subprocess.run(
        ["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Authority:
    """An authority that counts its requests; `status` other than 200 is its answer instead."""

    def __init__(self, folder):
        self.folder = folder
        self.requests = 0
        self.status = 200
        self.answer = None
        (folder / "tsa.cnf").write_text(CONFIG)
        (folder / "serial").write_text("01")
        own = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-extensions", "stamping")
        files = ("-keyout", "key.pem", "-out", "cert.pem")
        openssl(folder, "req", "-config", "tsa.cnf", *own, *files)
        authority = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = authority.stamp(body)
                self.send_response(authority.status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stamp(self, query):
        self.requests += 1
        if self.answer is None:
            (self.folder / "query.tsq").write_bytes(query)
            key = ("-signer", "cert.pem", "-inkey", "key.pem", "-section", "one")
            files = ("-queryfile", "query.tsq", "-out", "answer.tsr")
            openssl(self.folder, "ts", "-reply", "-config", "tsa.cnf", *key, *files)
            return (self.folder / "answer.tsr").read_bytes()
        return self.answer


@pytest.fixture
def authority(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path / "authority"
    folder.mkdir()
    authority = Authority(folder)
    yield authority
    authority.server.shutdown()
    authority.server.server_close()


@pytest.fixture(autouse=True)
def here(redis, redis_url, fresh, tmp_path, authority):  # noqa: ARG001 - `redis` empties the server
    fresh(
        MM_TASKS_REDIS_URL=redis_url,
        MM_TASKS_STATE_DIR=str(tmp_path),
        MM_TASKS_TIMESTAMP_URL=authority.url,
    )


def stamped():
    """Verify the log; return the kind and the details of its entries about time stamps."""
    log = runtime.current().audit_store.log
    verify(log)
    lines = [json.loads(line) for line in log.export()]
    entries = [line for line in lines if line.get("entry", "").startswith("timestamp")]
    assert all(entry["subject"] == "0" * 64 for entry in entries)
    return [(entry["entry"], entry["details"]) for entry in entries]


def test_one_checkpoint_a_day_is_stamped_and_openssl_verifies_it(authority, tmp_path, redis):
    forget.delay("user_42", "dpo")
    forget.delay("user_43", "dpo")

    assert authority.requests == 1
    [(kind, details)] = stamped()
    line = tmp_path / "timestamps" / f"{details['size']}.txt"
    token = line.with_suffix(".tsr").name
    with_ca = ("-in", token, "-CAfile", "../authority/cert.pem")
    openssl(line.parent, "ts", "-verify", "-data", line.name, *with_ca)
    assert kind == "timestamped"
    assert line.read_text() in (tmp_path / "checkpoints").read_text()
    assert openssl(line.parent, "dgst", "-sha256", token).split()[-1] == details["token"]
    assert 86_000 < redis.ttl("{mm:default}:timestamp") <= 86_400


def unusable(authority):
    authority.answer = b"<html>"


def of_another_request(authority):
    """An answer that somebody kept."""
    size_before = authority.requests
    forget.delay("user_41", "dpo")
    assert authority.requests == size_before + 1
    authority.answer = (authority.folder / "answer.tsr").read_bytes()


def fails(authority):
    authority.status = 503
    authority.answer = b""


def refuses(authority):
    """A query that the authority cannot read; its answer says so."""
    authority.stamp(b"nothing that is a query")
    authority.answer = (authority.folder / "answer.tsr").read_bytes()


def is_away(authority):
    authority.server.shutdown()
    authority.server.server_close()


FAILURES = {
    "unusable": unusable,
    "other_answer": of_another_request,
    "status:503": fails,
    "refused": refuses,
    "unavailable": is_away,
}


@pytest.mark.parametrize("outcome", FAILURES)
def test_a_failed_stamp_is_an_entry_counts_and_is_tried_again_after_an_hour(
    authority, redis, outcome, caplog
):
    """The erasure is accepted all the same."""
    FAILURES[outcome](authority)
    redis.delete("{mm:default}:timestamp")
    before = authority.requests
    assert forget.delay("user_42", "dpo").fenced
    forget.delay("user_43", "dpo")

    kind, details = stamped()[-1]
    assert (kind, details["outcome"]) == ("timestamp_failed", outcome)
    assert authority.requests - before == (outcome != "unavailable")
    assert AuditState(redis, "default").read().fields["hook_failures"] == "1"
    assert "checkpoint_hook_failed" in caplog.text
    assert 3500 < redis.ttl("{mm:default}:timestamp") <= 3600
