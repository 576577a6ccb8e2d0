"""Which BGP sessions a node should have: a value, worked out from a snapshot, without I/O.

`bird.render` turns it into BIRD's configuration, `node status` shows it beside what BIRD says, so both agree on names.
Rules: node-and-cli 2.2 to 2.5 and 2.8. A resource that makes no sense costs only its own sessions and leaves a problem.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address, ip_interface
from typing import Callable, Iterable, Iterator, Mapping

from calico_plugin.model import duration, forms
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import BGPConfiguration, BGPPeer, Node
from calico_plugin.model.resources.bgp import BGPConfigurationSpec, BGPPassword, BGPPeerSpec
from calico_plugin.model.snapshot import Snapshot

DEFAULT_AS = 64512
DEFAULT_PORT = 179
MESH, GLOBAL, NODE = "Mesh", "Global", "Node"
# What `node status` calls them; scripts look for these words.
PEER_TYPES = {MESH: "node-to-node mesh", GLOBAL: "global", NODE: "node specific"}

Matches = Callable[[str, Mapping[str, str]], bool]
Secret = Callable[[str, str], "str | None"]
Make = Callable[[BGPPeer], "Iterable[Session]"]


def matches_all_only(selector: str, labels: Mapping[str, str]) -> bool:
    """Stands in where no selector engine is at hand: only the empty selector and `all()` select."""
    return selector.replace(" ", "") in ("", "all()")


def no_secrets(name: str, key: str) -> str | None:
    """Stands in where no secrets are at hand."""
    return None


@dataclass(frozen=True, slots=True)
class Session:
    """One BGP session as seen from the node. Empty text or None means 'not set': BIRD's default holds.

    `peer_node` is the Calico node at the other end ("" when it is none of ours), `cluster_id` is set when the peer is
    our reflector client, times are whole seconds, `filters` are BGPFilter names in order, `origin` is the resource that
    the session comes from.
    """

    name: str
    kind: str
    peer: str
    peer_as: int
    local_as: int
    source: str
    peer_port: int | None = None
    peer_node: str = ""
    passive: bool = False
    cluster_id: str = ""
    password: str = ""
    restart_time: int | None = None
    keepalive: int | None = None
    next_hop: str = ""
    ttl_hops: int | None = None
    allow_local_as: int | None = None
    via: str = ""
    filters: tuple[str, ...] = ()
    origin: str = ""

    @property
    def version(self) -> int:
        return 6 if ":" in self.peer else 4

    @property
    def internal(self) -> bool:
        return self.peer_as == self.local_as

    @property
    def peer_type(self) -> str:
        return PEER_TYPES[self.kind]


@dataclass(frozen=True, slots=True)
class Speaker:
    """What BGP needs to know of a Calico node; `addresses` maps IP version to the bare address."""

    name: str
    addresses: Mapping[int, str]
    as_number: int
    port: int
    cluster_id: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """The sessions of a node in a stable order; `speaker` is None for a node that is unknown or has no BGP data."""

    speaker: Speaker | None
    sessions: tuple[Session, ...] = ()
    problems: tuple[str, ...] = ()


def plan(snapshot: Snapshot, node_name: str, matches: Matches = matches_all_only, secret: Secret = no_secrets) -> Plan:
    """The sessions that `node_name` should have."""
    speakers = _speakers(snapshot)
    me = speakers.get(node_name)
    if me is None:
        return Plan(None)
    planner = _Planner(snapshot, me, speakers, matches, secret)
    explicit = planner.explicit()
    taken = {(session.peer, session.peer_port or DEFAULT_PORT) for session in explicit}
    # An explicit peer carries more of the user's will than the mesh, and BIRD cannot have two sessions to one place.
    mesh = [one for one in planner.mesh() if (one.peer, one.peer_port or DEFAULT_PORT) not in taken]
    return Plan(me, tuple(sorted([*mesh, *explicit], key=_order)), tuple(planner.problems))


def _order(session: Session) -> tuple[int, bytes, int]:
    return session.version, ip_address(session.peer).packed, session.peer_port or DEFAULT_PORT


def parse_as(value: int | str | None) -> int | None:
    """64512, "64512" or "1.10"; None for absent. Raises ValueError."""
    return None if value is None or value == "" else forms.as_number(value)


def session_name(kind: str, peer: str, port: int | None = None) -> str:
    """`Mesh_10_0_0_2`, `Global_fd00__1_port_1790`."""
    text = f"{kind}_{peer}".replace(".", "_").replace(":", "_")
    return f"{text}_port_{port}" if port and port != DEFAULT_PORT else text


def split_peer_ip(text: str) -> tuple[str, int | None]:
    """`1.2.3.4`, `1.2.3.4:1790`, `fd00::1`, `[fd00::1]:1790` -> (canonical address, port). Raises ValueError."""
    host, port = text, None
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = int(rest.removeprefix(":")) if rest else None
    elif text.count(":") == 1:
        host, _, rest = text.partition(":")
        port = int(rest)
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"port {port} is out of range")
    return str(ip_address(host)), port


def bgp_configuration(snapshot: Snapshot, name: str = "default") -> BGPConfigurationSpec:
    """A BGPConfiguration's spec, an empty one when absent."""
    found = snapshot.kind("BGPConfiguration").get(ResourceKey("BGPConfiguration", name))
    return found.spec if isinstance(found, BGPConfiguration) else BGPConfigurationSpec()


