"""The 68 conformance cases of the policy reference (`tests/conformance.py`) on two hosts with real containers.

Every first packet of every case is sent from one real end and looked for at the other: containers of one Docker network
on two hosts, the hosts themselves, and a machine outside that has the cases' foreign addresses.
"""
from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterable, Iterator

import pytest

from tests import conformance
from tests.conformance import ADDRESSES, ALLOW, CASES, CONTAINERS, DENY, Document, Part, gnp
from tests.kernel.packets import Packet
from tests.lab.connectivity import Container, Stream, start_container
from tests.lab.lab import FABRIC, Lab
from tests.lab.wait import wait_for
from tests.lab.wire import Calicoctl, End, Wire

NETWORK = "conformance"
POOLS = ("10.65.0.0/16", "fd65::/112")
HOST1, HOST2 = "172.20.62.110", "172.20.62.105"
FABRIC6, HOST1_6 = "fd31::1", "fd31::110"
UNKNOWN = "10.65.0.77"
# What each run plays; `make test-long` plays all.
SAMPLE = (4, 10, 20, 27, 34, 46, 50, 63)
E, W, A = (ADDRESSES[end][0] for end in "EWA")


class Stage:
    """The containers, and the state of the cluster around them. One state at a time: `play` replaces the last one."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self._states = lab, 0
        self.ctl = Calicoctl(lab["host1"], lab.node("host1").environment())
        self.containers: dict[str, Container] = {}
        self.wire = Wire({})
        self._present: list[Document] = []
        self._profiled: set[str] = set()

    # -- making the stage
    def build(self) -> None:
        self._addresses()
        pools = [{"kind": "IPPool", "metadata": {"name": f"{NETWORK}-{number}"}, "spec": {"cidr": cidr}}
                 for number, cidr in enumerate(POOLS)]
        self.ctl("apply", "-f", "-", stdin=manifest([*pools, *conformance.FIXTURES]))
        subnets = [word for cidr in POOLS for word in ("--subnet", cidr)]
        self.lab["host1"].run("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam",
                              "--ipv6", *subnets, NETWORK)
        wait_for("the network on host2", lambda: self.lab["host2"].run(
            "docker", "network", "inspect", NETWORK, check=False).returncode == 0, 10)
        with ThreadPoolExecutor() as pool:
            made = list(pool.map(self._start, CONTAINERS))
        self.containers = dict(zip(CONTAINERS, made))
        self.wire.ends.update({
            **{end: End(one.inside) for end, one in self.containers.items()},
            **dict.fromkeys(conformance.OUTSIDE, End.on(self.lab[FABRIC])),
            "1": End.on(self.lab["host1"]), "2": End.on(self.lab["host2"]),
        })
        self._names = {end: f"{host_of(end)}-libnetwork-libnetwork-{one.endpoint()}"
                       for end, one in self.containers.items()}
        for end in CONTAINERS:
            listed = [{"name": name, "protocol": protocol, "port": port}
                      for name, protocol, port in conformance.PORTS.get(end, ())]
            self._patch(end, {"metadata": {"labels": CONTAINERS[end]}, "spec": {"ports": listed}}, ("p-open",))
        wait_for("routes between the hosts", self._connected, 20, 0.2)

    def _addresses(self) -> None:
        """Those of the outside, and IPv6 between it and host1."""
        own = [address for end in conformance.OUTSIDE for address in ADDRESSES[end] if address]
        self.lab[FABRIC].shell("; ".join([
            "ip link set lo up", *(f"ip address replace {one} dev lo" for one in own),
            f"ip address replace {FABRIC6}/64 dev br0 nodad", f"ip route replace 10.65.0.0/24 via {HOST1}",
            f"ip route replace 10.65.1.0/24 via {HOST2}", f"ip -6 route replace fd65::/64 via {HOST1_6}"]))
        self.lab["host1"].shell(
            f"ip address replace {HOST1_6}/64 dev eth0 nodad; ip -6 route replace default via {FABRIC6}")
        for host in self.lab.hosts:
            # Connection tracking judges checksums of UDP-Lite in its own way; they are not what is tested here.
            self.lab[host].run("sysctl", "-qw", "net.netfilter.nf_conntrack_checksum=0")

    def _start(self, end: str) -> Container:
        four, six = ADDRESSES[end]
        options = ("--init", "--ip", four, "--ip6", six)
        return start_container(self.lab, host_of(end), f"end-{end.lower()}", NETWORK, *options)

    def _patch(self, end: str, more: dict[str, Any], profiles: tuple[str, ...]) -> None:
        spec = {**more.get("spec", {}), "profiles": list(profiles)}
        self.ctl("patch", "workloadendpoint", self._names[end], "-n", conformance.NAMESPACE, "-p",
                 json.dumps({**more, "spec": spec}))

    def _connected(self) -> bool:
        flows = [(Packet(ADDRESSES[one][0], ADDRESSES[other][0], 17, 9, 9), one, other)
                 for one, other in (("W", "D"), ("D", "W"), ("E", "D"), ("E", "W"))]
        return all(self.wire.arrive(flows, [False] * len(flows)))

    # -- playing on it
    def play(self, *resources: Document, profiles: dict[str, tuple[str, ...]] | None = None) -> None:
        """Put the cluster into a state, and wait until both hosts are in it. Connections are forgotten."""
        self._states += 1
        for end in self._profiled | set(profiles or ()):
            self._patch(end, {}, (profiles or {}).get(end, ("p-open",)))
        self._profiled = set(profiles or ())
        if self._present:
            # Tiers go after their policies.
            self.ctl("delete", "-s", "-f", "-", stdin=manifest(reversed(self._present)))
        # The agents take changes in their order: who knows the last one knows all.
        last = f"10.250.{self._states // 4}.{self._states % 4 * 64}/26"
        name = f"state-{self._states}"
        pool = {"kind": "IPPool", "metadata": {"name": name}, "spec": {"cidr": last, "disabled": True}}
        self._present = sorted(resources, key=lambda one: one["kind"] != "Tier") + [pool]
        self.ctl("apply", "-f", "-", stdin=manifest(self._present))
        for host in self.lab.hosts:
            wait_for(f"state {self._states} on {host}", lambda: last in self.lab[host].run(
                "nft", "list", "set", "inet", "calico", "all-pools4").stdout, 10, 0.02)
            self.forget(host)

    def forget(self, host: str = "host1") -> None:
        """All tracked connections of a host."""
        self.lab[host].run("conntrack", "-F", check=False)

    def wrong(self, part: Part) -> list[tuple[Packet, bool]]:
        """Packets that did what they should not, with what they did."""
        flows = list(part)
        passed = self.wire.arrive([flow[:3] for flow in flows], [flow[3] for flow in flows])
        return [(flow[0], came) for flow, came in zip(flows, passed) if came is not flow[3]]

    def passes(self, packet: Packet, source: str, target: str, expected: bool = True) -> bool:
        return self.wire.arrive([(packet, source, target)], [expected])[0]

    def close(self) -> None:
        self.play()
        self.ctl("delete", "-s", "-f", "-", stdin=manifest(self._present))
        self.wire.close()
        for host in self.lab.hosts:
            names = [one.name for one in self.containers.values() if one.machine is self.lab[host]]
            self.lab[host].run("docker", "rm", "-f", *names, check=False)
        self.lab["host1"].run("docker", "network", "rm", NETWORK, check=False)
        pools = [{"kind": "IPPool", "metadata": {"name": f"{NETWORK}-{number}"}, "spec": {"cidr": cidr}}
                 for number, cidr in enumerate(POOLS)]
        self.ctl("delete", "-s", "-f", "-", stdin=manifest([*conformance.FIXTURES, *pools]))
        self.ctl.close()


def host_of(end: str) -> str:
    return "host2" if end in conformance.OTHER_HOST else "host1"


def manifest(documents: Iterable[Document]) -> str:
    """JSON is YAML."""
    return "\n---\n".join(json.dumps({"apiVersion": "projectcalico.org/v3", **one}) for one in documents)


@pytest.fixture(scope="module")
def stage(lab: Lab) -> Iterator[Stage]:
    made = Stage(lab)
    try:
        made.build()
        yield made
    finally:
        made.close()


PARTS = [pytest.param(case.number, part, id=f"{case.number}-{index}",
                      marks=[] if case.number in SAMPLE else [pytest.mark.long])
         for case in CASES.values() for index, part in enumerate(case.parts)]
# What has no connection is an answer to none, too.
STATELESS = {"kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": {
    "disableConntrackInvalidCheck": True, "reportingInterval": "0s"}}


@pytest.mark.parametrize(("number", "part"), PARTS)
def test_first_packets(stage: Stage, number: int, part: Part) -> None:
    """Every flow of a case, there and not there. (ICMP errors without a connection count as invalid, where that is not
    switched off.)
    """
    extra = (STATELESS,) if number in (30, 31) else ()
    stage.play(*part.resources, *extra, profiles=dict(part.profiles))
    assert stage.wrong(part) == []


@pytest.mark.long
def test_log_lines(stage: Stage) -> None:
    """44: one line for a packet that meets Log, whatever becomes of it afterwards."""
    stage.play(*CASES[44].parts[0].resources)
    follow = stage.lab["host1"].popen("calicoctl", "policy", "log", "--follow", "--count", "2", "-o", "json",
                                      env=stage.lab.node("host1").environment(), stdout=-1, text=True)
    wait_for("the follower", lambda: "88" in stage.lab["host1"].shell("cat /proc/net/netfilter/nfnetlink_log"), 10)
    assert stage.wrong(CASES[44].parts[0]) == []
    assert follow.stdout is not None
    told = follow.communicate(timeout=10)[0]
    assert [(A in line, ADDRESSES["D"][0] in line) for line in told.splitlines()] == [(True, False), (False, True)]


@pytest.mark.long
def test_host_reaches_its_own_isolated_container(stage: Stage) -> None:
    """58: its own host does, another host does not; the container's replies reach its host."""
    stage.play(gnp("p"))
    asked = Packet(HOST1, W, 17, 5000, 53)
    assert stage.passes(asked, "1", "W") and stage.passes(asked.reply(), "W", "1")
    assert not stage.passes(Packet(HOST2, W, 17, 5000, 53), "2", "W", False)


