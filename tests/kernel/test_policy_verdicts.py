"""Golden verdicts of Calico's own code, sent as real packets through the compiled rules between network namespaces."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Iterable, Iterator, Mapping

import pytest

from calico_plugin.dataplane.nftables import Table
from tests.kernel.packets import Packet, Router, in_namespace
from tests.unit.policy import worlds

pytestmark = pytest.mark.root

Scenario = Mapping[str, Any]


def by_world(wanted: Iterable[Scenario]) -> dict[str, list[Scenario]]:
    grouped: dict[str, list[Scenario]] = defaultdict(list)
    for scenario in wanted:
        grouped[scenario["world"]].append(scenario)
    return grouped


def expected(flow: Mapping[str, Any], local: set[str]) -> bool | None:
    """Whether the packet passes this node, or None when neither of its ends is here."""
    verdicts = [flow[end] for end, address in (("egress", "src"), ("ingress", "dst")) if flow[address] in local]
    return all(verdict == "allow" for verdict in verdicts) if verdicts else None


def as_packet(flow: Mapping[str, Any]) -> Packet:
    if flow["proto"] in (1, 58):
        return Packet(flow["src"], flow["dst"], flow["proto"], 0, 8 if flow["proto"] == 1 else 128)
    return Packet(flow["src"], flow["dst"], flow["proto"], flow["sport"], flow["dport"])


def batches(flows: Iterable[tuple[Packet, bool]]) -> Iterator[list[tuple[Packet, bool]]]:
    """No batch holds a flow and its reverse: connection tracking would take one for the reply of the other."""
    batch: list[tuple[Packet, bool]] = []
    taken: set[tuple[object, ...]] = set()
    for packet, passes in flows:
        ends = {(packet.source, packet.sport), (packet.destination, packet.dport)}
        key = (packet.protocol, frozenset(ends))
        if key in taken:
            yield batch
            batch, taken = [], set()
        taken.add(key)
        batch.append((packet, passes))
    yield batch


def check_world(world: str, scenarios: list[Scenario]) -> tuple[int, list[str]]:
    """All flows of all scenarios of a world on each of its nodes: how many, and which went wrong."""
    wrong, sent = [], 0
    documents = worlds.objects(worlds.golden()["worlds"][world])
    for node in worlds.nodes(documents):
        here: dict[str, list[str]] = defaultdict(list)
        for address, (owner, interface) in worlds.endpoints(documents).items():
            if owner == node:
                here[interface].append(address)
        with Router("cpv", here) as router:
            table = in_namespace(router.name, Table)
            for scenario in scenarios:
                failed, number = check_scenario(router, table, scenario, node)
                wrong += failed
                sent += number
            table.close()
    return sent, wrong


def check_scenario(router: Router, table: Table, scenario: Scenario, node: str) -> tuple[list[str], int]:
    report = table.apply(worlds.compiled(worlds.scenario_objects(scenario), node))
    assert report.attempts == 1
    local = {address for addresses in router.workloads.values() for address in addresses}
    flows = [(as_packet(flow), verdict) for flow in scenario["flows"]
             for verdict in [expected(flow, local)] if verdict is not None and flow["src"] != flow["dst"]]
    wrong = []
    for batch in batches(flows):
        router.forget_connections()
        for (packet, passes), passed in zip(batch, router.send(packet for packet, _ in batch)):
            if passed != passes:
                wrong.append(f"{scenario['name']} on {node}: {packet}: passed {passed}")
    return wrong, len(flows)


WORLDS = sorted(by_world(worlds.golden()["scenarios"]).items())


@pytest.mark.parametrize(("world", "scenarios"), WORLDS, ids=[world for world, _ in WORLDS])
def test_verdicts_on_the_wire(world: str, scenarios: list[Scenario]) -> None:
    """A packet comes out exactly if no end denies it: all flows of all scenarios, on each node that they touch."""
    sent, wrong = check_world(world, scenarios)
    assert wrong == []
    assert sent > 0
