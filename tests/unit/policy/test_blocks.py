"""Blocks of policies: where they are cut, how their policies are told apart, what a change rewrites."""

from __future__ import annotations

import random
from typing import Any, Iterable

import pytest

from calico_plugin.model.desired import Ruleset, Verdict
from calico_plugin.model.keys import ResourceKey
from calico_plugin.policy import PolicyEngine, PolicyOptions, explain
from calico_plugin.policy.blocks import cut
from calico_plugin.policy.explain import Flow, found_in
from calico_plugin.policy.keys import Keys, conditions, keys, ports_tell_more
from calico_plugin.policy.ranges import segments
from calico_plugin.policy.reading import read_policy
from calico_plugin.policy.rules import Parsed
from tests.unit.policy import worlds
from tests.unit.policy.randomly import Crowd
from tests.unit.policy.worlds import OPEN, endpoint, policy, typed

KEYS = tuple(ResourceKey("GlobalNetworkPolicy", f"p{number:04}") for number in range(1000))
PLAIN = PolicyOptions(sort_from=10_000)
TO_80 = {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80, 82]}}
FROM_NET = {"action": "Deny", "source": {"nets": ["10.0.0.0/8"]}}
FROM_NET_TO_81 = {**FROM_NET, "protocol": "TCP", "destination": {"ports": [81]}}
FROM_API = {"action": "Allow", "source": {"selector": "app=='api'"}}


def rules(*written: dict[str, Any]) -> tuple[Parsed, ...]:
    key, value = typed(policy("p", ingress=list(written)))
    info, why = read_policy(key, value)  # type: ignore[arg-type]  # it is a policy
    assert why == ""
    return info.rules["ingress"]


def keys_of(*written: dict[str, Any], by_port: bool = False) -> Keys | None:
    return keys(conditions(rules(*written), "ingress"), by_port)


def test_blocks_hold_all_policies_in_order() -> None:
    """And are about as long as asked for."""
    blocks = cut(KEYS, 24, 16)
    assert tuple(key for block in blocks for key in block.policies) == KEYS
    assert 15 < len(KEYS) / len(blocks) < 40


def test_new_policy_changes_one_block() -> None:
    """All others stay what they were, whatever its place."""
    for place in (0, 1, 500, 1000):
        new = ResourceKey("GlobalNetworkPolicy", f"new{place}")
        before, after = set(cut(KEYS, 24, 16)), set(cut((*KEYS[:place], new, *KEYS[place:]), 24, 16))
        assert len(before - after) <= 1 and len(after - before) <= 2


def test_short_tier_is_not_cut() -> None:
    """Maps would cost more than they save."""
    assert all(len(block.policies) == 1 for block in cut(KEYS[:10], 24, 16))


def test_keys_are_of_the_far_end_or_else_of_the_port_or_protocol() -> None:
    """Each rule by one of them; a rule without any, or one whose net is everything, and the policy has none."""
    assert keys_of(TO_80) == Keys(ports=((80, 80), (82, 82)))
    both = keys_of(TO_80, FROM_NET_TO_81, FROM_API, {"action": "Allow", "protocol": "ICMP"})
    assert both is not None
    assert [str(net) for net in both.nets] == ["10.0.0.0/8"] and [family for _, family in both.sets] == [4, 6]
    assert both.ports == ((80, 80), (82, 82)) and both.protocols == (1,)
    assert keys_of(FROM_NET_TO_81, TO_80, by_port=True) == Keys(ports=((81, 81), (80, 80), (82, 82)))
    for open_rule in ({"action": "Log"}, {"action": "Deny", "source": {"nets": ["0.0.0.0/0"]}},
                      {"action": "Allow", "protocol": "TCP"}, {"action": "Deny", "source": {"notNets": ["10.0.0.0/8"]}},
                      {"action": "Deny", "source": {"notSelector": "app=='api'"}}):
        assert keys_of(FROM_API, open_rule) is None
    assert keys_of() == Keys()


def test_ports_are_taken_where_they_tell_more() -> None:
    """Many ports for one application, or many applications with one port."""
    def policies(pairs: Iterable[tuple[str, int]]) -> list[Any]:
        return [conditions(rules({"action": "Allow", "protocol": "TCP", "source": {"selector": f"app=='{app}'"},
                                  "destination": {"ports": [port]}}), "ingress") for app, port in pairs]

    assert ports_tell_more(policies(("api", port) for port in range(1, 5)))
    assert not ports_tell_more(policies((f"app{number}", 80) for number in range(4)))


@pytest.mark.parametrize("seed", range(30))
def test_segments_are_what_the_ranges_cover(seed: int) -> None:
    """Every number lies in the segment that names exactly the ranges over it; neighbours differ."""
    rng = random.Random(seed)
    lows = [rng.randrange(40) for _ in range(rng.randrange(12))]
    ranges = [(low, low + rng.randrange(12), place) for place, low in enumerate(lows)]
    found = segments(ranges)
    for number in range(60):
        assert found.covering(number) == tuple(
            place for low, high, place in ranges if low <= number <= high)
    together = list(zip(found.firsts, found.lasts, found.places))
    assert all(one[1] + 1 < other[0] or one[2] != other[2] for one, other in zip(together, together[1:]))


