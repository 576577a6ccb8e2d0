"""Snapshot + node -> BIRD 2 configuration, pure and deterministic: equal snapshots give equal bytes.

What it promises (node-and-cli 2): own blocks go out as aggregates and lie as blackholes in the kernel; addresses of
local containers outside own blocks (borrowed ones) go out as /32 or /128; routes of encapsulated pools are the agent's.
A borrowed address is *learned* from the agent's route on a `cali*` link, not written here: BIRD hears it from the
kernel at once, no reload is needed for a container, and the route is withdrawn with the link. No other route of the
agent is learned: with add-path they would go out as bogus paths (2.12.5).

A resource that makes no sense is left out and named in `Rendered.problems`; the rest stands.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Iterable, Mapping

import jinja2

from calico_plugin.model import names
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import BGPFilter, IPPool
from calico_plugin.model.resources.bgp import BGPConfigurationSpec, PrefixAdvertisement
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.routing.filters import community, filter_function, rule_lines
from calico_plugin.routing.sessions import (
    DEFAULT_PORT,
    Matches,
    Plan,
    Secret,
    Session,
    bgp_configuration,
    matches_all_only,
    no_secrets,
    plan,
)

Network = IPv4Network | IPv6Network
# One dead peer must not hold up the kernel's table for BIRD's own 240 s at each start with -R (2.12.6).
GRACEFUL_RESTART_WAIT = 30
# How long neighbours keep our routes while BIRD is away.
GRACEFUL_RESTART_TIME = 120
FALLBACK_ROUTER_ID = "127.0.0.1"
# As the address detection: links that are no way to another host.
IGNORED_INTERFACES = ("cali*", "docker*", "br-*", "veth*")


@dataclass(frozen=True, slots=True)
class Rendered:
    """`text` is a whole configuration; `sessions` are those of the plan that stand in it; `problems` are resources that
    were left out, one sentence each.
    """

    text: str
    plan: Plan
    problems: tuple[str, ...]
    sessions: tuple[Session, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """What the template needs of one IP version; all texts are canonical."""

    version: int
    pools: tuple[str, ...]
    no_export: tuple[str, ...]
    agent: tuple[str, ...]
    blocks: tuple[str, ...]

    @property
    def host_length(self) -> int:
        return 32 if self.version == 4 else 128

    @property
    def statics(self) -> tuple[str, ...]:
        """A host-sized block has no static route: it would shadow the workload's own (2.6)."""
        return tuple(block for block in self.blocks if not block.endswith(f"/{self.host_length}"))


def render(
    snapshot: Snapshot,
    node_name: str,
    *,
    router_id: str = "",
    matches: Matches = matches_all_only,
    secret: Secret = no_secrets,
    without: Mapping[str, str] = {},
) -> Rendered:
    """BIRD's whole configuration for a node.

    `router_id` is CALICO_ROUTER_ID; `matches` evaluates a selector; `secret` gives the text of a secretKeyRef.
    `without`: names of sessions and filter functions that BIRD has refused, with its words (`isolate`); they stay out.
    """
    planned = plan(snapshot, node_name, matches, secret)
    default = bgp_configuration(snapshot)
    own = bgp_configuration(snapshot, f"node.{node_name}")
    problems = list(planned.problems)
    _warn_of_services(default, own, problems)
    functions = tuple(one for one in _filter_functions(snapshot, planned, problems) if one.name not in without)
    strict_bind = (own.bind_mode or default.bind_mode) == "NodeIP"
    sessions = tuple(
        _bound(one, planned) if strict_bind else one
        for one in planned.sessions
        if not _refused(one, without, problems) and _filters_known(one, snapshot, problems)
    )
    text = _template().render(
        router_id=_router_id(planned, node_name, router_id),
        wait=GRACEFUL_RESTART_WAIT,
        restart_time=GRACEFUL_RESTART_TIME,
        families=tuple(_family(snapshot, node_name, version) for version in (4, 6)),
        ignored=IGNORED_INTERFACES + _interfaces(own.ignored_interfaces or default.ignored_interfaces, problems),
        communities=_communities(default, own, problems),
        functions=functions,
        sessions=sessions,
        plan=planned,
        debug=_debug(own.log_severity_screen or default.log_severity_screen),
        listen_port=planned.speaker.port if planned.speaker else DEFAULT_PORT,
        strict_bind=strict_bind,
        vias=tuple(sorted({(one.peer, one.via, one.version) for one in sessions if one.via})),
        own_protocol=names.ROUTE_PROTOCOL,
        prefix=names.INTERFACE_PREFIX,
    )
    return Rendered(text, planned, tuple(problems), sessions)


