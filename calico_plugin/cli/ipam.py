"""`calicoctl ipam`: what is given out, whether it is used, and how it is given (node-and-cli 4.8)."""

from __future__ import annotations

from typing import Any

import click
from msgspec.structs import replace

from calico_plugin.cli import ipam_show
from calico_plugin.cli.session import Session, common, dry_run, session_of
from calico_plugin.errors import CalicoError, InvalidInput
from calico_plugin.model.resources import WorkloadEndpoint

PERSISTENCE = "Enabled"


class NotAssigned(CalicoError):
    """An address that nobody has."""


@click.group()
def ipam() -> None:
    """Addresses: show, check, release, configure, split."""


@ipam.command()
@click.option("--ip", help="One address: whose is it?")
@click.option("--show-blocks", is_flag=True, help="Also the blocks of each pool.")
@click.option("--show-borrowed", is_flag=True, help="Addresses that a node took from another node's block.")
@click.option("--show-configuration", is_flag=True, help="How addresses are given.")
@common
@click.pass_context
def show(
    context: click.Context,
    ip: str | None,
    show_blocks: bool,
    show_borrowed: bool,
    show_configuration: bool,
    **given: Any,
) -> None:
    """Show how full the pools are, or whose an address is."""
    session = session_of(context, given)
    if ip is not None:
        text = ipam_show.address(session, ip)
    elif show_borrowed:
        text = ipam_show.borrowed(session)
    elif show_configuration:
        text = ipam_show.configuration(session)
    else:
        text = ipam_show.pools(session, show_blocks)
    click.echo(text, nl=False)


@ipam.command()
@click.option("--ip", help="The address to release.")
@click.option(
    "--from-report", "reports", multiple=True, help="Release what this report of `ipam check -o` found leaked."
)
@click.option("--force", is_flag=True, help="Also when an endpoint has it, or when a report is not of this moment.")
@common
@click.pass_context
def release(context: click.Context, ip: str | None, reports: tuple[str, ...], force: bool, **given: Any) -> None:
    """Take back addresses that nobody uses any more. This does not touch a running container."""
    session = session_of(context, given)
    if bool(ip) == bool(reports):
        raise InvalidInput("--ip", ip, "give either the address to release, or --from-report")
    session.resources  # the version check
    if reports:
        _release_from(session, reports, force)
    elif ip:
        _release_one(session, ip, force)


def _release_one(session: Session, ip: str, force: bool) -> None:
    user = None if force else _user_of(session, ipam_show.parse_address(ip))
    if user:
        raise InvalidInput("--ip", ip, f"{user} still has this address; stop its container, or use --force")
    released = session.allocator.release([ip], session.deadline())
    if not released.addresses:
        raise NotAssigned(f"IP address {ip} is not assigned")
    click.echo(f"Successfully released IP address {ip}")


def _release_from(session: Session, reports: tuple[str, ...], force: bool) -> None:
    from calico_plugin.cli import ipam_report

    done, kept = ipam_report.release(session, reports, force)
    click.echo(f"Successfully released {done} IP address(es)")
    if kept:
        raise CalicoError("\n".join(kept))


def _user_of(session: Session, address: str) -> str:
    """The endpoint that has an address, or nothing."""
    for stored in session.store.resources(WorkloadEndpoint).list(session.deadline()).items:
        if any(network.partition("/")[0] == address for network in stored.value.spec.ip_networks):
            return str(stored.value)
    return ""


@ipam.command()
@click.option("--strictaffinity", type=click.BOOL, help="true: a node takes addresses from its own blocks only.")
@click.option(
    "--max-blocks-per-host",
    "--maxblockhost",
    type=int,
    help="At most so many blocks for a host; 0: no limit of its own.",
)
@click.option(
    "--ip-cooldown-seconds", type=int, help="How long a released address rests before it is given again (0 to 1200)."
)
@common
@click.pass_context
def configure(
    context: click.Context,
    strictaffinity: bool | None,
    max_blocks_per_host: int | None,
    ip_cooldown_seconds: int | None,
    **given: Any,
) -> None:
    """Change how addresses are given."""
    from calico_plugin.ipam import get_config, set_config

    session = session_of(context, given)
    if strictaffinity is None and max_blocks_per_host is None and ip_cooldown_seconds is None:
        raise InvalidInput(
            "--strictaffinity",
            None,
            "give what to change: --strictaffinity, --max-blocks-per-host, --ip-cooldown-seconds",
        )
    session.resources  # the version check
    config = get_config(session.kv, session.deadline())
    # The original writes this member with every change; a cluster that both tools configure must not flap.
    config = replace(config, kube_virt_vm_address_persistence=config.kube_virt_vm_address_persistence or PERSISTENCE)
    done = []
    if strictaffinity is not None:
        config = replace(config, strict_affinity=strictaffinity)
        done.append(f"Successfully set StrictAffinity to: {str(strictaffinity).lower()}")
    if max_blocks_per_host is not None:
        config = replace(config, max_blocks_per_host=max_blocks_per_host)
        done.append(f"Successfully set MaxBlocksPerHost to: {max_blocks_per_host}")
    if ip_cooldown_seconds is not None:
        config = replace(config, ip_cooldown_seconds=ip_cooldown_seconds)
        done.append(f"Successfully set IPCooldownSeconds to: {ip_cooldown_seconds}")
    set_config(session.kv, config, session.deadline())
    click.echo("\n".join(done))


@ipam.command()
@click.option("--show-all-ips", is_flag=True, help="Also every address in use.")
@click.option("--show-problem-ips", is_flag=True, help="Also every address that something is wrong with.")
@click.option(
    "-o",
    "--output",
    "report",
    type=click.Path(dir_okay=False),
    help="Write a report (JSON) for `ipam release --from-report`.",
)
@click.option("--fail-on-problems", is_flag=True, help="Exit status 1 when there is a problem.")
@click.option("--kubeconfig", hidden=True, help="Accepted for compatibility; nothing of Kubernetes is looked at.")
@common
@click.pass_context
def check(
    context: click.Context,
    show_all_ips: bool,
    show_problem_ips: bool,
    report: str | None,
    fail_on_problems: bool,
    kubeconfig: str | None,
    **given: Any,
) -> None:
    """Compare what is given out with what nodes and endpoints use; changes nothing."""
    from calico_plugin.cli import ipam_check

    session = session_of(context, given)
    session.resources  # the version check
    problems = ipam_check.run(session, show_all_ips, show_problem_ips, report)
    if problems and fail_on_problems:
        raise CalicoError(f"{problems} problems were found")


@ipam.command()
@click.argument("number", type=int)
@click.option("--name", help="Name of the pool.")
@click.option("--cidr", help="CIDR of the pool, instead of its name.")
@dry_run
@common
@click.pass_context
def split(context: click.Context, number: int, name: str | None, cidr: str | None, **given: Any) -> None:
    """Split a pool into NUMBER (a power of two) pools of the same size; addresses in use stay.

    The datastore must be locked (`calicoctl datastore migrate lock`), so that nobody takes addresses meanwhile.
    """
    from calico_plugin.cli import ipam_split

    session = session_of(context, given)
    session.resources  # the version check
    old, new = ipam_split.split(session, number, cidr, name)
    into = ", ".join(f"{pool.name} ({pool.spec.cidr})" for pool in new)
    done = "Dry run, nothing was written: would split" if session.dry_run else "Successfully split"
    click.echo(f"{done} {old} ({old.spec.cidr}) into {into}")
