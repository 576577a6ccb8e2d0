"""Object <-> etcd key, for every family that is stored (datamodel 1). Keys are str; all start with `/calico/`."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from calico_plugin.errors import InvalidInput
from calico_plugin.model.resources.kinds import BY_PLURAL, KINDS

ROOT = "/calico/"
RESOURCES = "/calico/resources/v3/projectcalico.org/"
IPAM = "/calico/ipam/v2/"
IPAM_CONFIG = "/calico/ipam/v2/config"
BLOCKS = "/calico/ipam/v2/assignment/"
AFFINITIES = "/calico/ipam/v2/host/"
HANDLES = "/calico/ipam/v2/handle/"
FELIX = "/calico/felix/"
NETWORKS = "/calico/docker/v1/network/"


@dataclass(frozen=True, slots=True)
class ResourceKey:
    """Identity of a v3 resource; `namespace` is empty for cluster-scoped kinds."""

    kind: str
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.kind}({self.namespace}/{self.name})" if self.namespace else f"{self.kind}({self.name})"


def resource(kind: str, name: str, namespace: str = "") -> str:
    """Key of one resource. Raises InvalidInput when the namespace does not fit the kind."""
    known = KINDS[kind]
    if known.namespaced != bool(namespace):
        raise InvalidInput("metadata.namespace", namespace, f"{kind} is {'' if known.namespaced else 'not '}namespaced")
    return kind_prefix(kind, namespace) + name


def kind_prefix(kind: str, namespace: str = "") -> str:
    """Prefix that lists a kind, or one namespace of it; it ends with a slash."""
    known = KINDS[kind]
    return f"{RESOURCES}{known.plural}/{namespace}/" if namespace else f"{RESOURCES}{known.plural}/"


def parse_resource(key: str) -> ResourceKey | None:
    """The resource that a key names, or None when it names none."""
    if not key.startswith(RESOURCES):
        return None
    plural, *rest = key[len(RESOURCES):].split("/")
    known = BY_PLURAL.get(plural)
    if known is None or len(rest) != 1 + known.namespaced or not all(rest):
        return None
    return ResourceKey(known.name, rest[-1], rest[0] if known.namespaced else "")


def _family(cidr: str) -> str:
    return "ipv6" if ":" in cidr else "ipv4"


def _cidr_segment(cidr: str) -> str:
    return cidr.replace("/", "-")


def block(cidr: str) -> str:
    """Key of a block; `cidr` is the canonical masked network."""
    return f"{BLOCKS}{_family(cidr)}/block/{_cidr_segment(cidr)}"


def affinity(host: str, cidr: str) -> str:
    return f"{AFFINITIES}{host}/{_family(cidr)}/block/{_cidr_segment(cidr)}"


def affinity_prefix(host: str, version: int | None = None) -> str:
    """Prefix of a host's affinities, of one IP version or of both."""
    return f"{AFFINITIES}{host}/" + (f"ipv{version}/block/" if version else "")


def handle(handle_id: str) -> str:
    return HANDLES + handle_id


def parse_block(key: str) -> str | None:
    """CIDR of a block key, or None."""
    return _parse_cidr(key[len(BLOCKS):].split("/")) if key.startswith(BLOCKS) else None


def parse_affinity(key: str) -> tuple[str, str] | None:
    """(host, CIDR) of a host affinity key, or None."""
    if not key.startswith(AFFINITIES):
        return None
    host, *rest = key[len(AFFINITIES):].split("/")
    cidr = _parse_cidr(rest)
    return (host, cidr) if host and cidr else None


def _parse_cidr(parts: list[str]) -> str | None:
    if len(parts) != 3 or parts[0] not in ("ipv4", "ipv6") or parts[1] != "block":
        return None
    try:
        network = ip_network("/".join(parts[2].rsplit("-", 1)), strict=False)
    except ValueError:
        return None
    return str(network) if parts[0] == f"ipv{network.version}" else None


def network(network_id: str) -> str:
    return NETWORKS + network_id


def escape(part: str) -> str:
    """Escaping of Felix status keys."""
    return part.replace("%", "%25").replace("/", "%2f")


def felix_status(host: str, region: str = "no-region") -> str:
    return f"{FELIX}v2/{region}/host/{host}/status"


def felix_last_status(host: str, region: str = "no-region") -> str:
    return f"{FELIX}v2/{region}/host/{host}/last_reported_status"


def endpoint_status(host: str, orchestrator: str, workload: str, endpoint: str, region: str = "no-region") -> str:
    return (
        f"{FELIX}v2/{region}/host/{host}/workload/{escape(orchestrator)}/{escape(workload)}/endpoint/{escape(endpoint)}"
    )
