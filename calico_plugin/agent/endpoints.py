"""This host's containers: what the cluster says of them, which links there are, and what follows for routes and
status files.

Order for a new endpoint: policy (as soon as it is in etcd), then settings and route (as soon as the link is there),
then the status file. For a removed one: file, route, connections; its address is not used again before its
connections are forgotten. Work is per interface and only for those that changed. Two endpoints that claim one
interface: the policy engine's choice counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Container, Iterable, Mapping, Protocol

from calico_plugin.agent.status_files import StatusFiles, content
from calico_plugin.dataplane.links import Link
from calico_plugin.model import names
from calico_plugin.model.codec import Invalid
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import Resource, WorkloadEndpoint


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """A container's interface on this host. `addresses` without prefix length; `status` names its status file."""

    key: ResourceKey
    orchestrator: str
    workload: str
    endpoint: str
    interface: str
    mac: str
    addresses: tuple[str, ...]
    status: str
    # No policy is in force for it until its container's labels are known.
    awaits_labels: bool = False


def local_endpoint(key: ResourceKey, resource: Resource | Invalid | None, node: str) -> LocalEndpoint | None:
    """The endpoint, when it is complete and this node's.

    The host is the one in the name, not spec.node (datamodel 3.4).
    """
    if not isinstance(resource, WorkloadEndpoint):
        return None
    parts = names.split_workload_endpoint(key.name)
    spec = resource.spec
    if len(parts) != 4 or parts[0] != node or not spec.interface_name.startswith(names.INTERFACE_PREFIX):
        return None
    try:
        addresses = tuple(str(ip_interface(text).ip) for text in spec.ip_networks)
    except ValueError:
        return None
    if not addresses:
        return None
    _, orchestrator, segment, endpoint = parts
    workload = f"{key.namespace}/{segment}"
    status = names.status_file(orchestrator, workload, endpoint)
    return LocalEndpoint(
        key, orchestrator, workload, endpoint, spec.interface_name, spec.mac, addresses, status, resource.awaits_labels)


