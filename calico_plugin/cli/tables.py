"""The columns that `get` shows of each kind (node-and-cli 4.4); values as the original writes them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Callable, Iterable, Sequence

from calico_plugin.cli.output import table
from calico_plugin.errors import InvalidInput
from calico_plugin.model.problem import did_you_mean
from calico_plugin.model.published import published
from calico_plugin.model.resources import KINDS
from calico_plugin.model.resources.bgp import BGPPeerSpec

_MAX_NETS = 80


@dataclass(frozen=True, slots=True)
class Facts:
    """What a cell may need beside its object: the cluster's AS number, which nodes inherit."""

    as_number: int | str = 64512


Cell = Callable[[Any, Facts], str]


@dataclass(frozen=True, slots=True)
class View:
    """Columns of one kind: all by heading, and which of them stand in which form."""

    cells: dict[str, Cell]
    plain: tuple[str, ...]
    wide: tuple[str, ...]


def _list(items: Iterable[Any]) -> str:
    return ",".join(str(item) for item in items)


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _short(text: str) -> str:
    return text[: _MAX_NETS - 3] + "..." if len(text) > _MAX_NETS else text


def number(value: int | float | None) -> str:
    """A float in Go's shortest form: 1e+06 for a million, 100000 below; `<nil>` when there is none."""
    if value is None:
        return "<nil>"
    exact = Decimal(repr(float(value))).normalize()
    power = exact.adjusted()
    if -4 <= power < 6 or not exact:
        return f"{exact:f}"
    digits = "".join(str(digit) for digit in exact.as_tuple().digits)
    mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
    return f"{'-' if exact < 0 else ''}{mantissa}e{'-' if power < 0 else '+'}{abs(power):02d}"


def _peer_node(spec: BGPPeerSpec) -> str:
    return spec.node or spec.node_selector or "(global)"


def _node_as(node: Any, facts: Facts) -> str:
    bgp = node.spec.bgp
    if bgp is None:
        return ""
    return str(bgp.as_number) if bgp.as_number is not None else f"({facts.as_number})"


def _optional(value: Any) -> str:
    if value is None:
        return "-"
    return _flag(value) if isinstance(value, bool) else str(value)


def _nats(endpoint: Any) -> str:
    return _list(nat.external_ip for nat in endpoint.spec.ip_nats)


_NAME: dict[str, Cell] = {"NAME": lambda item, facts: item.name}
_NAMESPACE: dict[str, Cell] = {"NAMESPACE": lambda item, facts: item.namespace}


def _view(cells: dict[str, Cell], plain: str, wide: str = "") -> View:
    return View(_NAME | cells, tuple(plain.split()), tuple((wide or plain).split()))


def _policy(namespaced: bool) -> View:
    cells: dict[str, Cell] = {
        "TIER": lambda item, facts: item.spec.tier or "default",
        "ORDER": lambda item, facts: number(item.spec.order),
        "SELECTOR": lambda item, facts: item.spec.selector,
    }
    return _view(cells | (_NAMESPACE if namespaced else {}), "NAME TIER", "NAME TIER ORDER SELECTOR")


def _network_set(namespaced: bool) -> View:
    cells: dict[str, Cell] = {"NETS": lambda item, facts: _short(_list(item.spec.nets))}
    return _view(cells | (_NAMESPACE if namespaced else {}), "NAME", "NAME NETS")


_POOL: dict[str, Cell] = {
    "CIDR": lambda item, facts: item.spec.cidr,
    "NAT": lambda item, facts: _flag(item.spec.nat_outgoing),
    "IPIPMODE": lambda item, facts: item.spec.ipip_mode or "Never",
    "VXLANMODE": lambda item, facts: item.spec.vxlan_mode or "Never",
    "DISABLED": lambda item, facts: _flag(item.spec.disabled),
    "DISABLEBGPEXPORT": lambda item, facts: _flag(item.spec.disable_bgp_export),
    "SELECTOR": lambda item, facts: item.spec.node_selector or "all()",
    "ASSIGNMENTMODE": lambda item, facts: item.spec.assignment_mode or "Automatic",
}
_NODE: dict[str, Cell] = {
    "ASN": _node_as,
    "IPV4": lambda item, facts: item.spec.bgp.ipv4_address if item.spec.bgp else "",
    "IPV6": lambda item, facts: item.spec.bgp.ipv6_address if item.spec.bgp else "",
}
_ENDPOINT: dict[str, Cell] = {
    "WORKLOAD": lambda item, facts: item.spec.pod or item.spec.container_id or item.spec.workload,
    "ORCHESTRATOR": lambda item, facts: item.spec.orchestrator,
    "NODE": lambda item, facts: item.spec.node,
    "NETWORKS": lambda item, facts: _list(item.spec.ip_networks),
    "INTERFACE": lambda item, facts: item.spec.interface_name,
    "PROFILES": lambda item, facts: _list(item.spec.profiles),
    "NATS": lambda item, facts: _nats(item),
    "IPV4GATEWAY": lambda item, facts: item.spec.ipv4_gateway,
    "IPV6GATEWAY": lambda item, facts: item.spec.ipv6_gateway,
    "MAC": lambda item, facts: item.spec.mac,
    "PORTS": lambda item, facts: _list(one.line for one in published(item.spec)),
}
_BGP_CONFIGURATION: dict[str, Cell] = {
    "LOGSEVERITY": lambda item, facts: item.spec.log_severity_screen or "-",
    "MESHENABLED": lambda item, facts: _optional(item.spec.node_to_node_mesh_enabled),
    "ASNUMBER": lambda item, facts: _optional(item.spec.as_number),
}
_BGP_FILTER: dict[str, Cell] = {
    "NUMEXPORTV4": lambda item, facts: str(len(item.spec.export_v4)),
    "NUMIMPORTV4": lambda item, facts: str(len(item.spec.import_v4)),
    "NUMEXPORTV6": lambda item, facts: str(len(item.spec.export_v6)),
    "NUMIMPORTV6": lambda item, facts: str(len(item.spec.import_v6)),
}
_CLUSTER: dict[str, Cell] = {
    "CLUSTERGUID": lambda item, facts: item.spec.cluster_guid,
    "CLUSTERTYPE": lambda item, facts: item.spec.cluster_type,
    "CALICOVERSION": lambda item, facts: item.spec.calico_version,
    "DATASTOREREADY": lambda item, facts: _flag(bool(item.spec.datastore_ready)),
}
_IPAM: dict[str, Cell] = {
    "STRICTAFFINITY": lambda item, facts: _flag(item.spec.strict_affinity),
    "AUTOALLOCATEBLOCKS": lambda item, facts: _flag(item.spec.auto_allocate_blocks),
    "MAXBLOCKSPERHOST": lambda item, facts: str(item.spec.max_blocks_per_host),
}

