"""Every setting and command is in the docs, and the docs name no other."""

import re
import shlex

import pytest

from mm_tasks.connections.url import SCHEMES, parse
from mm_tasks.settings import SECRETS_DIR, Settings, variable
from tests.architecture.tree import COMMANDS, ROOT, SCRIPTS, options, text

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in FILES}
OF_TESTS = {"MM_TASKS_TEST_REDIS_URL", "MM_TASKS_TEST_POSTGRESQL_URL", "MM_TASKS_PYTHON"}
# Of Django: see docs/web.md.
OF_DJANGO = {"MM_TASKS_ERASURES_ALLOWED", "MM_TASKS_VISIT"}
URLS = re.findall(r"MM_TASKS_(?:REDIS|BROKER)_URL=['\"]?([^'\"\s`]+)", TEXTS["connections.md"])


def commands(family=COMMANDS, before=()):
    """Yield each command with the words that lead to it, and its options."""
    for name, child in family.items():
        if hasattr(child, "commands"):
            yield from commands(child.commands, (*before, name))
        else:
            yield (*before, name), options(child)


KNOWN = dict(commands())


def lines_of_code():
    """Yield each call of `mm-tasks` that a document shows, and where it is."""
    for name, page in TEXTS.items():
        whole = page.replace("\\\n", " ")
        for pattern in (
            r"^\s*(?:docker compose exec \S+ )?(mm-tasks [a-z-][^\n]+)$",
            r"`(mm-tasks [a-z-][^`\n]+)`",
        ):
            yield from ((name, call) for call in re.findall(pattern, whole, re.MULTILINE))


@pytest.mark.parametrize(("name", "call"), sorted(set(lines_of_code())))
def test_each_call_in_the_docs_is_a_command_with_its_options(name, call):
    """A reader copies these lines."""
    call = re.split(r"[|>&;]|  #", call.replace("…", ""))[0]
    words = shlex.split(call, comments=True)[1:]
    command = next((known for n in (2, 1) if (known := tuple(words[:n])) in KNOWN), None)
    if command is None:
        # A family, such as `mm-tasks dead`.
        assert words[0] in {known[0] for known in KNOWN} or words[0].startswith("-"), name
        return
    used = {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)}

    assert used <= KNOWN[command] | {"--help"}, name


@pytest.mark.parametrize("words", KNOWN, ids=" ".join)
def test_each_command_is_in_the_docs(words):
    """By its words, or in a list such as `dead list|show|revive`."""
    *family, name = words
    pages = "\n".join(TEXTS.values())
    whole = re.search(rf"mm-tasks {' '.join(words)}\b", pages)
    listed = family and re.search(rf"`{family[0]} [a-z|]*\b{name}\b", pages)

    assert whole or listed or (not family and re.search(rf"`{name}\b", pages))


@pytest.mark.parametrize("name", ["import", "metrics", "top"])
def test_the_page_of_a_command_names_each_option(name):
    named = re.findall(r"[` ](--[a-z-]+)", TEXTS[f"{name}.md"])

    assert {option for option in KNOWN[name,] if option.startswith("--")} <= set(named)


def test_each_setting_and_command_is_in_the_readme():
    words = [*(f"`{variable(field)}`" for field in Settings.model_fields), *COMMANDS]

    assert [word for word in words if word not in TEXTS["README.md"]] == []


def test_the_readme_stays_short_and_leads_four_readers_on():
    lines = TEXTS["README.md"].splitlines()
    first_screen = "\n".join(lines[:40])

    assert len(lines) <= 150
    assert "track.delay(" in first_screen
    for page in ("docs/web.md", "docs/operations.md", "docs/erasure.md", "CONTRIBUTING.md"):
        assert f"({page})" in first_screen


@pytest.mark.parametrize("name", TEXTS)
def test_a_page_names_variables_that_are_settings_and_links_to_files_that_exist(name):
    """A misspelt variable would be ignored without a word."""
    named = set(re.findall(r"\b(?:MM_TASKS|MILLIMETRIC)_[A-Z_]+[A-Z]\b", TEXTS[name]))
    folder = ROOT / "docs" if (ROOT / "docs" / name).exists() else ROOT
    targets = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#[^)]*)?\)", TEXTS[name])

    assert named <= {*map(variable, Settings.model_fields), SECRETS_DIR, *OF_TESTS, *OF_DJANGO}
    assert [target for target in targets if target and not (folder / target).exists()] == []


@pytest.mark.parametrize("url", [url for url in URLS if "amqp" not in url])
def test_each_url_of_the_docs_can_be_read(url):
    assert parse(url)


def test_the_docs_have_each_form_of_url():
    assert {url.partition("://")[0] for url in URLS} >= set(SCHEMES)


def test_our_user_may_run_each_command_of_the_scripts():
    """Inside a script too, Redis refuses a command that the user may not run."""
    lua = "\n".join(path.read_text() for path in SCRIPTS)
    used = {name.lower() for name in re.findall(r"\bp?call\(\s*['\"]([A-Za-z]+)", lua)}
    user = text("deploy/redis/users.acl").splitlines()[0]

    assert len(used) > 20
    assert not used - set(re.findall(r"\+([a-z]+)", user))