@pytest.mark.long
@pytest.mark.parametrize(("action", "own_rules", "passes"), [
    ("Drop", False, False), ("Accept", False, True), ("Return", False, True), ("Return", True, False)])
def test_container_to_its_host(stage: Stage, action: str, own_rules: bool, passes: bool) -> None:
    """59: `Return` lets the host's own rules decide; egress policy always counts first."""
    host = stage.lab["host1"]
    rule = ("INPUT", "-i", "cali+", "-p", "tcp", "--dport", "80", "-j", "DROP")
    setting = {"kind": "FelixConfiguration", "metadata": {"name": "node.host1"}, "spec": {
        "defaultEndpointToHostAction": action}}
    before = stage.ctl("get", "felixconfiguration", "node.host1", "-o", "json", "--export")
    if own_rules:
        host.run("iptables", "-A", *rule)
    try:
        stage.play(setting)
        packets = [Packet(W, HOST1, 6, 4000 + number, 80) for number in range(2)]
        assert stage.passes(packets[0], "W", "1", passes) is passes
        stage.play(setting, gnp("p", types=["Egress"], egress=[DENY]))
        assert not stage.passes(packets[1], "W", "1", False)
    finally:
        if own_rules:
            host.run("iptables", "-D", *rule)
        stage.play()
        stage.ctl("apply", "-f", "-", stdin=before)


