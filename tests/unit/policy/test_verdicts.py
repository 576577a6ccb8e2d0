"""The compiled rules, walked in Python, against the verdicts that Calico's own code gave (golden verdicts.json)."""

from __future__ import annotations

from typing import Any, Mapping

import pytest

from calico_plugin.policy import PolicyOptions, explain
from tests.unit.policy import worlds

ACTIONS = {"accept": "allow", "drop": "deny"}
ENDS = (
    ("egress", "src", worlds.endpoints, explain.egress), ("ingress", "dst", worlds.endpoints, explain.ingress),
    ("egress", "src", worlds.hosts, explain.from_host), ("ingress", "dst", worlds.hosts, explain.to_host),
)


@pytest.mark.parametrize("options", [PolicyOptions(), worlds.SMALL_BLOCKS], ids=["plain", "guarded"])
@pytest.mark.parametrize("scenario", worlds.golden()["scenarios"], ids=lambda scenario: str(scenario["name"]))
def test_verdict_and_deciding_rules_are_calicos(
    scenario: Mapping[str, Any], options: PolicyOptions
) -> None:
    """Every flow: the same verdict at each end, decided by the same rules in the same order."""
    present = worlds.scenario_objects(scenario)
    rulesets = {node: worlds.compiled(present, node, options) for node in worlds.nodes(present)}
    wrong, judged = [], 0
    for flow in scenario["flows"]:
        for end, address, known, judge in ENDS:
            if flow[address] not in known(present):
                continue
            node, interface = known(present)[flow[address]]
            walk = judge(rulesets[node], interface, worlds.flow(flow))
            assert walk is not None
            got = (ACTIONS[walk.verdict.value], list(walk.decided_by))
            judged += 1
            if got != (flow[end], flow[f"{end}_by"]):
                wrong.append((flow, got))
    assert wrong == []
    assert judged == sum(end in flow for flow in scenario["flows"] for end in ("egress", "ingress"))
