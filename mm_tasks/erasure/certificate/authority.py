"""The receipt for an authority or an auditor: complete, and to be matched with the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.erasure.audit.protocol import SCHEDULED
from mm_tasks.erasure.certificate.facts import UNCALLED
from mm_tasks.erasure.certificate.layout import Page, Section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mm_tasks.erasure.certificate.evidence import Evidence
    from mm_tasks.erasure.certificate.facts import Entry, Facts
    from mm_tasks.erasure.certificate.wording import Wording

_COMMANDS = (
    "mm-tasks audit export audit.jsonl",
    "python verify_export.py audit.jsonl CHECKPOINTS",
)
_PSEUDONYM = 'printf %s "$id" | openssl dgst -sha256 -hmac "$key"'
# Where the audit database keeps wiped ids: the key of its sentence in `authority.database`.
POSTGRESQL, EMPTIED, LEFT = "postgresql", "emptied", "left"


def page(
    facts: Facts, evidence: Evidence, words: Wording, controller: str | None, database: str
) -> Page:
    """Return the page. `database` is one of the three words above."""
    sections = [
        _asked(facts, words),
        _removal(facts, words),
        _vendor(facts, words),
        _section(words, "open", points=[*_open(facts, words)]),
        _section(words, "readable", points=[*_readable(facts, words, database)]),
        _section(words, "kept", points=[*_kept(facts, words)]),
        _section(words, "not_covered", points=words.list("authority.limits.not_covered")),
        _steps(facts, words),
        _section(words, "verified", text=[*_verified(evidence, words)]),
        _section(words, "repeat", text=[words("authority.how")], commands=_COMMANDS),
        _section(words, "person", text=[words("authority.how_person")], commands=[_PSEUDONYM]),
    ]
    fields = _fields(facts, evidence, words, controller)
    return Page(words.language, words("authority.title"), fields, [one for one in sections if one])


def data(facts: Facts, evidence: Evidence) -> dict[str, Any]:
    """Return the facts of the page, ready for JSON."""
    requests = [
        {"seq": entry["seq"], "recorded_at": entry["at"], **entry["details"]}
        for entry in facts.requests
    ]
    calls = [
        {"sent_at": facts.call_of(entry)["at"], "answered_at": entry["at"], **entry["details"]}
        for entry in facts.all("result")
    ]
    return {
        "project": facts.first["details"]["project"],
        "state": facts.state.state,
        "subject": facts.first["subject"],
        "epoch": facts.first["epoch"],
        "requests": requests,
        "begins_at": facts.begins_at,
        "anonymous": facts.anonymous,
        "stopped_at": facts.stopped_at,
        "accepted_again_at": facts.accepted_again_at,
        "removed": facts.removed,
        "quiesced_at": facts.quiesced_at,
        "calls": calls,
        "passes": facts.state.passes,
        "acknowledged": facts.state.acknowledged,
        "wiped_at": facts.time_of("wiped"),
        "missing": facts.missing,
        "restored_at": list(evidence.restored),
        "entries": list(facts.entries),
    }


def _section(words: Wording, key: str, **parts: Any) -> Section | None:
    """Return a section, or None if it is empty."""
    return Section(key, words(f"authority.{key}"), **parts) if any(parts.values()) else None


def _fields(
    facts: Facts, evidence: Evidence, words: Wording, controller: str | None
) -> list[tuple[str, str]]:
    first = facts.first
    subject = words("fields.pseudonym", subject=first["subject"], epoch=first["epoch"])
    values = {
        "controller": controller or words("fields.unset_controller"),
        "erasure": first["erasure"],
        "project": first["details"]["project"],
        "state": facts.state.state,
        "subject": subject,
        "issued": words.precise(evidence.read_at),
    }
    return [(words(f"fields.{key}"), value) for key, value in values.items()]


def _asked(facts: Facts, words: Wording) -> Section | None:
    rows, text = [], [words.count("authority.scope", facts.anonymous)]
    for entry in facts.requests:
        details = entry["details"]
        reference = details["ticket"] or "\u2013"
        reason = words.word("reasons", details["reason"])
        received = words.exact(details["received_at"])
        rows.append((received, reference, details["requested_by"] or "\u2013", reason))
        if details["via"] == "message":
            text.append(words("authority.via_message", seq=entry["seq"]))
    text.append(words("authority.due", at=words.precise(facts.due_at)))
    for key, at in (("not_before", facts.begins_at), ("call_after", facts.calls_after)):
        if at is not None:
            text.append(words(f"authority.{key}", at=words.precise(at)))
    header = words.list("authority.asked_header")
    return _section(words, "asked", text=text, header=header, rows=rows)


def _removal(facts: Facts, words: Wording) -> Section | None:
    times = {
        "stopped": facts.stopped_at,
        "stopped_again": facts.stopped_again_at,
        "accepted_again": facts.stopped_at and facts.accepted_again_at,
        "quiesced": facts.quiesced_at,
    }
    state = facts.state.state
    text = [
        words(f"authority.{key}", at=words.precise(at), state=state)
        for key, at in times.items()
        if at is not None
    ]
    if facts.stopped_at is None:
        text.append(words("authority.not_stopped"))
    removed = facts.removed
    if facts.last("purged"):
        text.append(words.count("authority.removed", sum(removed.values())))
    rows = [
        (place, words.number(n), words.word("authority.places", place.rpartition(":")[2]))
        for place, n in removed.items()
        if n
    ]
    header = words.list("authority.removed_header")
    return _section(words, "removal", text=text, header=header, rows=rows)


def _vendor(facts: Facts, words: Wording) -> Section | None:
    good, others, waiting = facts.acknowledged, facts.unacknowledged, len(facts.state.waiting)
    text = [words("authority.recipient")] if facts.last("intent") else []
    text.append(words.count("authority.acknowledged", len(good)))
    if others:
        at, outcome = words.precise(others[-1]["at"]), others[-1]["details"]["outcome"]
        n = facts.failures
        text.append(words.count("authority.not_acknowledged", n, at=at, outcome=outcome))
    if waiting:
        text.append(words.count("authority.no_result", waiting))
    if good:
        text.append(words("authority.not_observed"))
    rows = [(words.exact(facts.call_of(entry)["at"]), *_call(entry, words)) for entry in good]
    header = words.list("authority.calls_header")
    return _section(words, "vendor", text=text, header=header, rows=rows)


def _call(result: Entry, words: Wording) -> tuple[str, ...]:
    details = result["details"]
    numbers = (details["pass"], details["attempt"], details.get("calls", 1), details["status"])
    return (words.exact(result["at"]), *map(str, numbers))


def _open(facts: Facts, words: Wording) -> Iterator[str]:
    state = facts.state.state
    if state in UNCALLED:
        end = facts.last(state)
        assert end is not None, state
        details = end["details"]
        why = words.word("refusals", details.get("outcome", ""))
        original = details.get("original", "")
        at = words.precise(end["at"])
        yield words(f"authority.uncalled.{state}", at=at, why=why, original=original)
    if not facts.is_open:
        return
    yield words("authority.unfinished", at=words.precise(facts.due_at))
    if state == SCHEDULED and facts.begins_at is not None:
        yield words("authority.not_begun", at=words.precise(facts.begins_at))
    yield from (words(f"authority.missing.{step}") for step in facts.missing)
    if not facts.missing:
        acknowledged = facts.state.acknowledged
        yield words.count("authority.passes", facts.state.passes, acknowledged=acknowledged)
    yield words("authority.wiping")
    if blocked := facts.is_blocked and facts.last(state):
        at = blocked["details"]["next_at"]
        if at is None:
            yield words.word("authority.waits", state)
        else:
            yield words("authority.blocked", state=state, at=words.precise(at))


def _readable(facts: Facts, words: Wording, database: str) -> Iterator[str]:
    rewritten = facts.last("aof_rewritten")
    word, at = (rewritten["details"]["outcome"], rewritten["at"]) if rewritten else (None, None)
    yield words.word("authority.aof", word, at=at and words.precise(at))
    yield words("authority.limits.backups")
    if wiped := facts.time_of("wiped"):
        yield words("authority.wiped", at=words.precise(wiped))
        yield words(f"authority.database.{database}")
    else:
        yield words("authority.not_wiped")


def _kept(facts: Facts, words: Wording) -> Iterator[str]:
    yield words("authority.limits.kept_log")
    if facts.stopped_at is not None and facts.accepted_again_at is None:
        yield words("authority.limits.kept_marks")


def _steps(facts: Facts, words: Wording) -> Section | None:
    rows = [
        (
            str(entry["seq"]),
            words.exact(entry["at"]),
            words.word("authority.entries", entry["entry"]),
            _listed(entry["details"]),
        )
        for entry in facts.entries
    ]
    return _section(words, "steps", header=words.list("authority.steps_header"), rows=rows)


def _listed(details: Mapping[str, Any]) -> str:
    """Return the details of an entry as the log has them; a detail that is null is left out."""
    counts = details.get("removed", {})
    plain = {name: value for name, value in details.items() if name != "removed"}
    both = {**plain, **counts}
    return ", ".join(f"{name} {value}" for name, value in both.items() if value is not None)


def _verified(evidence: Evidence, words: Wording) -> Iterator[str]:
    yield words("authority.verified_log", at=words.precise(evidence.read_at))
    yield words.count("authority.end", evidence.size, head=evidence.head)
    places = {name: getattr(evidence, name) for name in ("database", "host", "outside")}
    yield words("authority.compared", **places)
    if not evidence.outside:
        yield words("authority.none_outside")
    if restored := evidence.restored:
        yield words.count("authority.restored", len(restored), at=words.precise(restored[-1]))
    yield words("authority.truth")
