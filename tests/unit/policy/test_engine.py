"""The engine: order of updates never matters, what is not understood never opens anything, what stays is not remade."""

from __future__ import annotations

import random
from typing import Any, Mapping

import pytest

from calico_plugin.model.codec import Invalid
from calico_plugin.model.desired import Ruleset, Verdict
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.snapshot import Snapshot
from calico_plugin.policy import PolicyEngine, PolicyOptions, compile_snapshot, explain
from calico_plugin.policy.explain import Flow
from tests.unit.policy import worlds
from tests.unit.policy.worlds import OPEN, Objects, endpoint, objects, policy, typed

NODE = "n1"
WEB = endpoint("web", "10.65.0.10", {"app": "web"})
API = endpoint("api", "10.65.0.20", {"app": "api"})
FROM_API = policy("web", selector="app=='web'", ingress=[{"action": "Allow", "source": {"selector": "app=='api'"}}])


def states() -> list[Objects]:
    """A life of a cluster: each golden scenario of one world follows the other, every change a jump."""
    found: list[Objects] = [{}]
    for scenario in worlds.golden()["scenarios"]:
        found.append(worlds.scenario_objects(scenario))
    return found


def change(engine: PolicyEngine, old: Objects, new: Objects, rng: random.Random, twice: bool = False) -> None:
    keys = sorted(old.keys() | new.keys(), key=str)
    rng.shuffle(keys)
    for key in keys * (2 if twice else 1):
        if twice or old.get(key) != new.get(key):
            engine.on_update(key, old.get(key), new.get(key))


def paths(all_states: list[Objects]) -> dict[str, list[Objects]]:
    return {
        "forwards": all_states,
        "backwards": all_states[::-1],
        "with gaps": all_states[::3],
        "back to nothing between": [step for state in all_states for step in (state, {})],
    }


@pytest.mark.parametrize("name", ["forwards", "backwards", "with gaps", "back to nothing between"])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "doubled"])
def test_state_depends_on_what_is_there_not_on_how_it_came(name: str, twice: bool) -> None:
    """At every step the ruleset equals one compiled from scratch."""
    rng, path = random.Random(f"{name}{twice}"), paths(states())[name]
    options = worlds.SMALL_BLOCKS if twice else PolicyOptions()
    engine, before = PolicyEngine("rack1-h7", options), Objects()
    for state in path:
        change(engine, before, state, rng, twice)
        before = state
        assert engine.compile() == worlds.compiled(state, "rack1-h7", options)


def test_squashed_updates_give_the_same_state() -> None:
    """Many states without a compile between them leave no trace."""
    rng = random.Random(7)
    engine, before = PolicyEngine("rack1-h7"), Objects()
    for number, state in enumerate(states()):
        change(engine, before, state, rng)
        before = state
        if number % 7 == 0:
            assert engine.compile() == worlds.compiled(state, "rack1-h7")
    change(engine, before, {}, rng)
    assert engine.compile() == PolicyEngine("rack1-h7").compile()
    assert engine.problems() == {}


def test_snapshot_compiles_to_the_same() -> None:
    """`compile_snapshot` is the from-scratch twin of the engine."""
    present = objects([OPEN, WEB, API, FROM_API])
    by_kind: dict[str, dict[ResourceKey, Any]] = {}
    for key, value in present.items():
        by_kind.setdefault(key.kind, {})[key] = value
    assert compile_snapshot(Snapshot(resources=by_kind), NODE) == worlds.compiled(present, NODE)


def test_unchanged_objects_are_the_same_instances() -> None:
    """A consumer may find what changed by identity."""
    engine = filled(OPEN, WEB, API, FROM_API)
    first = engine.compile()
    engine.on_update(*update(endpoint("db", "10.65.0.30", {"app": "api"})))
    second = engine.compile()
    assert all(second.chains[name] is chain for name, chain in first.chains.items())
    changed = {name for name, item in first.sets.items() if second.sets[name] is not item}
    assert len(changed) == 3  # the known interfaces, their addresses, and the members of app=='api'


