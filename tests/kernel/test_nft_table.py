"""The driver of our nftables table on a real kernel: differences, restarts, drift, refusals."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import uuid
from dataclasses import replace
from typing import Any, Iterator, Mapping

import pytest

from calico_plugin.agent.policy import Policy
from calico_plugin.dataplane.generation import generation
from calico_plugin.dataplane.libnftables import Session
from calico_plugin.dataplane.netlink import NETLINK_NETFILTER, Netlink
from calico_plugin.dataplane.nfread import parse
from calico_plugin.dataplane.nfsteps import Print
from calico_plugin.dataplane.nftables import Table, render
from calico_plugin.errors import DataplaneError
from calico_plugin.model.desired import (
    AddressSet,
    Chain,
    Field,
    Match,
    PortMap,
    Rule,
    Ruleset,
    SetType,
    Verdict,
    VerdictMap,
)
from calico_plugin.observe.metrics import Metrics
from calico_plugin.policy import PolicyEngine, PolicyOptions
from tests.kernel.packets import in_namespace
from tests.kernel.policylab import FLAVOURS, host_endpoint
from tests.unit.policy import worlds
from tests.unit.policy.randomly import World
from tests.unit.policy.worlds import OPEN, endpoint, policy

pytestmark = pytest.mark.root

WEB, API = endpoint("web", "10.65.0.10", {"app": "web"}), endpoint("api", "10.65.0.20", {"app": "api"})
PORTS = [
    {"protocol": protocol, "port": 80, "hostPort": 8080, "hostIP": host_ip}
    for protocol in ("TCP", "UDP", "SCTP") for host_ip in ("", "127.0.0.1", "172.31.0.1", "fd31::1")
]
PUBLISHES = endpoint("pub", "10.65.0.60", {"app": "web"}, ipNetworks=["10.65.0.60/32", "fd65::60/128"], ports=PORTS)
RULE = policy("p", selector="app=='web'", ingress=[{"action": "Allow", "source": {"selector": "app=='api'"}}])
SET = {"kind": "GlobalNetworkSet", "metadata": {"name": "s", "labels": {"app": "api"}},
       "spec": {"nets": ["10.1.0.0/16", "10.1.2.0/24", "2001:db8::/32", "::ffff:0:0/96", "0.0.0.0/0"]}}
NAT = {"iptablesNATOutgoingInterfaceFilter": "eth+", "natPortRange": "4000", "logActionRateLimit": "1/day"}
OPTIONS = (
    {"kind": "FelixConfiguration", "metadata": {"name": "node.n1"}, "spec": {"natOutgoingAddress": "198.51.100.1"}},
    {"kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": {
        **NAT, "nftablesFilterDenyAction": "Reject", "natOutgoingExclusions": "IPPoolsAndHostIPs"}},
)
REFUSED = Rule(Verdict.ACCEPT, (Match(Field.SOURCE4, set_name="no-such-set"),))


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"cpn-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def table(namespace: str) -> Iterator[Table]:
    made = in_namespace(namespace, Table)
    yield made
    made.close()


def nft(namespace: str, *words: str) -> str:
    command = ["nsenter", f"--net=/run/netns/{namespace}", "nft", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def engine(*documents: Mapping[str, Any]) -> PolicyEngine:
    made = PolicyEngine("n1")
    for document in documents:
        key, value = worlds.typed(document)
        made.on_update(key, None, value)
    return made


def tell(made: PolicyEngine, document: Mapping[str, Any], gone: bool = False) -> Ruleset:
    key, value = worlds.typed(document)
    made.on_update(key, None, None if gone else value)
    return made.compile()


def test_second_apply_writes_nothing(table: Table) -> None:
    """Nothing changed, nothing written."""
    ruleset = engine(OPEN, WEB, API, RULE, SET).compile()
    assert table.apply(ruleset)
    assert not table.apply(ruleset)


def test_restart_touches_nothing_that_is_right(namespace: str, table: Table) -> None:
    """A new process reads the table back and finds every set, chain and element as it should be; handles stay."""
    documents = (OPEN, WEB, API, RULE, SET, PUBLISHES)
    table.apply(engine(*documents).compile())
    before = nft(namespace, "-a", "list", "table", "inet", "calico")
    second = in_namespace(namespace, Table)
    assert not second.apply(engine(*documents).compile())
    second.close()
    assert nft(namespace, "-a", "list", "table", "inet", "calico") == before


def test_restart_after_a_change_writes_the_difference_only(namespace: str, table: Table) -> None:
    """What changed while no agent ran is written, what did not is left."""
    table.apply(engine(OPEN, WEB, API, RULE).compile())
    second = in_namespace(namespace, Table)
    report = second.apply(engine(OPEN, WEB, API, RULE, endpoint("more", "10.65.0.30", {"app": "api"})).compile())
    second.close()
    assert (report.sets, report.chains, report.elements, report.members) == (0, 0, 2, 3)


def test_each_object_goes_with_its_last_use(namespace: str, table: Table) -> None:
    """After the endpoints are gone only the frame is left."""
    made = engine()
    table.apply(made.compile())
    frame = nft(namespace, "list", "table", "inet", "calico")
    for document in (OPEN, WEB, API, RULE, SET, PUBLISHES):
        table.apply(tell(made, document))
    for document in (API, SET, WEB, PUBLISHES, RULE, OPEN):
        table.apply(tell(made, document, gone=True))
    assert nft(namespace, "list", "table", "inet", "calico") == frame


@pytest.mark.parametrize("damage", [
    'delete element inet calico from-workload { "caliweb" }',
    'add element inet calico own-address4 { "caliweb" . 1.2.3.4 }',
    "flush chain inet calico dispatch-from",
    "add rule inet calico dispatch-from accept",
    "insert rule inet calico dispatch-from accept",
    "add chain inet calico foreign",
    "add set inet calico foreign { type ipv4_addr; }",
    "delete table inet calico",
    "flush ruleset",
])
def test_audit_finds_and_repairs_what_others_changed(namespace: str, table: Table, damage: str) -> None:
    """Whatever was taken away, added or changed by another program is put right, and named."""
    table.apply(engine(OPEN, WEB, API, RULE).compile())
    right = nft(namespace, "list", "table", "inet", "calico")
    nft(namespace, damage)
    assert table.audit()
    assert sorted(nft(namespace, "list", "table", "inet", "calico").split()) == sorted(right.split())
    assert table.audit() == ()


def test_only_what_others_did_is_a_reason_for_an_audit(namespace: str, table: Table) -> None:
    """Own transactions are counted, so that one of somebody else's is seen even if ours come before and after it."""
    made, netlink = engine(OPEN, WEB, API), in_namespace(namespace, lambda: Netlink(protocol=NETLINK_NETFILTER))
    ours = Policy(made, table, Metrics("n1"), lambda: generation(netlink))
    ours.bootstrap()
    ours.apply()
    tell(made, RULE)
    ours.apply()
    ours.apply()
    assert not ours.is_disturbed()
    nft(namespace, "flush chain inet calico dispatch-from")
    tell(made, RULE, gone=True)
    ours.apply()
    assert ours.is_disturbed()
    assert ours.audit() == ("dispatch-from",)
    assert not ours.is_disturbed() and ours.audit() == () and not ours.is_disturbed()
    netlink.close()