def _speakers(snapshot: Snapshot) -> dict[str, Speaker]:
    default = bgp_configuration(snapshot)
    found = {}
    for node in sorted(snapshot.kind("Node").values(), key=lambda one: one.name):
        speaker = _speaker(snapshot, node, default) if isinstance(node, Node) else None
        if speaker is not None:
            found[node.name] = speaker
    return found


def _speaker(snapshot: Snapshot, node: Node, default: BGPConfigurationSpec) -> Speaker | None:
    bgp = node.spec.bgp
    if bgp is None:
        return None
    try:
        addresses = {
            version: str(ip_interface(text).ip)
            for version, text in ((4, bgp.ipv4_address), (6, bgp.ipv6_address))
            if text
        }
        as_number = parse_as(bgp.as_number)
        as_number = (parse_as(default.as_number) or DEFAULT_AS) if as_number is None else as_number
    except ValueError:
        return None
    own = bgp_configuration(snapshot, f"node.{node.name}")
    port = own.listen_port or default.listen_port or DEFAULT_PORT
    return Speaker(node.name, addresses, as_number, port, bgp.route_reflector_cluster_id, node.labels)


class _Planner:
    """One computation of one node's sessions; collects problems on the way."""

    def __init__(
        self, snapshot: Snapshot, me: Speaker, speakers: Mapping[str, Speaker], matches: Matches, secret: Secret
    ) -> None:
        self.me, self.speakers, self.matches, self.secret = me, speakers, matches, secret
        self.default = bgp_configuration(snapshot)
        self.global_as = parse_as(self.default.as_number) or DEFAULT_AS
        self.peers = [
            peer
            for peer in sorted(snapshot.kind("BGPPeer").values(), key=lambda one: one.name)
            if isinstance(peer, BGPPeer)
        ]
        self.problems: list[str] = []

    def mesh(self) -> Iterator[Session]:
        """Full mesh of the nodes that are no reflectors."""
        if self.default.node_to_node_mesh_enabled is False or self.me.cluster_id:
            return
        try:
            password = self._password(self.default.node_mesh_password)
            restart = _whole_seconds(self.default.node_mesh_max_restart_time)
        except ValueError as error:
            self.problems.append(f"BGPConfiguration(default): {error}; no mesh session is made")
            return
        for other in self.speakers.values():
            if other.cluster_id:
                continue
            for session in self._towards(MESH, other):
                yield replace(session, password=password, restart_time=restart, origin="BGPConfiguration(default)")

    def explicit(self) -> list[Session]:
        """Sessions of BGPPeers: global ones, then the node's, then the mirrors of what others define towards us."""
        found: dict[tuple[str, int], Session] = {}
        for kind, wanted in ((GLOBAL, self._is_global), (NODE, self._is_mine)):
            for peer in self.peers:
                if self._try(peer, wanted):
                    self._add(found, peer, partial(self._of_peer, kind))
        for peer in self.peers:
            if peer.spec.reverse_peering != "Manual":
                self._add(found, peer, self._mirrors)
        return list(found.values())

    def _add(self, found: dict[tuple[str, int], Session], peer: BGPPeer, make: Make) -> None:
        try:
            made = list(make(peer))
        except ValueError as error:
            self.problems.append(f"{peer}: {error}; left out")
            return
        for session in made:
            if session.peer not in self.me.addresses.values():
                key = (session.peer, session.peer_port or DEFAULT_PORT)
                found.setdefault(key, replace(session, origin=str(peer)))

    def _try(self, peer: BGPPeer, wanted: Callable[[BGPPeerSpec], bool]) -> bool:
        try:
            return wanted(peer.spec)
        except ValueError as error:
            self.problems.append(f"{peer}: {error}; left out")
            return False

    def _is_global(self, spec: BGPPeerSpec) -> bool:
        return not spec.node and not spec.node_selector

    def _is_mine(self, spec: BGPPeerSpec) -> bool:
        return not self._is_global(spec) and self._selects(spec, self.me)

    def _selects(self, spec: BGPPeerSpec, speaker: Speaker) -> bool:
        """Whether the near side of a BGPPeer is this node."""
        if spec.node:
            return spec.node == speaker.name
        return not spec.node_selector or self.matches(spec.node_selector, speaker.labels)

    def _of_peer(self, kind: str, peer: BGPPeer) -> Iterator[Session]:
        spec = peer.spec
        if spec.peer_selector:
            for other in self.speakers.values():
                if other.name != self.me.name and self.matches(spec.peer_selector, other.labels):
                    for session in self._towards(kind, other):
                        yield self._with_options(session, spec)
        elif spec.peer_ip:
            yield self._with_options(self._to_address(kind, spec), spec)
        elif spec.local_workload_selector:
            raise ValueError("localWorkloadSelector: sessions with containers of this host are not offered here")
        else:
            raise ValueError("has neither peerIP nor peerSelector")

    def _mirrors(self, peer: BGPPeer) -> Iterator[Session]:
        """Sessions to the nodes whose BGPPeer points at us, so that one resource is enough for both ends."""
        for other in self.speakers.values():
            if other.name != self.me.name and self._selects(peer.spec, other):
                for session in self._towards(NODE, other):
                    if self._points_at_me(peer.spec, session.version):
                        yield self._with_options(session, peer.spec)

    def _points_at_me(self, spec: BGPPeerSpec, version: int) -> bool:
        if spec.peer_selector:
            return self.matches(spec.peer_selector, self.me.labels)
        if not spec.peer_ip:
            return False
        address, port = split_peer_ip(spec.peer_ip)
        wanted = parse_as(spec.as_number) or self.global_as
        here = self.me.addresses.get(version) == address and port in (None, self.me.port)
        return here and wanted == self.me.as_number

    def _towards(self, kind: str, other: Speaker) -> Iterator[Session]:
        """One session per IP version that both ends have."""
        for version, mine in sorted(self.me.addresses.items()):
            theirs = other.addresses.get(version)
            if theirs and theirs != mine:
                yield self._session(kind, theirs, other.as_number, mine, other, _port(other.port))

    def _to_address(self, kind: str, spec: BGPPeerSpec) -> Session:
        address, port = split_peer_ip(spec.peer_ip)
        version = ip_address(address).version
        mine = self.me.addresses.get(version)
        if not mine:
            raise ValueError(f"peerIP {spec.peer_ip} needs an IPv{version} address on node {self.me.name}")
        peer_as = parse_as(spec.as_number) or self.global_as
        there = (one for one in self.speakers.values() if one.addresses.get(version) == address)
        other = next((one for one in there if one.as_number == peer_as), None)
        if port is None and other is not None:
            port = other.port
        return self._session(kind, address, peer_as, mine, other, _port(port), spec.peer_ip)

    def _session(
        self,
        kind: str,
        peer: str,
        peer_as: int,
        mine: str,
        other: Speaker | None,
        port: int | None,
        given: str = "",
    ) -> Session:
        explicit_port = split_peer_ip(given)[1] if given else None
        return Session(
            name=session_name(kind, peer, explicit_port),
            kind=kind,
            peer=peer,
            peer_as=peer_as,
            local_as=self.me.as_number,
            source=mine,
            peer_port=port,
            peer_node=other.name if other else "",
            # Text, not number: the original compares so, and a mixture would leave both ends passive for ever.
            passive=kind in (MESH, GLOBAL) and other is not None and peer > mine,
            cluster_id=self._client_of(peer_as, other, self.me.as_number),
        )

    def _client_of(self, peer_as: int, other: Speaker | None, local_as: int) -> str:
        mine = self.me.cluster_id
        return mine if mine and peer_as == local_as and (other is None or other.cluster_id != mine) else ""

    def _with_options(self, session: Session, spec: BGPPeerSpec) -> Session:
        local_as = parse_as(spec.local_as_number)
        local_as = self.me.as_number if local_as is None else local_as
        other = self.speakers.get(session.peer_node)
        return replace(
            session,
            local_as=local_as,
            cluster_id=self._client_of(session.peer_as, other, local_as),
            source="" if spec.source_address == "None" else session.source,
            password=self._password(spec.password),
            restart_time=_whole_seconds(spec.max_restart_time),
            keepalive=_whole_seconds(spec.keepalive_time),
            next_hop=_next_hop(spec, session.peer_as == local_as),
            ttl_hops=spec.ttl_security or None,
            allow_local_as=spec.num_allowed_local_as_numbers,
            via=_gateway(spec, session.version),
            filters=spec.filters,
        )

    def _password(self, given: BGPPassword | None) -> str:
        """Text of a `secretKeyRef`. A session without its password is none: it would speak to anyone."""
        if given is None or given.secret_key_ref is None:
            return ""
        reference = given.secret_key_ref
        found = self.secret(reference.name, reference.key)
        if not found:
            raise ValueError(f"password: secret {reference.name!r} key {reference.key!r} is not on this host")
        return _quotable(found)


def _quotable(text: str) -> str:
    # BIRD's strings know no escape.
    if '"' in text or "\n" in text:
        raise ValueError("password: BIRD takes no double quote and no line break in it")
    return text


def _gateway(spec: BGPPeerSpec, version: int) -> str:
    """Bare address of `reachableBy`."""
    if not spec.reachable_by:
        return ""
    address = ip_address(spec.reachable_by)
    if address.version != version:
        raise ValueError(f"reachableBy {address} is not IPv{version} as the peer is")
    return str(address)


def _next_hop(spec: BGPPeerSpec, internal: bool) -> str:
    if spec.next_hop_mode == "Self":
        return "self"
    if spec.next_hop_mode == "Keep" or (spec.keep_original_next_hop and not internal):
        return "keep"
    return ""


def _port(port: int | None) -> int | None:
    return None if port in (None, DEFAULT_PORT) else port


def _whole_seconds(text: str | None) -> int | None:
    return round(duration.seconds(text)) if text else None
