"""A cluster to measure policy in: endpoints of a hundred applications, and policies between the applications.

Endpoints 0 to 199 are on our node; policy 0 governs endpoint 1, and its first rule says whether UDP to port 9 passes.
"""

from __future__ import annotations

import random
from typing import Any, Iterator

LOCAL = 200
NODE = "n1"
APPLICATIONS = 100
PROFILE = {"kind": "Profile", "metadata": {"name": "net1"}, "spec": {
    "labelsToApply": {"net1": ""}, "ingress": [{"action": "Allow", "source": {"selector": "has(net1)"}}],
    "egress": [{"action": "Allow"}]}}
ROLES = ("web", "api", "db")
Document = dict[str, Any]


def world(endpoints: int, policies: int) -> Iterator[Document]:
    """All documents of the cluster, as a user writes them."""
    yield PROFILE
    yield from map(policy, range(policies))
    yield from map(endpoint, range(endpoints))


def address(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def interface(number: int) -> str:
    return f"cali{number:x}"


def endpoint(number: int, application: int | None = None, local: bool = False) -> Document:
    """`application`: another than its own; `local`: on our node, whatever its number."""
    node = NODE if local or number < LOCAL else f"n{number % 50 + 2}"
    app = number % APPLICATIONS if application is None else application
    labels = {"app": f"app{app}", "role": ROLES[number % 3], "env": "prod" if number % 4 else "dev"}
    return {
        "kind": "WorkloadEndpoint",
        "metadata": {"name": f"{node}-libnetwork-libnetwork-e{number}", "namespace": "libnetwork", "labels": labels},
        "spec": {"node": node, "orchestrator": "libnetwork", "workload": "libnetwork", "endpoint": f"e{number}",
                 "interfaceName": interface(number), "ipNetworks": [f"{address(number)}/32"], "profiles": ["net1"]},
    }


def policy(number: int, action: str = "Allow") -> Document:
    """`action` of its first rule, on UDP to port 9."""
    here, there = f"app{(number + 1) % APPLICATIONS}", f"app{random.Random(number).randrange(APPLICATIONS)}"
    ingress = [
        {"action": action, "protocol": "UDP", "destination": {"ports": [9]}},
        {"action": "Allow", "protocol": "TCP", "source": {"selector": f"app=='{there}' && role=='web'"},
         "destination": {"ports": [80 + number % 7, 443]}},
        {"action": "Allow", "source": {"selector": f"app in {{'{there}','{here}'}}"}},
        {"action": "Deny", "source": {"nets": [f"10.9.{number % 250}.0/24"]}},
    ]
    return {"kind": "GlobalNetworkPolicy", "metadata": {"name": f"p{number}"}, "spec": {
        "order": number, "selector": f"app=='{here}'", "types": ["Ingress", "Egress"], "ingress": ingress,
        "egress": [{"action": "Allow"}]}}
