"""Chains of the table, pure: names, the fixed frame, chains of policies, tiers, profiles and lists (policy 4, 5.4).

::

    prerouting (raw)        a packet from cali* must carry an address of its own endpoint or of a sibling, else drop
    forward, egress side    from cali*: map from-workload -> list chain of the endpoint; unknown interface: drop;
                            a sibling's address in a new connection: drop
    forward, ingress side   to cali*:   map to-workload -> list chain; unknown interface: drop
    input, egress side      from cali*: as in forward, then (next base chain) the endpoint-to-host action
    output                  to cali* that no endpoint names: drop; else the host may always talk to its workloads
    postrouting (nat)       natOutgoing

    list chain   established? -> tiers -> profiles -> drop         shared by all endpoints with the same policies
    tier chain   policies in order, then the tier's default action  shared by all lists that hold it
    run chain    a run of a long tier's policies behind maps         see `blocks` and `sorting`
    policy chain Allow = accept, Deny = drop, no match = back

An accept ends its base chain only, so egress and ingress are two base chains of one hook and need no mark bits. A
policy with Pass rules stands inside its tier chains, where Pass is `return`; all others are chains of their own, so
that an edit rewrites one.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Callable, Iterable, Mapping

from calico_plugin.model.desired import AddressSet, Chain, Field, Hook, Match, Rule, Sample, SetType, Verdict
from calico_plugin.model.keys import ResourceKey
from calico_plugin.policy import nat
from calico_plugin.policy.blocks import Member, Piece, cut
from calico_plugin.policy.options import PolicyOptions
from calico_plugin.policy.reading import BEFORE_NAT, UNTRACKED, PolicyInfo, ProfileInfo
from calico_plugin.policy.rules import Block, NameOf, Parsed, disjoint, lines, member, networks
from calico_plugin.policy.stages import Stage, failsafe_rules

PolicyOf = Callable[[ResourceKey], PolicyInfo]
PiecesOf = Callable[[str, Block], Iterable[Piece]]
"""Direction, block -> what stands in the tier for it."""

FROM_WORKLOAD, TO_WORKLOAD = "from-workload", "to-workload"
KNOWN, OWN = "known-workload", {4: "own-address4", 6: "own-address6"}
# Addresses of other endpoints of the same container.
SIBLING = {4: "sibling-address4", 6: "sibling-address6"}

# Before iptables' and Docker's chains at 0 (and -1): what we drop never reaches them (policy 5.4).
_EGRESS, _INGRESS = -20, -19
_RAW = -300
_NAT = 110
_UNKNOWN = Rule(Verdict.DROP, origin="unknown interface")

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]{0,99}")
_LETTER = {"ingress": "i", "egress": "o"}
# MLD, router solicitation, neighbour solicitation and advertisement (policy 4.4); not 134 or 137.
_HOST_ICMPV6 = ("130", "131", "132", "133", "135", "136")

IPIP, TCP, UDP, ICMPV6 = "4", "6", "17", "58"
CONTROL_PORTS, CONTROL_ORIGIN = ("179", "2379-2380"), "BGP and etcd of the hosts, which only policy opens"


@dataclass(frozen=True, slots=True)
class TierPart:
    """The policies of one tier that govern an endpoint in one direction, in order."""

    direction: str
    tier: str
    policies: tuple[ResourceKey, ...]
    default_pass: bool
    broken: bool = False
    block_size: int = 512
    sort_from: int = 21

    def blocks(self) -> list[Block]:
        return cut(self.policies, self.block_size, self.sort_from)


@dataclass(frozen=True, slots=True)
class ListPart:
    """All that governs an endpoint in one direction. Endpoints with equal lists share the chain.

    `stage` is None for workloads, else the place of a host endpoint's policy.
    """

    direction: str
    tiers: tuple[TierPart, ...]
    profiles: tuple[str, ...]
    stage: Stage | None = None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def _readable(prefix: str, name: str) -> str:
    return f"{prefix}{name}" if _SAFE_NAME.fullmatch(name) else f"{prefix}_{_digest(name)}"


def policy_chain_name(direction: str, key: ResourceKey) -> str:
    short = {"GlobalNetworkPolicy": "gnp", "NetworkPolicy": "np"}[key.kind]
    path = f"{key.namespace}/{key.name}" if key.namespace else key.name
    return _readable(f"p{_LETTER[direction]}-{short}/", path)


def profile_chain_name(direction: str, name: str) -> str:
    return _readable(f"r{_LETTER[direction]}-", name)


def tier_chain_name(part: TierPart) -> str:
    return f"t{_LETTER[part.direction]}-{_digest(repr(part))}"


def run_prefix(direction: str) -> str:
    """What the names of runs begin with."""
    return f"b{_LETTER[direction]}-"


def list_chain_name(part: ListPart) -> str:
    return f"l{_LETTER[part.direction]}-{_digest(repr(part))}"


def list_chain(part: ListPart, options: PolicyOptions) -> Chain:
    """4.2: established first, encapsulation out of a workload dropped, tiers, profiles, drop; before the profiles what
    only policy may allow.
    """
    rules = list(_host_start(part.stage, options) if part.stage else _workload_start(part, options))
    rules += [Rule(Verdict.JUMP, target=tier_chain_name(tier)) for tier in part.tiers]
    if part.stage is None and part.direction == "egress":
        rules += _control_ports(options)
    if part.stage is None or part.stage.name == "host":
        rules += [Rule(Verdict.JUMP, target=profile_chain_name(part.direction, name)) for name in part.profiles]
        why = "no profile rule matched" if part.profiles else "Profile|__PROFILE__|no profile"
        rules.append(Rule(Verdict.DROP, origin=why))
    return Chain(list_chain_name(part), denying(told(rules, part.direction, options), options))


def _workload_start(part: ListPart, options: PolicyOptions) -> Iterable[Rule]:
    yield from _established(options)
    if part.direction == "egress":
        yield from _encapsulation(options)


def _control_ports(options: PolicyOptions) -> Iterable[Rule]:
    """BGP and etcd of the cluster's hosts: whoever reaches them can change routes and policies of all."""
    if options.endpoint_to_host == "accept":
        return
    tcp, ports = Match(Field.PROTOCOL, (TCP,)), Match(Field.DESTINATION_PORT, CONTROL_PORTS)
    hosts = [Match(Field.LOCAL)]
    hosts += [Match(Field[f"DESTINATION{family}"], set_name=name) for family, name in nat.HOSTS.items()]
    for host in hosts:
        yield Rule(Verdict.DROP, (tcp, ports, host), origin=CONTROL_ORIGIN)


