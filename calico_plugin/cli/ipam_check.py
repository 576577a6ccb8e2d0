"""`calicoctl ipam check`: the audit of IPAM as text, in the original's words, and as a report that `ipam release`
reads.

What the original does not look for (addresses used twice or on another node than they were given to, claims without a
block, handles that count wrongly) comes after its lines, and only when there is something to say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterable, Iterator

import click

from calico_plugin import __version__
from calico_plugin.cli import progress
from calico_plugin.cli.session import Session
from calico_plugin.errors import InvalidInput
from calico_plugin.ipam import DirectView
from calico_plugin.ipam.affinities import is_confirmed
from calico_plugin.ipam.audit import Allocated, Audit, audit
from calico_plugin.ipam.cidr import Cidr, parse
from calico_plugin.ipam.pools import Pool
from calico_plugin.model import keys
from calico_plugin.model.ipam import Affinity, Block, Handle
from calico_plugin.model.resources import ClusterInformation, Node, WorkloadEndpoint

_TOP = 20


def run(session: Session, show_all: bool, show_problems: bool, report: str | None) -> int:
    """Print the check; the number of problems."""
    click.echo("Checking IPAM for inconsistencies...\n")
    pools = DirectView(session.kv).inputs(session.deadline()).pools
    with progress.working("Reading all blocks, endpoints and nodes"):
        found = load(session, pools)
    for line in lines(found, pools, show_all, show_problems or show_all):
        click.echo(line)
    if report:
        _write_report(session, found, Path(report))
    return found.problems


def load(session: Session, pools: tuple[Pool, ...]) -> Audit:
    """Read all that IPAM keeps and all that uses addresses, and compare."""
    store, deadline = session.store, session.deadline()
    blocks: list[tuple[Cidr, Block]] = []
    for block in store.blocks.list(deadline).items:
        cidr = keys.parse_block(block.key)
        if cidr:
            blocks.append((parse(cidr), block.value))
    handles: dict[str, Handle] = {
        stored.key.removeprefix(keys.HANDLES): stored.value for stored in store.handles.list(deadline).items
    }
    claims = ((keys.parse_affinity(stored.key), stored.value) for stored in store.affinities.list(deadline).items)
    return audit(
        blocks,
        handles,
        _confirmed(claims),
        pools,
        [stored.value for stored in store.resources(WorkloadEndpoint).list(deadline).items],
        [stored.value for stored in store.resources(Node).list(deadline).items],
    )


def _confirmed(claims: Iterable[tuple[tuple[str, str] | None, Affinity]]) -> Iterator[tuple[str, Cidr]]:
    for named, value in claims:
        if named and is_confirmed(value):
            yield named[0], parse(named[1])


def lines(found: Audit, pools: Iterable[Pool], show_all: bool, show_problems: bool) -> Iterator[str]:
    """The whole text, line by line."""
    yield from _blocks(found, show_all)
    active = [pool for pool in pools if pool.enabled]
    yield from ("Loading all IPAM pools...", *(f"  {pool.cidr}" for pool in active))
    yield from (f"Found {len(active)} active IP pools.", "")
    yield from _users(found, show_all)
    yield from _top(found)
    yield from _unused(found, show_problems)
    yield from _unallocated(found, show_problems)
    yield from _handles(found, show_problems)
    yield from _own_findings(found)
    yield f"Check complete; found {found.problems} problems."


def attributes(one: Allocated) -> str:
    extra = ",".join(f"{name}={one.attributes[name]}" for name in sorted(one.attributes))
    return f"Main:{one.handle or '<none>'} Extra:{extra}"


def _blocks(found: Audit, show_all: bool) -> Iterator[str]:
    yield "Loading all IPAM blocks..."
    yield f"Found {len(found.blocks)} IPAM blocks."
    for cidr, block in found.blocks:
        yield f" IPAM block {cidr} affinity={block.affinity or '<none>'}:"
        for one in found.allocations if show_all else ():
            if one.block == cidr:
                yield f"  {one.address} allocated; attrs {attributes(one)}"
    yield f"IPAM blocks record {len(found.allocations)} allocations."
    yield ""


def _users(found: Audit, show_all: bool) -> Iterator[str]:
    tunnels = [use for use in found.uses if use.owner.startswith("Node(")]
    workloads = [use for use in found.uses if not use.owner.startswith("Node(")]
    yield "Loading all nodes."
    yield from (f"  {use.address} belongs to {use.owner}" for use in tunnels if show_all)
    yield from (f"Found {len(tunnels)} node tunnel IPs.", "")
    yield "Loading all service load balancer IPs."
    yield from ("No configuration for LoadBalancer kubecontroller found, skipping service check", "")
    yield "Loading all workload endpoints."
    yield from (f"  {use.address} belongs to {use.owner}" for use in workloads if show_all)
    yield f"Found {len(workloads)} workload IPs."
    yield from (f"Workloads and nodes are using {len({use.address for use in found.uses})} IPs.", "")


def _top(found: Audit) -> Iterator[str]:
    yield "Loading all handles"
    yield f"Looking for top (up to {_TOP}) nodes by allocations..."
    counts = sorted(found.by_node, key=lambda pair: (-pair[1], pair[0]))
    yield from (f"  {node} has {count} allocations" for node, count in counts[:_TOP])
    if counts:
        yield f"Node with most allocations has {counts[0][1]}; median is {counts[len(counts) // 2][1]}"
    yield ""


def _unused(found: Audit, show: bool) -> Iterator[str]:
    yield "Scanning for IPs that are allocated but not actually in use..."
    yield from (f"  {one.address} leaked; attrs {attributes(one)}" for one in found.leaked if show)
    yield f"Found {len(found.leaked)} IPs that are allocated in IPAM but not actually in use."


def _unallocated(found: Audit, show: bool) -> Iterator[str]:
    yield "Scanning for IPs that are in use by a workload or node but not allocated in IPAM..."
    outside = set(found.outside_pools)
    missing = set(found.unallocated)
    for use in found.uses if show else ():
        if use in outside:
            yield f"  {use.address} in use by {use.owner} is not in any active IP pool."
        elif use in missing:
            yield f"  {use.address} in use by {use.owner} and in active IPAM pool but has no IPAM allocation."
    yield f"Found {len(outside)} in-use IPs that are not in active IP pools."
    yield f"Found {len(missing)} in-use IPs that are in active IP pools but have no corresponding IPAM allocation."
    yield ""


def _handles(found: Audit, show: bool) -> Iterator[str]:
    yield "Scanning for IPAM handles with no matching IPs..."
    yield from (f"  Handle {name} has no address" for name in found.handles.unused if show)
    unused, used = len(found.handles.unused), len(found.handles.used)
    yield f"Found {unused} handles with no matching IPs (and {used} handles with matches)."
    yield "Scanning for IPs with missing handle..."
    yield from (f"  Handle {name} is named by addresses, but does not exist" for name in found.handles.missing if show)
    yield f"Found {len(found.handles.missing)} handles mentioned in blocks with no matching handle resource."
    yield "Validating IPAMBlock structures..."
    yield from (f"  Block {cidr}: {'; '.join(wrong)}" for cidr, wrong in found.invalid_blocks)
    yield f"Found {len(found.invalid_blocks)} invalid IPAMBlocks."


def _own_findings(found: Audit) -> Iterator[str]:
    for group in found.double:
        yield f"{group[0].address} is in use more than once: {', '.join(use.owner for use in group)}"
    for one, use in found.foreign:
        yield f"{one.address} was given to {one.attributes.get('node')}, but {use.owner} uses it on {use.node}"
    for host, cidr in found.affinities_without_block:
        yield f"{host} claims block {cidr}, which is missing or has another owner"
    for count in found.handles.miscounted:
        yield f"Note: handle {count.handle} counts {dict(count.counted)}, its blocks hold {dict(count.held)} (harmless)"


def _write_report(session: Session, found: Audit, path: Path) -> None:
    stored = session.store.resources(ClusterInformation).find("default", session.deadline())
    spec = stored.value.spec if stored else None
    leaked = {one.address for one in found.leaked}
    report = {
        "version": __version__,
        "clusterGUID": spec.cluster_guid if spec else "",
        "datastoreLocked": bool(spec and spec.datastore_ready is False),
        "clusterInformationRevision": str(stored.revision) if stored else "",
        "clusterType": spec.cluster_type if spec else "",
        "allocations": {str(one.address): [_entry(found, one, one.address not in leaked)] for one in found.allocations},
        "leakedHandles": list(found.handles.unused),
    }
    try:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInput("--output", str(path), f"cannot be written: {error.strerror}") from error


def _entry(found: Audit, one: Allocated, in_use: bool) -> dict[str, Any]:
    return {
        "ip": str(one.address),
        "handle": one.handle or "",
        "sequenceNumber": one.sequence,
        "node": one.node or "",
        "type": one.attributes.get("type", ""),
        "inUse": in_use,
        "borrowed": bool(one.node and one.node != one.host),
        "owners": [use.owner for use in found.uses if use.address == one.address],
    }
