"""Golden worlds and hand-made resources for the policy tests."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Iterable, Mapping

import msgspec

from calico_plugin.model.desired import Ruleset
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import KINDS, HostEndpoint, Resource, WorkloadEndpoint
from calico_plugin.policy import PolicyEngine, PolicyOptions
from calico_plugin.policy.explain import Flow

GOLDEN = Path(__file__).parents[2] / "data/golden/verdicts.json"
Objects = dict[ResourceKey, Resource]


@lru_cache(maxsize=1)
def golden() -> Mapping[str, Any]:
    loaded: Mapping[str, Any] = json.loads(GOLDEN.read_text())
    return loaded


def typed(document: Mapping[str, Any]) -> tuple[ResourceKey, Resource]:
    """A resource as a user writes it, with the one default that Calico's API fills in and policy depends on."""
    if document["kind"] == "Tier":
        document = {**document, "spec": {"order": 1_000_000, **document["spec"]}}
    value: Resource = msgspec.convert(document, KINDS[document["kind"]].type)
    return ResourceKey(value.kind, value.name, value.namespace), value


def objects(documents: Iterable[Mapping[str, Any]]) -> Objects:
    return dict(map(typed, documents))


def scenario_objects(scenario: Mapping[str, Any]) -> Objects:
    """What took part: the world and the scenario's own, without those that Calico's API refused."""
    rejected = [entry["resource"] for entry in scenario.get("rejected") or ()]
    documents = (*golden()["worlds"][scenario["world"]], *scenario["resources"])
    return objects(document for document in documents if document not in rejected)


SMALL_BLOCKS = PolicyOptions(block_size=5, sort_from=2)
"""Sorts even short tiers, so that maps take part."""


def compiled(present: Objects, node: str, options: PolicyOptions = PolicyOptions()) -> Ruleset:
    engine = PolicyEngine(node, options)
    for key, value in present.items():
        engine.on_update(key, None, value)
    return engine.compile()


def endpoints(present: Objects) -> dict[str, tuple[str, str]]:
    """Address -> (node, interface) of each workload endpoint."""
    return {
        network.split("/")[0]: (value.spec.node, value.spec.interface_name)
        for value in present.values() if isinstance(value, WorkloadEndpoint)
        for network in value.spec.ip_networks
    }


def hosts(present: Objects) -> dict[str, tuple[str, str]]:
    """Address -> (node, interface) of each host endpoint."""
    return {
        address: (value.spec.node, value.spec.interface_name)
        for value in present.values() if isinstance(value, HostEndpoint) for address in value.spec.expected_ips
    }


def nodes(present: Objects) -> list[str]:
    return sorted({node for node, _ in endpoints(present).values()})


def flow(document: Mapping[str, Any]) -> Flow:
    ports = (document["sport"], document["dport"]) if document["proto"] in (6, 17, 132) else (None, None)
    return Flow(document["src"], document["dst"], document["proto"], *ports)


def endpoint(name: str, address: str, labels: Mapping[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A workload endpoint on node `n1`, interface `cali<name>`."""
    return {
        "kind": "WorkloadEndpoint",
        "metadata": {
            "name": f"n1-libnetwork-libnetwork-{name}", "namespace": "libnetwork", "labels": dict(labels or {}),
        },
        "spec": {
            "node": "n1", "orchestrator": "libnetwork", "workload": "libnetwork", "endpoint": name,
            "interfaceName": f"cali{name}", "ipNetworks": [f"{address}/32"], "profiles": ["open"], **spec,
        },
    }


def policy(name: str, **spec: Any) -> dict[str, Any]:
    return {"kind": "GlobalNetworkPolicy", "metadata": {"name": name}, "spec": spec}


OPEN = {
    "kind": "Profile", "metadata": {"name": "open"},
    "spec": {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]},
}
