"""Secrets that are no variables: files of a directory, and a password apart from its URL.

Docker and Kubernetes mount secrets as files, one for each, named by whoever deploys. A
password that two programs share, such as PostgreSQL's, is a file of its own, and a URL
that is no secret then goes without it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mm_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

SECRETS_DIR = "MM_TASKS_SECRETS_DIR"
_URL = re.compile(r"(?P<scheme>[^:/?#]+)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)


def read(folder: str, names: Iterable[str]) -> dict[str, str]:
    """Return what the files of `folder` hold that are named by one of `names`.

    A name is that of a variable, in upper or in lower case. The newline at the end is not part
    of the value, and an empty file is as good as none. All other files are left alone.
    Raises `ConfigurationError`, which quotes no file, where the folder or one of these files
    cannot be read as text.
    """
    if not Path(folder).is_dir():
        msg = f"{SECRETS_DIR}: must be a directory that exists"
        raise ConfigurationError(msg)
    found = {name: _text(Path(folder), name) for name in names}
    return {name: text for name, text in found.items() if text}


def _text(folder: Path, name: str) -> str:
    try:
        for path in (folder / name, folder / name.lower()):
            if path.exists():
                return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        why = type(error).__name__
    else:
        return ""
    # Outside of the handler: what could not be decoded is part of that error.
    msg = f"{name}: its file in {SECRETS_DIR} must be text that can be read ({why})"
    raise ConfigurationError(msg)


def with_password(url: str, password: str) -> str:
    """Return the URL with this password, where it has none and may have one.

    A SQLite file has none, and what is no URL stays as it is: whoever opens it will say so.
    """
    parts = _URL.fullmatch(url)
    if parts is None or parts["scheme"].startswith("sqlite"):
        return url
    user, _, host = parts["authority"].rpartition("@")
    name, _, given = user.partition(":")
    if given:
        return url
    return f"{parts['scheme']}://{name}:{quote(password, safe='')}@{host}{parts['rest']}"
