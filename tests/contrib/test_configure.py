"""Settings that a program gives, before the first use, win over the environment."""

from __future__ import annotations

import pytest

from mm_tasks import runtime
from mm_tasks.errors import ConfigurationError


@pytest.fixture(autouse=True)
def unconfigured(fresh):
    fresh(MM_TASKS_PROJECT="env", MILLIMETRIC_KEY="sk_env", MM_TASKS_LINGER_S="2")
    yield
    runtime._process.configured = {}  # noqa: SLF001 - as at the start of a process


def test_what_is_given_wins_and_the_rest_is_the_environments():
    runtime.configure(project="given", millimetric_key="sk_given")
    settings = runtime.current().settings

    assert settings.project == "given"
    assert settings.millimetric_key.get_secret_value() == "sk_given"
    assert settings.linger_s == 2


def test_given_too_late_it_is_refused_as_some_would_use_the_one_and_some_the_other():
    runtime.configure(project="given")
    runtime.current()
    runtime.configure(project="given")

    with pytest.raises(ConfigurationError, match="earlier"):
        runtime.configure(project="other")


@pytest.mark.parametrize(
    ("given", "named"),
    [({"projekt": "x"}, "MM_TASKS_PROJEKT: is not"), ({"lease_s": "x"}, "MM_TASKS_LEASE_S: ")],
    ids=["unknown", "bad value"],
)
def test_what_is_wrong_is_named_at_the_first_use(given, named):
    runtime.configure(**given)

    with pytest.raises(ConfigurationError, match=named):
        runtime.current()
