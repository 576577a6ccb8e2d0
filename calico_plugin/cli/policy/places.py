"""What a user means by an end of a connection: a container, an endpoint, an address, a set of labels, a host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Callable, Iterable, Mapping

from calico_plugin.cli.policy.called import Called, Elsewhere, nothing
from calico_plugin.cli.policy.world import World
from calico_plugin.errors import InvalidInput
from calico_plugin.model import names
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.problem import did_you_mean
from calico_plugin.model.resources import Metadata, Node, Profile, WorkloadEndpoint
from calico_plugin.model.resources.endpoint import WorkloadEndpointPort, WorkloadEndpointSpec
from calico_plugin.policy.selector import Labels

ENDPOINT, LABELS, HOST, OUTSIDE = "endpoint", "labels", "host", "outside"

_LABELS = re.compile(r"[^=,\s]+=[^=,]*(,[^=,\s]+=[^=,]*)*,?")
# Documentation addresses (RFC 5737, 3849): containers that do not exist cannot have real ones.
_IMAGINED = ("192.0.2.{}/32", "2001:db8:ffff::{}/128")
_SHORTEST_ID = 4

Containers = Mapping[str, Mapping[str, str]]
"""Container name (and id) -> network name -> endpoint id, as this host's Docker tells."""


@dataclass(frozen=True)
class Place:
    """An end of a connection. `resource` is there for endpoints and label sets, `node` for those and for hosts."""

    kind: str
    name: str
    addresses: tuple[str, ...]
    node: str = ""
    resource: WorkloadEndpoint | None = None
    note: str = ""

    @property
    def interface(self) -> str:
        return self.resource.spec.interface_name if self.resource else ""

    def address(self, family: int) -> str | None:
        return next((one for one in self.addresses if ip_address(one).version == family), None)

    @property
    def families(self) -> set[int]:
        return {ip_address(one).version for one in self.addresses}

    def __str__(self) -> str:
        details = [*self.addresses[:2]] if self.addresses and self.name not in self.addresses else []
        details += [f"node {self.node}"] if self.node and self.kind != HOST else []
        return f"{self.name} ({', '.join(details)})" if details else self.name


def find(
    text: str, side: str, world: World, containers: Callable[[], Containers], profiles: tuple[str, ...] = (),
    elsewhere: Elsewhere = nothing,
) -> Place:
    """Raises InvalidInput that names `side` (SRC or DST). `containers` asks Docker, `elsewhere` etcd, only if needed.

    `profiles` are those of a container that is told by its labels alone.
    """
    if "=" in text:
        return _by_labels(text, side, world, profiles)
    if address := _address(text):
        return _by_address(address, world, containers)
    for key, node in world.of(Node).items():
        if key.name == text:
            return Place(HOST, f"host {text}", _host_addresses(node), text)
    return _by_name(text, side, world, containers(), elsewhere)


def profile_of(network: str, world: World) -> str:
    """Of a Docker network, or the profile of that name. Raises InvalidInput."""
    known = {key.name for key in world.of(Profile)}
    for name in (network, names.network_profile(network)):
        if name in known:
            return name
    raise InvalidInput("--network", network, f"no such network or profile{did_you_mean(network, known)}")


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        return ""


def node_addresses(world: World, node: str) -> tuple[str, ...]:
    """Of a node by its name; none when it is not known."""
    return next((_host_addresses(one) for key, one in world.of(Node).items() if key.name == node), ())


def _host_addresses(node: Node) -> tuple[str, ...]:
    found = []
    for text in (node.spec.bgp.ipv4_address, node.spec.bgp.ipv6_address) if node.spec.bgp else ():
        try:
            found.append(str(ip_interface(text).ip))
        except ValueError:
            continue
    return tuple(found)


def _by_address(address: str, world: World, containers: Callable[[], Containers]) -> Place:
    for endpoint in world.endpoints.values():
        if address in addresses_of(endpoint):
            return of_endpoint(endpoint, _container_of(endpoint, containers()), address)
    for key, node in world.of(Node).items():
        if address in _host_addresses(node):
            return Place(HOST, f"host {key.name}", (address,), key.name)
    return Place(OUTSIDE, address, (address,), note="not an endpoint: only policy at the other end counts")


def addresses_of(endpoint: WorkloadEndpoint) -> tuple[str, ...]:
    return tuple(text.split("/")[0] for text in endpoint.spec.ip_networks)


def of_endpoint(endpoint: WorkloadEndpoint, name: str = "", first: str = "") -> Place:
    addresses = addresses_of(endpoint)
    if first:
        addresses = (first, *(one for one in addresses if one != first and _version(one) != _version(first)))
    node = endpoint.spec.node or (names.split_workload_endpoint(endpoint.name) or ("",))[0]
    return Place(ENDPOINT, name or short_name(endpoint), addresses, node, endpoint)


def _version(address: str) -> int:
    return ip_address(address).version


def short_name(endpoint: WorkloadEndpoint) -> str:
    """The endpoint's id as Docker shortens ids; of other orchestrators the whole."""
    full = endpoint.spec.endpoint or endpoint.name
    return full[:12] if len(full) == 64 else full


