"""What the commands of `calicoctl node` share."""

from __future__ import annotations

import os

import click

from calico_plugin.cli.session import Session
from calico_plugin.deadline import Deadline
from calico_plugin.errors import CalicoError
from calico_plugin.model.resources import Node
from calico_plugin.node.addresses import node_addresses

NO_ROOT = "Need super user privileges: Operation not permitted"
_LOOKUP_SECONDS = 2.0


class NodeError(CalicoError):
    """A node command that cannot do its work."""


def need_root() -> None:
    if os.geteuid() != 0:
        raise NodeError(NO_ROOT)


def warn(text: str) -> None:
    click.echo(f"WARNING: {text}", err=True)


def node_names(session: Session) -> dict[str, str]:
    """Address -> node, as far as the datastore can be asked; empty when it does not answer."""
    try:
        nodes = session.store.resources(Node).list(Deadline(_LOOKUP_SECONDS)).items
    except CalicoError:
        return {}
    return {address: one.value.name for one in nodes for address in node_addresses(one.value)}