def filled(*documents: Mapping[str, Any]) -> PolicyEngine:
    engine = PolicyEngine(NODE)
    for document in documents:
        engine.on_update(*update(document))
    return engine


def update(document: Mapping[str, Any]) -> tuple[ResourceKey, None, Any]:
    key, value = typed(document)
    return key, None, value


def passes(ruleset: Ruleset, source: str, destination: str, port: int = 80, protocol: int = 6) -> bool:
    """Whether a local flow from the endpoint to the other is allowed at both ends."""
    address = {"web": "10.65.0.10", "api": "10.65.0.20", "out": "203.0.113.7"}
    flow = Flow(address[source], address[destination], protocol, 40000, port)
    walks = []
    if source != "out":
        walks.append(explain.egress(ruleset, f"cali{source}", flow))
    if destination != "out":
        walks.append(explain.ingress(ruleset, f"cali{destination}", flow))
    return all(walk is not None and walk.verdict is Verdict.ACCEPT for walk in walks)


def test_policy_governs_what_it_selects_and_can_go_again() -> None:
    """Add, edit, relabel, delete: each is seen by the next compile."""
    engine = filled(OPEN, WEB, API, FROM_API)
    assert passes(engine.compile(), "api", "web") and not passes(engine.compile(), "out", "web")
    engine.on_update(*update(endpoint("api", "10.65.0.20", {"app": "other"})))
    assert not passes(engine.compile(), "api", "web")
    key, _ = typed(FROM_API)
    engine.on_update(key, None, None)
    assert passes(engine.compile(), "out", "web")


def test_smaller_identity_governs_an_interface_that_two_claim() -> None:
    """The other waits in its shadow and takes over (policy 4.3)."""
    second = endpoint("web", "10.65.0.99", profiles=[])
    second["metadata"] = {**second["metadata"], "name": "n1-libnetwork-libnetwork-zzz"}
    second["spec"] = {**second["spec"], "endpoint": "zzz"}
    engine = filled(OPEN, second, WEB)
    assert passes(engine.compile(), "out", "web")
    assert engine.interfaces() == {"caliweb": typed(WEB)[0]}
    engine.on_update(typed(WEB)[0], None, None)
    assert not passes(engine.compile(), "out", "web")
    assert engine.interfaces() == {"caliweb": typed(second)[0]}


def web_policy(*ingress: Mapping[str, Any]) -> dict[str, Any]:
    return policy("p", selector="app=='web'", ingress=list(ingress))


@pytest.mark.parametrize(("document", "words"), [
    (policy("p", selector="app = 'web'", ingress=[{"action": "Allow"}]), "spec.selector"),
    (web_policy({"action": "allow"}, {"action": "Allow"}), "spec.ingress[0].action"),
    (web_policy({"action": "Allow", "source": {"nets": ["10.0.0/8"]}}), "source.nets"),
    (web_policy({"action": "Deny", "source": {"selector": "!"}}, {"action": "Allow"}), "ingress[0].source.selector"),
    (web_policy({"action": "Pass", "protocol": "tcp"}, {"action": "Allow"}), "protocol"),
    (web_policy({"action": "Allow", "destination": {"ports": [80]}}), "ports"),
    (web_policy({"action": "Allow", "http": {"methods": ["GET"]}}), "http"),
    ({"kind": "Profile", "metadata": {"name": "open"}, "spec": {"ingress": [{"action": "yes"}]}}, "ingress[0].action"),
    ({"kind": "WorkloadEndpoint", "metadata": {"name": "n1-libnetwork-libnetwork-web", "namespace": "libnetwork"},
      "spec": {"node": "n1", "interfaceName": "eth0", "ipNetworks": ["10.65.0.10/32"]}}, "spec.interfaceName"),
    (endpoint("web", "10.65.0.10", ports=[{"name": "http", "protocol": 6, "port": 80}]), "spec.ports[0].protocol"),
    (endpoint("web", "10.65.0.10", allowSpoofedSourcePrefixes=["10.9.0.0/16"]), "Spoofed"),
])
def test_what_is_not_understood_opens_nothing_and_is_named(document: Mapping[str, Any], words: str) -> None:
    """The endpoint is closed from outside, and the problem says which field of which resource is wrong."""
    engine = filled(OPEN, WEB, API, document)
    assert not passes(engine.compile(), "out", "web")
    assert words in engine.problems()[typed(document)[0]]
    engine.on_update(typed(document)[0], None, typed(WEB)[1] if document["kind"] == "WorkloadEndpoint" else None)
    assert engine.problems() == {}


