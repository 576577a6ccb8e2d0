"""`calicoctl version`."""

from __future__ import annotations

from typing import Any

import click

from calico_plugin import __version__
from calico_plugin.cli.session import common, session_of


@click.command()
@click.option("--client", is_flag=True, help="Only the version of this program; no datastore is needed.")
@click.option("--poll", default="", hidden=True, help="Accepted for compatibility.")
@common
@click.pass_context
def version(context: click.Context, client: bool, poll: str, **given: Any) -> None:
    """Show the version of this program and of the cluster."""
    session = session_of(context, given)
    click.echo(f"Client Version:    v{__version__}")
    click.echo("Git commit:        ")
    if client:
        return
    from calico_plugin.model.resources import ClusterInformation

    stored = session.store.resources(ClusterInformation).find("default", session.deadline())
    spec = stored.value.spec if stored else None
    click.echo(f"Cluster Version:   {spec and spec.calico_version or 'unknown'}")
    click.echo(f"Cluster Type:      {spec and spec.cluster_type or 'unknown'}")