@pytest.mark.parametrize("damage", ["flush ruleset", 'delete element inet calico from-workload { "caliweb" }'])
def test_apply_recovers_when_the_table_is_not_what_it_remembers(namespace: str, table: Table, damage: str) -> None:
    """A refused transaction is followed by reading and one more try."""
    made = engine(OPEN, WEB, API)
    table.apply(made.compile())
    nft(namespace, damage)
    ruleset = tell(made, WEB, gone=True)
    assert table.apply(ruleset).attempts == 2
    assert table.audit() == ()


def test_chain_that_the_kernel_refuses_is_closed_and_the_others_live(table: Table) -> None:
    """One bad chain must not keep all endpoints from their policy (policy 5.3)."""
    ruleset = engine(OPEN, WEB, API).compile()
    name = next(name for name in ruleset.chains if name.startswith("ri-"))
    bad = Chain(name, (REFUSED,))
    report = table.apply(Ruleset(ruleset.sets, {**ruleset.chains, name: bad}, ruleset.maps))
    assert [refused for refused, _ in report.refused] == [name]
    again = table.apply(Ruleset(ruleset.sets, {**ruleset.chains, name: bad}, ruleset.maps))
    assert not again and [refused for refused, _ in again.refused] == [name]
    state = table.read()
    assert set(state.chains) == set(ruleset.chains) and set(state.maps) == set(ruleset.maps)
    assert not table.apply(ruleset).refused


