"""`calicoctl node stop` and `node reset`."""

from __future__ import annotations

import os
from typing import Any

import click

from calico_plugin.cli import cascade
from calico_plugin.cli.node.common import NodeError, need_root, node_names
from calico_plugin.cli.session import Session, common, session_of
from calico_plugin.config import Settings
from calico_plugin.errors import CalicoError, NotFound
from calico_plugin.model.resources import Metadata, Node
from calico_plugin.node import container, detached, embedded, report
from calico_plugin.node import reset as resetting
from calico_plugin.node.detached import Contained


@click.command()
def stop() -> None:
    """End Calico on this host. Containers keep their links, routes and policy: traffic goes on.

    Other hosts keep their routes to this one for two minutes (BGP graceful restart), then they lose them.
    """
    need_root()
    settings = Settings.from_env(os.environ)
    try:
        pid = detached.stop(settings.run_dir)
    except Contained as error:
        if error.managed:
            raise
        container.remove()
        click.echo("Stopped and removed the calico-node container")
        return
    if pid is None:
        click.echo(report.NO_PROCESS)
    else:
        click.echo(f"Stopped calico-node (process {pid})" if pid else "Stopped what a killed calico-node had left")


@click.command()
@click.option("--force", is_flag=True, help="Also while containers are connected, or other hosts use this host's etcd.")
@common
@click.pass_context
def reset(context: click.Context, force: bool, **given: Any) -> None:
    """End Calico on this host and remove all that it has put there: links, routes, rules, files, its node in etcd.

    With an etcd of this host's own, its data goes too.
    """
    need_root()
    session = session_of(context, given)
    settings = Settings.from_env(os.environ)
    if not force:
        _refuse_loss(settings, session)
    unreachable = ""
    if not _own_etcd(settings):
        unreachable = _stop_and_forget(settings, session)
    elif _stop_for_good(settings):
        click.echo("Stopped calico-node")
    for line in resetting.reset(settings):
        click.echo(line)
    click.echo("This host is bare")
    if unreachable:
        raise NodeError(f"Node({settings.node_name}) is still in the datastore: {unreachable}")


def _own_etcd(settings: Settings) -> bool:
    return settings.datastore.is_default and embedded.data_dir(settings).exists()


def _refuse_loss(settings: Settings, session: Session) -> None:
    links = resetting.container_links()
    if links:
        raise NodeError(
            f"{len(links)} containers are connected ({', '.join(links[:5])}…): remove them first, or give --force"
        )
    if _own_etcd(settings):
        others = sorted(set(node_names(session).values()) - {settings.node_name})
        if others:
            raise NodeError(
                f"other hosts use the etcd of this one ({', '.join(others)}), and its data would be lost: "
                "run `calicoctl node reset` there first, or give --force"
            )


def _stop_for_good(settings: Settings) -> bool:
    """End calico-node, whatever its form; whether one ran. Raises Contained for a managed plugin."""
    try:
        return detached.stop(settings.run_dir, graceful=False) is not None
    except Contained as error:
        if error.managed:
            raise
        container.remove()
        return True


def _stop_and_forget(settings: Settings, session: Session) -> str:
    """Stop, then delete the node with all that belongs to it; why that was not possible, or an empty text."""
    if _stop_for_good(settings):
        click.echo("Stopped calico-node")
    if embedded.wanted(settings):
        return ""  # nobody said where etcd is, and there is none here
    try:
        cascade.delete(session, Node(metadata=Metadata(name=settings.node_name)))
        click.echo(f"Deleted Node({settings.node_name}) from the datastore")
    except NotFound:
        pass
    except CalicoError as error:
        return str(error)
    return ""
