"""`calicoctl policy problems`: resources that the agents do not understand, and what stands in for them."""

from __future__ import annotations

from typing import Any

import click

from calico_plugin.cli.policy import world
from calico_plugin.cli.policy.command import form_of
from calico_plugin.cli.session import common, session_of
from calico_plugin.model.resources import Node

_STAND_IN = {
    "WorkloadEndpoint": "counts as absent: its container has no network",
    "HostEndpoint": "what is not understood of it stays closed",
    "GlobalNetworkPolicy": "what is not understood of it denies",
    "NetworkPolicy": "what is not understood of it denies",
    "Profile": "what is not understood of it denies",
    "Tier": "ends in Deny",
    "GlobalNetworkSet": "the other members count",
    "NetworkSet": "the other members count",
    "FelixConfiguration": "the safer default holds",
}


@click.command()
@click.option("-o", "--output", "form", default="text", help="text or json.")
@common
@click.pass_context
def problems(context: click.Context, form: str, **given: Any) -> None:
    """Name the resources that the agents do not understand; these never open anything.

    Exit status: 1 when there are any, or on an error (then with a message on standard error).
    """
    from calico_plugin.cli.output import dump_json

    form_of(form)
    session = session_of(context, given)
    found = of(world.read(session.kv, session.deadline()))
    if form == "json":
        click.echo(dump_json([{"resource": key, "why": why, "effect": effect} for key, why, effect in found]))
    elif found:
        for key, why, effect in found:
            click.echo(f"{key}: {why}\n    -> {effect}")
    else:
        click.echo("All resources are understood.")
    if found:
        raise click.exceptions.Exit(1)


def of(cluster: world.World) -> list[tuple[str, str, str]]:
    """(resource, why, what stands in), as any node's agent sees them. Host endpoints without an interface are known to
    their own node only.
    """
    nodes = sorted(key.name for key in cluster.of(Node)) or [world.SIMULATED]
    whys = cluster.engine(nodes[0]).problems()
    lost = "governs no interface"
    return [
        (str(key), why, _STAND_IN.get(key.kind, "counts as absent"))
        for key, why in sorted(whys.items(), key=lambda item: str(item[0])) if not why.startswith(lost)
    ]
