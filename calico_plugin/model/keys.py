"""Object <-> etcd key, for every family that is stored (datamodel 1). Keys are str; all start with `/calico/`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Callable, Union

from calico_plugin.errors import InvalidInput
from calico_plugin.model.resources.kinds import BY_PLURAL, KINDS

ROOT = "/calico/"
RESOURCES = "/calico/resources/v3/projectcalico.org/"
IPAM = "/calico/ipam/v2/"
IPAM_CONFIG = "/calico/ipam/v2/config"
BLOCKS = "/calico/ipam/v2/assignment/"
AFFINITIES = "/calico/ipam/v2/host/"
VIRTUAL_AFFINITIES = "/calico/ipam/v2/virtual/"
HANDLES = "/calico/ipam/v2/handle/"
FELIX = "/calico/felix/"
NETWORKS = "/calico/docker/v1/network/"
SHARED_NETWORKS = "/calico/docker/v1/shared-network/"
SHARED_MEMBERS = "/calico/docker/v1/shared-member/"
ENDPOINT_NAMES = "/calico/docker/v1/endpoint-names/"

# Kinds that have keys, but no type here: the original keeps them, or an earlier release did. Plural -> (kind,
# namespaced).
UNTYPED = {
    "blockaffinities": ("BlockAffinity", False),
    "livemigrations": ("LiveMigration", True),
    "ipamconfigs": ("IPAMConfig", False),
}
_UNTYPED_KINDS = {kind: (plural, namespaced) for plural, (kind, namespaced) in UNTYPED.items()}


@dataclass(frozen=True, slots=True)
class ResourceKey:
    """Identity of a v3 resource; `namespace` is empty for cluster-scoped kinds."""

    kind: str
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.kind}({self.namespace}/{self.name})" if self.namespace else f"{self.kind}({self.name})"


@dataclass(frozen=True, slots=True)
class BlockKey:
    cidr: str


@dataclass(frozen=True, slots=True)
class AffinityKey:
    host: str
    cidr: str


@dataclass(frozen=True, slots=True)
class HandleKey:
    handle_id: str


@dataclass(frozen=True, slots=True)
class StatusKey:
    """Felix's own status; `last` for the one without a lease."""

    host: str
    last: bool = False


@dataclass(frozen=True, slots=True)
class EndpointStatusKey:
    host: str
    orchestrator: str
    workload: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class HostEndpointStatusKey:
    host: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class LegacyEndpointKey:
    """A Calico 2.x endpoint (`/calico/v1/host/…`): lives in memory only since 3.0, known here so that it is told from
    garbage.
    """

    host: str
    orchestrator: str
    workload: str
    endpoint: str


Key = Union[
    ResourceKey,
    BlockKey,
    AffinityKey,
    HandleKey,
    StatusKey,
    EndpointStatusKey,
    HostEndpointStatusKey,
    LegacyEndpointKey,
]


def _plural(kind: str) -> tuple[str, bool]:
    """(plural segment, namespaced) of a kind; raises KeyError for one that is never stored."""
    return (KINDS[kind].plural, KINDS[kind].namespaced) if kind in KINDS else _UNTYPED_KINDS[kind]


def resource(kind: str, name: str, namespace: str = "") -> str:
    """Key of one resource. Raises InvalidInput when the namespace does not fit the kind."""
    namespaced = _plural(kind)[1]
    if namespaced != bool(namespace):
        raise InvalidInput("metadata.namespace", namespace, f"{kind} is {'' if namespaced else 'not '}namespaced")
    return kind_prefix(kind, namespace) + name


def kind_prefix(kind: str, namespace: str = "") -> str:
    """Prefix that lists a kind, or one namespace of it; it ends with a slash."""
    plural = _plural(kind)[0]
    return f"{RESOURCES}{plural}/{namespace}/" if namespace else f"{RESOURCES}{plural}/"


