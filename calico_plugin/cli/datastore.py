"""`calicoctl datastore`: empty it, lock and unlock it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click
from msgspec.structs import replace

from calico_plugin.cli.session import Session, common, session_of
from calico_plugin.errors import CalicoError, InvalidInput
from calico_plugin.model import keys
from calico_plugin.model.resources import ClusterInformation


class StillInUse(CalicoError):
    """The datastore holds something that is alive."""


@click.group()
def datastore() -> None:
    """The datastore as a whole."""


@datastore.command()
@click.option("--yes", is_flag=True, help="Really do it: everything of Calico in etcd is deleted.")
@click.option("--force", is_flag=True, help="Even while nodes or endpoints are left.")
@common
@click.pass_context
def purge(context: click.Context, yes: bool, force: bool, **given: Any) -> None:
    """Delete every key of Calico's (all under /calico/) from etcd; other keys stay.

    Refused while a node or an endpoint is left: stop calico-node and remove the containers first, then delete the
    nodes.
    """
    session = session_of(context, given)
    found = session.kv.list(keys.ROOT, session.deadline(), keys_only=True).items
    left = [
        resource
        for item in found
        if (resource := keys.parse_resource(item.key)) and resource.kind in ("Node", "WorkloadEndpoint")
    ]
    if left and not force:
        names = ", ".join(str(resource) for resource in left[:5]) + (
            f" and {len(left) - 5} more" if len(left) > 5 else ""
        )
        raise StillInUse(
            f"the datastore is in use: {names}; remove the containers and delete the nodes first, or use --force"
        )
    if not yes:
        raise InvalidInput("--yes", None, f"{len(found)} keys under {keys.ROOT} would be deleted; say --yes to do it")
    gone = session.kv.delete_prefix(keys.ROOT, session.deadline())
    for what, count in sorted(Counter(_family(item.key) for item in found).items()):
        click.echo(f"  {what}: {count}")
    click.echo(f"Successfully removed {gone} keys from the datastore")


def _family(key: str) -> str:
    """What a key is, for the summary."""
    resource = keys.parse_resource(key)
    if resource:
        return resource.kind
    for prefix, name in (
        (keys.BLOCKS, "IPAM blocks"),
        (keys.HANDLES, "IPAM handles"),
        (keys.AFFINITIES, "IPAM block affinities"),
        (keys.IPAM, "IPAM configuration"),
        (keys.FELIX, "status"),
        (keys.NETWORKS, "Docker networks"),
        (keys.SHARED_NETWORKS, "shared Docker networks"),
        (keys.SHARED_MEMBERS, "shared Docker networks"),
    ):
        if key.startswith(prefix):
            return name
    return "other"


@datastore.group()
def migrate() -> None:
    """Keep everyone from using the datastore while it is moved."""


@migrate.command()
@common
@click.pass_context
def lock(context: click.Context, **given: Any) -> None:
    """Tell all agents not to use the datastore."""
    _set_ready(session_of(context, given), False)
    click.echo("Datastore locked.")


@migrate.command()
@common
@click.pass_context
def unlock(context: click.Context, **given: Any) -> None:
    """Let all agents use the datastore again."""
    _set_ready(session_of(context, given), True)
    click.echo("Datastore unlocked.")


@migrate.command()
@common
@click.pass_context
def export(context: click.Context, **given: Any) -> None:
    """Print all that Calico has in a locked datastore: resources, cluster information and IPAM, separated by ===."""
    from calico_plugin.cli import export as exporting

    for part in exporting.parts(session_of(context, given)):
        click.echo(part, nl=False)


@migrate.command("import")
@click.option("-f", "--filename", hidden=True)
@common
@click.pass_context
def import_(context: click.Context, **given: Any) -> None:
    """Not available: the original imports into Kubernetes only."""
    raise CalicoError(
        "datastore migrate import is not available on this platform: it fills a Kubernetes datastore. To move to "
        "another etcd, use `etcdctl snapshot save` and `etcdutl snapshot restore`; `calicoctl apply -f` reads the "
        "first part of an export"
    )


def _set_ready(session: Session, ready: bool) -> None:
    client = session.resources
    client.initialise(session.deadline())
    infos = session.store.resources(ClusterInformation)
    stored = infos.get("default", session.deadline())
    if stored.value.spec.datastore_ready != ready:
        spec = replace(stored.value.spec, datastore_ready=ready)
        infos.update(stored, replace(stored.value, spec=spec), session.deadline())