ETH0 = {"kind": "HostEndpoint", "metadata": {"name": "eth0", "labels": {"role": "host"}}, "spec": {
    "node": "host1", "interfaceName": "eth0"}}


def on_host(name: str, **spec: Any) -> Document:
    return gnp(name, "role=='host'", **spec)


@pytest.mark.long
def test_host_endpoints(stage: Stage) -> None:
    """60, 61: failsafe ports only; what is forwarded is no matter of it, unless a policy says so."""
    stage.play(ETH0)
    flows = [
        (Packet(E, HOST1, 6, 4001, 8055), "E", "1", False), (Packet(E, HOST1, 6, 4001, 22), "E", "1", True),
        (Packet(HOST1, E, 6, 4002, 2379), "1", "E", True), (Packet(HOST1, E, 6, 4002, 22), "1", "E", False),
        (Packet(E, W, 6, 4003, 80), "E", "W", True),
    ]
    assert stage.wire.arrive([flow[:3] for flow in flows], [flow[3] for flow in flows]) == [flow[3] for flow in flows]
    stage.play(ETH0, on_host("forwarded", applyOnForward=True, ingress=[DENY]))
    assert not stage.passes(Packet(E, W, 6, 4004, 80), "E", "W", False)
    assert stage.passes(Packet(A, W, 6, 4004, 80), "A", "W") and stage.passes(Packet(E, HOST1, 6, 4005, 22), "E", "1")


