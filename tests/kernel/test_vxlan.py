"""Encapsulated pools on the wire: three hosts, two subnets, real agents, BIRDs and etcd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Iterator

import pytest

from calico_plugin.dataplane import veth
from calico_plugin.dataplane.netlink import NetlinkPool
from calico_plugin.deadline import Deadline
from calico_plugin.model import names
from calico_plugin.model.resources import HostEndpoint, IPPool, Metadata
from calico_plugin.model.resources.endpoint import HostEndpointSpec
from calico_plugin.observe.problems import Problems
from tests.kernel.agent_host import AgentHost, wait_until
from tests.kernel.test_agent_bird import metrics
from tests.kernel.tunnellab import POOL, POOL6, SECONDS, Container, TunnelLab

pytestmark = pytest.mark.root

WRAPPED = "udp port 4789"
DEVICE = "vxlan.calico"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, etcd_endpoint: str) -> Iterator[TunnelLab]:
    with TunnelLab(tmp_path_factory.mktemp("tunnels"), etcd_endpoint) as made:
        made.pool(POOL, vxlan_mode="Always", nat_outgoing=True)
        yield made


@pytest.fixture(scope="module")
def three(lab: TunnelLab) -> tuple[Container, Container, Container]:
    """A container on each host."""
    one, two, three = (lab.container(name, POOL) for name in lab.hosts)
    return one, two, three


def talk(one: Container, other: Container) -> None:
    wait_until(f"{one.address} to reach {other.address}", lambda: one.reaches(other.address), SECONDS)


def device(host: AgentHost, name: str = DEVICE) -> dict[str, object] | None:
    shown = host.run("ip", "-d", "-j", "link", "show", "dev", name, check=False)
    return json.loads(shown)[0] if shown.strip() else None  # type: ignore[no-any-return]


def routes(host: AgentHost, version: int = 4) -> str:
    return host.ip(f"-{version}", "route")


def test_always(lab: TunnelLab, three: tuple[Container, Container, Container]) -> None:
    """All traffic between hosts is wrapped, inside a subnet too; the device is as Calico makes it; the far ends are
    static entries."""
    near, beside, far = three
    listeners = lab.listen("near", WRAPPED), lab.listen("near", f"icmp and net {POOL}")
    talk(near, beside)
    talk(near, far)
    talk(far, beside)
    wrapped, plain = (one.packets() for one in listeners)
    pairs = {("10.9.1.1", "10.9.1.2"), ("10.9.1.1", "10.9.2.3"), ("10.9.2.3", "10.9.1.2")}
    for source, target in pairs:
        assert any(f"IP {source}." in line and f"> {target}.4789" in line for line in wrapped), (source, wrapped)
    assert plain == []

    host, spec = lab.hosts["host-1"], lab.node("host-1")
    shown = device(host)
    assert shown is not None
    data = shown["linkinfo"]["info_data"]  # type: ignore[index]
    assert (data["id"], data["port"], data["learning"]) == (4096, 4789, False)
    assert shown["mtu"] == 1450 and shown["address"] == spec.vxlan_tunnel_mac_addr == names.tunnel_mac("host-1", 4)
    assert f"inet {spec.ipv4_vxlan_tunnel_addr}/32" in host.ip("addr", "show", "dev", DEVICE)
    other = lab.node("host-3")
    via = f"via {other.ipv4_vxlan_tunnel_addr} dev {DEVICE} proto 80 onlink"
    assert via in routes(host) and "blackhole" in routes(host)
    assert f"{other.ipv4_vxlan_tunnel_addr} lladdr {other.vxlan_tunnel_mac_addr} PERMANENT" in host.ip(
        "neigh", "show", "dev", DEVICE
    )
    forwarding = host.run("bridge", "fdb", "show", "dev", DEVICE)
    assert f"{other.vxlan_tunnel_mac_addr} dst 10.9.2.3 self permanent" in forwarding


def test_hosts_reach_containers(lab: TunnelLab, three: tuple[Container, Container, Container]) -> None:
    """A host itself speaks from its tunnel address."""
    host = lab.hosts["host-1"]
    wait_until("a ping", lambda: "1 received" in host.run("ping", "-c1", "-W1", three[2].address, check=False))


def test_large_packets(lab: TunnelLab, three: tuple[Container, Container, Container]) -> None:
    """What a container with room for the wrapping may send goes through whole; a byte more does not. That is what the
    driver gives to new containers."""
    near, _, far = three
    sockets = NetlinkPool(near.host.netns)
    assert veth.default_mtu(sockets) == 1450
    sockets.close()
    assert near.reaches(far.address, "-M", "do", "-s", str(1450 - 28))
    assert not near.reaches(far.address, "-M", "do", "-s", str(1451 - 28))


def test_addresses_say_what_they_are(lab: TunnelLab, three: object) -> None:
    """The tunnel's address has a handle, the node, and its type; it is told in the Node."""
    spec = lab.node("host-2")
    found = lab.allocator.attributes_of(spec.ipv4_vxlan_tunnel_addr, Deadline(5))
    assert found.handle == "vxlan-tunnel-addr-host-2"
    assert found.attributes == {"node": "host-2", "type": "vxlanTunnelAddress"}


