"""PolicyEngine: hears of resources one by one, compiles what changed (see the package's docstring for the contract).

`on_update` keeps the indexes right at once, which costs what the change touches, and marks what must be rendered
again; `compile` renders the marked objects only. Chains exist while an endpoint of this node uses them, sets while
such a chain names them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Callable, Mapping

from calico_plugin.errors import InvalidInput
from calico_plugin.model.codec import Invalid
from calico_plugin.model.desired import AddressSet, Chain, Ruleset, SetType, VerdictMap
from calico_plugin.model.keys import ResourceKey
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
from calico_plugin.policy import chains, reading
from calico_plugin.policy.chains import ListPart, TierPart
from calico_plugin.policy.index import LabelIndex
from calico_plugin.policy.labels import Inheritance
from calico_plugin.policy.lists import Lists
from calico_plugin.policy.members import MemberSets, read_network, without_covered
from calico_plugin.policy.options import PolicyOptions, merged
from calico_plugin.policy.reading import Endpoint, Item, PolicyInfo, ProfileInfo, TierInfo
from calico_plugin.policy.rules import Parsed, SetSpec, Subject, User

Update = Resource | Invalid | None
_BROKEN_TIER = TierInfo("", float("-inf"), False, broken=True)


class PolicyEngine:
    """One owner thread. `options` are the defaults under FelixConfiguration."""

    def __init__(self, node_name: str, options: PolicyOptions = PolicyOptions()) -> None:
        self.node_name = node_name
        self._given = self._options = options
        self._felix: dict[str, FelixConfiguration] = {}
        self._problems: dict[ResourceKey, str] = {}
        self._inheritance: Inheritance[ResourceKey] = Inheritance()
        self._members = MemberSets()
        self._workloads: dict[ResourceKey, WorkloadEndpoint] = {}
        self._local: dict[ResourceKey, Endpoint] = {}
        self._claims: dict[str, dict[ResourceKey, Endpoint]] = defaultdict(dict)
        self._policies: dict[ResourceKey, PolicyInfo] = {}
        self._selected: LabelIndex[ResourceKey, ResourceKey] = LabelIndex(self._governed, self._governed)
        self._tiers: dict[str, TierInfo] = dict(reading.BUILT_IN_TIERS)
        self._by_tier: dict[str, set[ResourceKey]] = defaultdict(set)
        self._profiles: dict[str, ProfileInfo] = {}
        self._pools: dict[ResourceKey, IPPool] = {}
        self._dirty_interfaces: set[str] = set()
        self._dirty_rules: set[User] = set()
        self._specs: dict[User, dict[str, SetSpec]] = {}
        self._lists = Lists()
        self._bound: dict[str, tuple[Endpoint, ListPart, ListPart]] = {}
        self._sets: dict[str, AddressSet] = {item.name: item for item in chains.fixed_sets()}
        self._set_names: dict[tuple[str, int], str] = {}
        self._chains: dict[str, Chain] = chains.frame(options)
        self._maps = chains.maps({}, {})
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
            "FelixConfiguration": self._on_felix,
        }
        self._on_profile_info(reading.default_allow())

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

    def problems(self) -> Mapping[ResourceKey, str]:
        """What could not be understood and how it is wrong; see `reading` for what stands in."""
        return dict(self._problems)

    def interfaces(self) -> Mapping[str, ResourceKey]:
        """Host-side interface -> the endpoint whose policy the last compile() holds."""
        return {interface: endpoint.key for interface, (endpoint, _, _) in self._bound.items()}

    def options(self) -> PolicyOptions:
        """As they are in force now."""
        return self._options

    def _problem(self, key: ResourceKey, why: str) -> None:
        if why:
            self._problems[key] = why

    def _on_workload(self, key: ResourceKey, new: Update) -> None:
        endpoint = None
        if isinstance(new, WorkloadEndpoint):
            self._workloads[key] = new
            try:
                endpoint = reading.read_endpoint(
                    key, new, self._options.interface_prefix, self._options.workload_source_spoofing)
            except InvalidInput as error:
                self._problem(key, str(error))
        else:
            self._workloads.pop(key, None)
        self._place(key, endpoint)

    def _place(self, key: ResourceKey, endpoint: Endpoint | None) -> None:
        local = endpoint if endpoint is not None and endpoint.node == self.node_name else None
        old = self._local.get(key)
        if old is not None:
            self._claims[old.interface].pop(key, None)
            self._dirty_interfaces.add(old.interface)
        if local is not None:
            self._local[key] = self._claims[local.interface][key] = local
            self._dirty_interfaces.add(local.interface)
        else:
            self._local.pop(key, None)
            self._selected.remove_item(key)
        self._on_item(key, Item(endpoint.labels, endpoint.profiles, endpoint.brings) if endpoint else None)

    def _on_item(self, key: ResourceKey, item: Item | None) -> None:
        if item is None:
            self._members.remove_item(key)
            self._inheritance.remove_item(key)
            return
        labels = self._inheritance.set_item(key, item.labels, item.parents)
        self._members.set_item(key, labels, item.brings)
        if key in self._local:
            self._selected.set_item(key, labels)

    def _on_host_endpoint(self, key: ResourceKey, new: Update) -> None:
        item = None
        if isinstance(new, HostEndpoint):
            try:
                item = reading.read_host_endpoint(new)
            except InvalidInput as error:
                self._problem(key, str(error))
        self._on_item(key, item)

    def _on_network_set(self, key: ResourceKey, new: Update) -> None:
        item = None
        if isinstance(new, (GlobalNetworkSet, NetworkSet)):
            item, why = reading.read_network_set(key, new)
            self._problem(key, why)
        self._on_item(key, item)

    def _on_profile(self, key: ResourceKey, new: Update) -> None:
        if key.name == reading.DEFAULT_ALLOW:
            return
        if isinstance(new, (Profile, Invalid)):
            info, why = reading.read_profile(key, new)
            self._problem(key, why)
            self._on_profile_info(info)
        else:
            self._profiles.pop(key.name, None)
            self._profile_changed(key.name, {})

    def _on_profile_info(self, info: ProfileInfo) -> None:
        self._profiles[info.name] = info
        self._profile_changed(info.name, info.labels)

    def _profile_changed(self, name: str, labels: Mapping[str, str]) -> None:
        self._dirty_rules.update((direction, name) for direction in reading.DIRECTIONS)
        for item in self._inheritance.set_profile(name, labels):
            effective = self._inheritance.labels(item)
            self._members.set_labels(item, effective)
            if item in self._local:
                self._selected.set_item(item, effective)

    def _on_tier(self, key: ResourceKey, new: Update) -> None:
        info = reading.BUILT_IN_TIERS.get(key.name)
        if isinstance(new, (Tier, Invalid)):
            info, why = reading.read_tier(key, new)
            self._problem(key, why)
        if self._tiers.get(key.name) == info:
            return
        if info is None:
            del self._tiers[key.name]
        else:
            self._tiers[key.name] = info
        for policy in self._by_tier.get(key.name, ()):
            self._governed_all(policy)

    def _on_policy(self, key: ResourceKey, new: Update) -> None:
        old = self._policies.pop(key, None)
        if old is not None:
            self._by_tier[old.tier].discard(key)
            self._governed_all(key)
        info = None
        if isinstance(new, (GlobalNetworkPolicy, NetworkPolicy, Invalid)):
            info, why = reading.read_policy(key, new)
            self._problem(key, why)
        self._dirty_rules.update((direction, key) for direction in reading.DIRECTIONS)
        if info is None or not info.workloads:
            self._selected.remove_selector(key)
            return
        self._policies[key] = info
        self._by_tier[info.tier].add(key)
        self._selected.set_selector(key, info.selector)
        if old is None or old.place != info.place:
            self._governed_all(key)

    def _on_pool(self, key: ResourceKey, new: Update) -> None:
        if isinstance(new, IPPool):
            try:
                read_network(new.spec.cidr)
                self._pools[key] = new
            except ValueError as error:
                self._problem(key, f"spec.cidr: {error}")
                self._pools.pop(key, None)
        else:
            self._pools.pop(key, None)
        self._write_pools()

    def _on_felix(self, key: ResourceKey, new: Update) -> None:
        if key.name not in ("default", f"node.{self.node_name}"):
            return
        if isinstance(new, FelixConfiguration):
            self._felix[key.name] = new
        else:
            self._felix.pop(key.name, None)
        specs = [self._felix[name].spec for name in ("default", f"node.{self.node_name}") if name in self._felix]
        options, problems = merged(self._given, *specs)
        self._problem(key, "; ".join(problems))
        if options != self._options:
            self._set_options(options)

    def _set_options(self, options: PolicyOptions) -> None:
        """Rare: everything is read and rendered again."""
        self._options = options
        for key, resource in tuple(self._workloads.items()):
            self.on_update(key, None, resource)
        self._chains.update(chains.frame(options))
        self._lists.touch_all()
        self._dirty_rules.update(self._specs)

    def _governed(self, policy: ResourceKey, item: ResourceKey) -> None:
        """A policy starts or stops to select a local endpoint."""
        endpoint = self._local.get(item)
        if endpoint is not None:
            self._dirty_interfaces.add(endpoint.interface)

    def _governed_all(self, policy: ResourceKey) -> None:
        for item in self._selected.items_of(policy):
            self._governed(policy, item)

    # What follows from it.

    def compile(self) -> Ruleset:
        """What the table should hold now."""
        if self._dirty_interfaces:
            self._bind()
        self._settle_sets()
        self._write_chains()
        return Ruleset(dict(self._sets), dict(self._chains), self._maps)

    def _bind(self) -> None:
        """Endpoint -> its lists, for every interface where something changed."""
        own: dict[int, tuple[set[str], set[str]]] = {4: (set(), set()), 6: (set(), set())}
        known: tuple[set[str], set[str]] = (set(), set())
        from_workload = dict(self._maps[chains.FROM_WORKLOAD].elements)
        to_workload = dict(self._maps[chains.TO_WORKLOAD].elements)
        for interface in self._dirty_interfaces:
            old, new = self._bound.pop(interface, None), self._binding(interface)
            if new is not None:
                endpoint, ingress, egress = self._bound[interface] = new
                from_workload[interface] = self._lists.hold(egress)
                to_workload[interface] = self._lists.hold(ingress)
                _own_members(endpoint, own, 0)
                known[0].add(interface)
            else:
                from_workload.pop(interface, None)
                to_workload.pop(interface, None)
            if old is not None:
                self._lists.drop(old[1])
                self._lists.drop(old[2])
                _own_members(old[0], own, 1)
                known[1].add(interface)
        self._dirty_interfaces.clear()
        self._maps = _same_maps(self._maps, from_workload, to_workload)
        self._change_set(chains.KNOWN, SetType.INTERFACE, *known)
        for family, (added, removed) in own.items():
            self._change_set(chains.OWN[family], SetType[f"INTERFACE_IPV{family}"], added, removed)

    def _change_set(self, name: str, kind: SetType, added: set[str], removed: set[str]) -> None:
        old = self._sets[name]
        members = (old.members - removed) | added
        if members != old.members:
            self._sets[name] = AddressSet(name, kind, members)

    def _binding(self, interface: str) -> tuple[Endpoint, ListPart, ListPart] | None:
        """The smallest of those who claim the interface governs it (policy 4.3)."""
        claims = self._claims.get(interface)
        if not claims:
            self._claims.pop(interface, None)
            return None
        endpoint = min(claims.values(), key=lambda claim: claim.rank)
        policies = [self._policies[key] for key in self._selected.selectors_of(endpoint.key)]
        return endpoint, self._list("ingress", policies, endpoint), self._list("egress", policies, endpoint)

    def _list(self, direction: str, policies: list[PolicyInfo], endpoint: Endpoint) -> ListPart:
        word = direction.capitalize()
        by_tier: dict[tuple[TierInfo, str], list[PolicyInfo]] = defaultdict(list)
        for policy in policies:
            if word in policy.types:
                by_tier[(self._tier(policy), policy.tier)].append(policy)
        parts = tuple(
            TierPart(direction, name, tuple(policy.key for policy in sorted(listed, key=lambda item: item.sort_key)),
                     tier.default_pass, tier.broken)
            for (tier, name), listed in sorted(by_tier.items(), key=lambda entry: self._tier_order(*entry[0]))
        )
        return ListPart(direction, parts, endpoint.profiles)

    def _tier(self, policy: PolicyInfo) -> TierInfo:
        """A tier without an object sorts last and ends in Deny (policy 2.3)."""
        if policy.broken:
            return _BROKEN_TIER
        return self._tiers.get(policy.tier) or TierInfo(policy.tier, float("inf"), False)

    def _tier_order(self, tier: TierInfo, name: str) -> tuple[bool, float, bytes]:
        return not tier.broken and name not in self._tiers, tier.order, name.encode()

    def _settle_sets(self) -> None:
        """Sets of the chains that are used now; chains whose sets changed their kind are rendered again."""
        for user in self._dirty_rules | self._lists.take_changed_users():
            self._settle_user(user)
        self._dirty_rules.clear()
        dirty = self._members.take_dirty()
        for spec_id, family in dirty:
            built = self._members.build(spec_id, family)
            old_name = self._set_names.get((spec_id, family))
            if built is None:
                self._forget_set(spec_id, family)
                continue
            if old_name != built.name:
                self._forget_set(spec_id, family)
                self._set_names[(spec_id, family)] = built.name
                for user in self._members.users(spec_id):
                    self._lists.touch(user)
            self._sets[built.name] = built

    def _forget_set(self, spec_id: str, family: int) -> None:
        name = self._set_names.pop((spec_id, family), None)
        if name is not None:
            del self._sets[name]

    def _settle_user(self, user: User) -> None:
        direction, subject = user
        old = self._specs.pop(user, {})
        new: dict[str, SetSpec] = {}
        if self._lists.uses(user):
            self._lists.touch(user)
            rules = self._rules_of(subject)[direction]
            new = {spec.id: spec for rule in rules for spec in rule.specs()}
            self._specs[user] = new
        for spec in new.values():
            self._members.acquire(spec, user)
        for spec_id, spec in old.items():
            if spec_id not in new:
                self._members.release(spec, user)

    def _rules_of(self, subject: Subject) -> Mapping[str, tuple[Parsed, ...]]:
        if isinstance(subject, ResourceKey):
            return self._policies[subject].rules
        return self._profile(subject).rules

    def _profile(self, name: str) -> ProfileInfo:
        return self._profiles.get(name) or reading.missing_profile(name)

    def _write_chains(self) -> None:
        for name in self._lists.take_gone():
            self._chains.pop(name, None)
        for user in self._lists.take_touched_users():
            self._write_user(user)
        for tier in self._lists.take_touched_tiers():
            self._put(chains.tier_chain(tier, self._policies.__getitem__, self._members.name, self._options))
        for part in self._lists.take_touched_lists():
            self._put(chains.list_chain(part, self._options))

    def _write_user(self, user: User) -> None:
        direction, subject = user
        if isinstance(subject, str):
            self._put(chains.profile_chain(self._profile(subject), direction, self._members.name, self._options))
            return
        policy = self._policies[subject]
        name = chains.policy_chain_name(direction, subject)
        inlined = chains.inlined(policy, direction)
        if inlined or name not in self._chains:
            self._lists.touch_tiers_of(user)
        if inlined:
            self._chains.pop(name, None)
        else:
            rules = chains.policy_rules(policy, direction, self._members.name, self._options)
            self._put(Chain(name, rules))

    def _put(self, chain: Chain) -> None:
        """An equal chain stays the instance that it was."""
        if self._chains.get(chain.name) != chain:
            self._chains[chain.name] = chain

    def _write_pools(self) -> None:
        for table, natted in ((chains.NAT_POOLS, True), (chains.ALL_POOLS, False)):
            for family in (4, 6):
                cidrs = [pool.spec.cidr for pool in self._pools.values() if _counts(pool, family, natted)]
                members = without_covered(cidrs)
                name = table[family]
                if members != self._sets[name].members:
                    self._sets[name] = AddressSet(name, SetType[f"IPV{family}"], members, interval=True)


def _counts(pool: IPPool, family: int, natted: bool) -> bool:
    """Pools for load balancers only do not count; a disabled pool does (policy 4.8)."""
    used = bool({"Workload", "Tunnel"} & set(pool.spec.effective_uses))
    return used and pool.spec.version == family and (pool.spec.nat_outgoing or not natted)


def _own_members(endpoint: Endpoint, own: Mapping[int, tuple[set[str], set[str]]], side: int) -> None:
    for family, sides in own.items():
        sides[side].update(f"{endpoint.interface} . {address}" for address in endpoint.brings.members[family])


def _same_maps(old: Mapping[str, VerdictMap], *elements: dict[str, str]) -> dict[str, VerdictMap]:
    new = chains.maps(*elements)
    return {name: old[name] if old[name] == item else item for name, item in new.items()}
