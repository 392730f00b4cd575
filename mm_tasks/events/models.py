"""The fields of an event, with their limits."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mm_tasks.events.limits import (
    EVENT_NAME_CHARACTERS_MAX,
    ID_CHARACTERS_MAX,
    URL_CHARACTERS_MAX,
    USER_ID_CHARACTERS_MAX,
)

_Id = Annotated[str, Field(min_length=1, max_length=ID_CHARACTERS_MAX)]
_UserId = Annotated[str, Field(min_length=1, max_length=USER_ID_CHARACTERS_MAX)]
_Text = Annotated[str, Field(min_length=1, max_length=URL_CHARACTERS_MAX)]
_Name = Annotated[str, Field(min_length=1, max_length=EVENT_NAME_CHARACTERS_MAX)]


class _Event(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class TrackEvent(_Event):
    """One product event (`POST /v1/track`, `/v1/batch`), fields in the vendor's order."""

    event: _Name = Field(description="What happened: snake_case, past tense; `$…` for systems.")
    event_id: _Id | None = Field(None, description="Made up (UUIDv7) when absent.")
    timestamp: str | None = Field(None, description="When; aware datetime or ISO with an offset.")
    anonymous_id: _Id | None = Field(None, description="The visitor, as the browser knows them.")
    user_id: _UserId | None = Field(None, description="The person, once known.")
    session_id: _Id | None = Field(None, description="The vendor derives one when absent.")
    url: _Text | None = Field(
        None, description="Absolute; the vendor reads utm_* and click ids here."
    )
    path: _Text | None = Field(None, description="The path shown in reports.")
    referrer: _Text | None = Field(None, description="The vendor derives the source from it.")
    properties: dict[str, Any] | None = Field(None, description="See `mm_tasks.properties`.")


class IdentifyEvent(_Event):
    """The link between a visitor and a person (`POST /v1/identify`)."""

    anonymous_id: _Id = Field(description="The visitor, as the browser knows them.")
    user_id: _UserId = Field(description="The person.")
    traits: dict[str, Any] | None = Field(None, description="As `properties` of an event.")
