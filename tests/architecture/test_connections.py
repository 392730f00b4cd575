"""The forms of URLs in the docs are those that are read, and the users have what scripts need."""

import re
from pathlib import Path

import pytest

from mm_tasks.connections.url import SCHEMES, parse

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "connections.md").read_text()
URLS = re.findall(r"MM_TASKS_(?:REDIS|BROKER)_URL=['\"]?([^'\"\s`]+)", DOCS)
LUA = "\n".join(path.read_text() for path in (ROOT / "mm_tasks" / "buffer" / "lua").iterdir())


@pytest.mark.parametrize("url", URLS)
def test_every_url_of_the_docs_is_one_that_is_read(url):
    if "amqp" not in url:
        parse(url)


def test_the_docs_have_every_form():
    assert {url.partition("://")[0] for url in URLS} >= set(SCHEMES)


def test_our_user_may_run_every_command_of_the_scripts():
    """Inside a script too, a command is refused to a user who may not run it."""
    used = {name.lower() for name in re.findall(r"\bp?call\(\s*['\"]([A-Za-z]+)", LUA)}
    user = (ROOT / "deploy" / "redis" / "users.acl").read_text().splitlines()[0]

    assert len(used) > 20
    assert not used - set(re.findall(r"\+([a-z]+)", user))
