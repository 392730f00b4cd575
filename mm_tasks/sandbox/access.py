"""Keys: their shape, their project, and the calls that each kind may make.

A key is `{kind}_{env}_{prefix}_{secret}`, and the secret may hold `_` and `-`.
The second and third part name a project, so the secret key and the read key
of one project see the same rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mm_tasks.sandbox.answer import Refused

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_KEY = re.compile(r"(pk|sk|rk|ak)_([^_\s]+_[^_\s]+)_\S+")

METHODS = {
    "/v1/track": "POST",
    "/v1/batch": "POST",
    "/v1/identify": "POST",
    "/v1/forget": "POST",
    "/v1/query": "GET",
    "/v1/stats": "GET",
}
# The documents disagree about sk_ for query: admitted, so that no call is refused in error.
SCOPES = {
    "/v1/track": {"sk", "pk"},
    "/v1/batch": {"sk", "pk"},
    "/v1/identify": {"sk", "pk"},
    "/v1/forget": {"sk"},
    "/v1/query": {"rk", "sk"},
    "/v1/stats": {"rk"},
}


@dataclass(frozen=True, slots=True)
class Access:
    """A key that may make the call; the secret is not kept."""

    kind: str
    project: str


def is_key(text: object) -> bool:
    """Return whether a value has the shape of a key."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


def check_route(method: str, path: str) -> None:
    """Refuse an unknown path or method. The vendor's page names no code for either."""
    if path not in METHODS:
        raise Refused(404, "not_found")
    if method != METHODS[path]:
        raise Refused(405, "method_not_allowed", {"Allow": METHODS[path]})


def check_key(
    headers: Mapping[str, str], route: str, valid: Collection[str], origins: Collection[str]
) -> Access:
    """Return the access of a call, or refuse it. An empty `valid` or `origins` admits any."""
    header = headers.get("Authorization", "")
    key = header.removeprefix("Bearer ")
    if not header.startswith("Bearer ") or not key.strip():
        raise Refused(401, "missing_bearer_token")
    match = _KEY.fullmatch(key)
    if match is None:
        raise Refused(401, "malformed_api_key")
    if valid and key not in valid:
        is_other_kind = key[2:] in {other[2:] for other in valid}
        raise Refused(401, "key_kind_mismatch" if is_other_kind else "invalid_api_key")
    kind, project = match.groups()
    if kind not in SCOPES[route]:
        is_public_forget = route == "/v1/forget" and kind == "pk"
        raise Refused(
            403, "forget_requires_secret_key" if is_public_forget else "insufficient_scope"
        )
    if kind == "pk" and origins and headers.get("Origin", origins) not in origins:
        raise Refused(403, "origin_not_allowed")
    return Access(kind, project)
