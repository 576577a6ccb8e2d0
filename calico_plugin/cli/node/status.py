"""`calicoctl node status`: the original's tables, or the same as data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from calico_plugin.cli.node.common import need_root, node_names
from calico_plugin.cli.session import Session, common, session_of
from calico_plugin.config import Settings
from calico_plugin.node import detached, report
from calico_plugin.observe.problems import Problems
from calico_plugin.routing.apply import SOCKET_NAME
from calico_plugin.routing.birdc import BirdClient, NotRunning


@click.command()
@common
@click.pass_context
def status(context: click.Context, **given: Any) -> None:
    """Show whether Calico runs on this host, and the state of its BGP sessions as BIRD has it."""
    need_root()
    session = session_of(context, given)
    settings = Settings.from_env(os.environ)
    if not detached.running(settings.run_dir):
        click.echo(report.NO_PROCESS)
        raise click.exceptions.Exit(1)
    click.echo(f"{report.PROCESS}\n")
    client = _bird(settings.run_dir)
    if client is None:
        click.echo(report.NO_BACKEND)
    else:
        _show_sessions(client, session)
    for line in report.problems(Problems(settings.run_dir).read()):
        click.echo(line)


def _show_sessions(client: BirdClient, session: Session) -> None:
    found = report.rows(client.protocols())
    click.echo(report.tables(found), nl=False)
    click.echo(report.summary(client.status(), found))
    if not all(row.established for row in found):
        for hint in report.hints(found, node_names(session)):
            click.echo(hint)


def _bird(run_dir: Path) -> BirdClient | None:
    client = BirdClient(run_dir / SOCKET_NAME)
    try:
        client.status()
    except NotRunning:
        return None
    return client
