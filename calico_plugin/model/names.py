"""Every derived name and ownership mark of the project, each made in exactly one function.

Sources: Calico v3 naming of workload endpoints and the v1 -> v3 name conversion (datamodel 3.1, 6.2), Felix's endpoint-
status files.
"""

from __future__ import annotations

import hashlib
import re
from ipaddress import IPv6Address, ip_address, ip_network
from urllib.parse import quote

from calico_plugin.errors import InvalidInput

INTERFACE_PREFIX = "cali"
TEMPORARY_PREFIX = "tmp"
ORCHESTRATOR = "libnetwork"
WORKLOAD = "libnetwork"
NAMESPACE = "libnetwork"

LABEL_NAMESPACE = "projectcalico.org/namespace"
LABEL_ORCHESTRATOR = "projectcalico.org/orchestrator"
LABEL_TIER = "projectcalico.org/tier"
CONTAINER_LABEL_PREFIX = "org.projectcalico.label."
# Annotation of an endpoint whose container's labels are not known yet: it carries nothing until they are.
LABELS_AWAITED = "projectcalico.org/labels-awaited"

NFT_TABLE = "calico"
# A table of its own for what has to do with names, not with policy.
NAME_TABLE = "calico-names"
# Where our rules tell user space of packets (nflog), and where they wait for it (nfqueue).
NFLOG_GROUP = 88
NAME_QUEUE = 88
ROUTE_PROTOCOL = 80
BIRD_ROUTE_PROTOCOL = 12
HOST_MAC = "ee:ee:ee:ee:ee:ee"
GATEWAY_IPV4 = "169.254.1.1"

# Tunnel devices by IP version of what they carry (node-and-cli 2.7).
VXLAN_DEVICES = {4: "vxlan.calico", 6: "vxlan-v6.calico"}
IPIP_DEVICE = "tunl0"

_ENDPOINT_CHARS = 11
_STATUS_SAFE = "~$&+=:@"


def host_interface(endpoint_id: str) -> str:
    """Host side of an endpoint's veth: `cali` + 11 characters, 15 in all (the kernel's limit)."""
    return INTERFACE_PREFIX + endpoint_id[:_ENDPOINT_CHARS]


def tunnel_mac(node: str, version: int) -> str:
    """MAC of a node's VXLAN device where its Node resource names none: as Felix works it out, so both kinds of hosts
    agree.
    """
    seed = node if version == 4 else f"{node}-v6"
    return (b"f" + hashlib.sha1(seed.encode()).digest()[:5]).hex(":")


def temporary_interface(endpoint_id: str) -> str:
    """Container side before Docker renames it; derived from the endpoint so that two never clash (docker-plugin 2.3).
    """
    return TEMPORARY_PREFIX + endpoint_id[:_ENDPOINT_CHARS]


def escape_dashes(part: str) -> str:
    return part.replace("-", "--")


def workload_endpoint(node: str, endpoint_id: str) -> str:
    """WorkloadEndpoint name: `<node>-libnetwork-libnetwork-<endpoint>`, dashes inside parts doubled."""
    return "-".join(escape_dashes(part) for part in (node, ORCHESTRATOR, WORKLOAD, endpoint_id))


def endpoint_name(node: str, orchestrator: str, workload: str, endpoint: str) -> str:
    """Name of any orchestrator's endpoint (datamodel 3.1). `workload` is the pod of k8s and the container id of cni;
    Docker's third part is the orchestrator again. Raises InvalidInput for a part that is empty or starts or ends with a
    dash."""
    third = orchestrator if orchestrator == ORCHESTRATOR else workload
    parts = {"node": node, "orchestrator": orchestrator, "workload": third, "endpoint": endpoint}
    return "-".join(_name_part(field, part) for field, part in parts.items())


def endpoint_name_prefix(*parts: str) -> str:
    """What the names of all endpoints of a node start with; those of other nodes may as well: look at the spec."""
    return "-".join(_name_part("node", part) for part in parts) + "-"


def _name_part(field: str, part: str) -> str:
    if not part:
        raise InvalidInput(f"spec.{field}", None, "must be given: it is a part of the name")
    if part.startswith("-") or part.endswith("-"):
        raise InvalidInput(f"spec.{field}", part, "must not start or end with a dash: it is a part of the name")
    return escape_dashes(part)


def split_workload_endpoint(name: str) -> tuple[str, ...]:
    """Undo the dash doubling; a complete name gives four parts (host, orchestrator, workload, endpoint)."""
    parts, current, position = [], "", 0
    while position < len(name):
        if name[position] != "-" or (position == 0 and name[1:2] != "-"):
            current += name[position]
        elif name[position + 1:position + 2] == "-":
            current += "-"
            position += 1
        else:
            parts.append(current)
            current = ""
        position += 1
    if current:
        parts.append(current)
    return tuple(parts)


def endpoint_status_file(endpoint_id: str, namespace: str = NAMESPACE) -> str:
    """File name inside `endpoint-status/` of a Docker endpoint."""
    return status_file(ORCHESTRATOR, f"{namespace}/{WORKLOAD}", endpoint_id)


def status_file(orchestrator: str, workload: str, endpoint: str) -> str:
    """File name inside `endpoint-status/`: three path-escaped parts joined by one blank (Felix)."""
    return " ".join(quote(part, safe=_STATUS_SAFE) for part in (orchestrator, workload, endpoint))


def normal(name: str) -> str:
    """v1 -> v3 normalisation without suffix (used alone for node names)."""
    text = re.sub(r"[^-.a-z0-9]+", "-", name.lower().replace("/", "."))
    text = re.sub(r"[-.]*\.[-.]*", ".", text)
    return text.strip(".-")


def _suffixed(converted: str, original: str) -> str:
    if converted == original:
        return converted
    return f"{converted}-{hashlib.sha1(original.encode()).hexdigest()[:8]}"


def convert(name: str) -> str:
    """v1 -> v3 name of profiles and most kinds: normalised, plus 8 hex digits of SHA-1 when that changed it."""
    return _suffixed(normal(name), name)


def convert_no_dots(name: str) -> str:
    """v1 -> v3 name of policies: as `convert`, with dots turned into dashes."""
    return _suffixed(normal(name).replace(".", "-"), name)


def ip_name(address: str) -> str:
    """An address as a v1 -> v3 name: `1-2-3-4`, or eight groups of four hex digits (datamodel 6.2)."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return parsed.exploded.replace(":", "-").replace(".", "-")


def cidr_name(cidr: str) -> str:
    """Name of a pool made from its CIDR: `10.50.0.0/16` -> `10-50-0-0-16`."""
    return re.sub("[.:/]", "-", str(ip_network(cidr, strict=False)))


def network_profile(network: str) -> str:
    """Profile of a Docker network: `cal_net1` -> `cal-net1-` + 8 hex digits."""
    return convert(network)


def network_label(network: str) -> str:
    """Label that a Docker network's profile gives to its containers: its name, or a stand-in where that is no legal
    label.
    """
    if re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", network):
        return network
    return f"docker-network-{hashlib.sha1(network.encode()).hexdigest()[:16]}"
