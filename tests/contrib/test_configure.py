"""Settings of `configure`, before the first use, win over the environment."""

import pytest

from mm_tasks import runtime
from mm_tasks.errors import ConfigurationError


@pytest.fixture(autouse=True)
def unconfigured(fresh):
    fresh(MM_TASKS_PROJECT="env", MILLIMETRIC_KEY="sk_env", MM_TASKS_LINGER_S="2")
    yield
    runtime._process.configured = {}  # noqa: SLF001 - as at the start of a process


def test_configured_settings_win_and_the_others_come_from_the_environment():
    runtime.configure(project="configured", millimetric_key="sk_configured")
    settings = runtime.current().settings

    assert settings.project == "configured"
    assert settings.millimetric_key.get_secret_value() == "sk_configured"
    assert settings.linger_s == 2


def test_configuring_after_the_first_use_is_refused():
    runtime.configure(project="configured")
    runtime.current()
    runtime.configure(project="configured")

    with pytest.raises(ConfigurationError, match="earlier"):
        runtime.configure(project="other")


UNKNOWN, WRONG = ("projekt", "MM_TASKS_PROJEKT: is not"), ("lease_s", "MM_TASKS_LEASE_S: ")


@pytest.mark.parametrize(("name", "message"), [UNKNOWN, WRONG], ids=["unknown", "bad value"])
def test_a_wrong_setting_raises_at_the_first_use(name, message):
    runtime.configure(**{name: "x"})
    with pytest.raises(ConfigurationError, match=message):
        runtime.current()