@pytest.mark.parametrize("kind", ["GlobalNetworkPolicy", "Profile", "Tier", "WorkloadEndpoint"])
def test_stored_value_that_does_not_parse_opens_nothing(kind: str) -> None:
    """Bytes that are no resource close what they might have governed."""
    allowed = policy("a", order=1, selector="app=='web'", ingress=[{"action": "Allow"}])
    engine = filled(OPEN, WEB, allowed)
    assert passes(engine.compile(), "out", "web")
    name = {"Profile": "open", "Tier": "default", "WorkloadEndpoint": typed(WEB)[0].name}.get(kind, "z")
    key = ResourceKey(kind, name, "libnetwork" if kind == "WorkloadEndpoint" else "")
    engine.on_update(key, None, Invalid("/calico/…", "no JSON"))
    if kind == "Profile":
        engine.on_update(typed(allowed)[0], None, None)
    assert not passes(engine.compile(), "out", "web")
    assert engine.problems() == {key: "no JSON"}


def test_host_endpoint_with_a_wrong_port_still_closes_its_interface() -> None:
    """Counting it as absent would open the host."""
    host = {"kind": "HostEndpoint", "metadata": {"name": "h"}, "spec": {
        "node": NODE, "interfaceName": "eth0", "ports": [{"name": "x", "protocol": 6, "port": 80}]}}
    engine = filled(host)
    walk = explain.to_host(engine.compile(), "eth0", Flow("203.0.113.7", "192.0.2.1", 6, 40000, 8055))
    assert walk is not None and walk.verdict is Verdict.DROP
    assert "spec.ports[0].protocol" in engine.problems()[typed(host)[0]]


def test_set_that_two_objects_fill_keeps_the_address_until_both_are_gone() -> None:
    """Equal members are counted."""
    copy = {"kind": "GlobalNetworkSet", "metadata": {"name": "copy", "labels": {"app": "api"}},
            "spec": {"nets": ["10.65.0.20"]}}
    engine = filled(OPEN, WEB, API, FROM_API, copy)
    engine.compile()
    engine.on_update(typed(copy)[0], None, None)
    assert passes(engine.compile(), "api", "web")


def test_set_changes_its_kind_with_its_first_and_last_prefix() -> None:
    """Plain while all members are single addresses; an interval set under another name otherwise, rules moved along."""
    corp = {"kind": "GlobalNetworkSet", "metadata": {"name": "corp", "labels": {"app": "api"}},
            "spec": {"nets": ["203.0.113.0/24", "203.0.113.64/26", "0.0.0.0/0"]}}
    engine = filled(OPEN, WEB, API, FROM_API)
    plain = engine.compile()
    engine.on_update(*update(corp))
    wide = engine.compile()
    assert passes(wide, "out", "web")
    interval = [item for item in wide.sets.values() if item.interval and item.members]
    assert [item.members for item in interval] == [frozenset(("0.0.0.0/1", "128.0.0.0/1"))]
    engine.on_update(typed(corp)[0], None, None)
    assert engine.compile() == plain


