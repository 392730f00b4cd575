"""Receipts: of any history, for both readers, in both languages and each form.

Sabotages that turn this file red: the log is not verified before a receipt is made, or without the
checkpoints; a sentence is missing in a language; a value is not escaped; a state has no sentence;
a word of the machinery, or a claim about the vendor's data, is in a person's receipt.
"""

import json
import re
from datetime import timedelta
from html.parser import HTMLParser
from string import Formatter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import text

from mm_tasks.erasure.audit.checkpoints import Checkpoint
from mm_tasks.erasure.audit.protocol import ENTRIES, STATES, step
from mm_tasks.erasure.certificate import authority, person
from mm_tasks.erasure.certificate.evidence import Evidence
from mm_tasks.erasure.certificate.facts import Facts
from mm_tasks.erasure.certificate.issuing import Audience, CertificateIssuer, Form
from mm_tasks.erasure.certificate.wording import Language, Wording, sentences
from mm_tasks.erasure.request import Reason
from mm_tasks.errors import AuditChainBroken, ConfigurationError
from mm_tasks.timestamps import stamp
from tests.erasure.stores import NOW, USER, VISITOR, after
from tests.erasure.test_protocol import DETAILS, TIME, legal

CONTROLLER = "Example <Ltd> & Co., 1 Main Street\nprivacy desk, +44 20 5550 100"
ID = "0197c2a4-0000-7000-8000-000000000001"
HEAD, SUBJECT = "5eed" * 16, "abc1" * 16
PLACES = ("track:waiting", "identify:batches", "backfill:scheduled", "dead", "fence", "elsewhere")
# Words of our machinery, which a person cannot know.
INTERNAL = re.compile(
    r"\b(fenc\w+|purg\w+|quiesc\w+|lane\w*|pass|passes|aof|redis|sqlite|postgresql|pseudonym\w*"
    r"|tags|hash\w*|suppress\w*|lease\w*|wal|sha256|durchg\w+|attempt\w*)\b|[a-z]_[a-z]|0{8}",
    re.IGNORECASE,
)
# The vendor's data cannot be seen from here.
CLAIMS = re.compile(r"delet|\berased\b|gelöscht", re.IGNORECASE)
LEFT_OVER = re.compile(r"[{}]|\bNone\b|\bNaN\b|datetime|“”|“None”")


def issuer(store, controller=CONTROLLER):
    return CertificateIssuer(store.session, controller)


# Any history.


@st.composite
def histories(draw):
    """The entries of an erasure, by a walk that the protocol allows."""
    details = {**DETAILS["received"], "ticket": draw(st.sampled_from([None, "GDPR-1093"]))}
    details |= {"reason": draw(st.sampled_from([*Reason, "another"])), "via": "message"}
    details |= {"anonymous": draw(st.integers(0, 2))}
    if draw(st.booleans()):
        details |= {"not_before": TIME}
    walk = [("received", details)]
    progress = step(None, *walk[0], ID)
    for choice in draw(st.lists(st.integers(0, 1 << 16), max_size=60)):
        moves = list(legal(progress))
        if not moves:
            break
        kind, details, progress = moves[choice % len(moves)]
        if kind == "purged":
            counts = st.dictionaries(st.sampled_from(PLACES), st.integers(0, 2000), max_size=3)
            details = {"removed": draw(counts)}
        walk.append((kind, details))
    return entries_of(walk)


def entries_of(walk):
    common = {"erasure": ID, "subject": SUBJECT, "epoch": 1, "prev": HEAD}
    return [
        {**common, "seq": seq, "at": stamp(after(minutes=seq)), "entry": kind, "details": details}
        for seq, (kind, details) in enumerate(walk, 1)
    ]


def pages(entries, language, restored=()):
    """The pages for a person and for an authority."""
    facts, words = Facts.of(entries), Wording(language)
    evidence = Evidence(entries, restored, TIME, 1234, HEAD, 5, 1, 0, 1)
    json.dumps({**person.data(facts), **authority.data(facts, evidence)})
    return (
        person.page(facts, evidence, words, CONTROLLER),
        authority.page(facts, evidence, words, CONTROLLER, authority.POSTGRESQL),
    )


@pytest.mark.parametrize("language", Language)
@given(history=histories(), restored=st.lists(st.just(TIME), max_size=2))
@example(history=entries_of([("received", DETAILS["received"])]), restored=[])
def test_a_receipt_can_be_made_of_every_legal_history(language, history, restored):
    """No state is without its sentences, and none says more than the log."""
    for page in pages(history, language, restored):
        for rendered in (page.as_text(), html_text(page.as_html())):
            assert not LEFT_OVER.search(rendered)
            assert not CLAIMS.search(rendered)


