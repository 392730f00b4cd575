"""Issue the receipt of an erasure: for the person or an authority, in a language and a form."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from mm_tasks.erasure.certificate import authority, evidence, person
from mm_tasks.erasure.certificate.facts import Facts
from mm_tasks.erasure.certificate.wording import Language, Wording
from mm_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mm_tasks.erasure.audit.checkpoints import Checkpoint
    from mm_tasks.erasure.audit.session import AuditSession
    from mm_tasks.erasure.certificate.evidence import Evidence
    from mm_tasks.erasure.certificate.layout import Page

SETTING = "MM_TASKS_CONTROLLER"
# Of the JSON: raised if a key is renamed or gets another meaning.
_VERSION = 1


class Audience(StrEnum):
    """The reader of a receipt."""

    PERSON = "person"
    AUTHORITY = "authority"


class Form(StrEnum):
    """The form of a receipt."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A receipt: the page in its language, and the facts on it, ready for JSON."""

    page: Page
    facts: dict[str, Any]

    def render(self, form: Form) -> str:
        """Return the receipt in a form, without a newline at the end."""
        match form:
            case Form.TEXT:
                return self.page.as_text()
            case Form.HTML:
                return self.page.as_html()
            case Form.JSON:
                sections = [section._asdict() for section in self.page.sections]
                document = {**self.facts, "title": self.page.title, "sections": sections}
                return json.dumps(document, ensure_ascii=False)


class CertificateIssuer:
    """Issues the receipts of one project's erasures, for one controller."""

    def __init__(self, session: AuditSession, controller: str | None) -> None:
        """Take the store, and name and contact of the controller; nothing is opened here."""
        self._session = session
        self._controller = controller

    def issue(
        self,
        erasure: str,
        audience: Audience = Audience.AUTHORITY,
        language: Language = Language.EN,
        outside: Sequence[Checkpoint] = (),
    ) -> Certificate | None:
        """Verify the log, and return the receipt of an erasure; None if it does not exist.

        `outside` are checkpoints kept elsewhere, which the log is compared with. Raises
        `AuditChainBroken` if the log does not hold, and `ConfigurationError` for a person's
        receipt without a controller.
        """
        if audience == Audience.PERSON and self._controller is None:
            rule = "is not set; a receipt for a person names the controller and a contact"
            msg = f"{SETTING}: {rule}"
            raise ConfigurationError(msg)
        found = evidence.read(self._session, erasure, outside)
        if found is None:
            return None
        facts, words = Facts.of(found.entries), Wording(language)
        common = self._common(facts, found, audience, language)
        if audience == Audience.PERSON:
            assert self._controller is not None
            page = person.page(facts, found, words, self._controller)
            return Certificate(page, {**common, **person.data(facts)})
        page = authority.page(facts, found, words, self._controller, self._database(facts))
        return Certificate(page, {**common, **authority.data(facts, found)})

    def _common(
        self, facts: Facts, found: Evidence, audience: Audience, language: Language
    ) -> dict[str, Any]:
        places = {name: getattr(found, name) for name in ("database", "host", "outside")}
        return {
            "version": _VERSION,
            "receipt": audience,
            "lang": language,
            "issued_at": found.read_at,
            "controller": self._controller,
            "erasure": facts.first["erasure"],
            "status": facts.status,
            "due_at": facts.due_at,
            "log": {"size": found.size, "head": found.head, "checkpoints": places},
        }

    def _database(self, facts: Facts) -> str:
        if not self._session.log.database.is_sqlite:
            return authority.POSTGRESQL
        # Truncated again, since the log does not record whether the wiping of the ids did it.
        is_emptied = facts.state.wiped and self._session.truncate_wal()
        return authority.EMPTIED if is_emptied else authority.LEFT