def test_kernel_without_address_translation_gets_everything_else(table: Table) -> None:
    """The nat chain is left empty, never a drop: it sees all packets of the host."""
    ruleset = engine(OPEN, WEB, API).compile()
    bad = replace(ruleset.chains["postrouting-nat"], rules=(REFUSED,))
    report = table.apply(replace(ruleset, chains={**ruleset.chains, "postrouting-nat": bad}))
    assert [name for name, _ in report.refused] == ["postrouting-nat"]
    read = table.read().chains["postrouting-nat"]
    assert isinstance(read, Print) and read.comments == ()


def test_base_chain_that_the_kernel_refuses_is_an_error(namespace: str, table: Table) -> None:
    """Dropping everything there would cut the whole host off."""
    ruleset = engine(OPEN, WEB, API).compile()
    bad = replace(ruleset.chains["forward-egress"], rules=(REFUSED,))
    with pytest.raises(DataplaneError):
        table.apply(replace(ruleset, chains={**ruleset.chains, "forward-egress": bad}))
    assert nft(namespace, "list", "ruleset") == ""


def test_what_nobody_can_load_is_an_error_and_changes_nothing(namespace: str, table: Table) -> None:
    """DataplaneError carries the kernel's words; the table stays as it was."""
    ruleset = engine(OPEN, WEB).compile()
    table.apply(ruleset)
    before = nft(namespace, "list", "table", "inet", "calico")
    nowhere = {
        name: VerdictMap(name, {**item.elements, "calibad": "no-such-chain"}) for name, item in ruleset.maps.items()
    }
    with pytest.raises(DataplaneError, match="nftables: "):
        table.apply(Ruleset(ruleset.sets, ruleset.chains, nowhere))
    assert nft(namespace, "list", "table", "inet", "calico") == before
    assert not table.apply(ruleset)


def listing(namespace: str) -> str:
    """The table as nft shows it, numbers instead of names."""
    return nft(namespace, "-nn", "list", "table", "inet", "calico")


@pytest.mark.parametrize("seed", [None, *range(25)])
def test_what_we_send_is_what_nft_sends_for_our_text(namespace: str, seed: int | None) -> None:
    """The same ruleset over our netlink messages and as text through the nft program: the kernel holds the same."""
    documents = [*World(seed).resources(), *OPTIONS[seed % 3:]] if seed is not None else [
        OPEN, WEB, API, PUBLISHES, RULE, SET, host_endpoint("h", "eth0"), *FLAVOURS]
    options = (PolicyOptions(log_group=88, flow_log=True), worlds.SMALL_BLOCKS)[(seed or 0) % 2]
    ruleset = worlds.compiled(worlds.objects(documents), "n1", options)
    command = ["nsenter", f"--net=/run/netns/{namespace}", "nft", "-f", "-"]
    subprocess.run(command, input=render(ruleset), text=True, check=True)
    sent_by_nft = listing(namespace)
    made = in_namespace(namespace, Table)
    assert not made.apply(ruleset)
    nft(namespace, "delete table inet calico")
    made.audit()
    assert parse(nft(namespace, "-j", "-nn", "list table inet calico")) == made.read()
    made.close()
    assert sorted(sent_by_nft.splitlines()) == sorted(listing(namespace).splitlines())


