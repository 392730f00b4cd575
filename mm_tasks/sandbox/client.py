"""A process of the vendor's stand-in for tests and the demo, and its HTTP client."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KEY = "sk_test_sandbox_not-a-secret"

_ANSWER_S = 30
_END_S = 10
# Works in any directory. A forget runs before its answer, so that a test need not wait.
_COMMAND = ("-P", "-m", "mm_tasks.sandbox", "--port", "0", "--forget-lag-s", "0")
# Loopback is never reached through a proxy of the environment.
_opener = build_opener(ProxyHandler({}))


class SandboxUnavailable(Exception):
    """The stand-in did not start; the message has the reason."""


class Sandbox:
    """A running stand-in. It keeps its data in memory only."""

    def __init__(self, url: str) -> None:
        """Take the address."""
        self.url = url

    def __repr__(self) -> str:
        """Return the type and the address."""
        return f"Sandbox({self.url!r})"

    @property
    def variables(self) -> dict[str, str]:
        """Return the variables of a worker that sends to this stand-in."""
        return {"MILLIMETRIC_HOST": self.url, "MILLIMETRIC_KEY": KEY}

    def events(self) -> list[dict[str, Any]]:
        """Return every stored event, in order of arrival, with all of its fields."""
        return [
            event
            for route, body in self._get("bodies")
            if route in {"/v1/batch", "/v1/track"}
            for event in json.loads(body).get("events", [json.loads(body)])
        ]

    def identifies(self) -> list[dict[str, Any]]:
        """Return every stored identify."""
        return [json.loads(body) for route, body in self._get("bodies") if route == "/v1/identify"]

    def rows(self) -> list[dict[str, Any]]:
        """Return the present rows; a forget removes those of its user."""
        return [json.loads(line) for line in self._read("rows").splitlines()]

    def summary(self) -> dict[str, Any]:
        """Return the numbers of all that arrived, as at `/_sandbox/summary`."""
        found: dict[str, Any] = self._get("summary")
        return found

    def forgets(self) -> list[dict[str, Any]]:
        """Return every accepted call of `forget`, with its `user_id`."""
        found: list[dict[str, Any]] = self._get("forgets")
        return found

    def fault(self, kind: str, **rule: Any) -> None:
        """Replace all faults by this one: `fault("status", status=503, times=2)`.

        Raises `ValueError` for an unknown rule.
        """
        self.faults({"kind": kind, **rule})

    def faults(self, *rules: Mapping[str, Any]) -> None:
        """Replace all faults by these; without arguments, remove all."""
        self._post("faults", rules)

    def reset(self) -> None:
        """Return to the start: no data and no faults."""
        self._post("reset", None)

    def _get(self, name: str) -> Any:
        return json.loads(self._read(name))

    def _read(self, name: str, body: bytes | None = None) -> bytes:
        url = f"{self.url}/_sandbox/{name}"
        with _opener.open(url, body, timeout=_ANSWER_S) as response:
            text: bytes = response.read()
        return text

    def _post(self, name: str, value: object) -> None:
        try:
            self._read(name, json.dumps(value).encode())
        except HTTPError as error:
            with error:
                refused = json.loads(error.read())
            msg = f"the sandbox refused: {refused.get('details')}"
            raise ValueError(msg) from None


@contextmanager
def serve_sandbox() -> Iterator[Sandbox]:
    """Serve a stand-in on a free port of loopback. Raises `SandboxUnavailable`."""
    if importlib.util.find_spec("aiohttp") is None:
        msg = "the sandbox needs aiohttp: pip install 'mm-tasks[sandbox]'"
        raise SandboxUnavailable(msg)
    with tempfile.TemporaryFile() as errors, _started(errors) as process:
        try:
            sandbox = served_by(process)
        except SandboxUnavailable as error:
            errors.seek(0)
            msg = f"{error}:\n{errors.read().decode(errors='replace')}"
            raise SandboxUnavailable(msg) from None
        yield sandbox


def served_by(process: subprocess.Popen[str]) -> Sandbox:
    """Return the sandbox of a process whose stdout is a pipe, once it accepts requests.

    Raises `SandboxUnavailable` if the process ends before.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if "http://" not in line:
        process.wait(_END_S)
        msg = "the sandbox did not start"
        raise SandboxUnavailable(msg)
    return Sandbox(line.split()[-1])


@contextmanager
def _started(errors: Any) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, *_COMMAND]
    with subprocess.Popen(  # noqa: S603 - our own module
        command, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
