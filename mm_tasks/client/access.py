"""Host and key of the vendor, the proxy and whom TLS trusts: checked before the first request."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

import certifi

from mm_tasks.client.dial import location
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
_NAME = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]")
_SCHEMES = {"http", "https"}


@dataclass(frozen=True, slots=True)
class VendorAccess:
    """The host of requests, as `requests` writes its URL, and the key; the repr hides the key."""

    host: str
    key: SecretStr


def vendor_access(host: str, key: SecretStr | None) -> VendorAccess:
    """Check host and key; raise `ConfigurationError` naming the variable and the rule."""
    url = _prepared(host)
    if key is None:
        msg = "MILLIMETRIC_KEY: is required by workers; give the project's secret key, sk_…"
        raise ConfigurationError(msg)
    rules = {"KEY": _key_rule(key.get_secret_value()), "HOST": _host_rule(host) or _host_rule(url)}
    for name, rule in rules.items():
        if rule:
            msg = f"MILLIMETRIC_{name}: {rule}"
            raise ConfigurationError(msg)
    return VendorAccess(url.rstrip("/"), key)


def check_proxy(url: str) -> None:
    """Raise `ValueError` with the rule that the URL of a proxy breaks, and no part of the URL."""
    parts = _split(url)
    rule = ""
    if parts is None or parts.scheme not in _SCHEMES:
        rule = "must be http://host:port or https://host:port"
    elif parts.path.strip("/") or parts.query or parts.fragment:
        rule = "must hold no path; write / ? # and @ of a password as %2F %3F %23 and %40"
    elif parts.netloc.count("@") > 1:
        rule = "must have each @ of a password written as %40"
    if rule:
        raise ValueError(rule)


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return the trust for the vendor: the authorities of the file, else the system's.

    certifi's are used where OpenSSL finds none of the system's, as with Python's installer for
    macOS. Raises `ConfigurationError` if the file is no PEM that can be read.
    """
    paths = ssl.get_default_verify_paths()
    has_system = paths.cafile or (paths.capath and any(Path(paths.capath).iterdir()))
    path = ca_file or (None if has_system else certifi.where())
    try:
        context = ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:
        why = type(error).__name__
    else:
        context.set_alpn_protocols(["http/1.1"])
        if ca_file:
            # The file may hold an intermediate authority. Those of proxies often lack extensions
            # that Python demands since 3.13.
            flags = context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN
            context.verify_flags = flags & ~ssl.VERIFY_X509_STRICT
        return context
    # Outside the handler: the error may contain a part of the file.
    msg = f"MM_TASKS_CA_FILE: must name a file with certificates in PEM form ({why})"
    raise ConfigurationError(msg)


def _key_rule(key: str) -> str:
    """Return the rule that a key breaks, or ''."""
    if use := _OTHER_KEYS.get(key[:3]):
        return f"a {key[:3]} key {use}; give the sk_… key"
    return "" if _KEY.fullmatch(key) else "must have the shape sk_<environment>_<prefix>_<secret>"


def _prepared(host: str) -> str:
    """Return the URL as it is sent, in ASCII; '' if `requests` refuses it."""
    # Producers check the settings too, and send no request.
    import requests

    try:
        return requests.Request("POST", host).prepare().url or ""
    except requests.RequestException:
        return ""


def _host_rule(host: str) -> str:
    """Return the rule that a host breaks, or ''."""
    url = _split(host)
    if url is None or url.scheme not in _SCHEMES:
        return "must be an https URL"
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        return "must be https, unless the host is loopback: the key would travel in the clear"
    if url.username or url.password or url.query or url.fragment:
        return "must hold no user, query or fragment"
    return ""


def _split(text: str) -> SplitResult | None:
    """Return the parts of a URL of printable characters that has a host, or None."""
    try:
        url = urlsplit(text)
        name, port = location(url)
    except (ValueError, KeyError):
        return None
    return url if port and _NAME.fullmatch(name) and text.isprintable() else None