def _host_start(stage: Stage, options: PolicyOptions) -> Iterable[Rule]:
    """What a host endpoint lets through before any policy; nothing is tracked yet where doNotTrack policy stands."""
    if stage.name == "nat":
        # What doNotTrack policy allowed meets no later policy of the endpoint.
        yield Rule(Verdict.ACCEPT, (Match(Field.CONNECTION_STATE, ("established", "related", "untracked")),))
    elif stage.name != "raw":
        yield from _established(options)
        yield Rule(Verdict.ACCEPT, (Match(Field.CONNECTION_STATE, ("untracked",)),))
        if stage.direction == "ingress":
            yield Rule(Verdict.ACCEPT, (Match(Field.SPARED),))
    if stage.name != "forward":
        yield from failsafe_rules(stage, options)


def _established(options: PolicyOptions) -> Iterable[Rule]:
    yield Rule(Verdict.ACCEPT, (Match(Field.CONNECTION_STATE, ("established", "related")),))
    if not options.disable_conntrack_invalid_check:
        yield Rule(Verdict.DROP, (Match(Field.CONNECTION_STATE, ("invalid",)),))


def _encapsulation(options: PolicyOptions) -> Iterable[Rule]:
    """A workload must not talk to the hosts' tunnels."""
    if not options.allow_vxlan_from_workloads:
        matches = (Match(Field.PROTOCOL, (UDP,)), Match(Field.DESTINATION_PORT, (str(options.vxlan_port),)))
        yield Rule(Verdict.DROP, matches, origin="encapsulation|VXLAN")
    if not options.allow_ipip_from_workloads:
        yield Rule(Verdict.DROP, (Match(Field.PROTOCOL, (IPIP,)),), origin="encapsulation|IPIP")


