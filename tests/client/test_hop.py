"""Behind a proxy that changes, delays and cuts answers, the outcomes agree with the vendor."""

import json
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from pydantic import SecretStr

from mm_tasks.client.access import vendor_access
from mm_tasks.client.api import Client
from mm_tasks.client.outcome import Ambiguous, Delivered, Filtered, Rejected
from mm_tasks.sandbox.client import KEY, serve_sandbox

HOP = Path(__file__).parents[2] / "scripts" / "faults_hop.py"
SHARES = {"interim": 0.3, "gzip": 0.3, "page": 0.1, "late": 0.03, "cut": 0.2, "leftover": 0.3}
REQUESTS = 250  # the vendor's burst is 200, and 50 a second


@pytest.fixture
def sandbox():
    with serve_sandbox() as started:
        yield started


@pytest.fixture
def hop(sandbox):
    faults = [f"--fault={kind}={share}" for kind, share in SHARES.items()]
    options = ["--upstream", sandbox.url, "--late-s", "0.6", "--filter", "dirty", *faults]
    command = [sys.executable, HOP, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().split()[-1]
        process.terminate()
        process.communicate(timeout=10)


def body(number):
    """Return an event: one in ten is refused by the vendor, another one by the filter."""
    event = {"event": "a", "event_id": f"id-{number}", "anonymous_id": "visitor"}
    if number % 10 == 3:
        event["timestamp"] = "yesterday"
    if number % 10 == 7:
        event["properties"] = {"search": "dirty"}
    return json.dumps(event).encode()


def test_outcomes_agree_with_what_the_vendor_stored(sandbox, hop):
    """Delivered is stored, and refused or unsent is not; everything else is in doubt."""
    client = Client(vendor_access(hop, SecretStr(KEY)), request_timeout_s=0.4)
    outcomes = [client.send_track(body(number)) for number in range(REQUESTS)]
    client.close()

    stored = {int(event["event_id"][3:]) for event in sandbox.events()}
    assert not stored & {number for number in range(REQUESTS) if number % 10 in {3, 7}}
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, Delivered):
            assert number in stored
        elif not isinstance(outcome, Ambiguous):
            assert number not in stored
    kinds = Counter(map(type, outcomes))
    assert min(kinds[kind] for kind in (Delivered, Rejected, Filtered, Ambiguous)) > 10
    with urllib.request.urlopen(f"{hop}/_hop") as response:
        assert json.load(response).keys() == {*SHARES, "requests", "filtered"}
