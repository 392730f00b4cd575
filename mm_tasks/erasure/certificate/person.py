"""The receipt for the person: one page in plain words, without the words of our machinery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.erasure.certificate.facts import UNCALLED
from mm_tasks.erasure.certificate.layout import Page, Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mm_tasks.erasure.certificate.evidence import Evidence
    from mm_tasks.erasure.certificate.facts import Facts
    from mm_tasks.erasure.certificate.wording import Wording


def page(facts: Facts, evidence: Evidence, words: Wording, controller: str) -> Page:
    """Return the page."""
    sections = {
        "asked": ([*_asked(facts, words)], []),
        "done": ([_status(facts, words)], [*_done(facts, words)]),
        "open": ([], [*_open(facts, words)]),
        "not_covered": ([], words.list("person.limits.not_covered")),
        "kept": ([*_kept(facts, words)], []),
        "check": ([*_check(facts, evidence, words)], []),
    }
    parts = [
        Section(key, words(f"person.{key}"), text=text, points=points)
        for key, (text, points) in sections.items()
        if text or points
    ]
    fields = _fields(facts, evidence, words, controller)
    return Page(words.language, words("person.title"), fields, parts)


def data(facts: Facts) -> dict[str, Any]:
    """Return the facts of the page, ready for JSON."""
    acknowledged = [entry["at"] for entry in facts.acknowledged]
    return {
        "requests": [
            {name: entry["details"][name] for name in ("received_at", "ticket", "reason")}
            for entry in facts.requests
        ],
        "stopped_at": facts.stopped_at,
        "accepted_again_at": facts.accepted_again_at,
        "removed": sum(facts.removed.values()),
        "acknowledged_at": acknowledged,
        "wiped_at": facts.time_of("wiped"),
    }


def _fields(
    facts: Facts, evidence: Evidence, words: Wording, controller: str
) -> list[tuple[str, str]]:
    tickets = dict.fromkeys(entry["details"]["ticket"] for entry in facts.requests)
    values = {
        "controller": controller,
        "name": words("fields.blank"),
        "tickets": ", ".join(ticket for ticket in tickets if ticket is not None),
        "erasure": facts.first["erasure"],
        "issued": words.day(evidence.read_at),
    }
    return [(words(f"fields.{key}"), value) for key, value in values.items() if value]


def _asked(facts: Facts, words: Wording) -> Iterator[str]:
    for entry in facts.requests:
        details = entry["details"]
        key = "person.received" if details["ticket"] is None else "person.received_ticket"
        sentence = words(key, day=words.day(details["received_at"]), ticket=details["ticket"])
        if details["reason"] is not None:
            reason = words.word("reasons", details["reason"])
            sentence += " " + words("person.reason", reason=reason)
        yield sentence
    due = words("person.due", day=words.day(facts.due_at))
    yield f"{words.count('person.scope', facts.anonymous)} {due}"


def _status(facts: Facts, words: Wording) -> str:
    state = facts.state.state
    if state in UNCALLED:
        end = facts.last(state)
        assert end is not None, state
        why = words.word("refusals", end["details"].get("outcome", ""))
        original = end["details"].get("original", "")
        ended = words.day(end["at"])
        return words(f"person.status.{state}", ended=ended, why=why, original=original)
    values = {"begins": facts.begins_at, "completed": facts.time_of("completed")}
    times = {name: words.time(at) for name, at in values.items() if at is not None}
    return words(f"person.status.{facts.status}", **times)


def _done(facts: Facts, words: Wording) -> Iterator[str]:
    if facts.stopped_at is not None:
        at, until = words.time(facts.stopped_at), facts.accepted_again_at
        if until is None:
            yield words("person.steps.stopped", at=at)
        else:
            yield words("person.steps.stopped_until", at=at, until=words.time(until))
    if facts.last("purged"):
        yield words.count("person.steps.removed", sum(facts.removed.values()))
    if facts.quiesced_at is not None:
        yield words("person.steps.quiesced", at=words.time(facts.quiesced_at))
    if good := facts.acknowledged:
        last = words.time(good[-1]["at"])
        yield (
            f"{words.count('person.steps.acknowledged', len(good), last=last)} "
            f"{words('person.steps.not_observed')}"
        )
    if wiped := facts.time_of("wiped"):
        yield words("person.steps.wiped", at=words.time(wiped))


def _open(facts: Facts, words: Wording) -> Iterator[str]:
    if facts.status != "in_progress":
        return
    yield from (words(f"person.outstanding.{step}") for step in facts.missing)
    if facts.missing or facts.state.acknowledged < facts.state.passes:
        yield words("person.outstanding.called")
    if facts.is_blocked:
        yield words("person.outstanding.blocked")
    yield words("person.outstanding.wiped")


def _kept(facts: Facts, words: Wording) -> Iterator[str]:
    yield words("person.limits.kept_log")
    if facts.stopped_at is not None and facts.accepted_again_at is None:
        yield words("person.limits.kept_marks")


def _check(facts: Facts, evidence: Evidence, words: Wording) -> Iterator[str]:
    compared = words.count("person.checking.compared", evidence.apart)
    yield f"{words('person.checking.verified')} {compared}"
    yield words.count("person.checking.end", evidence.size, head=evidence.head)
    # Article 12(4) GDPR: a refusal has to name both.
    is_refused = facts.state.state == "rejected"
    rights = words(f"person.checking.{'remedies' if is_refused else 'rights'}")
    yield f"{words('person.checking.authority')} {rights}"