def inlined(policy: PolicyInfo, direction: str) -> bool:
    """Whether the policy stands inside its tier chains: it has a rule that leaves the tier."""
    return any(rule.action == "Pass" for rule in policy.rules[direction])


def policy_rules(policy: PolicyInfo, direction: str, name_of: NameOf, options: PolicyOptions) -> tuple[Rule, ...]:
    prefix = log_prefix(options.log_prefix, policy)
    found = told(_rules(policy.rules[direction], name_of, prefix, options), direction, options)
    allow = _ALLOWS.get(policy.flavour)
    if allow is None:
        return denying(found, options)
    return tuple(replace(rule, verdict=allow) if rule.verdict is Verdict.ACCEPT else rule for rule in found)


_ALLOWS = {UNTRACKED: Verdict.UNTRACK, BEFORE_NAT: Verdict.SPARE}


def _rules(parsed: Iterable[Parsed], name_of: NameOf, prefix: str, options: PolicyOptions) -> tuple[Rule, ...]:
    found = (line for rule in parsed for line in lines(rule, name_of, prefix))
    return tuple(found if options.log_rate is None else (
        line if line.log is None else replace(line, rate=options.log_rate) for line in found))


def tier_chain(
    part: TierPart, policies: PolicyOf, pieces_of: PiecesOf, name_of: NameOf, options: PolicyOptions
) -> Chain:
    rules: list[Rule] = []
    for block in part.blocks() if not part.broken else ():
        pieces = pieces_of(part.direction, block) if len(block.policies) > 1 else block.policies
        for piece in pieces:
            rules += _piece(piece, part.direction, policies, name_of, options)
    first = policies(part.policies[0])
    end = Verdict.RETURN if part.default_pass and not part.broken else Verdict.DROP
    last = Rule(end, origin=f"{first.origin}|{'tier not understood' if part.broken else 'end of tier'}")
    ending = told((last,), part.direction, options)
    # One that is not understood may stand before routing, where nothing can be rejected.
    return Chain(tier_chain_name(part), (*rules, *(ending if part.broken else denying(ending, options))))


def _piece(
    piece: Piece, direction: str, policies: PolicyOf, name_of: NameOf, options: PolicyOptions
) -> Iterable[Rule]:
    """A run, or a policy in its own chain unless it leaves the tier."""
    if isinstance(piece, str):
        return (Rule(Verdict.JUMP, target=piece),)
    policy = policies(piece)
    if inlined(policy, direction):
        return policy_rules(policy, direction, name_of, options)
    return (Rule(Verdict.JUMP, target=policy_chain_name(direction, piece)),)


def members(block: Block, direction: str, policies: PolicyOf) -> list[Member]:
    """A policy that leaves the tier cannot stand one chain deeper: its return would only leave the run."""
    return [
        Member(key, policy_chain_name(direction, key), None if inlined(policy, direction) else policy.rules[direction])
        for key in block.policies for policy in (policies(key),)
    ]


def profile_chain(profile: ProfileInfo, direction: str, name_of: NameOf, options: PolicyOptions) -> Chain:
    """Pass leaves the profile: `return`."""
    prefix = _clean(f"{options.log_prefix}: ")
    rules = told(_rules(profile.rules[direction], name_of, prefix, options), direction, options)
    return Chain(profile_chain_name(direction, profile.name), denying(rules, options))


def denying(rules: Iterable[Rule], options: PolicyOptions) -> tuple[Rule, ...]:
    """The deny action that the operator chose, for what somebody wrote or left out; not before routing."""
    if not options.reject:
        return tuple(rules)
    return tuple(
        replace(rule, verdict=Verdict.REJECT) if rule.verdict is Verdict.DROP and rule.origin else rule
        for rule in rules
    )