def minimal(router_id: str = FALLBACK_ROUTER_ID) -> str:
    """A valid configuration without any route: what BIRD runs on before the agent has rendered the first one."""
    return f"log stderr all;\nrouter id {router_id};\nprotocol device {{ scan time 2; }}\n"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("calico_plugin.routing"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["filter_function"] = filter_function
    return environment.get_template("bird.conf.j2")


def _router_id(planned: Plan, node_name: str, given: str) -> str:
    """The node's IPv4 address; `hash` for hosts that have none (2.5); else as given."""
    ipv4 = planned.speaker.addresses.get(4, "") if planned.speaker else ""
    if given == "hash" or (not given and not ipv4 and planned.speaker):
        first, *rest = hashlib.sha256(node_name.encode()).digest()[:4]
        return ".".join(str(byte) for byte in (first - 32 if first > 223 else first, *rest))
    return given or ipv4 or FALLBACK_ROUTER_ID


def _bound(session: Session, planned: Plan) -> Session:
    """BIRD wants an address to bind to, also where the peer says sourceAddress: None."""
    if session.source or planned.speaker is None:
        return session
    return replace(session, source=planned.speaker.addresses[session.version])


def _family(snapshot: Snapshot, node_name: str, version: int) -> Family:
    every = [pool for pool in snapshot.kind("IPPool").values() if isinstance(pool, IPPool)]
    pools = [pool for pool in every if pool.spec.version == version]
    exported = [pool for pool in pools if not pool.spec.disable_bgp_export]
    return Family(
        version=version,
        pools=_cidrs(pool.spec.cidr for pool in exported if not pool.spec.encapsulated),
        no_export=_cidrs(pool.spec.cidr for pool in pools if pool.spec.disable_bgp_export),
        agent=_cidrs(pool.spec.cidr for pool in pools if pool.spec.encapsulated),
        blocks=_cidrs(own_blocks(snapshot, node_name, version)),
    )


def own_blocks(snapshot: Snapshot, node_name: str, version: int) -> list[str]:
    """CIDRs of the blocks that are affine to the node; pending ones are not its own yet."""
    return [
        cidr
        for (host, cidr), affinity in snapshot.affinities.items()
        if host == node_name
        and affinity.state in ("", "confirmed")
        and not affinity.deleted
        and (6 if ":" in cidr else 4) == version
    ]


def _cidrs(texts: Iterable[str]) -> tuple[str, ...]:
    found: set[Network] = set()
    for text in texts:
        try:
            found.add(ip_network(text, strict=False))
        except ValueError:
            continue  # stored values are validated when written; a broken one counts as absent
    return tuple(str(network) for network in sorted(found, key=lambda one: (one.network_address.packed, one.prefixlen)))


def _debug(severity: str) -> str:
    return {"debug": "all", "info": "{ states }", "": "{ states }"}.get(severity.lower(), "off")


def _interfaces(patterns: Iterable[str], problems: list[str]) -> tuple[str, ...]:
    good = []
    for pattern in patterns:
        if re.fullmatch(r"[-A-Za-z0-9_.*?@]+", pattern):
            good.append(pattern)
        else:
            problems.append(f"BGPConfiguration: ignoredInterfaces {pattern!r} is no interface pattern; left out")
    return tuple(good)


@dataclass(frozen=True, slots=True)
class Community:
    """Adds BIRD values (`(64512,120)`) to all exported routes inside `cidr`."""

    cidr: str
    version: int
    standard: tuple[str, ...]
    large: tuple[str, ...]


def _communities(
    default: BGPConfigurationSpec, own: BGPConfigurationSpec, problems: list[str]
) -> tuple[Community, ...]:
    # The node's list replaces the global one.
    source = own if own.prefix_advertisements else default
    named = {one.name: one.value for one in (*default.communities, *own.communities)}
    found = []
    for item in source.prefix_advertisements:
        try:
            found.append(_community(item, named))
        except ValueError as error:
            problems.append(f"BGPConfiguration: prefixAdvertisements {item.cidr}: {error}; left out")
    return tuple(sorted(found, key=lambda one: (one.version, one.cidr)))


def _community(item: PrefixAdvertisement, named: dict[str, str]) -> Community:
    network = ip_network(item.cidr, strict=False)
    values = [community(named.get(one, one)) for one in item.communities]
    standard = tuple(text for attribute, text in values if attribute == "bgp_community")
    large = tuple(text for attribute, text in values if attribute == "bgp_large_community")
    return Community(str(network), network.version, standard, large)


@dataclass(frozen=True, slots=True)
class FilterFunction:
    name: str
    lines: tuple[str, ...]


def _refused(session: Session, without: Mapping[str, str], problems: list[str]) -> bool:
    """Whether BIRD has refused the session, or a filter of it: without its filter it must not be either."""
    if session.name in without:
        problems.append(f"{session.origin}: session {session.name}: BIRD refuses it: {without[session.name]}; left out")
        return True
    for name in session.filters:
        for direction in ("import", "export"):
            function = filter_function(name, direction, session.version)
            if function in without:
                problems.append(
                    f"BGPFilter({name}): BIRD refuses it: {without[function]}; session {session.name} is left out"
                )
                return True
    return False


def _warn_of_services(default: BGPConfigurationSpec, own: BGPConfigurationSpec, problems: list[str]) -> None:
    """Addresses of services are Kubernetes' (2.1): kept in the resource, told to nobody."""
    for spec, name in ((default, "default"), (own, "node")):
        given = (spec.service_cluster_ips, spec.service_external_ips, spec.service_load_balancer_ips)
        if any(given):
            problems.append(
                f"BGPConfiguration({name}): serviceClusterIPs, serviceExternalIPs and serviceLoadBalancerIPs have no"
                " meaning for Docker; not advertised"
            )


def _filters_known(session: Session, snapshot: Snapshot, problems: list[str]) -> bool:
    """A session whose filter is missing is left out: without it, it would accept or tell what it must not."""
    for name in session.filters:
        if ResourceKey("BGPFilter", name) not in snapshot.kind("BGPFilter"):
            problems.append(f"{session.origin}: session {session.name}: BGPFilter {name} does not exist; left out")
            return False
    return True


def _filter_functions(snapshot: Snapshot, planned: Plan, problems: list[str]) -> tuple[FilterFunction, ...]:
    used = sorted({name for session in planned.sessions for name in session.filters})
    functions = []
    for name in used:
        found = snapshot.kind("BGPFilter").get(ResourceKey("BGPFilter", name))
        if not isinstance(found, BGPFilter):
            continue
        spec = found.spec
        for direction, version, rules in (
            ("import", 4, spec.import_v4),
            ("export", 4, spec.export_v4),
            ("import", 6, spec.import_v6),
            ("export", 6, spec.export_v6),
        ):
            lines = rule_lines(found, rules, version, problems)
            functions.append(FilterFunction(filter_function(name, direction, version), lines))
    return tuple(functions)
