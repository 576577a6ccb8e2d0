"""natOutgoing: what containers send out of the pools' addresses carries an address of the host (policy 4.8). Pure.

Policy is enforced before it, so rules see the container's own address.
"""

from __future__ import annotations

from typing import Iterable, Mapping

from calico_plugin.model.desired import AddressSet, Field, Match, Rule, SetType, Verdict
from calico_plugin.model.resources import IPPool
from calico_plugin.policy.members import without_covered
from calico_plugin.policy.options import Translation

NAT_POOLS, ALL_POOLS = {4: "nat-pools4", 6: "nat-pools6"}, {4: "all-pools4", 6: "all-pools6"}
HOSTS = {4: "all-hosts4", 6: "all-hosts6"}
_WITH_PORTS = ("6", "17")


def rules(options: Translation) -> tuple[Rule, ...]:
    """Those of the chain behind routing. A range of ports needs a rule for each protocol that has any."""
    return tuple(rule for family in (4, 6) for rule in _of_family(family, options))


def _of_family(family: int, options: Translation) -> Iterable[Rule]:
    matches = [
        Match(Field[f"SOURCE{family}"], set_name=NAT_POOLS[family]),
        Match(Field[f"DESTINATION{family}"], set_name=ALL_POOLS[family], negated=True),
    ]
    if options.spare_hosts:
        matches.append(Match(Field[f"DESTINATION{family}"], set_name=HOSTS[family], negated=True))
    if options.interface:
        matches.append(Match(Field.OUT_INTERFACE, (options.interface,)))
    address = options.address if family == 4 else ""
    verdict = Verdict.SNAT if address else Verdict.MASQUERADE
    for protocol in _WITH_PORTS if options.ports else ():
        narrowed = (*matches, Match(Field.PROTOCOL, (protocol,)))
        yield Rule(verdict, narrowed, f"{address}:{options.ports}", origin="natOutgoing")
    yield Rule(verdict, tuple(matches), address, origin="natOutgoing")


def pool_sets(pools: Iterable[IPPool]) -> Iterable[AddressSet]:
    """Pools that are translated, and all pools, whose addresses see each other's own."""
    listed = tuple(pools)
    for table, natted in ((NAT_POOLS, True), (ALL_POOLS, False)):
        for family, name in table.items():
            cidrs = [pool.spec.cidr for pool in listed if _counts(pool, family, natted)]
            yield AddressSet(name, SetType[f"IPV{family}"], without_covered(cidrs), interval=True)


def _counts(pool: IPPool, family: int, natted: bool) -> bool:
    """Pools for load balancers only do not count; a disabled pool does."""
    used = bool({"Workload", "Tunnel"} & set(pool.spec.effective_uses))
    return used and pool.spec.version == family and (pool.spec.nat_outgoing or not natted)


def host_sets(addresses: Mapping[int, frozenset[str]]) -> Iterable[AddressSet]:
    """The cluster's hosts, by IP version."""
    for family, name in HOSTS.items():
        yield AddressSet(name, SetType[f"IPV{family}"], addresses.get(family, frozenset()))


def empty_sets() -> Iterable[AddressSet]:
    yield from pool_sets(())
    yield from host_sets({})