def engine(*documents: dict[str, Any], options: PolicyOptions = PolicyOptions()) -> PolicyEngine:
    made = PolicyEngine("n1", options)
    for document in documents:
        key, value = typed(document)
        made.on_update(key, None, value)
    return made


def large() -> PolicyEngine:
    """200 policies by net and port, and one at the end for everybody."""
    return engine(OPEN, endpoint("web", "10.65.0.10", {"app": "web"}), *(
        policy(f"p{number:03}", order=number, selector="app=='web'", ingress=[
            {"action": "Allow", "protocol": "TCP", "source": {"nets": [f"10.{number}.0.0/16"]},
             "destination": {"ports": [1000 + number]}}]) for number in range(200)))


def decided(ruleset: Ruleset, flow: Flow) -> tuple[Verdict, tuple[str, ...], int]:
    walk = explain.ingress(ruleset, "caliweb", flow)
    assert walk is not None
    return walk.verdict, walk.decided_by, len(walk.steps)


def test_packet_meets_only_policies_that_may_match_it() -> None:
    """One of two hundred, or none."""
    ruleset = large().compile()
    verdict, by, steps = decided(ruleset, Flow("10.77.1.1", "10.65.0.10", 6, 40000, 1077))
    assert (verdict, by) == (Verdict.ACCEPT, ("allow|default|GlobalNetworkPolicy|p077|rule 0",)) and steps < 9
    assert decided(ruleset, Flow("192.0.2.1", "10.65.0.10", 6, 40000, 9))[0] is Verdict.DROP
    assert decided(ruleset, Flow("192.0.2.1", "10.65.0.10", 6, 40000, 9))[2] < 9


def changed(before: Ruleset, after: Ruleset) -> set[str]:
    return {name for table in ("chains", "maps", "sets") for name, item in getattr(after, table).items()
            if getattr(before, table).get(name) is not item}


def test_edit_of_a_policy_rewrites_its_own_chain() -> None:
    """As long as the packets that it may match stay the same; else one element of a map besides."""
    made = large()
    before = made.compile()

    def edited(action: str, net: str) -> Ruleset:
        key, value = typed(policy("p077", order=77, selector="app=='web'", ingress=[
            {"action": action, "protocol": "TCP", "source": {"nets": [net]}, "destination": {"ports": [7]}}]))
        made.on_update(key, None, value)
        return made.compile()

    after = edited("Deny", "10.77.0.0/16")
    assert changed(before, after) == {"pi-gnp/p077"}
    last = edited("Deny", "172.16.0.0/12")
    names = changed(after, last)
    assert names > {"pi-gnp/p077"} and len(names) == 2 and before.chains.keys() == last.chains.keys()
    name, = names - {"pi-gnp/p077"}
    assert set(after.maps[name].elements) ^ set(last.maps[name].elements) == {
        "10.77.0.0-10.77.255.255", "172.16.0.0-172.31.255.255"}


def test_endpoint_that_comes_is_one_element() -> None:
    """In the set of its label, and in the map of the policies that name the label."""
    made = engine(OPEN, endpoint("web", "10.65.0.10", {"app": "web"}), endpoint("old", "10.65.9.8", {"app": "a7"}), *(
        policy(f"p{number:03}", order=number, selector="app=='web'", ingress=[
            {"action": "Allow", "source": {"selector": f"app=='a{number}'"}}]) for number in range(100)))
    before = made.compile()
    key, value = typed(endpoint("far", "10.65.9.9", {"app": "a7"}, node="n2"))
    made.on_update(key, None, value)
    after = made.compile()
    names = changed(before, after)
    assert len(names) == 2
    (by_address,) = [after.maps[name] for name in names if name in after.maps]
    assert by_address.elements == {"10.65.9.8": "pi-gnp/p007", "10.65.9.9": "pi-gnp/p007"}
    made.on_update(key, None, None)
    assert made.compile() == before