@pytest.mark.long
def test_untracked_policy(stage: Stage) -> None:
    """What doNotTrack allows leaves no entry in the table of connections, and what it denies ends at once."""
    untracked = {"doNotTrack": True, "applyOnForward": True}
    seven = {"action": "Allow", "protocol": "UDP", "destination": {"ports": [7000]}}
    stage.play(ETH0, on_host("u", ingress=[seven, {**seven, "action": "Deny", "destination": {"ports": [7001]}}],
                             **untracked), on_host("open", ingress=[ALLOW], egress=[ALLOW]))
    assert stage.passes(Packet(E, HOST1, 17, 4000, 7000), "E", "1")
    assert stage.passes(Packet(E, HOST1, 17, 4000, 7002), "E", "1")
    assert not stage.passes(Packet(E, HOST1, 17, 4000, 7001), "E", "1", False)
    known = stage.lab["host1"].run("conntrack", "-L", check=False).stdout
    assert "dport=7002" in known and "dport=7000" not in known


@pytest.fixture
def published(stage: Stage) -> Iterator[Stage]:
    """An ordinary Docker container on Docker's own bridge of host1, with two ports published."""
    host = stage.lab["host1"]
    host.run("docker", "run", "-d", "--init", "--name", "published", "-p", "32010:8055", "-p", "32011:8055", "busybox",
             "nc", "-ll", "-p", "8055", "-e", "cat")
    yield stage
    host.run("docker", "rm", "-f", "published")


def test_policy_before_translation(published: Stage) -> None:
    """62: preDNAT policy sees the published port of an ordinary container; the container's own port means nothing."""
    stage, fabric = published, published.lab[FABRIC]

    def connects(port: int) -> bool:
        script = f"exec 3<>/dev/tcp/{HOST1}/{port}"
        return fabric.run("timeout", "1", "bash", "-c", script, check=False).returncode == 0

    def only(port: int) -> Document:
        allow = {"action": "Allow", "protocol": "TCP", "destination": {"ports": [port]}}
        return on_host("first", order=10, preDNAT=True, applyOnForward=True, ingress=[allow])

    last = on_host("last", order=20, preDNAT=True, applyOnForward=True, ingress=[DENY])
    stage.play()
    assert connects(32010) and connects(32011)
    stage.play(ETH0, only(32010), last)
    assert connects(32010) and not connects(32011)
    stage.play(ETH0, only(8055), last)
    assert not connects(32010)


@pytest.mark.long
def test_spoofed_addresses(stage: Stage) -> None:
    """64: whatever policy says."""
    stage.play(gnp("p", egress=[ALLOW]))
    packets = [(Packet(source, E, 17, 4000, 9), "W", "E") for source in ("10.65.0.99", A, W)]
    assert stage.wire.arrive(packets, [False, False, True]) == [False, False, True]


@pytest.mark.long
def test_open_connection(stage: Stage) -> None:
    """65, where we differ: an open connection that a new policy forbids ends, and no new one starts; others go on."""
    stage.play()
    one, other = (Stream(stage.containers[end], stage.containers["W"], "tcp", port)
                  for end, port in (("A", 7007), ("D", 7008)))
    with one, other:
        stage.ctl("apply", "-f", "-", stdin=manifest([gnp("p", ingress=[
            {"action": "Allow", "source": {"selector": "app=='db'"}}])]))
        stage._present.append(gnp("p"))
        wait_for("the cut", lambda: "src=10.65.0.20" not in stage.lab["host1"].run(
            "conntrack", "-L", "-p", "tcp", "--dport", "7007", check=False).stdout, 10)
        assert not stage.passes(Packet(A, W, 6, 4001, 80), "A", "W", False)
        threshold = len(other._times()) + 5
        wait_for("answers in the other connection", lambda: len(other._times()) > threshold, 5)
        silent = len(one._times())
    assert len(one._times()) == silent