def test_borrowed_address(lab: TunnelLab, three: tuple[Container, Container, Container]) -> None:
    """A container with an address of another host's block is reached where it is, and its route goes with it."""
    near, beside, far = three
    base = far.address.rsplit(".", 1)[0]
    lab.allocator.assign(f"{base}.60", "host-1", deadline=Deadline(5), attributes={"node": "host-1"})
    guest = lab.container("host-1", addresses=(f"{base}.60",))
    talk(beside, guest)
    talk(far, guest)
    via = f"{guest.address} via {lab.node('host-1').ipv4_vxlan_tunnel_addr} dev {DEVICE}"
    assert via in routes(lab.hosts["host-3"])
    lab.remove(guest)
    wait_until("the end of its route", lambda: f"{guest.address} " not in routes(lab.hosts["host-3"]), SECONDS)


def test_what_others_break_is_mended(lab: TunnelLab, three: tuple[Container, Container, Container]) -> None:
    """A deleted device, entry or route is back soon."""
    near, _, far = three
    talk(near, far)
    host = lab.hosts["host-1"]
    host.ip("link", "del", DEVICE)
    wait_until("the device", lambda: device(host) is not None, 5)
    talk(near, far)
    target = next(line for line in routes(host).splitlines() if DEVICE in line).split()[0]
    host.ip("route", "del", target)
    wait_until("the route", lambda: f"{target} via" in routes(host), 5)
    host.ip("link", "set", DEVICE, "down")
    talk(near, far)


def test_policy_for_hosts_does_not_cut_containers_off(
    lab: TunnelLab, three: tuple[Container, Container, Container]
) -> None:
    """A host endpoint without any policy lets the tunnel through, and nothing else."""
    near, _, far = three
    host = lab.hosts["host-3"]
    wall = HostEndpoint(metadata=Metadata(name="wall"), spec=HostEndpointSpec(node="host-3", interface_name="eth0"))
    host.put(wall)
    wait_until("the wall", lambda: "tunnel-ends4" in host.table(), SECONDS)
    ping = ("ping", "-c1", "-W1", "10.9.2.3")
    assert "1 received" not in lab.hosts["host-1"].run(*ping, check=False)
    lab.hosts["host-1"].run("conntrack", "-F", check=False)
    talk(near, far)
    host.remove(wall)
    wait_until("its end", lambda: "tunnel-ends4" not in host.table(), SECONDS)
    assert "1 received" in lab.hosts["host-1"].run(*ping, check=False)


def test_restarted_agent_changes_nothing(lab: TunnelLab, three: tuple[Container, Container, Container]) -> None:
    """The device keeps its number, and a ping goes on meanwhile."""
    near, _, far = three
    talk(near, far)
    host = lab.hosts["host-1"]
    before = device(host)
    assert before is not None
    host.kill()
    assert near.reaches(far.address)
    host.started()
    now = device(host)
    assert now is not None and now["ifindex"] == before["ifindex"] and near.reaches(far.address)


def test_cross_subnet(lab: TunnelLab, three: tuple[Container, Container, Container]) -> None:
    """Plain inside one subnet, wrapped between two."""
    near, beside, far = three
    lab.pool(POOL, vxlan_mode="CrossSubnet", nat_outgoing=True)
    wait_until("a plain route", lambda: "via 10.9.1.2 dev eth0 proto 80" in routes(lab.hosts["host-1"]), SECONDS)
    wait_until("a plain route", lambda: "via 10.9.1.1 dev eth0 proto 80" in routes(lab.hosts["host-2"]), SECONDS)
    listeners = lab.listen("near", f"{WRAPPED} and host 10.9.1.2"), lab.listen("near", f"icmp and net {POOL}")
    talk(near, beside)
    wrapped, plain = (one.packets() for one in listeners)
    assert wrapped == [] and any(f"{near.address} > {beside.address}" in line for line in plain)
    listeners = lab.listen("far", WRAPPED), lab.listen("far", f"icmp and net {POOL}")
    talk(near, far)
    wrapped, plain = (one.packets() for one in listeners)
    assert plain == [] and any("> 10.9.2.3.4789" in line for line in wrapped)


