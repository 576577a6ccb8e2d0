"""Manifests of old tutorials (apiVersion v1) with today's verbs, on a real etcd."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.deadline import Deadline
from calico_plugin.model import keys
from tests.contract.test_cli_behaviour import Cli, cli, stored

__all__ = ["cli"]

TUTORIAL = """\
apiVersion: v1
kind: ipPool
metadata:
  cidr: 192.168.0.0/16
spec:
  nat-outgoing: true
---
- apiVersion: v1
  kind: profile
  metadata:
    name: cal_net1
    tags: [cal_net1]
  spec:
    ingress: [{action: allow, source: {tag: cal_net1}}]
    egress: [{action: allow}]
- apiVersion: v1
  kind: policy
  metadata: {name: database}
  spec:
    selector: role == 'database'
    ingress: [{action: allow, protocol: tcp, source: {selector: role == 'frontend'}, destination: {ports: [6379]}}]
- apiVersion: v1
  kind: bgpPeer
  metadata: {scope: node, node: Host_1, peerIP: 10.20.0.1}
  spec: {asNumber: 64600}
- apiVersion: v1
  kind: hostEndpoint
  metadata: {name: eth0, node: Host_1, labels: {role: gate}}
  spec: {interfaceName: eth0, profiles: [cal_net1]}
- apiVersion: v1
  kind: node
  metadata: {name: Host_1}
  spec: {bgp: {ipv4Address: 10.20.0.17/24}}
"""
BECAME = {
    "ipPool(192.168.0.0/16)": ("IPPool", "192-168-0-0-16"),
    "profile(cal_net1)": ("Profile", "cal-net1-4e742f11"),
    "policy(database)": ("GlobalNetworkPolicy", "default.database"),
    "bgpPeer(10.20.0.1)": ("BGPPeer", "host-1.10-20-0-1"),
    "hostEndpoint(eth0)": ("HostEndpoint", "host-1.eth0"),
    "node(Host_1)": ("Node", "host-1"),
}


@pytest.mark.parametrize("verb", ["create", "apply"])
def test_a_tutorial_s_file_is_accepted(verb: str, cli: Cli, kv: EtcdKV, tmp_path: Path) -> None:
    """Every kind is stored as its v3 resource, one line on standard error says what they became, and delete works."""
    file = tmp_path / "old.yaml"
    file.write_text(TUTORIAL)
    status, out, err = cli(f"{verb} -f {file}")
    past = {"create": "created", "apply": "applied"}[verb]
    assert (status, out) == (0, f"Successfully {past} 6 resource(s)\n")
    (line,) = [line for line in err.splitlines() if line.startswith("Converted from apiVersion v1: ")]
    for old, (kind, name) in BECAME.items():
        assert f"{old} to {kind}({name})" in line
        assert stored(kv, keys.resource(kind, name))["kind"] == kind
    assert cli(f"replace -f {file}")[0] == 0
    assert cli(f"get -f {file} -o yaml")[0] == 0
    assert cli(f"validate -f {file}")[0] == 0
    status, out, _ = cli(f"delete -f {file}")
    assert (status, out) == (0, "Successfully deleted 6 resource(s)\n")


def test_wrong_v1_writes_nothing(cli: Cli, kv: EtcdKV) -> None:
    """One object that cannot be converted stops all, before anything is written."""
    status, out, err = cli("apply -f -", TUTORIAL.replace("protocol: tcp", "protocol: TCP"))
    assert status == 1 and not out and "standard input:21: policy(database): spec.ingress[0].protocol" in err
    assert kv.get(keys.resource("IPPool", "192-168-0-0-16"), Deadline(5)) is None


def test_converted_output_and_direct_apply_agree(cli: Cli, kv: EtcdKV, tmp_path: Path) -> None:
    """`convert | apply` and `apply` of the v1 file give the same objects."""
    file = tmp_path / "old.yaml"
    file.write_text(TUTORIAL)
    _, text, _ = cli(f"convert -f {file} -o json")
    (tmp_path / "new.json").write_text(text)
    assert json.loads(text)["kind"] == "List"
    assert cli(f"apply -f {tmp_path / 'new.json'}")[0] == 0
    _, _, err = cli(f"apply -f {file}")
    assert err.count(" unchanged") == 6