def told(rules: Iterable[Rule], direction: str, options: PolicyOptions) -> tuple[Rule, ...]:
    """The rules, each that user space shall hear of behind one that tells it: a rate would hold up its verdict."""
    if not options.log_group:
        return tuple(rules)
    return tuple(line for rule in rules for line in (*_telling(rule, direction, options), rule))


def _telling(rule: Rule, direction: str, options: PolicyOptions) -> Iterable[Rule]:
    logged = isinstance(rule.log, str)
    if rule.origin and (logged or options.flow_log and rule.verdict in _DECIDE):
        what = "log" if logged else "deny" if rule.verdict is Verdict.DROP else "allow"
        sample = Sample(options.log_group, flow_prefix(direction, what, rule.origin), _TOLD_PER_SECOND)
        yield Rule(Verdict.CONTINUE, rule.matches, log=sample)


def flow_prefix(direction: str, what: str, origin: str) -> str:
    """`ingress deny <origin>`; of an origin that is too long the middle is left out: its end has the rule's number."""
    whole = _clean_all(f"{direction} {what} {origin}")
    return whole if len(whole) <= _LONGEST_PREFIX else f"{whole[:80]}~{whole[-(_LONGEST_PREFIX - 81):]}"


_DECIDE = (Verdict.ACCEPT, Verdict.DROP)
_TOLD_PER_SECOND = 50
_LONGEST_PREFIX = 126


def log_prefix(template: str, policy: PolicyInfo) -> str:
    """`%t` tier, `%k` short kind, `%n` name, `%p` namespace/name, then `: ` (policy 2.5)."""
    key = policy.key
    words = {
        "%t": policy.tier,
        "%k": "gnp" if key.kind == "GlobalNetworkPolicy" else "np",
        "%n": key.name,
        "%p": f"{key.namespace}/{key.name}" if key.namespace else key.name,
    }
    return _clean(re.sub("%[tknp]", lambda found: words[found.group()], template) + ": ")


def _clean(prefix: str) -> str:
    """What the kernel takes: at most 126 bytes, and no character that would end nft's string."""
    return _clean_all(prefix)[:_LONGEST_PREFIX]


def _clean_all(prefix: str) -> str:
    return re.sub(r'[^ -~]|["\\]', "_", prefix)


def frame(options: PolicyOptions, spoofing: Mapping[str, tuple[str, ...]]) -> list[Chain]:
    """The chains that are there whatever the cluster holds. With empty maps they drop all on workload interfaces.

    `spoofing`: interface -> prefixes that its endpoint may send from besides its own addresses; few endpoints have any.
    """
    workload = f"{options.interface_prefix}*"
    leaving = Match(Field.IN_INTERFACE, (workload,))
    entering = Match(Field.OUT_INTERFACE, (workload,))
    return [
        Chain("prerouting-spoof", _spoof_rules(workload, spoofing), _filter("prerouting", _RAW)),
        Chain("forward-egress", (Rule(Verdict.GOTO, (leaving,), "dispatch-from"),), _filter("forward", _EGRESS)),
        Chain("forward-ingress", (Rule(Verdict.GOTO, (entering,), "dispatch-to"),), _filter("forward", _INGRESS)),
        Chain("input-egress", _input_rules(leaving), _filter("input", _EGRESS)),
        Chain("input-to-host", _to_host_rules(leaving, options), _filter("input", _INGRESS)),
        Chain("output-workload", (
            Rule(Verdict.DROP, (entering, Match(Field.OUT_INTERFACE, set_name=KNOWN, negated=True))),
        ), _filter("output", _INGRESS)),
        Chain("postrouting-nat", nat.rules(options.translation), Hook("nat", "postrouting", _NAT)),
        Chain("dispatch-from", _dispatch_from()),
        Chain("dispatch-to", (Rule(Verdict.MAP_OUT, target=TO_WORKLOAD), _UNKNOWN)),
    ]


def _filter(hook: str, priority: int) -> Hook:
    return Hook("filter", hook, priority)


