"""docs/calicoctl.md is what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

import click

from calico_plugin.cli.docs import document
from calico_plugin.cli.main import COMMANDS, root

PAGE = Path(__file__).parents[3] / "docs/calicoctl.md"


def test_is_up_to_date() -> None:
    """`make docs` writes it anew."""
    assert PAGE.read_text(encoding="utf-8") == document(), "run: make docs"


def test_every_command_and_option_has_help() -> None:
    """Nobody has to guess: commands, and options that are not hidden, say what they do."""

    def look(command: click.Command, path: str) -> None:
        assert command.help, path
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{path} {parameter.name}"
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                look(inner, f"{path} {name}")

    look(root, "calicoctl")
    assert all(f"## calicoctl {name}\n" in document() for name in COMMANDS)