def test_set_of_very_many_networks_is_asked_itself() -> None:
    """Its policy stands alone as long as it is that large; others go on as they are."""
    def bad(number: int) -> dict[str, Any]:
        nets = [f"11.{index >> 8}.{index & 255}.0/24" for index in range(number)]
        labels = {"name": "bad", "labels": {"app": "a7"}}
        return {"kind": "GlobalNetworkSet", "metadata": labels, "spec": {"nets": nets}}

    middle = policy("middle", order=29.5, selector="app=='web'", ingress=[{"action": "Log"}])
    documents = [OPEN, endpoint("web", "10.65.0.10", {"app": "web"}), middle, *(
        policy(f"p{number:03}", order=number, selector="app=='web'", ingress=[
            {"action": "Deny", "source": {"selector": f"app=='a{number}'"}}]) for number in range(60))]
    made, pieces = engine(*documents), []
    for step, number in enumerate((3, 2500, 2501, 4)):
        far = endpoint("far", f"10.65.9.{step}", {"app": "a50"}, node="n2")
        for document in (bad(number), far):
            key, value = typed(document)
            made.on_update(key, None, value)
        ruleset = made.compile()
        assert ruleset == engine(*documents, bad(number), far).compile()
        pieces.append(sum(rule.verdict is Verdict.JUMP for name, chain in ruleset.chains.items()
                          if name.startswith("ti-") for rule in chain.rules))
        assert decided(ruleset, Flow("11.0.2.1", "10.65.0.10", 6, 40000, 80))[0] is Verdict.DROP
        assert decided(ruleset, Flow(f"10.65.9.{step}", "10.65.0.10", 6, 40000, 80))[1] == (
            "deny|default|GlobalNetworkPolicy|p050|rule 0",)
    assert pieces == [3, 5, 5, 3]


def test_policy_that_may_match_everything_keeps_its_place() -> None:
    """Those before it are tried first, those after it behind it; one that leaves the tier, too."""
    nets = [f"10.{number}.0.0/16" for number in range(60)]
    listed = [policy(f"p{number:03}", order=number, selector="app=='web'", ingress=[
        {"action": "Deny", "source": {"nets": [net]}}]) for number, net in enumerate(nets)]
    everybody = policy("all", order=29.5, selector="app=='web'", ingress=[{"action": "Allow", "protocol": "TCP"}])
    passing = policy("pass", order=39.5, selector="app=='web'", ingress=[
        {"action": "Pass", "source": {"nets": ["10.50.0.0/16"]}}])
    ruleset = engine(
        OPEN, endpoint("web", "10.65.0.10", {"app": "web"}), *listed, everybody, passing).compile()
    to = ("10.65.0.10", 6, 40000, 80)
    assert decided(ruleset, Flow("10.20.0.1", *to))[0] is Verdict.DROP
    assert decided(ruleset, Flow("10.40.0.1", *to))[:2] == (
        Verdict.ACCEPT, ("allow|default|GlobalNetworkPolicy|all|rule 0",))
    ping = Flow("10.50.0.1", "10.65.0.10", 1, icmp_type=8, icmp_code=0)
    assert decided(ruleset, ping)[:2] == (
        Verdict.ACCEPT, ("pass|default|GlobalNetworkPolicy|pass|rule 0", "allow|Profile|open|rule 0"))


def test_map_of_ranges_is_read_as_the_kernel_does() -> None:
    """First and last of a range belong to it, what lies between ranges to none."""
    ruleset = large().compile()
    by_net = next(item for item in ruleset.maps.values() if item.interval)
    assert found_in(by_net, "10.0.0.0") == "pi-gnp/p000" and found_in(by_net, "10.0.255.255") == "pi-gnp/p000"
    assert found_in(by_net, "10.1.0.0") == "pi-gnp/p001" and found_in(by_net, "9.255.255.255") is None
    assert found_in(by_net, "10.200.0.0") is None


@pytest.mark.parametrize("seed", range(40))
def test_sorted_policies_decide_as_those_in_a_row(seed: int) -> None:
    """Random crowds of policies: the same rules match, in the same order, with the same verdict, for each packet."""
    crowd = Crowd(seed)
    documents = worlds.objects(crowd.resources())
    plain, found = worlds.compiled(documents, "n1", PLAIN), worlds.compiled(documents, "n1", crowd.options)
    for flow in (crowd.packet() for _ in range(60)):
        for judge, address in ((explain.egress, flow.source), (explain.ingress, flow.destination)):
            interface = worlds.endpoints(documents).get(address, ("", ""))[1]
            one, other = judge(plain, interface, flow), judge(found, interface, flow)
            if one is None or other is None:
                assert one is other
                continue
            told = [[step.rule for step in walk.steps if step.rule.origin] for walk in (one, other)]
            assert told[0] == told[1] and one.verdict == other.verdict, flow


@pytest.mark.parametrize("seed", range(6))
def test_crowd_depends_on_what_is_there_not_on_how_it_came(seed: int) -> None:
    """Resources come, change and go in any order: at each step the ruleset equals one compiled from scratch."""
    options, rng = PolicyOptions(block_size=64, sort_from=2), random.Random(seed)
    made, present = PolicyEngine("n1", options), worlds.Objects()
    one, other = (worlds.objects(Crowd(number, options).resources()) for number in (seed, seed + 1000))
    for step in range(20):
        everything = step % 10 == 0
        keys = one.keys() | other.keys() if everything else one.keys() & other.keys()
        for key in rng.sample(sorted(keys, key=str), len(keys) // 2 if everything else 4):
            value = rng.choice([None, one.get(key), one.get(key)] if everything else [one[key], other[key]])
            made.on_update(key, None, value)
            present.pop(key, None)
            if value is not None:
                present[key] = value
        assert made.compile() == worlds.compiled(present, "n1", options)
