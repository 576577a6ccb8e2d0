"""The conformance cases, walked through the compiled rules; and that none of the 68 is without a test."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, Mapping

import pytest

from calico_plugin.model.desired import DENIES, Ruleset
from calico_plugin.policy import explain
from calico_plugin.policy.explain import Flow
from tests import conformance
from tests.conformance import CASES, Case, Part
from tests.kernel.packets import Packet
from tests.unit.policy import worlds

LAB = Path(__file__).parents[2] / "lab" / "test_conformance.py"


def node_of(end: str) -> str:
    return "n2" if end in conformance.OTHER_HOST else "n1"


def container(end: str, profiles: tuple[str, ...]) -> dict[str, Any]:
    four, six = conformance.ADDRESSES[end]
    listed = [{"name": name, "protocol": protocol, "port": port}
              for name, protocol, port in conformance.PORTS.get(end, ())]
    return worlds.endpoint(end.lower(), four, conformance.CONTAINERS[end], node=node_of(end), profiles=list(profiles),
                           ipNetworks=[f"{four}/32", f"{six}/128"], ports=listed)


def compiled(part: Part) -> Mapping[str, Ruleset]:
    ends = [container(end, part.profiles.get(end, ("p-open",))) for end in conformance.CONTAINERS]
    present = worlds.objects([*conformance.FIXTURES, *ends, *part.resources])
    return {node: worlds.compiled(present, node) for node in ("n1", "n2")}


def passes(rules: Mapping[str, Ruleset], packet: Packet, source: str, target: str) -> bool:
    icmp = packet.protocol in (1, 58)
    ports = (None, None, packet.dport, packet.sport) if icmp else (packet.sport, packet.dport)
    flow = Flow(packet.source, packet.destination, packet.protocol, *ports)
    walks = [walk(rules[node_of(end)], f"cali{end.lower()}", flow)
             for walk, end in ((explain.egress, source), (explain.ingress, target)) if end in conformance.CONTAINERS]
    return not any(walk is None or walk.verdict in DENIES for walk in walks)


PARTS = [(case, part) for case in CASES.values() for part in case.parts]


@pytest.mark.parametrize(("case", "part"), PARTS, ids=[
    f"{case.number}-{case.parts.index(part)}" for case, part in PARTS])
def test_first_packets(case: Case, part: Part) -> None:
    rules = compiled(part)
    wrong = [(packet, expected) for packet, source, target, expected in part
             if passes(rules, packet, source, target) is not expected]
    assert wrong == []


def test_every_case_is_played() -> None:
    """By its flows, or by the test in the lab that it names."""
    assert sorted(CASES) == list(range(1, 69))
    played = {node.name for node in ast.parse(LAB.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert {case.played for case in CASES.values() if case.played} <= played
    assert all(case.parts or case.played for case in CASES.values())
    assert sum(len(list(part)) for _, part in PARTS) >= 145
