"""Every Python example of docs/testing.md runs as it is printed there, and passes."""

import re
from pathlib import Path

import pytest

from mm_tasks import track
from mm_tasks.testing import Recorder

DOCS = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)


def test_the_examples_pass(run_pytest):
    outcomes = run_pytest(**{f"test_example_{n}": code for n, code in enumerate(EXAMPLES, 1)})
    assert set(outcomes.values()) == {"passed"}
    assert set(re.findall(r"def test_(\w+)", "".join(EXAMPLES))) == outcomes.keys()


def test_the_failure_in_the_docs_is_the_one_raised(events):
    """A change of the message must change the docs too."""
    track.delay("signup", user_id="u1", properties={"plan": "free", "seats": 3})
    with pytest.raises(AssertionError) as raised:
        events.assert_tracked("signup", user_id="u1", properties={"plan": "pro"})

    assert f"```text\nAssertionError: {raised.value}\n```" in DOCS


def test_every_public_name_of_a_recorder_is_documented():
    assert not [name for name in vars(Recorder) if name[0] != "_" and name not in DOCS]
