"""A container in several networks: whose address its links may carry."""

from __future__ import annotations

from calico_plugin.model.desired import Verdict
from calico_plugin.policy import PolicyEngine
from calico_plugin.policy.chains import SIBLING
from calico_plugin.policy.explain import Flow, walk
from tests.unit.policy import worlds
from tests.unit.policy.worlds import OPEN, endpoint

NODE = "n1"
WEB, API, DB = endpoint("web", "10.65.0.10"), endpoint("api", "10.65.0.20"), endpoint("db", "10.65.0.30")
BOTH = {"caliweb . 10.65.0.20", "caliapi . 10.65.0.10"}


def made() -> PolicyEngine:
    engine = PolicyEngine(NODE)
    for document in (OPEN, WEB, API, DB):
        key, value = worlds.typed(document)
        engine.on_update(key, None, value)
    return engine


def siblings(engine: PolicyEngine) -> set[str]:
    return set(engine.compile().sets[SIBLING[4]].members)


def test_nothing_is_shared_as_long_as_nothing_is_known() -> None:
    """No namespace, or one for each: own addresses only."""
    engine = made()
    assert siblings(engine) == set()
    assert not engine.on_namespace("caliweb", 1) and not engine.on_namespace("caliapi", 2)
    assert siblings(engine) == set() and engine.take_joined() == set()


def test_links_into_one_namespace_share_addresses() -> None:
    """As soon as the second one is there, until one of them leaves."""
    engine = made()
    assert not engine.on_namespace("caliweb", 1) and engine.on_namespace("caliapi", 1)
    assert siblings(engine) == BOTH and engine.take_joined() == {"caliweb", "caliapi"}
    assert not engine.on_namespace("caliapi", 1)
    assert engine.on_namespace("calidb", 1)
    assert len(siblings(engine)) == 6
    assert engine.on_namespace("calidb", None)
    assert siblings(engine) == BOTH
    assert engine.on_namespace("caliweb", 2)
    assert siblings(engine) == set()


def test_number_that_another_namespace_gets_later() -> None:
    """The kernel gives numbers again: nothing of the first owner is left."""
    engine = made()
    for interface in ("caliweb", "caliapi"):
        engine.on_namespace(interface, 1)
    engine.compile()
    for interface in ("caliweb", "caliapi"):
        engine.on_namespace(interface, None)
    engine.on_namespace("calidb", 1)
    assert siblings(engine) == set()


def test_endpoint_that_comes_or_goes_after_its_link() -> None:
    """Only endpoints that are in force count."""
    engine = PolicyEngine(NODE)
    for interface in ("caliweb", "caliapi"):
        engine.on_namespace(interface, 1)
    assert siblings(engine) == set()
    for document in (OPEN, WEB, API):
        key, value = worlds.typed(document)
        engine.on_update(key, None, value)
    assert siblings(engine) == BOTH
    engine.on_update(worlds.typed(API)[0], None, None)
    assert siblings(engine) == set()


def test_only_replies_carry_the_other_address() -> None:
    """What a container starts meets the policy of the address that it uses, so it cannot choose the laxer one."""
    engine = made()
    for interface in ("caliweb", "caliapi"):
        engine.on_namespace(interface, 1)
    ruleset = engine.compile()

    def verdict(source: str, state: str, interface: str = "caliweb") -> Verdict:
        flow = Flow(source, "10.65.0.30", 6, 1, 80, in_interface=interface, state=state)
        if walk(ruleset, "prerouting-spoof", flow).verdict is Verdict.DROP:
            return Verdict.DROP
        return walk(ruleset, "forward-egress", flow).verdict

    assert verdict("10.65.0.10", "new") is Verdict.ACCEPT
    assert verdict("10.65.0.20", "new") is Verdict.DROP
    assert verdict("10.65.0.20", "established") is Verdict.ACCEPT
    assert verdict("10.65.0.20", "invalid") is Verdict.DROP
    assert verdict("10.65.0.30", "established") is Verdict.DROP
    assert verdict("10.65.0.20", "established", "calidb") is Verdict.DROP