class Routes(Protocol):
    """What is needed of `dataplane.routes.RouteTable`."""

    def want(self, address: str, index: int) -> None: ...

    def unwant(self, address: str) -> None: ...

    def in_place(self, address: str) -> bool: ...

    def forget_link(self, index: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """What an interface got in the last pass: its endpoint and its link."""

    endpoint: LocalEndpoint
    link: Link | None


@dataclass(frozen=True, slots=True)
class Published:
    """Interfaces whose endpoint came into force, and those where it went."""

    up: tuple[str, ...] = ()
    down: tuple[str, ...] = ()


class Endpoints:
    """Owned by the loop's thread. Events only mark interfaces dirty; `resolve` and `publish` do the work."""

    def __init__(self, node: str, routes: Routes, files: StatusFiles) -> None:
        self._node, self._routes, self._files = node, routes, files
        self._known: dict[ResourceKey, LocalEndpoint] = {}
        self._claims: dict[str, dict[ResourceKey, None]] = {}
        self._links: dict[str, Link] = {}
        self._names: dict[int, str] = {}
        self._resolved: dict[str, Resolved] = {}
        self._holders: dict[str, dict[str, None]] = {}
        self._unsettled: set[str] = set()
        self._dirty: set[str] = set()
        self._unpublished: set[str] = set()
        self._up: set[str] = set()
        self._released: set[str] = set()
        self._quarantine: set[str] = set()
        self._has_ipv6 = False

    def __len__(self) -> int:
        return len(self._known)

    @property
    def known(self) -> Mapping[ResourceKey, LocalEndpoint]:
        return self._known

    @property
    def links(self) -> Mapping[str, Link]:
        return self._links

    @property
    def has_ipv6(self) -> bool:
        """Whether any endpoint so far had an IPv6 address."""
        return self._has_ipv6

    @property
    def dirty(self) -> bool:
        return bool(self._dirty or self._unpublished)

    def indexes(self) -> set[int]:
        """Indexes of our links."""
        return set(self._names)

    def owns(self, index: int) -> bool:
        return index in self._names

    def unclaimed(self) -> set[str]:
        """Links that no endpoint names."""
        return self._links.keys() - self._claims.keys()

    def without_link(self) -> list[LocalEndpoint]:
        return [endpoint for endpoint in self._known.values() if endpoint.interface not in self._links]

    def behind(self, interfaces: Container[str]) -> list[LocalEndpoint]:
        """Endpoints of these interfaces."""
        return [endpoint for endpoint in self._known.values() if endpoint.interface in interfaces]

    # Events

    def on_resource(self, key: ResourceKey, new: Resource | Invalid | None) -> None:
        """A WorkloadEndpoint changed."""
        old = self._known.pop(key, None)
        endpoint = local_endpoint(key, new, self._node)
        if endpoint is not None:
            self._known[key] = endpoint
        if old == endpoint:
            return
        if old is not None:
            self._unclaim(old)
        if endpoint is not None:
            self._claims.setdefault(endpoint.interface, {})[key] = None
            self._has_ipv6 = self._has_ipv6 or any(":" in address for address in endpoint.addresses)
            self._dirty.add(endpoint.interface)

    def on_link(self, link: Link) -> None:
        """A link appeared or changed."""
        known = self._links.get(link.name)
        if known == link:
            return
        renamed = self._names.get(link.index)
        if renamed is not None and renamed != link.name:
            self.on_link_gone(renamed)
        if known is not None and (known.index != link.index or (known.up and not link.up)):
            self._drop_link(known)
        self._links[link.name] = link
        self._names[link.index] = link.name
        moved = known is None or (known.index, known.up) != (link.index, link.up)
        if known is None or known.index != link.index or not link.settled:
            self._unsettled.add(link.name)
            moved = True
        if moved:
            self._mark(link.name)

    def on_link_gone(self, name: str) -> None:
        link = self._links.get(name)
        if link is not None:
            self._drop_link(link)
            self._mark(name)

    def on_links(self, links: Mapping[str, Link]) -> None:
        """A complete list of our links."""
        for name in self._links.keys() - links.keys():
            self.on_link_gone(name)
        for link in links.values():
            self.on_link(link)

    def on_route(self, address: str) -> None:
        """The route of an address was changed by somebody."""
        self._touch(self._holders.get(address, ()))

    def touch_all(self) -> None:
        """Everything is to be looked at again."""
        self._touch(self._claims)

    # Work

    def unsettled(self) -> list[Link]:
        """Links of endpoints whose settings are to be asserted.

        Each is told once per change, or again after `unsettle`.
        """
        names_ = [name for name in self._unsettled if name in self._claims]
        self._unsettled.difference_update(names_)
        return [self._links[name] for name in names_ if name in self._links]

    def unsettle(self, name: str) -> None:
        """The settings of a link could not be made."""
        self._unsettled.add(name)

    def resolve(self, active: Mapping[str, ResourceKey]) -> None:
        """Work out routes for the interfaces that changed.

        `active`: interface -> endpoint whose policy is in force there.
        """
        dirty, self._dirty = self._dirty, set()
        for name in dirty:
            old, new = self._resolved.pop(name, None), self._resolution(name, active)
            if new is not None:
                self._resolved[name] = new
            if old is not None and (new is None or old.endpoint.status != new.endpoint.status):
                self._files.unwant(old.endpoint.status)
            self._hold(name, old, new)
            self._unpublished.add(name)

    def publish(self) -> Published:
        """Say which status files should be: those of endpoints whose link, settings and routes are in force."""
        up, down = [], []
        for name in tuple(self._unpublished):
            resolved = self._resolved.get(name)
            if resolved is not None and resolved.link is not None:
                if not self._in_force(name, resolved):
                    continue
                endpoint = resolved.endpoint
                self._files.want(endpoint.status, content(name, endpoint.mac, endpoint.addresses))
                if name not in self._up:
                    up.append(name)
            else:
                if resolved is not None:
                    self._files.unwant(resolved.endpoint.status)
                if name in self._up:
                    down.append(name)
            self._unpublished.discard(name)
        self._up.update(up)
        self._up.difference_update(down)
        return Published(tuple(up), tuple(down))

    def up(self) -> Mapping[ResourceKey, bool]:
        """Endpoint -> whether it is in force."""
        return {key: self._is_up(endpoint) for key, endpoint in self._known.items()}

    # Released addresses

    def released(self) -> set[str]:
        """Addresses whose last endpoint went since the last call; they stay in quarantine until `forgotten`."""
        released, self._released = self._released, set()
        return released

    def wanted_again(self) -> bool:
        """Whether an endpoint waits for an address in quarantine."""
        return any(address in self._holders for address in self._quarantine)

    def forgotten(self, addresses: Iterable[str]) -> None:
        """The connections of these addresses are gone."""
        for address in addresses:
            self._quarantine.discard(address)
            self._touch(self._holders.get(address, ()))

    # Parts

    def _resolution(self, name: str, active: Mapping[str, ResourceKey]) -> Resolved | None:
        key = active.get(name)
        if key is None or key not in self._claims.get(name, ()):
            return None
        return Resolved(self._known[key], self._links.get(name))

    def _hold(self, name: str, old: Resolved | None, new: Resolved | None) -> None:
        before = old.endpoint.addresses if old else ()
        after = new.endpoint.addresses if new else ()
        for address in before:
            if address not in after:
                self._let_go(name, address)
        for address in after:
            self._holders.setdefault(address, {})[name] = None
            self._route(address)

    def _let_go(self, name: str, address: str) -> None:
        holders = self._holders.get(address, {})
        holders.pop(name, None)
        if not holders:
            self._holders.pop(address, None)
        # Also when another container has it already: what it is given must not carry the old one's connections.
        self._released.add(address)
        self._quarantine.add(address)
        self._route(address)

    def _route(self, address: str) -> None:
        """Of several containers with one address, the one whose link is newest has it (policy 4.7)."""
        indexes = [
            link.index
            for name in self._holders.get(address, ())
            if (resolved := self._resolved.get(name)) is not None and (link := resolved.link) is not None
        ]
        if indexes and address not in self._quarantine:
            self._routes.want(address, max(indexes))
        else:
            self._routes.unwant(address)

    def _in_force(self, name: str, resolved: Resolved) -> bool:
        return name not in self._unsettled and all(map(self._routes.in_place, resolved.endpoint.addresses))

    def _is_up(self, endpoint: LocalEndpoint) -> bool:
        resolved = self._resolved.get(endpoint.interface)
        return (
            resolved is not None
            and resolved.endpoint == endpoint
            and resolved.link is not None
            and self._in_force(endpoint.interface, resolved)
        )

    def _unclaim(self, endpoint: LocalEndpoint) -> None:
        claims = self._claims.get(endpoint.interface, {})
        claims.pop(endpoint.key, None)
        if not claims:
            self._claims.pop(endpoint.interface, None)
        self._dirty.add(endpoint.interface)

    def _drop_link(self, link: Link) -> None:
        # The kernel says nothing about the routes that went with it.
        self._links.pop(link.name, None)
        self._names.pop(link.index, None)
        self._routes.forget_link(link.index)
        self._unsettled.discard(link.name)

    def _mark(self, name: str) -> None:
        """A link that no endpoint names is no work."""
        if name in self._claims:
            self._dirty.add(name)

    def _touch(self, interfaces: Iterable[str]) -> None:
        self._dirty.update(interfaces)