def list_path(kind: str, namespace: str = "", name_prefix: str = "") -> str:
    """The original's text for a list: no trailing slash, so that a part of a name can follow (datamodel 1.5)."""
    return (kind_prefix(kind, namespace) + name_prefix).removesuffix("/")


def parse_resource(key: str) -> ResourceKey | None:
    """The resource that a key names, or None when it names none."""
    if not key.startswith(RESOURCES):
        return None
    plural, *rest = key[len(RESOURCES) :].split("/")
    known = (BY_PLURAL[plural].name, BY_PLURAL[plural].namespaced) if plural in BY_PLURAL else UNTYPED.get(plural)
    if known is None or len(rest) != 1 + known[1]:
        return None
    return ResourceKey(known[0], rest[-1], rest[0] if known[1] else "")


def _canonical(cidr: str) -> str:
    """Masked, shortest form: what stands in a key. An IPv4-mapped address keeps its dots, as Go writes it."""
    network = ip_network(cidr, strict=False)
    mapped = network.network_address.ipv4_mapped if network.version == 6 else None
    return f"::ffff:{mapped}/{network.prefixlen}" if mapped else str(network)


def _path(cidr: str) -> str:
    text = _canonical(cidr)
    return f"{'ipv6' if ':' in text else 'ipv4'}/block/{text.replace('/', '-')}"


def block(cidr: str) -> str:
    """Key of a block."""
    return BLOCKS + _path(cidr)


def affinity(host: str, cidr: str) -> str:
    return f"{AFFINITIES}{host}/{_path(cidr)}"


def virtual_affinity(name: str, cidr: str) -> str:
    """Affinity that belongs to no host (service load balancers of the original)."""
    return f"{VIRTUAL_AFFINITIES}{name}/{_path(cidr)}"


def affinity_prefix(host: str, version: int | None = None) -> str:
    """Prefix of a host's affinities, of one IP version or of both."""
    return f"{AFFINITIES}{host}/" + (f"ipv{version}/block/" if version else "")


def ipam_host(host: str) -> str:
    """Marker of a host, written by old releases only; node deletion removes it."""
    return AFFINITIES + _given("host", host)


def handle(handle_id: str) -> str:
    """Key of a handle; its id stands there as it is, so it must hold no slash (datamodel 1.3)."""
    return HANDLES + _given("handle id", handle_id)


def _given(field: str, value: str) -> str:
    if not value:
        raise InvalidInput(field, value, "must not be empty")
    return value


def parse_block(key: str) -> str | None:
    """CIDR of a block key, or None."""
    found = parse(key)
    return found.cidr if isinstance(found, BlockKey) else None


def parse_affinity(key: str) -> tuple[str, str] | None:
    """(host, CIDR) of a host affinity key, or None."""
    found = parse(key)
    return (found.host, found.cidr) if isinstance(found, AffinityKey) else None


def _cidr(text: str) -> str | None:
    address, separator, length = text.rpartition("-")
    try:
        return _canonical(f"{address}/{length}") if separator and length.isdigit() else None
    except ValueError:
        return None


def network(network_id: str) -> str:
    return NETWORKS + network_id


def shared_network(name: str) -> str:
    """By Docker's name of the network, which may hold any character."""
    return SHARED_NETWORKS + escape(name)


def shared_members(node: str) -> str:
    """Prefix of all that is one node's."""
    return f"{SHARED_MEMBERS}{node}/"


def shared_member(node: str, name: str) -> str:
    return shared_members(node) + escape(name)


def names_of_node(node: str) -> str:
    """Prefix of what all containers of a node are called."""
    return f"{ENDPOINT_NAMES}{node}/"


def endpoint_names(node: str, endpoint_id: str) -> str:
    return names_of_node(node) + endpoint_id


