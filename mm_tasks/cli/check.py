"""`mm-tasks check`: print each setting, and the result of each check."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr
from rich.table import Table

from mm_tasks import runtime
from mm_tasks.client.outcome import Delivered
from mm_tasks.events.encode import encode_track
from mm_tasks.monitoring import checks, health
from mm_tasks.settings import Settings, variable

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}
# "The first three parts are a public look-up key and safe to log; the secret never is."
_PUBLIC_PART = re.compile(r"[a-z]{2}_[^_]+_[^_]+_(?=.)")


def run(out: Console, *, send: bool) -> int:
    """Print settings and checks; return 1 if there is a problem, otherwise 0."""
    current = runtime.current()
    settings = current.settings
    table = Table("variable", "value")
    for name in Settings.model_fields:
        table.add_row(variable(name), masked(name, getattr(settings, name)))
    out.print(table)
    results = [
        *checks.vendor(settings),
        *checks.server(current),
        *checks.erasures(current),
        *health.addresses(current.worker_redis, settings.project),
    ]
    for name, state, sentence in results:
        # Not wrapped, so that programs can read a check from a line.
        line = f"[{_COLOURS[state]}]{state:8}[/] {name}: {sentence}"
        out.print(line, highlight=False, soft_wrap=True)
    if any(check.state == "problem" for check in results):
        return 1
    if not send:
        return 0
    outcome = current.client.send_track(encode_track({"event": "mm_tasks_check"}).body)
    out.print(f"the vendor's answer to one event: {outcome}", highlight=False, soft_wrap=True)
    return 0 if isinstance(outcome, Delivered) else 1


def masked(name: str, value: Any) -> str:
    """Return a setting for people: a URL without its password, a key's public part."""
    if not isinstance(value, SecretStr):
        return "" if value is None else str(value)
    text = value.get_secret_value()
    if name == "pseudonym_key" or name.endswith("_password"):
        return "…"
    if name == "millimetric_key":
        public = _PUBLIC_PART.match(text)
        return f"{public.group() if public else ''}…"
    try:
        parts = urlsplit(text)
    except ValueError:
        return "…"
    # An unescaped /, ? or # in a password would put a part of it among the parts shown.
    if "://" not in text or text.count("@") != parts.netloc.count("@"):
        return "…"
    host = parts.netloc.rsplit("@", 1)[-1]
    return f"{parts.scheme}://{host}{parts.path}"
