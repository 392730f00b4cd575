"""The settings: names, units, defaults and bounds. `runtime` reads them once.

The README lists every variable. An error names the variable and the rule, never the value.
The environment wins over a file of the secrets directory.

Docker and Kubernetes mount each secret as a file; the deployment chooses the names. A password
that two programs share, such as PostgreSQL's, has a file of its own; the URL without the password
is no secret.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import quote

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mm_tasks.client.access import check_proxy
from mm_tasks.connections.url import SCHEMES, parse
from mm_tasks.errors import ConfigurationError
from mm_tasks.events import limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import ValidationInfo

    from mm_tasks.connections.url import Address

LogFormat = Literal["text", "json"]

SECRETS_DIR = "MM_TASKS_SECRETS_DIR"
_AUTHORITY = re.compile(r"(?P<scheme>[^:/?#]+)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)


def _secret_text(folder: Path, name: str) -> str:
    try:
        for path in (folder / name, folder / name.lower()):
            if path.exists():
                return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        why = type(error).__name__
    else:
        return ""
    # Outside the handler: the error contains the bytes that could not be decoded.
    msg = f"{name}: its file in {SECRETS_DIR} must be text that can be read ({why})"
    raise ConfigurationError(msg)


def with_password(url: str, password: str) -> str:
    """Return the URL with this password if it has none.

    A SQLite URL and text that is no URL stay unchanged; opening them raises an error.
    """
    parts = _AUTHORITY.fullmatch(url)
    if parts is None or parts["scheme"].startswith("sqlite"):
        return url
    user, _, host = parts["authority"].rpartition("@")
    name, _, own_password = user.partition(":")
    if own_password:
        return url
    return f"{parts['scheme']}://{name}:{quote(password, safe='')}@{host}{parts['rest']}"


# A lease must outlive the request and the recording of its outcome.
_LEASE_MARGIN_S = 5
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _state_dir() -> Path:
    return Path(platformdirs.user_state_dir("mm_tasks", appauthor=False))


class Settings(BaseSettings):
    """All settings. `MILLIMETRIC_…` are the vendor's names, `MM_TASKS_…` are ours."""

    model_config = SettingsConfigDict(
        env_prefix="MM_TASKS_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    millimetric_key: SecretStr | None = Field(default=None, validation_alias="MILLIMETRIC_KEY")
    """The secret key, `sk_…`. Needed by workers only."""
    millimetric_host: str = Field(
        default="https://api.millimetric.ai", validation_alias="MILLIMETRIC_HOST"
    )
    """Where requests go. https, unless the host is loopback."""
    redis_password: SecretStr | None = None
    """Put into MM_TASKS_REDIS_URL where that has none."""
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """The buffer, and the broker unless told otherwise. `redis://`, `rediss://`, `unix://`,
    `sentinel://` or `sentinels://`: see docs/connections.md."""
    broker_url: SecretStr | None = None
    """Any Celery broker. Not set: the same as the buffer."""
    audit_password: SecretStr | None = None
    """Put into MM_TASKS_AUDIT_URL where that has none."""
    audit_url: SecretStr | None = None
    """SQLAlchemy URL of the audit log. Not set: a file in the state directory."""
    state_dir: Path = Field(default_factory=_state_dir)
    """Files of the embedded Redis, of the audit log and its checkpoints; a key."""
    project: str = Field(default="default", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """The name in all Redis keys, queues and messages."""
    batch_events_max: int = Field(default=limits.BATCH_EVENTS_MAX, ge=1, le=1000)
    """Events in one request."""
    batch_bytes_max: int = Field(default=limits.BATCH_BYTES_MAX, ge=1_000, le=262_144)
    """Bytes of one request's body, brackets and commas included."""
    batch_rate_per_s: _Positive = limits.VENDOR_BATCH_RATE_PER_S
    """Batches a second, over all workers."""
    batch_burst: int = Field(default=10, ge=1)
    """Batches that may go at once from idle; below the vendor's 20."""
    flush_interval_s: _Positive = Field(default=1, le=60)
    """The period of beat's flush."""
    linger_s: _NotNegative = 1
    """Age at which a part-full batch goes."""
    buffer_bytes_max: int = Field(default=1 << 30, ge=1)
    """Above it BufferFull is raised; nothing is dropped."""
    request_timeout_s: _Positive = 10
    """For the whole exchange."""
    proxy_url: SecretStr | None = None
    """For requests to the vendor, `http://[user:password@]host:port` or https. Not used for
    loopback, and the environment's proxy variables are not read."""
    ca_file: Path | None = None
    """PEM file of the only authorities to trust for the vendor. Not set: the system's."""
    on_buffer_unavailable: Literal["raise", "drop"] = "raise"
    """What `track` and `identify` do when Redis is away or full; `drop` counts the event."""
    on_ambiguous: Literal["retry", "park"] = "retry"
    """What follows when a request may have been stored."""
    dead_events_max: int = Field(default=100_000, ge=1)
    """Dead letters that are kept; above it the oldest are discarded, and counted."""
    dead_age_max_days: _Positive = 90
    """Dead letters buried longer ago are discarded, and counted."""
    lease_s: _Positive = 60
    """How long a claimed batch belongs to one attempt."""
    probe_interval_s: _Positive = 60
    """While paused: one request this often, over all workers."""

    log_format: LogFormat = "text"
    """Of workers, beat and commands: lines of text, or of JSON."""

    pseudonym_key: SecretStr | None = None
    """Keys the audit log's pseudonyms. Not set: made up in the state directory."""
    checkpoint_hook: str | None = None
    """`package.module:function`, called with each checkpoint of the audit log."""
    erasure_passes_s: Annotated[tuple[_NotNegative, ...], NoDecode] = Field(
        default=(0, 900, 86_400), min_length=1
    )
    """When /v1/forget is called: the wait after quiesce, then after each acknowledged call."""

    @field_validator("redis_url", "audit_url")
    @classmethod
    def _add_password(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        password = info.data.get(str(info.field_name).replace("_url", "_password"))
        if url is None or not password:
            return url
        return SecretStr(with_password(url.get_secret_value(), password.get_secret_value()))

    @field_validator("redis_url", "broker_url")
    @classmethod
    def _is_an_address(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if url is not None:
            check = parse if info.field_name == "redis_url" else _broker_address
            check(url.get_secret_value())
        return url

    @field_validator("proxy_url")
    @classmethod
    def _is_a_proxy(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            check_proxy(url.get_secret_value())
        return url

    @field_validator("erasure_passes_s", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _lease_outlives_the_request(self) -> Self:
        if self.lease_s < self.request_timeout_s + _LEASE_MARGIN_S:
            msg = f"must be at least MM_TASKS_REQUEST_TIMEOUT_S + {_LEASE_MARGIN_S}"
            raise ValueError(msg)
        return self

    @property
    def redis_address(self) -> Address:
        """Return the address of the buffer."""
        return parse(self.redis_url.get_secret_value())

    @property
    def broker_address(self) -> Address | str:
        """Return the address of the broker, or the URL of a broker other than Redis."""
        return _broker_address((self.broker_url or self.redis_url).get_secret_value())

    @classmethod
    def load(cls, explicit: Mapping[str, Any] | None = None) -> Settings:
        """Read the environment and the secrets directory; `explicit` values, by field, win.

        Raises `ConfigurationError` naming variable and rule.
        """
        explicit = explicit or {}
        if unknown := sorted(explicit.keys() - cls.model_fields.keys()):
            rules = [f"{variable(name)}: is not a setting" for name in unknown]
            raise ConfigurationError("; ".join(rules))
        values = {**_files(cls.model_fields), **explicit}
        # The vendor's settings by their aliases: under a field name, the environment would win.
        named = {variable(n) if n.startswith("millimetric_") else n: v for n, v in values.items()}
        try:
            return cls(**named)
        except ValidationError as error:
            rules = [_rule(problem["loc"], problem["msg"]) for problem in error.errors()]
        raise ConfigurationError("; ".join(rules))


def variable(field: str) -> str:
    """Return the environment variable of a field."""
    name = field.upper()
    return name if name.startswith("MILLIMETRIC_") else f"MM_TASKS_{name}"


def _broker_address(url: str) -> Address | str:
    return parse(url) if url.partition("://")[0].lower() in SCHEMES else url


def _files(fields: Iterable[str]) -> dict[str, str]:
    """Return the values, by field, of the secrets directory for unset variables.

    A file has the name of its variable, in upper or lower case. The newline at the end is not
    part of the value, and an empty file counts as missing. Other files are not read. Raises
    `ConfigurationError`, which quotes no file, if the directory is missing or a file is unreadable.
    """
    folder = os.environ.get(SECRETS_DIR)
    if not folder:
        return {}
    if not Path(folder).is_dir():
        msg = f"{SECRETS_DIR}: must be a directory that exists"
        raise ConfigurationError(msg)
    # Upper case, as pydantic-settings ignores case.
    variables = {name.upper() for name, value in os.environ.items() if value}
    names = {field: variable(field) for field in fields if variable(field) not in variables}
    texts = {field: _secret_text(Path(folder), name) for field, name in names.items()}
    return {field: text for field, text in texts.items() if text}


def _rule(loc: tuple[int | str, ...], message: str) -> str:
    # The only check without a location compares two settings.
    name = variable(str(loc[0])) if loc else "MM_TASKS_LEASE_S"
    return f"{name}: {message.removeprefix('Value error, ')}"