def parse_endpoint_names(key: str) -> tuple[str, str] | None:
    """(node, endpoint id) of such a key, or None."""
    node, _, endpoint = key.removeprefix(ENDPOINT_NAMES).partition("/")
    return (node, endpoint) if key.startswith(ENDPOINT_NAMES) and node and endpoint else None


def escape(part: str) -> str:
    """Escaping of Felix status keys."""
    return part.replace("%", "%25").replace("/", "%2f")


def unescape(part: str) -> str:
    return part.replace("%2f", "/").replace("%25", "%")


def felix_status(host: str, region: str = "no-region") -> str:
    return f"{FELIX}v2/{_given('region', region)}/host/{_given('host', host)}/status"


def felix_last_status(host: str, region: str = "no-region") -> str:
    return f"{FELIX}v2/{_given('region', region)}/host/{_given('host', host)}/last_reported_status"


def endpoint_status_prefix(host: str, region: str = "no-region") -> str:
    """Prefix of all workload endpoint statuses of a host."""
    return f"{FELIX}v2/{region}/host/{host}/workload/"


def endpoint_status(host: str, orchestrator: str, workload: str, endpoint: str, region: str = "no-region") -> str:
    parts = f"{escape(orchestrator)}/{escape(workload)}/endpoint/{escape(endpoint)}"
    return endpoint_status_prefix(host, region) + parts


def host_endpoint_status(host: str, endpoint: str) -> str:
    return f"{FELIX}v1/host/{host}/endpoint/{escape(endpoint)}"


def parse(key: str) -> Key | None:
    """What a key names, or None: the IPAM configuration, host markers and foreign keys have no object of their own.

    As the original's parser: the families other than resources do without the leading slash, a CIDR with host bits is
    masked, and the family in an IPAM path is not compared with the CIDR's.
    """
    if key.startswith(RESOURCES):
        return parse_resource(key)
    for pattern, build in _PATTERNS:
        match = pattern.fullmatch(key)
        if match:
            return build(match)
    return None


def _parse_affinity(match: re.Match[str]) -> Key | None:
    cidr = _cidr(match[2])
    return AffinityKey(match[1], cidr) if cidr else None


def _parse_block(match: re.Match[str]) -> Key | None:
    cidr = _cidr(match[1])
    return BlockKey(cidr) if cidr else None


_SEGMENT = "([^/]+)"
_PATTERNS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Key | None]], ...] = (
    (re.compile(f"/?calico/ipam/v2/assignment/ipv[46]/block/{_SEGMENT}"), _parse_block),
    (re.compile(f"/?calico/ipam/v2/host/{_SEGMENT}/ipv[46]/block/{_SEGMENT}"), _parse_affinity),
    (re.compile(f"/?calico/ipam/v2/handle/{_SEGMENT}"), lambda match: HandleKey(match[1])),
    (re.compile(f"/?calico/felix/v2/[^/]+/host/{_SEGMENT}/status"), lambda match: StatusKey(match[1])),
    (
        re.compile(f"/?calico/felix/v2/[^/]+/host/{_SEGMENT}/last_reported_status"),
        lambda match: StatusKey(match[1], True),
    ),
    (
        re.compile(f"/?calico/felix/v2/[^/]+/host/{_SEGMENT}/workload/{_SEGMENT}/{_SEGMENT}/endpoint/{_SEGMENT}"),
        lambda match: EndpointStatusKey(match[1], *(unescape(match[part]) for part in (2, 3, 4))),
    ),
    (
        re.compile(f"/?calico/felix/v1/host/{_SEGMENT}/endpoint/{_SEGMENT}"),
        lambda match: HostEndpointStatusKey(match[1], unescape(match[2])),
    ),
    (
        re.compile(f"/?calico/v1/host/{_SEGMENT}/workload/{_SEGMENT}/{_SEGMENT}/endpoint/{_SEGMENT}"),
        lambda match: LegacyEndpointKey(match[1], *(unescape(match[part]) for part in (2, 3, 4))),
    ),
)
