"""The group of `calicoctl node`'s commands."""

from __future__ import annotations

import click

from calico_plugin.cli.node.check import checksystem, collect_diags
from calico_plugin.cli.node.run import run
from calico_plugin.cli.node.status import status
from calico_plugin.cli.node.stop import reset, stop


@click.group()
def node() -> None:
    """Calico on this host: run, status, stop, reset, checksystem, diags."""


for command in (run, status, stop, reset, checksystem, collect_diags):
    node.add_command(command)