@pytest.mark.long
def test_unknown_interface(stage: Stage) -> None:
    """66: an interface of the right name that no endpoint names carries nothing, in either direction."""
    host = stage.lab["host1"]
    host.shell(f"""ip netns add unknown; ip link add caliunknown type veth peer name u0 netns unknown
        ip link set caliunknown up; ip route add {UNKNOWN} dev caliunknown
        ip netns exec unknown sh -c 'ip address add {UNKNOWN}/32 dev u0; ip link set u0 up; ip route add default dev u0'
        ip neighbour replace {UNKNOWN} dev caliunknown lladdr $(ip netns exec unknown cat /sys/class/net/u0/address)
        ip netns exec unknown ip neighbour replace {W} dev u0 lladdr $(cat /sys/class/net/caliunknown/address)
        ip netns exec unknown ip neighbour replace {HOST1} dev u0 lladdr $(cat /sys/class/net/caliunknown/address)""")
    stage.wire.ends["U"] = End(lambda *words: host.command(["nsenter", "--net=/run/netns/unknown", *words]))
    try:
        stage.play()
        flows = [(Packet(UNKNOWN, W, 17, 1, 2), "U", "W"), (Packet(W, UNKNOWN, 17, 1, 2), "W", "U"),
                 (Packet(UNKNOWN, HOST1, 17, 1, 2), "U", "1"), (Packet(HOST1, UNKNOWN, 17, 1, 2), "1", "U")]
        assert stage.wire.arrive(flows, [False] * 4) == [False] * 4
        host.run("nft", "insert", "rule", "inet", "calico", "output-workload", "accept")  # the way itself is good
        host.run("nft", "insert", "rule", "inet", "calico", "prerouting-spoof", "accept")
        assert stage.passes(Packet(HOST1, UNKNOWN, 17, 1, 3), "1", "U")
    finally:
        stage.wire.ends.pop("U").close()
        host.shell("ip link delete caliunknown; ip netns delete unknown")


@pytest.mark.long
def test_neighbour_discovery_with_the_host(stage: Stage) -> None:
    """67: 135 passes although all else to the host is dropped, 134 does not."""
    before = stage.ctl("get", "felixconfiguration", "node.host1", "-o", "json", "--export")
    stage.play({"kind": "FelixConfiguration", "metadata": {"name": "node.host1"}, "spec": {
        "defaultEndpointToHostAction": "Drop"}})
    flows = [(Packet(ADDRESSES["W"][1], HOST1_6, 58, 0, kind), "W", "1") for kind in (135, 134, 128)]
    try:
        assert stage.wire.arrive(flows, [True, False, False]) == [True, False, False]
    finally:
        stage.play()
        stage.ctl("apply", "-f", "-", stdin=before)


@pytest.mark.long
def test_policy_without_types(stage: Stage) -> None:
    """68: stored by something that skips Calico's defaults, it means what it would have meant."""
    policy = {"apiVersion": "projectcalico.org/v3", **gnp("raw", ingress=[ALLOW])}
    policy["spec"] = {key: value for key, value in policy["spec"].items() if key != "types"}
    key = "/calico/resources/v3/projectcalico.org/globalnetworkpolicies/raw"
    words = ("etcdctl", f"--endpoints={stage.lab.spec.etcd_url}")
    stage.lab["etcd"].run(*words, "put", key, json.dumps(policy), env={"ETCDCTL_API": "3"})
    stage.play()
    try:
        assert stage.passes(Packet(W, E, 6, 4001, 80), "W", "E") and stage.passes(Packet(E, W, 6, 4001, 80), "E", "W")
    finally:
        stage.lab["etcd"].run(*words, "del", key, env={"ETCDCTL_API": "3"})
