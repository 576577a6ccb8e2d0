"""v1 manifests against what the original's converter makes of them (convert.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from calico_plugin.cli.main import run

CASES = json.loads((Path(__file__).parents[2] / "data/golden/convert.json").read_text())

DIFFERENT: dict[str, str] = {
    "workloadendpoint-cni": "the original leaves a port's protocol in lower case and then refuses its own result",
}
"""Inputs that the original refuses and we convert, with the reason."""


def _convert(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, str, str]:
    file = tmp_path / "old.yaml"
    file.write_text(text)
    status = run(["convert", "-f", str(file), *options])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_as_the_original(case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same v3 documents, or a refusal where the original refuses."""
    status, out, err = _convert(case["input_yaml"], tmp_path, capsys)
    if case["name"] in DIFFERENT:
        assert status == 0 and case["exit_code"] == 1
        return
    assert status == case["exit_code"], err
    assert list(yaml.safe_load_all(out)) == case["output"]
    assert bool(err) == bool(status)


@pytest.mark.parametrize("case", [case for case in CASES if case["output"]], ids=lambda case: case["name"])
def test_json_and_yaml_agree_and_validate(
    case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both forms hold the same, and what was written is accepted as a manifest."""
    _, text, _ = _convert(case["input_yaml"], tmp_path, capsys, "-o", "json")
    assert [json.loads(text)] == case["output"]
    (tmp_path / "new.json").write_text(text)
    assert run(["validate", "-f", str(tmp_path / "new.json")]) == 0
    capsys.readouterr()


WRONG = [
    ("{apiVersion: v1, kind: ippool, metadata: {cidr: 10.0.0.0/16}}", "did you mean ipPool?"),
    ("{apiVersion: v1, kind: bgpPeer, metadata: {scope: global, node: a, peerIP: 10.0.0.1}}", "metadata.node"),
    ("{apiVersion: v1, kind: policy, metadata: {name: a}, spec: {ingress: [{protocol: TCP}]}}", "did you mean tcp?"),
    ("{apiVersion: v1, kind: node, metadata: {name: a}, spec: {bgp: {asNumber: 1}}}", "ipv4Address"),
    (
        "{apiVersion: v1, kind: policy, metadata: {name: a}, spec: {egress: [{source: {net: 1.0.0.0/8, nets: [a]}}]}}",
        "spec.egress[0].source.net",
    ),
    ("{apiVersion: v1, kind: profile, metadata: {}}", "metadata.name"),
    ("{apiVersion: v1, kind: hostEndpoint, metadata: {name: e, node: n}, spec: {ports: [{protocol: [1]}]}}",
     "spec.ports[0].protocol"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG, ids=lambda text: text[:60])
def test_refusals_name_the_place(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be converted is told with its line and path."""
    status, out, err = _convert(text, tmp_path, capsys)
    assert status == 1 and not out and expected in err and "old.yaml:1" in err


def test_cni_endpoint_with_ports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A port's protocol is spelled as v3 wants it; the node's name is changed without a suffix."""
    case = next(case for case in CASES if case["name"] == "workloadendpoint-cni")
    _, out, _ = _convert(case["input_yaml"], tmp_path, capsys)
    document = yaml.safe_load(out)
    assert document["spec"]["ports"][0]["protocol"] == "TCP"
    assert document["metadata"]["name"] == "host--1-cni-c0ffee-eth0"


def test_ignore_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What only today's rules refuse can be printed all the same."""
    text = "{apiVersion: v1, kind: profile, metadata: {name: a}, spec: {ingress: [{source: {selector: 'a ==='}}]}}"
    assert _convert(text, tmp_path, capsys)[0] == 1
    assert _convert(text, tmp_path, capsys, "--ignore-validation")[0] == 0