def _by_labels(text: str, side: str, world: World, profiles: tuple[str, ...]) -> Place:
    """A container as it would be. Its network's profile is that of the containers with these labels, if they agree."""
    if not _LABELS.fullmatch(text):
        raise InvalidInput(side, text, "write labels as name=value,name=value")
    labels = dict(part.split("=", 1) for part in text.split(",") if part)
    alike = [one for one in world.endpoints.values() if labels.items() <= one.labels.items()]
    theirs = {one.spec.profiles for one in alike}
    note = ""
    if not profiles and len(theirs) == 1:
        profiles = theirs.pop()
    elif not profiles:
        why = "no container has these labels" if not theirs else "containers with these labels are in several networks"
        note = f"{why}: taken as in no network, so that no profile allows anything; --network says which"
    number = 1 if side == "SRC" else 2
    resource = WorkloadEndpoint(
        metadata=Metadata(name=f"imagined-{side.lower()}", namespace=names.NAMESPACE, labels=labels),
        spec=WorkloadEndpointSpec(
            orchestrator=names.ORCHESTRATOR, workload=names.WORKLOAD, node=f"imagined-{number}",
            endpoint=f"imagined-{number}", ip_networks=tuple(pattern.format(number) for pattern in _IMAGINED),
            profiles=profiles, interface_name=f"cali-imagined{number}", ports=_ports(alike),
        ),
    )
    return Place(LABELS, f"a container with {text.strip(',')}", addresses_of(resource), "", resource, note)


def _ports(alike: list[WorkloadEndpoint]) -> tuple[WorkloadEndpointPort, ...]:
    return alike[0].spec.ports if alike else ()


def _by_name(text: str, side: str, world: World, containers: Containers, elsewhere: Elsewhere) -> Place:
    name, _, network = text.partition("@")
    if name in containers:
        return _of_container(text, side, world, containers[name], network)
    found = [one for one in world.endpoints.values() if _called(one, name)]
    if len(found) == 1:
        return of_endpoint(found[0], _container_of(found[0], containers))
    if found:
        listed = ", ".join(sorted(one.spec.endpoint or one.name for one in found)[:4])
        raise InvalidInput(side, text, f"{len(found)} endpoints begin so: {listed}")
    told = tuple(elsewhere())
    if place := _of_another_host(text, side, world, told):
        return place
    known = {*containers, *(one.names[0] for one in told)}
    raise InvalidInput(
        side, text, f"no container, node or endpoint is called so{did_you_mean(name, known)}; a container of another "
        "host whose name is not told there has its address or endpoint id, a set of labels is name=value")


def _of_another_host(text: str, side: str, world: World, told: Iterable[Called]) -> Place | None:
    """An endpoint whose container, on the wanted network if one is, has this name or alias."""
    name, _, network = text.partition("@")
    by_id = {one.spec.endpoint: one for one in world.endpoints.values()}
    found = [one for one in told if name in one.names and network in ("", one.network) and one.endpoint in by_id]
    if len(found) == 1:
        return of_endpoint(by_id[found[0].endpoint], text)
    if not found:
        return None
    networks = {one.network for one in found}
    listed = ", ".join(sorted(
        f"{name}@{one.network}" if len(networks) == len(found) else f"{one.endpoint[:12]} ({one.network})"
        for one in found)[:6])
    raise InvalidInput(side, text, f"{len(found)} endpoints are called so: write one of {listed}")


def _container_of(endpoint: WorkloadEndpoint, containers: Containers) -> str:
    """Its name, which stands before its ids; empty when this host's Docker does not know it."""
    return next((name for name, networks in containers.items() if endpoint.spec.endpoint in networks.values()), "")


def _called(endpoint: WorkloadEndpoint, text: str) -> bool:
    if text in (endpoint.name, endpoint.spec.interface_name):
        return True
    return len(text) >= _SHORTEST_ID and endpoint.spec.endpoint.startswith(text)


def _of_container(text: str, side: str, world: World, networks: Mapping[str, str], wanted: str) -> Place:
    by_id = {one.spec.endpoint: one for one in world.endpoints.values()}
    ours = {network: by_id[endpoint] for network, endpoint in networks.items() if endpoint in by_id}
    if wanted and wanted in ours:
        return of_endpoint(ours[wanted], text)
    if len(ours) == 1 and not wanted:
        return of_endpoint(next(iter(ours.values())), text)
    if not ours:
        raise InvalidInput(side, text, "the container is in no network of Calico's, or does not run")
    listed = ", ".join(f"{text.partition('@')[0]}@{network}" for network in sorted(ours))
    raise InvalidInput(side, text, f"write with its network, one of: {listed}")


def labels_of(endpoint: WorkloadEndpoint) -> Labels:
    """What a user set."""
    return {name: value for name, value in endpoint.labels.items() if not name.startswith("projectcalico.org/")}


def key_of(endpoint: WorkloadEndpoint) -> ResourceKey:
    return ResourceKey(endpoint.kind, endpoint.name, endpoint.namespace)