@pytest.mark.parametrize("nat", [True, False])
def test_nat_outgoing(lab: TunnelLab, three: tuple[Container, Container, Container], nat: bool) -> None:
    """Outside the pools a container is seen with its host's address, or with its own when the pool says so; between
    containers always with its own."""
    near, _, far = three
    lab.pool(POOL, vxlan_mode="CrossSubnet", nat_outgoing=nat)
    wait_until("the rule", lambda: (POOL in lab.hosts["host-1"].run(
        "nft", "list", "set", "inet", "calico", "nat-pools4")) == nat, SECONDS)  # fmt: skip
    listener = lab.listen("near", "icmp and host 203.0.113.1")
    near.reaches("203.0.113.1")
    seen = listener.packets()
    source = "10.9.1.1" if nat else near.address
    assert any(f"IP {source} > 203.0.113.1" in line for line in seen), seen
    listener = lab.listen("far", WRAPPED)
    talk(near, far)
    assert any(f"IP {near.address} > {far.address}" in line for line in listener.packets())


def test_ipv6(lab: TunnelLab) -> None:
    """IPv6 pools have a device of their own, over the hosts' IPv6 addresses."""
    lab.pool(POOL6, vxlan_mode="Always")
    one, other = lab.container("host-1", POOL, POOL6), lab.container("host-3", POOL, POOL6)
    listener = lab.listen("far", WRAPPED)
    wait_until("a ping", lambda: one.reaches(other.addresses[1], "-6"), SECONDS)
    assert any("IP6 fd09:1::1." in line and "> fd09:2::3.4789" in line for line in listener.packets())
    shown = device(lab.hosts["host-1"], "vxlan-v6.calico")
    assert shown is not None and shown["mtu"] == 1430
    lab.remove(one)
    lab.remove(other)


def test_no_pool_needs_it_any_more(lab: TunnelLab, three: tuple[Container, Container, Container]) -> None:
    """Device, routes and reservation go; BIRD's routes take over where there is one subnet."""
    near, beside, _ = three
    lab.pool(POOL)
    for name, host in lab.hosts.items():
        wait_until("the end of the device", lambda host=host: device(host) is None, SECONDS)  # type: ignore[misc]
        wait_until("the end of the reservation", lambda name=name: (  # type: ignore[misc]
            lab.node(name).ipv4_vxlan_tunnel_addr == ""), SECONDS)  # fmt: skip
    wait_until("BIRD's route", lambda: "via 10.9.1.2 dev eth0 proto bird" in routes(lab.hosts["host-1"]), 30)
    assert "proto 80 onlink" not in routes(lab.hosts["host-1"])
    talk(near, beside)
    lab.pool(POOL, vxlan_mode="Always")
    wait_until("the device", lambda: all(device(host) for host in lab.hosts.values()), SECONDS)
    talk(near, three[2])


def has_ipip(host: AgentHost) -> bool:
    """Ask the kernel by doing."""
    made = "unknown device type" not in host.run("sh", "-c", "ip link add probe type ipip 2>&1", check=False).lower()
    host.run("ip", "link", "del", "probe", check=False)
    return made


def test_ipip_is_refused_where_there_is_none(lab: TunnelLab, three: tuple[Container, Container, Container]) -> None:
    """It is told in the log, by a metric and for `node status`, says what to do, and costs nothing else."""
    host = lab.hosts["host-1"]
    if has_ipip(host):
        pytest.skip("this kernel has IPIP")
    lab.pool("10.67.0.0/16", ipip_mode="Always")
    lacks = "this host's kernel has no IPIP"
    wait_until("the problem", lambda: lacks in str(Problems(host.run_dir).read()), SECONDS)
    (told,) = Problems(host.run_dir).read()["encapsulation"]
    assert "use vxlanMode" in told and lacks in host.text()
    assert "calico_encapsulation_problems 1.0" in metrics(host)
    passes = host.text().count("a pass failed in part")
    talk(three[0], three[2])
    assert host.text().count("a pass failed in part") == passes
    lab.store.resources(IPPool).delete("10-67-0-0-16", Deadline(5))
    wait_until("its end", lambda: not Problems(host.run_dir).read(), SECONDS)


def test_logs_have_no_bug(lab: TunnelLab) -> None:
    """Nothing above made the agents stumble."""
    for host in lab.hosts.values():
        text = Path(host.log).read_text()
        assert "CALICO-BUG" not in text
