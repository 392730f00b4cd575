"""The settings: names, units, defaults and bounds. Read once, by `runtime`.

The README lists every variable. An error names the variable and the rule, never the value.
The environment wins over a file of the secrets directory.

Docker and Kubernetes mount each secret as a file; the deployment chooses the names. Two
programs may share a password such as PostgreSQL's. It is then a file of its own, and the URL
without it is no secret.
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


def secret_files(folder: str, names: Iterable[str]) -> dict[str, str]:
    """Return what the files of `folder` hold that are named by one of `names`.

    A name is that of a variable, in upper or in lower case. The newline at the end is not part
    of the value, and an empty file is as good as none. All other files are left alone.
    Raises `ConfigurationError`, which quotes no file, where the folder or one of these files
    cannot be read as text.
    """
    if not Path(folder).is_dir():
        msg = f"{SECRETS_DIR}: must be a directory that exists"
        raise ConfigurationError(msg)
    found = {name: _secret_text(Path(folder), name) for name in names}
    return {name: text for name, text in found.items() if text}


def _secret_text(folder: Path, name: str) -> str:
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
    parts = _AUTHORITY.fullmatch(url)
    if parts is None or parts["scheme"].startswith("sqlite"):
        return url
    user, _, host = parts["authority"].rpartition("@")
    name, _, given = user.partition(":")
    if given:
        return url
    return f"{parts['scheme']}://{name}:{quote(password, safe='')}@{host}{parts['rest']}"


# A lease must outlive the request and what follows it.
_LEASE_MARGIN_S = 5
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Offset = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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
    )

    millimetric_key: SecretStr | None = Field(
        default=None,
        validation_alias="MILLIMETRIC_KEY",
        description="The secret key, `sk_…`. Needed by workers only.",
    )
    millimetric_host: str = Field(
        default="https://api.millimetric.ai",
        validation_alias="MILLIMETRIC_HOST",
        description="Where requests go. https, unless the host is loopback.",
    )
    redis_password: SecretStr | None = Field(
        default=None, description="Put into MM_TASKS_REDIS_URL where that has none."
    )
    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description=(
            "The buffer, and the broker unless told otherwise. `redis://`, `rediss://`, `unix://`, "
            "`sentinel://` or `sentinels://`: see docs/connections.md."
        ),
    )
    broker_url: SecretStr | None = Field(
        default=None, description="Any Celery broker. Not set: the same as the buffer."
    )
    audit_password: SecretStr | None = Field(
        default=None, description="Put into MM_TASKS_AUDIT_URL where that has none."
    )
    audit_url: SecretStr | None = Field(
        default=None,
        description="SQLAlchemy URL of the audit log. Not set: a file in the state directory.",
    )
    state_dir: Path = Field(
        default_factory=_state_dir,
        description="Files of the embedded Redis, of the audit log and its checkpoints; a key.",
    )
    project: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="The name in all Redis keys.",
    )
    batch_events_max: int = Field(
        default=limits.BATCH_EVENTS_MAX, ge=1, le=1000, description="Events in one request."
    )
    batch_bytes_max: int = Field(
        default=limits.BATCH_BYTES_MAX,
        ge=1_000,
        le=262_144,
        description="Bytes of one request's body, brackets and commas included.",
    )
    batch_rate_per_s: _Positive = Field(
        default=limits.VENDOR_BATCH_RATE_PER_S, description="Batches a second, over all workers."
    )
    batch_burst: int = Field(
        default=10,
        ge=1,
        description="Batches that may go at once from idle; below the vendor's 20.",
    )
    flush_interval_s: _Positive = Field(default=1, le=60, description="The period of beat's flush.")
    linger_s: float = Field(
        default=1, ge=0, allow_inf_nan=False, description="Age at which a part-full batch goes."
    )
    buffer_bytes_max: int = Field(
        default=1 << 30, ge=1, description="Above it BufferFull is raised; nothing is dropped."
    )
    request_timeout_s: _Positive = Field(default=10, description="For the whole exchange.")
    proxy_url: SecretStr | None = Field(
        default=None, description="The environment's proxy variables are not read."
    )
    on_ambiguous: Literal["retry", "park"] = Field(
        default="retry", description="What follows when a request may have been stored."
    )
    dead_events_max: int = Field(
        default=100_000,
        ge=1,
        description="Dead letters that are kept; above it the oldest are discarded, and counted.",
    )
    dead_age_max_days: _Positive = Field(
        default=90, description="Dead letters buried longer ago are discarded, and counted."
    )
    lease_s: _Positive = Field(
        default=60, description="How long a claimed batch belongs to one attempt."
    )
    probe_interval_s: _Positive = Field(
        default=60, description="While paused: one request this often, over all workers."
    )

    log_format: LogFormat = Field(
        default="text", description="Of workers, beat and commands: lines of text, or of JSON."
    )

    pseudonym_key: SecretStr | None = Field(
        default=None,
        description="Keys the audit log's pseudonyms. Not set: made up in the state directory.",
    )
    checkpoint_hook: str | None = Field(
        default=None,
        description="`package.module:function`, called with each checkpoint of the audit log.",
    )
    erasure_passes_s: Annotated[tuple[_Offset, ...], NoDecode] = Field(
        default=(0, 900, 86_400),
        min_length=1,
        description="When /v1/forget is called, counted from quiesce.",
    )

    @field_validator("redis_url", "audit_url")
    @classmethod
    def _add_password(cls, url: SecretStr | None, given: ValidationInfo) -> SecretStr | None:
        password = given.data.get(str(given.field_name).replace("_url", "_password"))
        if url is None or not password:
            return url
        whole = with_password(url.get_secret_value(), password.get_secret_value())
        return SecretStr(whole)

    @field_validator("redis_url")
    @classmethod
    def _is_an_address(cls, url: SecretStr) -> SecretStr:
        parse(url.get_secret_value())
        return url

    @field_validator("broker_url")
    @classmethod
    def _is_an_address_or_anothers(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and _scheme(url) in SCHEMES:
            parse(url.get_secret_value())
        return url

    @field_validator("erasure_passes_s", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        return [part.strip() for part in given.split(",")] if isinstance(given, str) else given

    @field_validator("erasure_passes_s")
    @classmethod
    def _in_order(cls, passes_s: tuple[float, ...]) -> tuple[float, ...]:
        if list(passes_s) != sorted(set(passes_s)):
            msg = "must grow from one pass to the next"
            raise ValueError(msg)
        return passes_s

    @model_validator(mode="after")
    def _lease_outlives_the_request(self) -> Self:
        if self.lease_s < self.request_timeout_s + _LEASE_MARGIN_S:
            msg = f"must be at least MM_TASKS_REQUEST_TIMEOUT_S + {_LEASE_MARGIN_S}"
            raise ValueError(msg)
        return self

    @property
    def redis_address(self) -> Address:
        """Return where the buffer is."""
        return parse(self.redis_url.get_secret_value())

    @property
    def broker_address(self) -> Address | str:
        """Return where the broker is; the URL itself of one that is no Redis by our forms."""
        url = self.broker_url or self.redis_url
        text = url.get_secret_value()
        return parse(text) if _scheme(url) in SCHEMES else text

    @classmethod
    def load(cls, given: Mapping[str, Any] | None = None) -> Settings:
        """Read the environment and the secrets directory.

        What is `given`, by field, wins. Raises `ConfigurationError` naming variable and rule.
        """
        given = given or {}
        if unknown := sorted(given.keys() - cls.model_fields.keys()):
            raise ConfigurationError(
                "; ".join(f"{variable(name)}: is not a setting" for name in unknown)
            )
        values = {**_files(cls.model_fields), **given}
        # The vendor's by their own names: with the other ones the environment would win.
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


def _scheme(url: SecretStr) -> str:
    return url.get_secret_value().partition("://")[0].lower()


def _files(fields: Iterable[str]) -> dict[str, str]:
    """Return the values, by field, of the secrets directory that the environment has not."""
    folder = os.environ.get(SECRETS_DIR)
    if not folder:
        return {}
    # In any case, as pydantic-settings reads them.
    there = {name.upper() for name, value in os.environ.items() if value}
    wanted = {variable(field): field for field in fields if variable(field) not in there}
    return {wanted[name]: text for name, text in secret_files(folder, wanted).items()}


def _rule(loc: tuple[int | str, ...], message: str) -> str:
    # Only the check across two settings has no place of its own.
    name = variable(str(loc[0])) if loc else "MM_TASKS_LEASE_S"
    return f"{name}: {message.removeprefix('Value error, ')}"