def random_members(rng: random.Random) -> dict[str, AddressSet]:
    """Sets of every type, some with neighbouring and with outermost intervals."""
    four = [f"10.0.{rng.randrange(3)}.{rng.randrange(256)}" for _ in range(rng.randrange(900))]
    six = [f"fd00::{rng.randrange(4096):x}" for _ in range(rng.randrange(50))]
    halves = [part for part in ("0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3", "255.255.255.255") if rng.random() < 0.5]
    wide = [part for part in ("::/1", "8000::/2", "fd00::/64", "fd00:0:0:1::/64", "fe00::/7") if rng.random() < 0.5]
    ports = [f"{address} . {rng.choice((6, 17, 132))} . {rng.randrange(1, 65536)}" for address in four[:40]]
    ports6 = [f"{address} . 6 . {rng.randrange(1, 65536)}" for address in six]
    interfaces = [f"cali{number}" for number in range(rng.randrange(9))]
    found = (
        AddressSet("s4-x", SetType.IPV4, frozenset(four)),
        AddressSet("s6-x", SetType.IPV6, frozenset(six)),
        AddressSet("i4-x", SetType.IPV4, frozenset(halves), True),
        AddressSet("i6-x", SetType.IPV6, frozenset(wide), True),
        AddressSet("n4-x", SetType.IPV4_PORT, frozenset(ports)),
        AddressSet("n6-x", SetType.IPV6_PORT, frozenset(ports6)),
        AddressSet("if-x", SetType.INTERFACE, frozenset(interfaces)),
        AddressSet("o4-x", SetType.INTERFACE_IPV4, frozenset(f"{name} . 10.0.0.1" for name in interfaces)),
        AddressSet("o6-x", SetType.INTERFACE_IPV6, frozenset(f"{name} . fd00::1" for name in interfaces)),
    )
    return {item.name: item for item in found}


def random_ports(rng: random.Random) -> dict[str, PortMap]:
    """Port maps of every type."""
    found = (
        PortMap("p4-x", SetType.PORT, 4, {f"{rng.choice((6, 17))} . {number}": "10.0.0.1 . 80" for number in range(9)}),
        PortMap("p6-x", SetType.PORT, 6, {f"132 . {rng.randrange(9) + 1}": f"fd00::1 . {rng.randrange(65535) + 1}"}),
        PortMap("q4-x", SetType.IPV4_PORT, 4, {f"10.0.0.{rng.randrange(9)} . 6 . 80": "10.1.2.3 . 65535"}),
        PortMap("q6-x", SetType.IPV6_PORT, 6, {"fd00::2 . 6 . 443": f"fd00::{rng.randrange(9) + 1} . 1"}),
    )
    return {item.name: item for item in found}


def test_elements_over_netlink_are_what_nft_reads(namespace: str, table: Table) -> None:
    """Random changes of members of every type of set, and of maps: read back by us and by nft, nothing differs."""
    rng = random.Random(3)
    chains = {name: Chain(name) for name in ("a", "b")}
    for number in range(40):
        elements = {f"cali{index}": rng.choice("ab") for index in range(rng.randrange(6))}
        ruleset = Ruleset(random_members(rng), chains, {"m": VerdictMap("m", elements)}, random_ports(rng))
        assert table.apply(ruleset).attempts == 1
        assert table.audit() == (), f"round {number}"
        assert parse(nft(namespace, "-j", "-nn", "list table inet calico")) == table.read()


def test_without_permission_the_answer_is_an_error_at_once() -> None:
    """And not the end of a time-out."""
    program = (
        "from calico_plugin.dataplane.nfwire import Link\n"
        "try: Link().run([(0, 0x400, b'')])\n"
        "except Exception as error: print(type(error).__name__, error.errno)"
    )
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.stdout == f"DataplaneError {errno.EPERM}\n", done.stderr


def test_closed_session_answers_with_an_error(namespace: str) -> None:
    """No crash in the library."""
    session = in_namespace(namespace, Session)
    session.close()
    session.close()
    with pytest.raises(DataplaneError, match="closed"):
        session.run("list tables")
