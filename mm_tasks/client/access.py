"""Host and key of the vendor, checked before the first request."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mm_tasks.connections.url import is_loopback
from mm_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic import SecretStr

_KEY = re.compile(r"sk_[!-^`-~]+_[!-^`-~]+_[!-~]+")
_OTHER_KEYS = {
    "pk_": "is for browsers and must never be on a server",
    "rk_": "only reads",
    "ak_": "only reads, across an account",
}


@dataclass(frozen=True, slots=True)
class VendorAccess:
    """The host and the key of requests; the repr hides the key."""

    host: str
    key: SecretStr


def vendor_access(host: str, key: SecretStr | None) -> VendorAccess:
    """Check host and key; raise `ConfigurationError` naming the variable and the rule."""
    if key is None:
        msg = "MILLIMETRIC_KEY: is required by workers; give the project's secret key, sk_…"
        raise ConfigurationError(msg)
    rules = {"KEY": _key_rule(key.get_secret_value()), "HOST": _host_rule(host)}
    for name, rule in rules.items():
        if rule:
            msg = f"MILLIMETRIC_{name}: {rule}"
            raise ConfigurationError(msg)
    return VendorAccess(host.rstrip("/"), key)


def _key_rule(key: str) -> str:
    """Return the rule that a key breaks, or ''."""
    if use := _OTHER_KEYS.get(key[:3]):
        return f"a {key[:3]} key {use}; give the sk_… key"
    return "" if _KEY.fullmatch(key) else "must have the shape sk_<environment>_<prefix>_<secret>"


def _host_rule(host: str) -> str:
    """Return the rule that a host breaks, or ''."""
    try:
        url = urlsplit(host)
        _ = url.port  # raises
    except ValueError:
        return "must be a URL"
    if not url.hostname or url.scheme not in {"http", "https"}:
        return "must be an https URL"
    if url.scheme == "http" and not is_loopback(url.hostname):
        return "must be https, unless the host is loopback: the key would travel in the clear"
    if url.username or url.password or url.query or url.fragment:
        return "must hold no user, query or fragment"
    return ""
