"""Which connections a change of rules concerns, and which it forbids."""

from __future__ import annotations

from typing import Any, Mapping

import pytest

from calico_plugin.agent.concern import Concern
from calico_plugin.agent.cutting import Judge
from calico_plugin.dataplane.conntrack import Connection
from calico_plugin.dataplane.netlink import Message
from calico_plugin.model.desired import Ruleset
from calico_plugin.policy import PolicyEngine
from tests.unit.policy.worlds import OPEN, endpoint, policy, typed

WEB = endpoint("web", "10.65.0.10", {"app": "web"})
API = endpoint("api", "10.65.0.20", {"app": "api"})
FAR = endpoint("far", "10.65.9.9", {"app": "api"}, node="n2")
ALLOW_API = policy("p", selector="app=='web'", ingress=[
    {"action": "Allow", "source": {"selector": "app=='api'"}}])


class Cluster:
    """Rules before and after a change."""

    def __init__(self, *documents: Mapping[str, Any]) -> None:
        self.engine = PolicyEngine("n1")
        self.set(OPEN, *documents)

    def set(self, *documents: Mapping[str, Any]) -> Ruleset:
        for document in documents:
            key, value = typed(document)
            self.engine.on_update(key, None, value)
        return self.engine.compile()

    def unset(self, *documents: Mapping[str, Any]) -> Ruleset:
        for document in documents:
            self.engine.on_update(typed(document)[0], None, None)
        return self.engine.compile()


def concerned(old: Ruleset | None, new: Ruleset) -> set[str]:
    concern = Concern()
    if old is not None:
        concern.of(old)
    return concern.of(new)


def connection(source: str, destination: str, port: int | None = 80, protocol: int = 6, **more: Any) -> Connection:
    nothing = {"icmp_type": None, "icmp_code": None, "expected": False, "translated": False}
    values: dict[str, Any] = {**nothing, **more}
    return Connection(
        source=source, destination=destination, protocol=protocol, source_port=4000 if port else None,
        destination_port=port, deletion=Message(0, 0, b"", ""), **values)


def test_after_a_start_everything_is_looked_at() -> None:
    """Nobody knows what changed before."""
    assert concerned(None, Cluster(WEB, API).set()) == {"10.65.0.10", "10.65.0.20"}


def test_nothing_changed_nothing_is_looked_at() -> None:
    cluster = Cluster(WEB, API, ALLOW_API)
    assert concerned(cluster.set(), cluster.set()) == set()


def test_new_policy_concerns_whom_it_selects() -> None:
    """The other endpoint's list is the same."""
    cluster = Cluster(WEB, API)
    before = cluster.set()
    assert concerned(before, cluster.set(ALLOW_API)) == {"10.65.0.10"}


def test_member_that_comes_to_an_allowed_set_is_harmless_and_one_that_goes_is_not() -> None:
    """Of a Deny's set, and of a negated one, the other way round."""
    cluster = Cluster(WEB, API, ALLOW_API)
    alone = cluster.set()
    both = cluster.set(FAR)
    assert concerned(alone, both) == set()
    assert concerned(both, cluster.unset(FAR)) == {"10.65.9.9"}
    for rule in ({"action": "Deny", "source": {"selector": "app=='api'"}},
                 {"action": "Allow", "source": {"notSelector": "app=='api'"}}):
        cluster = Cluster(WEB, API, policy("p", selector="app=='web'", ingress=[rule]))
        alone = cluster.set()
        both = cluster.set(FAR)
        assert concerned(alone, both) == {"10.65.9.9"}
        assert concerned(both, cluster.unset(FAR)) == set()


def test_members_of_policies_that_are_found_by_maps_concern_as_few() -> None:
    """How packets are sorted to policies is no change of what the policies say."""
    others = (policy(f"n{number}", order=number, selector="app=='web'", ingress=[
        {"action": "Deny", "source": {"selector": f"app=='other{number}'"}}]) for number in range(40))
    cluster = Cluster(WEB, API, *others, ALLOW_API)
    alone = cluster.set()
    assert any(chain.sorts for chain in alone.chains.values())
    both = cluster.set(FAR)
    assert concerned(alone, both) == set() and concerned(both, cluster.unset(FAR)) == {"10.65.9.9"}
    denied = endpoint("far", "10.65.9.9", {"app": "other7"}, node="n2")
    assert concerned(alone, cluster.set(denied)) == {"10.65.9.9"}
    before = cluster.set()
    edited = policy("n7", order=7, selector="app=='web'", ingress=[{"action": "Deny", "source": {"selector": "all()"}}])
    assert concerned(before, cluster.set(edited)) == {"10.65.0.10"}


def test_network_that_comes_concerns_all_that_the_rule_governs() -> None:
    """A prefix cannot be asked for in the kernel's table."""
    bad = {"kind": "GlobalNetworkSet", "metadata": {"name": "bad", "labels": {"bad": ""}},
           "spec": {"nets": ["203.0.113.0/24"]}}
    cluster = Cluster(WEB, API, policy("p", selector="app=='web'", ingress=[
        {"action": "Deny", "source": {"selector": "has(bad)"}}, {"action": "Allow"}]))
    before = cluster.set()
    assert concerned(before, cluster.set(bad)) == {"10.65.0.10"}


@pytest.mark.parametrize(
    ("one", "forbidden"),
    [
        (connection("10.65.0.20", "10.65.0.10"), False),
        (connection("203.0.113.7", "10.65.0.10"), True),
        (connection("10.65.0.10", "203.0.113.7"), False),
        (connection("203.0.113.7", "198.51.100.1"), False),
        (connection("172.16.0.1", "10.65.0.10"), False),
        (connection("203.0.113.7", "10.65.0.10", expected=True), False),
        (connection("203.0.113.7", "10.65.0.10", None, 1, icmp_type=8, icmp_code=0), True),
    ],
    ids=["allowed peer", "stranger", "outward", "not ours", "the host itself", "announced by another", "ping"],
)
def test_judge(one: Connection, forbidden: bool) -> None:
    """As a first packet would be, except what no policy meets."""
    judge = Judge(Cluster(WEB, API, ALLOW_API).set(), frozenset({"172.16.0.1"}))
    assert judge.forbids(one) is forbidden


def test_what_is_kept_is_right_after_many_changes() -> None:
    """One that heard all rulesets says the same as one that hears the last two only."""
    cluster, concern = Cluster(WEB, API), Concern()
    changes: list[tuple[str, Mapping[str, Any]]] = [
        ("set", ALLOW_API), ("set", FAR), ("unset", API), ("set", API), ("unset", ALLOW_API), ("set", ALLOW_API),
        ("set", policy("q", order=1, selector="all()", ingress=[{"action": "Deny", "source": {"selector": "all()"}}])),
        ("unset", FAR), ("set", FAR), ("unset", WEB), ("set", WEB), ("unset", ALLOW_API), ("unset", FAR),
    ]
    old = cluster.set()
    concern.of(old)
    found = set()
    for verb, document in changes:
        new = getattr(cluster, verb)(document)
        expected = concerned(old, new)
        assert concern.of(new) == expected, (verb, document)
        found |= expected
        old = new
    assert found >= {"10.65.0.10", "10.65.0.20", "10.65.9.9"}
