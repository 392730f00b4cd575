"""The help texts of all commands."""

import pytest
from typer.main import get_command

from mm_tasks.cli import app


def commands(group, words=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


COMMANDS = dict(commands(get_command(app)))


@pytest.mark.parametrize(("name", "command"), COMMANDS.items(), ids=COMMANDS.keys())
def test_each_command_is_in_the_help_with_an_example(name, command):
    """`erasure reject` and `duplicate` were documented, and hidden from --help."""
    assert not command.hidden
    assert f"Example: mm-tasks {name}" in command.help
    assert all(option.help for option in command.params if option.name != "help")