@pytest.mark.parametrize("language", Language)
@given(history=histories())
def test_a_person_reads_no_word_of_the_machinery(language, history):
    page, _ = pages(history, language)

    assert not INTERNAL.search(page.as_text().replace(CONTROLLER, "").replace(ID, ""))
    assert SUBJECT not in page.as_text()


def reached(state):
    """A history that ends in this state, by a breadth-first walk; None if there is none."""
    first = [
        [("received", details)]
        for details in (DETAILS["received"], {**DETAILS["received"], "not_before": TIME})
    ]
    queue, seen = [(walk, step(None, *walk[0], ID)) for walk in first], set()
    while queue:
        walk, progress = queue.pop(0)
        if progress.state == state:
            return entries_of(walk)
        if progress.state not in seen or progress.attempts < 3:
            seen.add(progress.state)
            moves = (move for move in legal(progress) if leads_on(move, progress))
            queue += [([*walk, move[:2]], move[2]) for move in moves]
    return None


def leads_on(move, before):
    """Whether an entry brings the erasure further, so that the walk stays short."""
    return move[2].state != before.state or move[0] in {"intent", "result"}


@pytest.mark.parametrize("language", Language)
@pytest.mark.parametrize("state", sorted(STATES))
def test_every_state_has_its_receipts(state, language):
    history = reached(state)

    assert history is not None
    for page in pages(history, language):
        assert len(page.as_text()) > 1000


# Languages.


def flat(table, path=""):
    for name, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def placeholders(value):
    texts = value if isinstance(value, list) else [value]
    return len(texts), {
        field for one in texts for _, field, _, _ in Formatter().parse(one) if field
    }


def test_the_languages_have_the_same_keys_and_placeholders():
    english, german = (dict(flat(sentences(language))) for language in (Language.EN, Language.DE))

    assert english.keys() == german.keys()
    differ = [key for key in english if placeholders(english[key]) != placeholders(german[key])]
    assert [key for key in differ if not key.startswith("dates.")] == []


def test_every_entry_of_the_protocol_has_a_name():
    """`released` is of a protocol to come, and may be absent from this one."""
    for language in Language:
        assert sentences(language)["authority"]["entries"].keys() >= ENTRIES.keys()


@pytest.mark.parametrize(
    ("language", "day", "time", "exact", "number"),
    [
        ("en", "3 March 2026", "3 March 2026 at 09:05 UTC", "2026-03-03 09:05:07.089", "12,345"),
        (
            "de",
            "3. März 2026",
            "3. März 2026 um 09:05 Uhr (UTC)",
            "03.03.2026 09:05:07,089",
            "12.345",
        ),
    ],
)
def test_dates_and_numbers_have_the_form_of_the_language(language, day, time, exact, number):
    words, at = Wording(Language(language)), "2026-03-03T09:05:07.089Z"

    assert (words.day(at), words.time(at), words.exact(at)) == (day, time, exact)
    assert words.precise(at) == f"{exact} UTC"
    assert words.number(12_345) == number


@pytest.mark.parametrize(
    ("language", "forms"),
    [
        (
            "en",
            ["No record had", "1 record about you that waited", "2 records about you that waited"],
        ),
        ("de", ["war keiner", "1 Datensatz zu Ihrer", "2 Datensätze zu Ihrer"]),
    ],
)
def test_numbers_have_their_plural_form(language, forms):
    words = Wording(Language(language))

    for number, form in enumerate(forms):
        assert form in words.count("person.steps.removed", number)


@pytest.mark.parametrize(
    ("language", "unstated", "unknown"),
    [("en", "none was stated", "“other_law”"), ("de", "nicht angegeben", "“other_law”")],
)
def test_a_ground_that_nobody_stated_is_named_as_such(language, unstated, unknown):
    words = Wording(Language(language))

    assert words.word("reasons", None) == unstated
    assert words.word("reasons", "other_law") == unknown


# The page.


