"""Random rulesets: the kernel does with real packets what `explain` says of the same compiled rules."""

from __future__ import annotations

from collections import Counter
from typing import Iterator

import pytest

from calico_plugin.model.desired import Ruleset, Verdict
from calico_plugin.policy import PolicyOptions, explain
from calico_plugin.policy.explain import Flow
from tests.kernel.packets import Packet, Router
from tests.kernel.policylab import NODE, Lab
from tests.kernel.test_policy_verdicts import batches
from tests.unit.policy import worlds
from tests.unit.policy.randomly import ADDRESSES, Crowd, World

pytestmark = pytest.mark.root

INTERFACES = {f"cali{name}": (four, ADDRESSES[6][name]) for name, four in ADDRESSES[4].items()}
FLOWS = 24
OPTIONS = (PolicyOptions(), worlds.SMALL_BLOCKS, PolicyOptions(log_group=88, flow_log=True))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Router("cpx", INTERFACES) as router:
        made = Lab(router)
        yield made
        made.table.close()


def explained(ruleset: Ruleset, packet: Packet, router: Router) -> bool:
    if packet.protocol in (1, 58):
        flow = Flow(packet.source, packet.destination, packet.protocol, icmp_type=packet.dport, icmp_code=packet.sport)
    elif packet.protocol in (6, 17, 132):
        flow = Flow(packet.source, packet.destination, packet.protocol, packet.sport, packet.dport)
    else:
        flow = Flow(packet.source, packet.destination, packet.protocol)
    walks = [
        explain.egress(ruleset, router.interface_of(packet.source), flow),
        explain.ingress(ruleset, router.interface_of(packet.destination), flow),
    ]
    return all(walk is None or walk.verdict is Verdict.ACCEPT for walk in walks)


def check(lab: Lab, seed: int) -> list[str]:
    world = World(seed)
    options = OPTIONS[seed % len(OPTIONS)]
    ruleset = worlds.compiled(worlds.objects(world.resources()), NODE, options)
    report = lab.table.apply(ruleset)
    assert report.attempts <= 1 and not report.refused, f"seed {seed}"
    packets = [Packet(*world.flow()) for _ in range(FLOWS)]
    ours = (packet for packet in packets if packet.source != packet.destination)
    wanted = [(packet, explained(ruleset, packet, lab.router)) for packet in ours]
    wrong = []
    for batch in batches(wanted):
        lab.router.forget_connections()
        for (packet, passes), passed in zip(batch, lab.router.send(packet for packet, _ in batch)):
            if passes != passed:
                wrong.append(f"seed {seed}: {packet}: explain says {passes}, the kernel {passed}")
    return wrong


def test_kernel_and_explain_agree_on_random_rulesets(lab: Lab) -> None:
    """60 clusters, each loaded as a difference to the one before, 24 flows each."""
    assert [line for seed in range(60) for line in check(lab, seed)] == []
    assert lab.table.audit() == ()


def check_crowd(lab: Lab, seed: int) -> None:
    """Many policies behind maps: what passes, and which rules have counted it."""
    crowd = Crowd(seed)
    ruleset = worlds.compiled(worlds.objects(crowd.resources()), NODE, crowd.options)
    lab.table.apply(Ruleset())
    report = lab.table.apply(ruleset)
    assert report.attempts <= 1 and not report.refused, f"seed {seed}"
    flows = (flow for flow in (crowd.packet() for _ in range(FLOWS)) if flow.source != flow.destination)
    counted: Counter[tuple[str, str]] = Counter()
    wanted = []
    for flow in flows:
        walks = walked(ruleset, flow, lab.router)
        wanted.append((as_packet(flow), all(walk.verdict is Verdict.ACCEPT for walk in walks)))
        if walks[0].verdict is not Verdict.ACCEPT:
            walks = walks[:1]
        counted.update({(step.chain, step.rule.origin) for walk in walks for step in walk.steps if step.rule.origin})
    for batch in batches(wanted):
        lab.router.forget_connections()
        passed = lab.router.send(packet for packet, _ in batch)
        assert [(packet, passes) for packet, passes in batch] == [
            (packet, passes) for (packet, _), passes in zip(batch, passed)], f"seed {seed}"
    found = lab.table.counters(ruleset)
    assert {place: number for place, number in found.items() if number and place[0] != "prerouting-spoof"} == dict(
        counted), f"seed {seed}"


def walked(ruleset: Ruleset, flow: Flow, router: Router) -> list[explain.Walk]:
    """At the sender if it is here, then at the receiver if it is."""
    ends = (explain.egress(ruleset, router.interface_of(flow.source), flow),
            explain.ingress(ruleset, router.interface_of(flow.destination), flow))
    return [walk for walk in ends if walk is not None]


def as_packet(flow: Flow) -> Packet:
    if flow.icmp_type is not None:
        return Packet(flow.source, flow.destination, flow.protocol, flow.icmp_code or 0, flow.icmp_type)
    return Packet(flow.source, flow.destination, flow.protocol, flow.source_port or 0, flow.destination_port or 0)


def test_kernel_finds_policies_by_maps_as_explain_does(lab: Lab) -> None:
    """25 crowds of policies with nets, ports and labels that overlap, Log and Pass between: verdicts and counters."""
    for seed in range(25):
        check_crowd(lab, seed)
    assert lab.table.audit() == ()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_kernel_and_explain_agree_on_many_random_rulesets(lab: Lab) -> None:
    """5,000 of them, and 500 crowds."""
    assert [line for seed in range(1000, 6000) for line in check(lab, seed)] == []
    for seed in range(1000, 1500):
        check_crowd(lab, seed)
