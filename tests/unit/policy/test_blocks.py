"""Blocks of policies: where they are cut, what their guards let through, what an edit rewrites."""

from __future__ import annotations

from typing import Any

from calico_plugin.model.desired import Field, Verdict
from calico_plugin.model.keys import ResourceKey
from calico_plugin.policy import PolicyEngine, explain
from calico_plugin.policy.blocks import cut, guard
from calico_plugin.policy.explain import Flow
from calico_plugin.policy.reading import read_policy
from calico_plugin.policy.rules import Parsed
from tests.unit.policy.worlds import OPEN, endpoint, policy, typed

KEYS = tuple(ResourceKey("GlobalNetworkPolicy", f"p{number:04}") for number in range(1000))


def rules(*written: dict[str, Any]) -> tuple[Parsed, ...]:
    key, value = typed(policy("p", ingress=list(written)))
    info, why = read_policy(key, value)  # type: ignore[arg-type]  # it is a policy
    assert why == ""
    return info.rules["ingress"]


def test_blocks_hold_all_policies_in_order() -> None:
    """And are about as long as asked for."""
    blocks = cut(KEYS, 24)
    assert tuple(key for block in blocks for key in block.policies) == KEYS
    assert 15 < len(KEYS) / len(blocks) < 40


def test_new_policy_changes_one_block() -> None:
    """All others stay what they were, whatever its place."""
    for place in (0, 1, 500, 1000):
        new = ResourceKey("GlobalNetworkPolicy", f"new{place}")
        before, after = set(cut(KEYS, 24)), set(cut((*KEYS[:place], new, *KEYS[place:]), 24))
        assert len(before - after) <= 1 and len(after - before) <= 2


def test_short_tier_is_not_cut() -> None:
    """A guard would cost more than it saves."""
    assert all(len(block.policies) == 1 for block in cut(KEYS[:10], 24))


def test_guard_needs_a_condition_of_every_rule() -> None:
    """One rule without a source, or without a port, and there is none for sources or ports."""
    to_80 = {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80, 82]}}
    to_81 = {"action": "Deny", "protocol": "TCP", "destination": {"ports": [81]}, "source": {"nets": ["10.0.0.0/8"]}}
    from_api = {"action": "Allow", "source": {"selector": "app=='api'"}}
    assert guard(rules(to_80, to_81)).ports == ((Field.DESTINATION_PORT, ("80-82",)),)
    assert guard(rules(to_80, to_81)).sides == ()
    (name, side), = guard(rules(to_81, from_api)).sides
    assert name == "source" and [str(net) for net in side.nets] == ["10.0.0.0/8"] and len(side.selectors) == 1
    assert guard(rules(to_81, from_api, {"action": "Log"})).sides == ()


def test_guard_of_rules_of_one_family_skips_the_other() -> None:
    """IPv6 packets pass a block of IPv4 rules at once."""
    assert guard(rules({"action": "Allow", "ipVersion": 4})).families == (4,)
    assert guard(()).families == ()


def large() -> PolicyEngine:
    engine = PolicyEngine("n1")
    documents = [OPEN, endpoint("web", "10.65.0.10", {"app": "web"})]
    documents += [policy(f"p{number:03}", order=number, selector="app=='web'", ingress=[
        {"action": "Allow", "protocol": "TCP", "source": {"nets": [f"10.{number}.0.0/16"]},
         "destination": {"ports": [1000 + number]}}]) for number in range(200)]
    for document in documents:
        key, value = typed(document)
        engine.on_update(key, None, value)
    return engine


def test_packet_that_no_policy_matches_meets_few_rules() -> None:
    """And one that a policy matches is decided by that policy."""
    ruleset = large().compile()
    walk = explain.ingress(ruleset, "caliweb", Flow("10.77.1.1", "10.65.0.10", 6, 40000, 1077))
    assert walk is not None and walk.decided_by == ("allow|default|GlobalNetworkPolicy|p077|rule 0",)
    walk = explain.ingress(ruleset, "caliweb", Flow("192.0.2.1", "10.65.0.10", 6, 40000, 9))
    assert walk is not None and walk.verdict is Verdict.DROP
    assert len(walk.steps) < 50


def test_edit_of_one_policy_rewrites_it_and_its_block() -> None:
    """Not the tier, not the lists, not its neighbours."""
    engine = large()
    before = engine.compile()
    key, value = typed(policy("p077", order=77, selector="app=='web'", ingress=[
        {"action": "Deny", "protocol": "TCP", "source": {"nets": ["172.16.0.0/12"]}, "destination": {"ports": [7]}}]))
    engine.on_update(key, None, value)
    after = engine.compile()
    changed = {name for name, chain in after.chains.items() if before.chains.get(name) is not chain}
    assert len(changed) == 2 and "pi-gnp/p077" in changed
    assert before.chains.keys() == after.chains.keys()
