"""`calicoctl ipam split N`: one pool becomes N of equal size, in one commit (node-and-cli 4.8).

The original disables the pool, makes the new ones and deletes the old one, one after the other; a crash between leaves
half of it. Here all of it is one transaction of etcd. Blocks and addresses stay as they are: they belong to a pool by
their CIDR alone.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Iterator

from msgspec.structs import replace

from calico_plugin.cli.session import Session
from calico_plugin.errors import CalicoError, InvalidInput, NotFound
from calico_plugin.model.codec import Stored
from calico_plugin.model.resources import ClusterInformation, IPPool, Metadata

# A transaction of etcd holds 128 operations: the new pools, and the removal of the old one.
MOST = 64


class NotLocked(CalicoError):
    """Somebody might give addresses while pools change."""


def split(session: Session, number: int, cidr: str | None, name: str | None) -> tuple[IPPool, list[IPPool]]:
    """The old pool and the new ones. Raises InvalidInput, NotFound, NotLocked, Conflict."""
    if number < 2 or number & (number - 1) or number > MOST:
        raise InvalidInput("NUMBER", number, f"must be a power of two from 2 to {MOST}; split again for more")
    if bool(cidr) == bool(name):
        raise InvalidInput("--name", name, "give either the pool's --name or its --cidr")
    stored = _pool(session, cidr, name)
    children = list(_children(stored.value, number))
    _check_locked(session)
    pools = session.store.resources(IPPool)
    planned = [pools.removal(stored), *(pools.creation(child) for child in children)]
    session.store.commit(planned, session.deadline())
    return stored.value, children


def _pool(session: Session, cidr: str | None, name: str | None) -> Stored[IPPool]:
    pools = session.store.resources(IPPool)
    if name:
        return pools.get(name, session.deadline())
    for stored in pools.list(session.deadline()).items:
        if stored.value.spec.cidr == cidr:
            return stored
    raise NotFound(f"IPPool with CIDR {cidr}", "`calicoctl get ippool -o wide` lists them")


def _children(pool: IPPool, number: int) -> Iterator[IPPool]:
    network = ip_network(pool.spec.cidr)
    prefix = network.prefixlen + number.bit_length() - 1
    size = pool.spec.effective_block_size
    if prefix > size:
        most = 2 ** (size - network.prefixlen)
        hint = f"the new pools would be smaller than one block of /{size}: at most {most} fit into {pool.spec.cidr}"
        raise InvalidInput("NUMBER", number, hint)
    for index, part in enumerate(network.subnets(new_prefix=prefix)):
        metadata = Metadata(name=f"split-{pool.name}-{index}", labels=pool.labels)
        yield IPPool(metadata=metadata, spec=replace(pool.spec, cidr=str(part)))


def _check_locked(session: Session) -> None:
    stored = session.store.resources(ClusterInformation).find("default", session.deadline())
    if stored is None or stored.value.spec.datastore_ready is not False:
        raise NotLocked(
            "the datastore is not locked: run `calicoctl datastore migrate lock` first, and unlock it afterwards"
        )
