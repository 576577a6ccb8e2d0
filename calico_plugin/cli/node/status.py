"""`calicoctl node status`: the original's tables, or the same as data."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from calico_plugin.cli import output, yamlout
from calico_plugin.cli.node.common import need_root, node_names
from calico_plugin.cli.session import Session, common, session_of
from calico_plugin.config import Settings
from calico_plugin.errors import InvalidInput
from calico_plugin.model.resources.meta import API_VERSION
from calico_plugin.node import detached, nodestatus, report
from calico_plugin.observe.problems import Problems
from calico_plugin.routing.apply import SOCKET_NAME
from calico_plugin.routing.birdc import BirdClient, NotRunning


@click.command()
@click.option("-o", "--output", "form", default="text", help="text, json or yaml: the last two as a CalicoNodeStatus.")
@common
@click.pass_context
def status(context: click.Context, form: str, **given: Any) -> None:
    """Show whether Calico runs on this host, and the state of its BGP sessions as BIRD has it.

    As json or yaml also routes, and under `problems` why sessions are down and what is not in force as configured. Exit
    status: 1 when Calico does not run.
    """
    if form not in ("text", "json", "yaml"):
        raise InvalidInput("--output", form, "must be text, json or yaml")
    need_root()
    session = session_of(context, given)
    settings = Settings.from_env(os.environ)
    running = detached.running(settings.run_dir)
    if form != "text":
        document = _document(settings, session)
        click.echo(output.dump_json(document) if form == "json" else yamlout.dump(document).rstrip())
    elif running:
        _show(settings, session)
    else:
        click.echo(report.NO_PROCESS)
    if not running:
        raise click.exceptions.Exit(1)


def _document(settings: Settings, session: Session) -> dict[str, Any]:
    told = nodestatus.look(settings.run_dir)
    found = nodestatus.status(told, nodestatus.CLASSES, datetime.now(timezone.utc))
    down = any(not row.established for row in told.rows)
    hints = report.hints(told.rows, node_names(session)) if down else ()
    found["problems"] = [*hints, *(text for part in Problems(settings.run_dir).read().values() for text in part)]
    return {
        "apiVersion": API_VERSION,
        "kind": "CalicoNodeStatus",
        "metadata": {"name": settings.node_name},
        "spec": {"node": settings.node_name, "classes": list(nodestatus.CLASSES)},
        "status": found,
    }


def _show(settings: Settings, session: Session) -> None:
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