def test_a_set_of_an_ip_version_is_there_while_it_has_members() -> None:
    """One of IPv4 also while it has none at all. Rules that would need another's member are left out, and come back."""
    not_api = policy("not-api", selector="app=='web'", ingress=[
        {"action": "Deny", "protocol": "TCP", "source": {"notSelector": "app=='api'"}}])
    engine = filled(OPEN, WEB, FROM_API, not_api)

    def versions() -> set[str]:
        rules = engine.compile()
        for source, target in (("10.1.1.1", "10.65.0.10"), ("fd00::1", "fd65::10")):
            walk = explain.ingress(rules, "caliweb", Flow(source, target, 6, 40000, 80))
            assert walk is not None and walk.decided_by == ("deny|default|GlobalNetworkPolicy|not-api|rule 0",)
        return {name[:3] for name in rules.sets} & {"s4-", "s6-"}

    assert versions() == {"s4-"}
    engine.on_update(*update(endpoint("api", "10.65.0.20", {"app": "api"}, ipNetworks=["10.65.0.20", "fd65::20"])))
    assert versions() == {"s4-", "s6-"}
    engine.on_update(*update(endpoint("api", "fd65::20", {"app": "api"}, ipNetworks=["fd65::20"])))
    assert versions() == {"s6-"}
    engine.on_update(typed(API)[0], None, None)
    assert versions() == {"s4-"}


def test_node_configuration_wins_over_the_clusters() -> None:
    """defaultEndpointToHostAction: Drop by default, Return as calico-node writes it for the node."""
    engine = filled(OPEN, WEB)
    assert engine.compile().chains["input-to-host"].rules
    for name, action in (("default", "Drop"), (f"node.{NODE}", "Return"), ("node.other", "Drop")):
        engine.on_update(*update({
            "kind": "FelixConfiguration", "metadata": {"name": name}, "spec": {"defaultEndpointToHostAction": action}}))
    assert not engine.compile().chains["input-to-host"].rules
    assert engine.options() == PolicyOptions(endpoint_to_host="return")
    engine.on_update(ResourceKey("FelixConfiguration", f"node.{NODE}"), None, None)
    assert engine.compile().chains["input-to-host"].rules


def test_options_change_lists_that_exist() -> None:
    """Encapsulation is dropped unless allowed (policy 4.2)."""
    engine = filled(OPEN, WEB)
    tunnel = Flow("10.65.0.10", "203.0.113.7", 17, 40000, 4789)
    walk = explain.egress(engine.compile(), "caliweb", tunnel)
    assert walk is not None and walk.verdict is Verdict.DROP
    spec = {"allowVXLANPacketsFromWorkloads": True}
    engine.on_update(*update({"kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": spec}))
    walk = explain.egress(engine.compile(), "caliweb", tunnel)
    assert walk is not None and walk.verdict is Verdict.ACCEPT


def test_pools_become_the_sets_of_nat_outgoing() -> None:
    """Source in a pool with natOutgoing, destination in no pool; a disabled pool counts as destination (policy 4.8)."""
    engine = filled(
        {"kind": "IPPool", "metadata": {"name": "a"}, "spec": {"cidr": "192.168.0.0/16", "natOutgoing": True}},
        {"kind": "IPPool", "metadata": {"name": "b"}, "spec": {"cidr": "10.9.0.0/16", "disabled": True}},
        {"kind": "IPPool", "metadata": {"name": "c"}, "spec": {"cidr": "10.8.0.0/16", "allowedUses": ["LoadBalancer"]}},
    )
    sets = engine.compile().sets
    assert sets["nat-pools4"].members == {"192.168.0.0/16"}
    assert sets["all-pools4"].members == {"192.168.0.0/16", "10.9.0.0/16"}


def test_names_from_the_datastore_cannot_break_out_of_nfts_text() -> None:
    """Strange names are hashed, log prefixes are cleaned."""
    wild = policy('x" accept; flush ruleset; #', selector="app=='web'", ingress=[{"action": "Log"}])
    ruleset = filled(OPEN, WEB, wild).compile()
    written = [*ruleset.chains, *(rule.target for chain in ruleset.chains.values() for rule in chain.rules)]
    written += [rule.log or "" for chain in ruleset.chains.values() for rule in chain.rules]
    assert not any(character in text for text in written for character in '"\n#;{}')
