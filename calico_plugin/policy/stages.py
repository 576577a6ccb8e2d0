"""Where policy of host endpoints is enforced, and the base chains that lead to it (policy 2.7, 4.1).

::

    prerouting -299   doNotTrack policy, ingress     output -300   doNotTrack policy, egress
    prerouting -150   preDNAT policy                 (what it allows is spared the later policy of the endpoint)
    forward -21, -18  applyOnForward policy, in and out
    input -18         from other than workloads      output -18    to other than workloads

Each hook is a verdict map by interface; the list of a `*` endpoint follows the lookup. The chains exist only while a
host endpoint of this node governs something. The loopback interface is never governed by `*`: a host must reach
itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Mapping

from calico_plugin.model.desired import Chain, Field, Hook, Match, Rule, Verdict
from calico_plugin.policy.options import Failsafe, PolicyOptions
from calico_plugin.policy.reading import BEFORE_NAT, PLAIN, UNTRACKED, Host, PolicyInfo

ALL = "*"
LOOPBACK = "lo"
UDP = "17"


@dataclass(frozen=True, slots=True)
class Stage:
    """One of the places where a host endpoint's policy is enforced; `map` is the verdict map by interface."""

    name: str
    direction: str
    map: str
    type: str
    hook: str
    priority: int

    def takes(self, policy: PolicyInfo) -> bool:
        """Whether a policy counts here."""
        if self.direction.capitalize() not in policy.types:
            return False
        if self.name == "forward":
            return policy.flavour == PLAIN and policy.on_forward
        return policy.flavour == {"raw": UNTRACKED, "nat": BEFORE_NAT, "host": PLAIN}[self.name]


STAGES = (
    Stage("raw", "ingress", "host-raw-in", "filter", "prerouting", -299),
    Stage("raw", "egress", "host-raw-out", "filter", "output", -300),
    Stage("nat", "ingress", "host-nat-in", "filter", "prerouting", -150),
    Stage("forward", "ingress", "host-forward-in", "filter", "forward", -21),
    Stage("forward", "egress", "host-forward-out", "filter", "forward", -18),
    Stage("host", "ingress", "host-in", "filter", "input", -18),
    Stage("host", "egress", "host-out", "filter", "output", -18),
)
MAPS = tuple(stage.map for stage in STAGES)


def resolve(hosts: Iterable[Host], interfaces: Mapping[str, frozenset[str]]) -> dict[str, Host]:
    """Interface (or `*`) -> the endpoint that governs it: by name, else by an expected address; smallest name first."""
    governed: dict[str, Host] = {}
    ordered = sorted(hosts, key=lambda host: host.key.name.encode())
    for host in ordered:
        if host.interface:
            governed.setdefault(host.interface, host)
    for host in ordered:
        for interface, addresses in sorted(interfaces.items()):
            if not host.interface and interface != LOOPBACK and addresses & host.expected:
                governed.setdefault(interface, host)
                break
    return governed


def base_chains(options: PolicyOptions, everywhere: Mapping[str, str], ends: Mapping[int, str]) -> list[Chain]:
    """One for each stage. `everywhere`: map -> list chain of the `*` endpoint there. `ends`: IP version -> set of the
    nodes' addresses, where packets between hosts are wrapped.
    """
    return [Chain(stage.map, _base_rules(stage, options, everywhere.get(stage.map), ends),
                  Hook(stage.type, stage.hook, stage.priority)) for stage in STAGES]


def _base_rules(
    stage: Stage, options: PolicyOptions, everywhere: str | None, ends: Mapping[int, str]
) -> tuple[Rule, ...]:
    inward = stage.direction == "ingress"
    field = Field.IN_INTERFACE if inward else Field.OUT_INTERFACE
    rules = []
    if stage.name == "host":
        rules.append(Rule(Verdict.RETURN, (Match(field, (f"{options.interface_prefix}*",)),)))
        rules += [_wrapped(inward, options, version, name) for version, name in ends.items()]
    rules.append(Rule(Verdict.MAP_IN if inward else Verdict.MAP_OUT, target=stage.map))
    if everywhere is not None and stage.name != "raw":
        rules.append(Rule(Verdict.GOTO, (Match(field, (LOOPBACK,), negated=True),), everywhere))
    return tuple(rules)


def _wrapped(inward: bool, options: PolicyOptions, version: int, name: str) -> Rule:
    """Packets of the tunnel between the nodes."""
    peer = Field[f"{'SOURCE' if inward else 'DESTINATION'}{version}"]
    udp = Match(Field.PROTOCOL, (UDP,))
    port = Match(Field.DESTINATION_PORT, (str(options.vxlan_port),))
    return Rule(Verdict.ACCEPT, (udp, port, Match(peer, set_name=name)), origin="tunnel between nodes")


def failsafe_rules(stage: Stage, options: PolicyOptions) -> list[Rule]:
    """Not for forwarded traffic, which is not the host's; before tracking also the answers to the other direction."""
    inward = stage.direction == "ingress"
    own, other = options.failsafe_inbound, options.failsafe_outbound
    if not inward:
        own, other = other, own
    address = "SOURCE" if inward else "DESTINATION"
    rules = [_failsafe(item, Field.DESTINATION_PORT, address) for item in own]
    if stage.name == "raw":
        rules += [_failsafe(item, Field.SOURCE_PORT, address) for item in other]
    return rules


def _failsafe(item: Failsafe, port: Field, address: str) -> Rule:
    matches = [Match(Field.PROTOCOL, (str(item.protocol),)), Match(port, (str(item.port),))]
    if item.net:
        family = "6" if ":" in item.net else "4"
        whole = Match(Field.FAMILY, (family,))
        matches.append(whole if item.net.endswith("/0") else Match(Field[address + family], (item.net,)))
    return Rule(Verdict.ACCEPT, tuple(matches), origin="failsafe port")
