"""The README says what is true of the code."""

from __future__ import annotations

from pathlib import Path

from typer.main import get_command

from mm_tasks.cli import app
from mm_tasks.settings import Settings, variable

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_readme_lists_every_setting():
    missing = [name for name in Settings.model_fields if f"`{variable(name)}`" not in README]

    assert not missing


def test_the_readme_names_every_command():
    missing = [name for name in get_command(app).commands if name not in README]

    assert not missing


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 150