class Checker(HTMLParser):
    """Collects tags, checks that each is closed in order, and collects the text."""

    VOID = frozenset({"meta"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def html_text(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return "".join(checker.text)


@pytest.mark.parametrize("language", Language)
@pytest.mark.parametrize("audience", Audience)
def test_the_html_is_one_accessible_page_without_scripts_and_resources(
    sqlite_store, audience, language
):
    id_ = sqlite_store.completed(ticket="GDPR-<i>1").id
    page = issuer(sqlite_store).issue(id_, audience, language).render(Form.HTML)
    checker = Checker()
    checker.feed(page)
    names = [name for name, _ in checker.tags]

    assert page.startswith("<!DOCTYPE html>\n")
    assert ("html", {"lang": language}) in checker.tags
    assert names.count("h1") == names.count("title") == names.count("main") == 1
    assert names.count("h2") > 4
    assert all(attrs.get("scope") == "col" for name, attrs in checker.tags if name == "th")
    assert {"script", "img", "link", "a", "i", "ltd"}.isdisjoint(names)
    assert not re.search(r"url\(|@import|https?:", page)
    assert "@page { size: A4;" in page
    assert "GDPR-<i>1" in html_text(page)
    assert CONTROLLER in html_text(page)


def test_json_has_its_documented_keys_and_the_sentences(sqlite_store):
    """Programs of others read these keys; they are added, never renamed."""
    id_ = sqlite_store.completed(ticket="GDPR-1", anonymous_ids=(VISITOR,)).id
    common = {
        *("version", "receipt", "lang", "issued_at", "controller", "erasure", "status", "due_at"),
        *("log", "title", "sections", "requests", "stopped_at", "accepted_again_at", "removed"),
        "wiped_at",
    }
    both = {
        audience: json.loads(issuer(sqlite_store).issue(id_, audience).render(Form.JSON))
        for audience in Audience
    }

    assert both["person"].keys() == common | {"acknowledged_at"}
    assert both["authority"].keys() == common | {
        *("project", "state", "subject", "epoch", "begins_at", "anonymous", "quiesced_at"),
        *("calls", "passes", "acknowledged", "missing", "restored_at", "entries"),
    }
    assert both["person"]["removed"] == sum(both["authority"]["removed"].values()) == 2
    assert both["authority"]["entries"] == sqlite_store.parsed()
    assert [section["key"] for section in both["person"]["sections"]] == [
        *("asked", "done", "not_covered", "kept", "check")
    ]


def test_a_persons_receipt_needs_the_controller(sqlite_store):
    """Article 13 of the GDPR, and courtesy: the page says who answers."""
    id_ = sqlite_store.completed().id

    with pytest.raises(ConfigurationError, match="MM_TASKS_CONTROLLER: is not set"):
        issuer(sqlite_store, controller=None).issue(id_, Audience.PERSON)
    authority_page = issuer(sqlite_store, controller=None).issue(id_).render(Form.TEXT)
    assert "Controller:     not stated" in authority_page


# Verified first.


def test_a_receipt_names_the_log_and_the_checkpoints_that_it_was_compared_with(store):
    erasure = store.completed(ticket="GDPR-1")
    store.ask("another")
    outside = store.log.outside.read()[:2]
    issued = issuer(store).issue(erasure.id, outside=outside)
    facts = json.loads(issued.render(Form.JSON))

    size, head, _ = store.log.checkpoint()
    with store.database.read() as connection:
        stored = connection.execute(text("SELECT count(*) FROM mm_checkpoints")).scalar()
    counts = {"database": stored, "host": stored, "outside": 2}
    assert facts["log"] == {"size": size, "head": head, "checkpoints": counts}
    assert f"{stored} in the audit database" in " ".join(issued.page.as_text().split())
    page = issuer(store).issue(erasure.id, Audience.PERSON, outside=outside).page.as_text()
    assert f"agreed with {stored} earlier readings" in " ".join(page.split())
    assert not any(id_ in issued.render(form) for id_ in (USER, VISITOR) for form in Form)


def test_an_unknown_erasure_or_one_of_another_project_has_no_receipt(store):
    id_ = store.completed().id
    store.session.project = "another"

    assert issuer(store).issue(id_) is None
    assert issuer(store).issue(ID) is None


def test_no_receipt_is_made_from_a_log_that_does_not_hold(store):
    """Also if the changed entry is of another erasure: the chain between them is broken."""
    first, second = store.completed(), store.completed(user_id="another")
    like = f"%{second.id}%"
    with store.tampering() as connection:
        change = "UPDATE mm_erasure_audit SET line = replace(line, 'dpo', 'dp0') WHERE line LIKE :l"
        connection.execute(text(change), {"l": like})

    for erasure in (first, second):
        with pytest.raises(AuditChainBroken):
            issuer(store).issue(erasure.id)


@pytest.mark.parametrize(("more", "rule"), [(0, "it differs"), (1, "its tail was cut")])
def test_no_receipt_is_made_against_a_checkpoint_from_elsewhere(sqlite_store, more, rule):
    id_ = sqlite_store.completed().id
    outside = [Checkpoint(len(list(sqlite_store.entries())) + more, HEAD, TIME)]
    # As on a host that never wrote to this log: nothing else contradicts.
    sqlite_store.log.outside._path.unlink()  # noqa: SLF001 - the file of the host
    with sqlite_store.tampering() as connection:
        connection.execute(text("DELETE FROM mm_checkpoints"))

    with pytest.raises(AuditChainBroken, match=rule):
        issuer(sqlite_store).issue(id_, outside=outside)


def test_the_date_of_issue_is_the_databases(sqlite_store):
    id_ = sqlite_store.completed().id
    sqlite_store.now = NOW + timedelta(days=40)

    issued = json.loads(issuer(sqlite_store).issue(id_).render(Form.JSON))
    assert issued["issued_at"] == stamp(NOW + timedelta(days=40))
