"""Pools as Docker sees them: a PoolID that says all by itself, since it comes back on any host and after any restart.

========================================== ===========================================================
`CalicoPoolIPv4`, `CalicoPoolIPv6`         any pool that is for this node (the names of the original plugin)
`calico:<pool CIDR>`                       the IPPool with this CIDR
`calico:<pool CIDR>@<CIDR inside it>`      that pool, addresses out of the inner CIDR only
anything else                              the name of an IPPool (what the original plugin answered)
========================================== ===========================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Sequence

from calico_plugin.driver.options import IPAM_OPTION_INSIDE
from calico_plugin.driver.wire import IPAddress, IPNetwork, RequestPool
from calico_plugin.errors import InvalidInput, NotFound
from calico_plugin.model.resources import IPPool

ANY = {4: "CalicoPoolIPv4", 6: "CalicoPoolIPv6"}
LOCAL_SPACE, GLOBAL_SPACE = "CalicoLocalAddressSpace", "CalicoGlobalAddressSpace"
EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
_PREFIX = "calico:"


@dataclass(frozen=True, slots=True)
class Pool:
    """What a PoolID says. `cidr` None: any pool of the family; `within` None: all of the pool."""

    version: int
    cidr: IPNetwork | None = None
    within: IPNetwork | None = None

    @property
    def id(self) -> str:
        if self.cidr is None:
            return ANY[self.version]
        return f"{_PREFIX}{self.cidr}" + (f"@{self.within}" if self.within is not None else "")

    def holds(self, address: IPAddress) -> bool:
        """Whether a user may name the address. As with Docker's own IPAM, `within` limits only what we choose: an
        auxiliary address or a container's `--ip` may lie beside the `--ip-range`; in the `--subnet` it is by Docker.
        """
        return address.version == self.version and (self.cidr is None or address in self.cidr)


@dataclass(frozen=True, slots=True)
class Granted:
    """Answer to RequestPool: the id, the pool as Docker shall show it, and the gateway that keeps Docker from asking
    for one.
    """

    id: str
    pool: str
    gateway: str


def parse(pool_id: str, known: Sequence[IPPool]) -> Pool:
    """What a PoolID says. Raises NotFound for an id that is neither ours nor the name of a pool."""
    for version, name in ANY.items():
        if pool_id == name:
            return Pool(version)
    if pool_id.startswith(_PREFIX):
        return _parse_ours(pool_id)
    for pool in known:
        if pool.name == pool_id:
            return Pool(pool.spec.version, ip_network(pool.spec.cidr, strict=False))
    raise NotFound(
        f"pool {pool_id}", "the network was made with a pool that is gone: remove the network and create it again"
    )


def grant(call: RequestPool, known: Sequence[IPPool]) -> Granted:
    """The pool for a new network. Raises InvalidInput, naming the CIDR and the pools that there are."""
    pools = [pool for pool in known if pool.spec.version == call.version and pool.spec.cidr]
    for name in call.pool_names:
        if name not in [pool.name for pool in known]:
            raise InvalidInput("--ipam-opt pool", name, f"no IP pool has this name; {_list(known)}")
    if call.pool is None:
        return _automatic(call, pools)
    holder = _holder(call, call.pool, pools)
    cidr = ip_network(holder.spec.cidr, strict=False)
    within = call.range if call.range is not None else call.pool if call.pool != cidr else None
    return Granted(Pool(call.version, cidr, within).id, str(call.pool), EVERYWHERE[call.version])


def _parse_ours(pool_id: str) -> Pool:
    cidr, _, within = pool_id[len(_PREFIX) :].partition("@")
    try:
        network = ip_network(cidr)
        return Pool(network.version, network, ip_network(within) if within else None)
    except ValueError as problem:
        raise InvalidInput("PoolID", pool_id, f"it cannot be read: {problem}") from problem


def _automatic(call: RequestPool, pools: Sequence[IPPool]) -> Granted:
    """No `--subnet`. The answer is never a CIDR that Docker could find in use on the host: it would ask again without
    end.

    0.0.0.0/0 is exempt from that check in every release. ::/0 is not, where the host has an IPv6 name server, hence
    the real pool.
    """
    # Names of the other family only say nothing about this one.
    chosen = [pool for pool in pools if pool.name in call.pool_names]
    if chosen:
        granted = Pool(call.version, ip_network(chosen[0].spec.cidr, strict=False)).id
    else:
        chosen, granted = [pool for pool in pools if not pool.spec.disabled], ANY[call.version]
    if call.version == 4:
        return Granted(granted, EVERYWHERE[4], EVERYWHERE[4])
    if not chosen:
        raise InvalidInput(
            "--ipv6", hint="there is no IPv6 pool: create an IPPool with an IPv6 CIDR first (calicoctl create)"
        )
    return Granted(granted, chosen[0].spec.cidr, EVERYWHERE[6])


def _holder(call: RequestPool, wanted: IPNetwork, pools: Sequence[IPPool]) -> IPPool:
    """The pool that a `--subnet` names, or that it lies in where the user said so."""
    exact = [pool for pool in pools if ip_network(pool.spec.cidr, strict=False) == wanted]
    around = [pool for pool in pools if _inside(wanted, ip_network(pool.spec.cidr, strict=False))]
    found = exact or (around if call.inside else [])
    if not found:
        hint = "no IP pool has this CIDR"
        if around:
            hint += (
                f", but it lies in {around[0].name}: to use a part of a pool add --ipam-opt {IPAM_OPTION_INSIDE}=true"
            )
        raise InvalidInput("--subnet", str(wanted), f"{hint}; {_list(pools)}")
    named = [pool for pool in pools if pool.name in call.pool_names]
    if named and not [pool for pool in found if pool in named]:
        raise InvalidInput("--ipam-opt pool", named[0].name, f"not the pool of --subnet {wanted}; {_list(pools)}")
    if found[0].spec.disabled:
        raise InvalidInput(
            "--subnet", str(wanted), f"its IP pool {found[0].name} is disabled; enable it or use another one"
        )
    return found[0]


def _inside(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _list(pools: Sequence[IPPool]) -> str:
    if not pools:
        return "there is no such pool yet: create one first (calicoctl create)"
    return "pools: " + ", ".join(f"{pool.spec.cidr} ({pool.name})" for pool in pools)
