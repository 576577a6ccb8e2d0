"""PolicyEngine: hears of resources one by one, compiles what changed (see the package's docstring for the contract).

`on_update` keeps the indexes right at once, which costs what the change touches, and marks what must be rendered
again; `compile` renders the marked objects only. Chains exist while an endpoint of this node uses them, sets while
such a chain names them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Callable, Iterable, Mapping

from calico_plugin.errors import InvalidInput
from calico_plugin.model.codec import Invalid
from calico_plugin.model.desired import Ruleset, SetType, VerdictMap
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.published import Published
from calico_plugin.model.resources import (
    FelixConfiguration,
    GlobalNetworkPolicy,
    HostEndpoint,
    IPPool,
    NetworkPolicy,
    Profile,
    Resource,
    Tier,
    WorkloadEndpoint,
)
from calico_plugin.model.resources.policy import GlobalNetworkSet, NetworkSet
from calico_plugin.policy import chains, nat, ports, reading, stages
from calico_plugin.policy.chains import ListPart
from calico_plugin.policy.ends import NAMES as ENDS
from calico_plugin.policy.ends import TunnelEnds
from calico_plugin.policy.felix import merged
from calico_plugin.policy.hosts import Hosts
from calico_plugin.policy.index import LabelIndex
from calico_plugin.policy.labels import Inheritance
from calico_plugin.policy.lists import Lists
from calico_plugin.policy.members import MemberSets, read_network
from calico_plugin.policy.options import PolicyOptions
from calico_plugin.policy.reading import PLAIN, Endpoint, Host, Item, PolicyInfo, ProfileInfo
from calico_plugin.policy.rules import User
from calico_plugin.policy.siblings import Siblings
from calico_plugin.policy.stages import Stage
from calico_plugin.policy.tiers import Tiers
from calico_plugin.policy.workloads import Workloads
from calico_plugin.policy.writer import Book, Writer

Update = Resource | Invalid | None


class PolicyEngine:
    """One owner thread. `options` are the defaults under FelixConfiguration; members in `environment` win over it."""

    def __init__(
        self, node_name: str, options: PolicyOptions = PolicyOptions(), environment: Mapping[str, Any] | None = None
    ) -> None:
        self.node_name = node_name
        self._given, self._environment = options, environment or {}
        self._options, _ = merged(options, self._environment)
        self._felix: dict[str, FelixConfiguration] = {}
        self._problems: dict[ResourceKey, str] = {}
        self._resources: dict[ResourceKey, WorkloadEndpoint] = {}
        self._inheritance: Inheritance[ResourceKey] = Inheritance()
        self._members = MemberSets()
        self._workloads, self._hosts, self._siblings = Workloads(), Hosts(), Siblings()
        self._selected: LabelIndex[ResourceKey, ResourceKey] = LabelIndex(self._governed, self._governed)
        self._tiers = Tiers(options.block_size, options.sort_from)
        self._by_tier: dict[str, set[ResourceKey]] = defaultdict(set)
        self._pools: dict[ResourceKey, IPPool] = {}
        self._ends = TunnelEnds()
        self._nodes_moved = False
        self._changed: set[User] = set()
        self._lists = Lists()
        self._book = Book()
        self._writer = Writer(self._book, self._lists, self._members)
        self._ports = ports.Ports()
        self._frame: set[str] = set()
        self._held: set[str] = set()
        self._handlers: dict[str, Callable[[ResourceKey, Update], None]] = {
            "WorkloadEndpoint": self._on_workload,
            "HostEndpoint": self._on_host_endpoint,
            "GlobalNetworkSet": self._on_network_set,
            "NetworkSet": self._on_network_set,
            "Profile": self._on_profile,
            "Tier": self._on_tier,
            "GlobalNetworkPolicy": self._on_policy,
            "NetworkPolicy": self._on_policy,
            "IPPool": self._on_pool,
            "Node": self._on_node,
            "FelixConfiguration": self._on_felix,
        }
        self._set_profile(reading.default_allow())
        self._write_frame()

    # What the world tells.

    def on_update(self, key: ResourceKey, old: Update, new: Update) -> None:
        """Hear of one resource. `old` is not needed: the engine knows. Kinds without a meaning here are ignored."""
        handler = self._handlers.get(key.kind)
        if handler is None:
            return
        self._problems.pop(key, None)
        if isinstance(new, Invalid):
            self._problem(key, new.why)
        handler(key, new)

    def on_interfaces(
        self, interfaces: Mapping[str, frozenset[str]], links: Mapping[str, bool] | None = None
    ) -> None:
        """Hear of the addresses of the host's interfaces, and (None: not known) which links there are and whether they
        are up: only host endpoints depend on it.
        """
        self._hosts.set_interfaces(interfaces, links)

    @property
    def wants_interfaces(self) -> bool:
        """Whether `on_interfaces` matters: this node has a host endpoint for one of its interfaces."""
        return self._hosts.wants_interfaces

    def host_endpoints(self) -> Mapping[str, str]:
        """Name -> status of each that is of this node and understood, as of the last compile()."""
        return {key.name: state for key, state in self._hosts.states().items()}

    def on_namespace(self, interface: str, namespace: int | None) -> bool:
        """Hear where the container's end of an interface is; whether `compile` has work now."""
        return self._siblings.place(interface, namespace)

    def take_joined(self) -> set[str]:
        """Interfaces of containers that have several, where `compile` found something new since the last call."""
        return self._siblings.take_joined()

    def problems(self) -> Mapping[ResourceKey, str]:
        """What could not be understood and how it is wrong; see `reading` for what stands in."""
        return {**self._hosts.lost(), **self._problems}

    def interfaces(self) -> Mapping[str, ResourceKey]:
        """Host-side interface -> the workload endpoint whose policy the last compile() holds."""
        return {interface: binding.endpoint.key for interface, binding in self._workloads.bound.items()}

    def published(self) -> Mapping[str, tuple[Published, ...]]:
        """Interface -> ports of the host that lead to its endpoint, as the last compile() holds them."""
        return self._ports.in_force

    def options(self) -> PolicyOptions:
        """As they are in force now."""
        return self._options

    def _problem(self, key: ResourceKey, why: str) -> None:
        if why:
            self._problems[key] = why

    def _on_workload(self, key: ResourceKey, new: Update) -> None:
        endpoint = None
        self._resources.pop(key, None)
        if isinstance(new, WorkloadEndpoint):
            self._resources[key] = new
            endpoint = self._read_workload(key, new)
        local = endpoint if endpoint is not None and endpoint.node == self.node_name else None
        self._workloads.place(key, local)
        self._on_item(key, Item(endpoint.labels, endpoint.profiles, endpoint.brings) if endpoint else None)

    def _read_workload(self, key: ResourceKey, new: WorkloadEndpoint) -> Endpoint | None:
        if new.awaits_labels:
            return None
        options = self._options
        try:
            return reading.read_endpoint(key, new, options.interface_prefix, options.workload_source_spoofing)
        except InvalidInput as error:
            self._problem(key, str(error))
            return None

    def _on_host_endpoint(self, key: ResourceKey, new: Update) -> None:
        host = None
        if isinstance(new, HostEndpoint):
            try:
                host, why = reading.read_host_endpoint(key, new)
                self._problem(key, why)
            except InvalidInput as error:
                self._problem(key, str(error))
        self._hosts.place(key, host if host is not None and host.node == self.node_name else None)
        self._on_item(key, host.item if host else None)

    def _on_network_set(self, key: ResourceKey, new: Update) -> None:
        item = None
        if isinstance(new, (GlobalNetworkSet, NetworkSet)):
            item, why = reading.read_network_set(key, new)
            self._problem(key, why)
        self._on_item(key, item)

    def _on_item(self, key: ResourceKey, item: Item | None) -> None:
        """Whatever has labels."""
        local = key in self._workloads or key in self._hosts
        if not local:
            self._selected.remove_item(key)
        if item is None:
            self._members.remove_item(key)
            self._inheritance.remove_item(key)
            return
        labels = self._inheritance.set_item(key, item.labels, item.parents)
        self._members.set_item(key, labels, item.brings)
        if local:
            self._selected.set_item(key, labels)

    def _on_profile(self, key: ResourceKey, new: Update) -> None:
        if key.name == reading.DEFAULT_ALLOW:
            return
        if isinstance(new, (Profile, Invalid)):
            info, why = reading.read_profile(key, new)
            self._problem(key, why)
            self._set_profile(info)
        else:
            self._book.profiles.pop(key.name, None)
            self._profile_changed(key.name, {})

    def _set_profile(self, info: ProfileInfo) -> None:
        self._book.profiles[info.name] = info
        self._profile_changed(info.name, info.labels)

    def _profile_changed(self, name: str, labels: Mapping[str, str]) -> None:
        self._changed.update((direction, name) for direction in reading.DIRECTIONS)
        for item in self._inheritance.set_profile(name, labels):
            effective = self._inheritance.labels(item)
            self._members.set_labels(item, effective)
            if item in self._workloads or item in self._hosts:
                self._selected.set_item(item, effective)

    def _on_tier(self, key: ResourceKey, new: Update) -> None:
        info = None
        if isinstance(new, (Tier, Invalid)):
            info, why = reading.read_tier(key, new)
            self._problem(key, why)
        if self._tiers.set(key.name, info):
            for policy in self._by_tier.get(key.name, ()):
                self._touch_governed(policy)

    def _on_policy(self, key: ResourceKey, new: Update) -> None:
        old = self._book.policies.pop(key, None)
        if old is not None:
            self._by_tier[old.tier].discard(key)
        self._changed.update((direction, key) for direction in reading.DIRECTIONS)
        if not isinstance(new, (GlobalNetworkPolicy, NetworkPolicy, Invalid)):
            self._selected.remove_selector(key)
            return
        info, why = reading.read_policy(key, new)
        self._problem(key, why)
        self._book.policies[key] = info
        self._by_tier[info.tier].add(key)
        self._selected.set_selector(key, info.selector)
        if old is None or old.place != info.place:
            self._touch_governed(key)

    def _on_pool(self, key: ResourceKey, new: Update) -> None:
        self._pools.pop(key, None)
        if isinstance(new, IPPool):
            try:
                read_network(new.spec.cidr)
                self._pools[key] = new
            except ValueError as error:
                self._problem(key, f"spec.cidr: {error}")
        for item in nat.pool_sets(self._pools.values()):
            self._writer.replace(item)
        if self._ends.set_pools(self._pools.values()):
            self._write_frame()

    def _on_node(self, key: ResourceKey, new: Update) -> None:
        if self._ends.set_node(key, new):
            self._nodes_moved = True
            if self._hosts.governed:
                self._write_frame()

    def _write_host_sets(self) -> None:
        self._nodes_moved = False
        for item in nat.host_sets(self._ends.everyone()):
            self._writer.replace(item)

    def _on_felix(self, key: ResourceKey, new: Update) -> None:
        names = ("default", f"node.{self.node_name}")
        if key.name not in names:
            return
        self._felix.pop(key.name, None)
        if isinstance(new, FelixConfiguration):
            self._felix[key.name] = new
        stored = [self._felix[name].spec for name in names if name in self._felix]
        options, problems = merged(self._given, *stored, self._environment)
        self._problem(key, "; ".join(problems))
        if options != self._options:
            self._set_options(options)

    def _set_options(self, options: PolicyOptions) -> None:
        """Rare: everything is read and rendered again."""
        self._options = options
        for key, resource in tuple(self._resources.items()):
            self.on_update(key, None, resource)
        self._write_frame()
        self._lists.touch_all()
        self._changed.update(self._writer.users())

    def _governed(self, policy: ResourceKey, item: ResourceKey) -> None:
        """A policy starts or stops to select an endpoint of this node, or stands in another place."""
        self._workloads.touch(item)
        self._hosts.touch(item)

    def _touch_governed(self, policy: ResourceKey) -> None:
        for item in self._selected.items_of(policy):
            self._governed(policy, item)

    # What follows from it.

    def compile(self) -> Ruleset:
        """What the table should hold now."""
        self._bind()
        if self._nodes_moved:
            self._write_host_sets()
        self._writer.settle(self._changed)
        self._changed.clear()
        self._writer.write(self._options)
        return Ruleset(
            self._writer.sets.copied(), self._writer.chains.copied(), self._writer.maps.copied(), self._ports.maps)

    def _bind(self) -> None:
        """Endpoint -> lists, wherever something changed."""
        moved = self._workloads.bind(self._lists, self._workload_list)
        self._bind_siblings(moved.interfaces() if moved is not None else ())
        if moved is not None:
            self._writer.move(chains.KNOWN, SetType.INTERFACE, *moved.known)
            for family, sides in moved.own.items():
                self._writer.move(chains.OWN[family], SetType[f"INTERFACE_IPV{family}"], *sides)
            if self._ports.settle(moved.interfaces(), self._workloads.bound):
                self._write_published()
        if self._hosts.bind(self._lists, self._host_list) or moved is not None:
            self._write_frame()

    def _write_published(self) -> None:
        for name in ports.REACHED.values():
            self._writer.sets.pop(name, None)
        self._writer.sets.update((item.name, item) for item in self._ports.sets)

    def _bind_siblings(self, moved: Iterable[str]) -> None:
        for interface in moved:
            self._siblings.touch(interface)
        for family, sides in self._siblings.settle(self._workloads.bound).items():
            self._writer.move(chains.SIBLING[family], SetType[f"INTERFACE_IPV{family}"], *sides)

    def _workload_list(self, endpoint: Endpoint, direction: str) -> ListPart:
        word = direction.capitalize()
        policies = [policy for policy in self._policies_of(endpoint.key) if _governs_workloads(policy, word)]
        implied = (ports.PROFILE,) if direction == "ingress" and any(map(ports.reaches_out, endpoint.published)) else ()
        return ListPart(direction, self._tiers.parts(direction, policies), (*endpoint.profiles, *implied))

    def _host_list(self, host: Host, stage: Stage) -> ListPart:
        policies = [policy for policy in self._policies_of(host.key) if stage.takes(policy)]
        tiers = self._tiers.parts(stage.direction, policies, open_end=stage.name in ("raw", "nat"))
        return ListPart(stage.direction, tiers, host.item.parents if stage.name == "host" else (), stage)

    def _policies_of(self, key: ResourceKey) -> list[PolicyInfo]:
        return [self._book.policies[policy] for policy in self._selected.selectors_of(key)]

    def _write_frame(self) -> None:
        """Base chains and maps; those of host endpoints only while there are any."""
        spoofing = {
            interface: binding.endpoint.spoof
            for interface, binding in self._workloads.bound.items() if binding.endpoint.spoof
        }
        wanted = chains.frame(self._options, spoofing)
        elements: dict[str, Mapping[str, str]] = {
            chains.FROM_WORKLOAD: self._workloads.from_workload,
            chains.TO_WORKLOAD: self._workloads.to_workload,
        }
        if self._hosts.governed:
            elements.update(self._hosts.elements)
            wanted += stages.base_chains(self._options, self._hosts.everywhere, self._write_ends())
        else:
            self._drop_ends(())
        if self._ports.maps:
            wanted += ports.base_chains(self._options)
        for name in self._frame - {chain.name for chain in wanted}:
            del self._writer.chains[name]
        for chain in wanted:
            self._writer.put(chain)
        self._frame = {chain.name for chain in wanted}
        self._write_maps(elements)

    def _write_ends(self) -> dict[int, str]:
        """Sets of the nodes' addresses, by IP version."""
        ends = self._ends.sets()
        self._drop_ends(item.name for item in ends.values())
        for item in ends.values():
            if self._writer.sets.get(item.name) != item:
                self._writer.sets[item.name] = item
        return {version: item.name for version, item in ends.items()}

    def _drop_ends(self, keep: Iterable[str]) -> None:
        for name in {*ENDS.values()} - {*keep}:
            self._writer.sets.pop(name, None)

    def _write_maps(self, elements: Mapping[str, Mapping[str, str]]) -> None:
        """Those of interfaces. An equal map stays the instance that it was."""
        maps = self._writer.maps
        for name in self._held - elements.keys():
            del maps[name]
        for name, held in elements.items():
            if name not in maps or maps[name].elements != held:
                maps[name] = VerdictMap(name, held)
        self._held = set(elements)


def _governs_workloads(policy: PolicyInfo, word: str) -> bool:
    """doNotTrack and preDNAT policies do not even count as selecting a workload (policy 2.7)."""
    return policy.flavour == PLAIN and word in policy.types