VIEWS: dict[str, View] = {
    "IPPool": _view(
        _POOL,
        "NAME CIDR SELECTOR",
        "NAME CIDR NAT IPIPMODE VXLANMODE DISABLED DISABLEBGPEXPORT SELECTOR ASSIGNMENTMODE",
    ),
    "IPReservation": _view(
        {"CIDRS": lambda item, facts: _short(_list(item.spec.reserved_cidrs))}, "NAME", "NAME CIDRS"
    ),
    "IPAMConfiguration": _view(
        _IPAM, "NAME STRICTAFFINITY AUTOALLOCATEBLOCKS", "NAME STRICTAFFINITY AUTOALLOCATEBLOCKS MAXBLOCKSPERHOST"
    ),
    "Node": _view(_NODE, "NAME", "NAME ASN IPV4 IPV6"),
    "WorkloadEndpoint": _view(
        _ENDPOINT | _NAMESPACE,
        "WORKLOAD NODE NETWORKS INTERFACE",
        "NAME WORKLOAD NODE NETWORKS INTERFACE PROFILES NATS",
    ),
    "HostEndpoint": _view(
        {
            "NODE": lambda item, facts: item.spec.node,
            "INTERFACE": lambda item, facts: item.spec.interface_name,
            "IPS": lambda item, facts: _list(item.spec.expected_ips),
            "PROFILES": lambda item, facts: _list(item.spec.profiles),
        },
        "NAME NODE",
        "NAME NODE INTERFACE IPS PROFILES",
    ),
    "Profile": _view(
        {
            "LABELS": lambda item, facts: _list(
                f"{name}={value}" for name, value in sorted(item.spec.labels_to_apply.items())
            )
        },
        "NAME",
        "NAME LABELS",
    ),
    "Tier": _view({"ORDER": lambda item, facts: number(item.spec.order)}, "NAME ORDER"),
    "GlobalNetworkPolicy": _policy(False),
    "NetworkPolicy": _policy(True),
    "StagedGlobalNetworkPolicy": _policy(False),
    "StagedNetworkPolicy": _policy(True),
    "StagedKubernetesNetworkPolicy": _view(_NAMESPACE, "NAME"),
    "GlobalNetworkSet": _network_set(False),
    "NetworkSet": _network_set(True),
    "BGPPeer": _view(
        {
            "PEERIP": lambda item, facts: item.spec.peer_ip,
            "NODE": lambda item, facts: _peer_node(item.spec),
            "ASN": lambda item, facts: str(item.spec.as_number or 0),
        },
        "NAME PEERIP NODE ASN",
    ),
    "BGPConfiguration": _view(_BGP_CONFIGURATION, "NAME LOGSEVERITY MESHENABLED ASNUMBER"),
    "BGPFilter": _view(_BGP_FILTER, "NAME NUMEXPORTV4 NUMIMPORTV4 NUMEXPORTV6 NUMIMPORTV6"),
    "FelixConfiguration": _view({}, "NAME"),
    "KubeControllersConfiguration": _view({}, "NAME"),
    "ClusterInformation": _view(_CLUSTER, "NAME CLUSTERGUID CLUSTERTYPE CALICOVERSION DATASTOREREADY"),
    "CalicoNodeStatus": _view(
        {"NODE": lambda item, facts: item.spec.node, "CLASSES": lambda item, facts: _list(item.spec.classes)},
        "NAME NODE",
        "NAME NODE CLASSES",
    ),
}


def columns(kind: str, form: str, wanted: Sequence[str], with_namespace: bool) -> tuple[str, ...]:
    """Headings of a table: `form` is ps, wide or custom-columns (then `wanted` are they). Raises InvalidInput."""
    view = VIEWS[kind]
    if form == "custom-columns":
        for heading in wanted:
            if heading not in view.cells:
                known = ", ".join(view.cells)
                raise InvalidInput(
                    "custom-columns", heading, f"unknown for {kind}{did_you_mean(heading, view.cells)}; known: {known}"
                )
        return tuple(wanted)
    chosen = view.wide if form == "wide" else view.plain
    return ("NAMESPACE", *chosen) if with_namespace and KINDS[kind].namespaced else chosen


def cells(kind: str, headings: Sequence[str], resource: Any, facts: Facts) -> list[str]:
    """One row."""
    known = VIEWS[kind].cells
    return [known[heading](resource, facts) for heading in headings]


def render(kind: str, headings: Sequence[str], resources: Iterable[Any], facts: Facts) -> str:
    """One table, with its blank line."""
    return table(headings, [cells(kind, headings, item, facts) for item in resources])