def _spoof_rules(workload: str, spoofing: Mapping[str, tuple[str, ...]]) -> tuple[Rule, ...]:
    """4.5, without the routing table: own addresses only; IPv6 link-local and address detection are never forwarded."""
    return (
        Rule(Verdict.ACCEPT, (Match(Field.IN_INTERFACE, (workload,), negated=True),)),
        Rule(Verdict.ACCEPT, (Match(Field.IN_INTERFACE_SOURCE4, set_name=OWN[4]),)),
        Rule(Verdict.ACCEPT, (Match(Field.IN_INTERFACE_SOURCE4, set_name=SIBLING[4]),)),
        *_allowed_spoofing(spoofing),
        Rule(Verdict.DROP, (Match(Field.FAMILY, ("4",)),), origin="spoofed source"),
        Rule(Verdict.ACCEPT, (Match(Field.IN_INTERFACE_SOURCE6, set_name=OWN[6]),)),
        Rule(Verdict.ACCEPT, (Match(Field.IN_INTERFACE_SOURCE6, set_name=SIBLING[6]),)),
        Rule(Verdict.ACCEPT, (
            Match(Field.IN_INTERFACE, set_name=KNOWN), Match(Field.SOURCE6, ("fe80::/10",)),
        )),
        Rule(Verdict.ACCEPT, (
            Match(Field.IN_INTERFACE, set_name=KNOWN), Match(Field.SOURCE6, ("::",)), Match(Field.PROTOCOL, (ICMPV6,)),
        )),
        Rule(Verdict.DROP, origin="spoofed source"),
    )


def _allowed_spoofing(spoofing: Mapping[str, tuple[str, ...]]) -> Iterable[Rule]:
    for interface, prefixes in sorted(spoofing.items()):
        nets = networks(prefixes, "spec.allowSpoofedSourcePrefixes")
        for family in (4, 6):
            listed = disjoint(net for net in nets if net.version == family)
            if not listed:
                continue
            whole = any(net.prefixlen == 0 for net in listed)
            what = Match(Field.FAMILY, (str(family),)) if whole else Match(
                Field[f"SOURCE{family}"], tuple(map(member, listed)))
            yield Rule(Verdict.ACCEPT, (Match(Field.IN_INTERFACE, (interface,)), what))


def _dispatch_from() -> tuple[Rule, ...]:
    """With a sibling's address a container may only answer: what it starts meets the policy of the address it uses."""
    established = Match(Field.CONNECTION_STATE, ("established", "related"))
    return (
        Rule(Verdict.MAP_IN, (established,), FROM_WORKLOAD),
        *(
            Rule(
                Verdict.DROP, (Match(Field[f"IN_INTERFACE_SOURCE{family}"], set_name=SIBLING[family]),),
                origin="address of the container's other network",
            )
            for family in (4, 6)
        ),
        Rule(Verdict.MAP_IN, target=FROM_WORKLOAD),
        _UNKNOWN,
    )


def _neighbour_rule(leaving: Match) -> Rule:
    return Rule(Verdict.ACCEPT, (leaving, Match(Field.ICMP6, _HOST_ICMPV6)))


def _input_rules(leaving: Match) -> tuple[Rule, ...]:
    return (_neighbour_rule(leaving), Rule(Verdict.GOTO, (leaving,), "dispatch-from"))


def _to_host_rules(leaving: Match, options: PolicyOptions) -> tuple[Rule, ...]:
    """What egress policy allowed meets the endpoint-to-host action; replies to the host's connections always pass."""
    if options.endpoint_to_host != "drop":
        return ()
    established = Match(Field.CONNECTION_STATE, ("established", "related"))
    return (
        _neighbour_rule(leaving),
        Rule(Verdict.ACCEPT, (leaving, established)),
        Rule(Verdict.DROP, (leaving,), origin="endpoint-to-host action"),
    )


def fixed_sets() -> tuple[AddressSet, ...]:
    """The sets that the frame names, empty."""
    own = (
        AddressSet(table[family], SetType[f"INTERFACE_IPV{family}"]) for table in (OWN, SIBLING) for family in (4, 6)
    )
    return (AddressSet(KNOWN, SetType.INTERFACE), *own, *nat.empty_sets())
