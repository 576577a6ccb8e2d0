"""Names and keys against what the original makes of the same input (names.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calico_plugin.errors import InvalidInput
from calico_plugin.model import keys, names
from calico_plugin.policy.selector import unique_id

GOLDEN = json.loads((Path(__file__).parents[2] / "data/golden/names.json").read_text())


def _endpoint_name(case: dict[str, Any]) -> str:
    third = case.get("pod") or case.get("containerID") or case.get("workload") or ""
    if not case["prefix"]:
        return names.endpoint_name(case["node"], case["orchestrator"], third, case["endpoint"])
    parts = [case["node"], case["orchestrator"], third or case["orchestrator"]]
    return names.endpoint_name_prefix(case["node"], *(part for part in parts[1:] if part))


@pytest.mark.parametrize("case", GOLDEN["wep_names"], ids=lambda case: json.dumps(case))
def test_endpoint_name(case: dict[str, Any]) -> None:
    """An endpoint's name is made of its parts with dashes doubled; a part that would not split again is refused."""
    if "error" in case:
        with pytest.raises(InvalidInput):
            _endpoint_name(case)
    else:
        assert _endpoint_name(case) == case["name"]


@pytest.mark.parametrize("case", GOLDEN["wep_parse"], ids=lambda case: case["name"])
def test_endpoint_name_splits(case: dict[str, Any]) -> None:
    """A name gives its four parts again, or is no complete name; Docker's status file is named after it."""
    parts = names.split_workload_endpoint(case["name"])
    assert (list(parts) if len(parts) == 4 else None) == case["parts"]
    if "status_file" in case and parts[1:3] == ("libnetwork", "libnetwork"):
        assert names.endpoint_status_file(parts[3]) == case["status_file"]


@pytest.mark.parametrize("case", GOLDEN["v1_names"], ids=lambda case: case["v1"])
def test_v1_name(case: dict[str, Any]) -> None:
    """Names of Calico 2.x become the v3 names that the original's converter gives."""
    assert names.normal(case["v1"]) == case["normal"]
    assert names.convert(case["v1"]) == case["conv"]
    assert names.convert_no_dots(case["v1"]) == case["conv_no_dots"]


@pytest.mark.parametrize("case", GOLDEN["ip_and_cidr_names"], ids=lambda case: case["name"])
def test_address_name(case: dict[str, Any]) -> None:
    """Addresses and CIDRs become names."""
    made = names.ip_name(case["ip"]) if "ip" in case else names.cidr_name(case["cidr"])
    assert made == case["name"]


def _affinity(arguments: dict[str, str]) -> str:
    make = keys.virtual_affinity if arguments["type"] == "virtual" else keys.affinity
    return make(arguments["host"], arguments["cidr"])


MAKERS = {
    "resource": lambda a: keys.resource(a["kind"], a["name"], a.get("namespace", "")),
    "resource list": lambda a: keys.list_path(a["kind"], a.get("namespace", ""), a.get("name", "")),
    "block": lambda a: keys.block(a["cidr"]),
    "affinity": _affinity,
    "handle": lambda a: keys.handle(a["id"]),
    "ipam config": lambda a: keys.IPAM_CONFIG,
    "ipam host": lambda a: keys.ipam_host(a["host"]),
    "felix status": lambda a: keys.felix_status(a["host"], a["region"]),
    "felix last status": lambda a: keys.felix_last_status(a["host"], a["region"]),
    "workload status": lambda a: keys.endpoint_status(
        a["host"], a["orchestrator"], a["workload"], a["endpoint"], a["region"]
    ),
    "host endpoint status": lambda a: keys.host_endpoint_status(a["host"], a["endpoint"]),
}


@pytest.mark.parametrize("case", GOLDEN["keys"], ids=lambda case: f"{case['family']} {json.dumps(case['args'])}")
def test_key(case: dict[str, Any]) -> None:
    """Each object has the original's key, and the key gives the object back where the original's parser does."""
    make = MAKERS[case["family"]]
    if "error" in case:
        with pytest.raises(InvalidInput):
            make(case["args"])
        return
    key = make(case["args"])
    assert key == case["key"]
    if "parses_back" in case:
        assert (keys.parse(key) is not None) == case["parses_back"]


def _text(found: keys.Key | None) -> str | None:
    match found:
        case None:
            return None
        case keys.BlockKey(cidr):
            return f"BlockKey(cidr={cidr})"
        case keys.AffinityKey(host, cidr):
            return f"BlockAffinityKey(cidr={cidr}, host={host}, affinityType=host)"
        case keys.HandleKey(handle_id):
            return f"IPAMHandleKey(id={handle_id})"
        case keys.StatusKey(host):
            return f"StatusReport(hostname={host})"
        case keys.EndpointStatusKey(host, orchestrator, workload, endpoint):
            where = f"hostname={host}, orchestrator={orchestrator}, workload={workload}"
            return f"WorkloadEndpointStatus({where}, name={endpoint})"
        case keys.HostEndpointStatusKey(host, endpoint):
            return f"HostEndpointStatus(hostname={host}, name={endpoint})"
        case keys.LegacyEndpointKey(host, orchestrator, workload, endpoint):
            return f"WorkloadEndpoint(node={host}, orchestrator={orchestrator}, workload={workload}, name={endpoint})"
        case _:
            return str(found)


@pytest.mark.parametrize("case", GOLDEN["key_parse"], ids=lambda case: case["key"])
def test_key_parse(case: dict[str, Any]) -> None:
    """A key is read as the original reads it."""
    assert _text(keys.parse(case["key"])) == case.get("text")


@pytest.mark.parametrize("case", GOLDEN["wep_name_matches"], ids=lambda case: f"{case['name']} of {case['node']}")
def test_endpoint_name_belongs_to_its_node(case: dict[str, Any]) -> None:
    """A prefix alone may be another node's: the split name tells whose an endpoint is."""
    parts = names.split_workload_endpoint(case["name"])
    assert (parts[:2] == (case["node"], case["orchestrator"])) == case["matches"]


@pytest.mark.parametrize(
    "case", [case for case in GOLDEN["felix"] if case["what"] == "unique id"], ids=lambda case: case["id"]
)
def test_unique_id(case: dict[str, Any]) -> None:
    """Ids of sets are the original's. (Chain names and ids of limited length are not: our table has its own.)"""
    assert unique_id(case["prefix"], case["content"]) == case["id"]
