"""The driver as Docker uses it: gunicorn on its sockets, real etcd, real kernel."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Iterator

import pytest

from calico_plugin.deadline import Deadline
from calico_plugin.model import codec, keys, names
from calico_plugin.model.docker import NetworkRecord
from calico_plugin.model.resources import IPPool, Metadata
from calico_plugin.model.resources.ipam import IPPoolSpec
from tests.etcd_server import etcd_cluster
from tests.kernel.driverlab import (
    NODE,
    POOL,
    POOL6,
    Lab,
    create_endpoint,
    create_network,
    driver_lab,
    fill,
    post,
    wait_until,
)

pytestmark = pytest.mark.root

NET, OTHER = "a" * 64, "b" * 64
SPACE = "CalicoLocalAddressSpace"


@pytest.fixture(scope="module")
def lab_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One driver for all tests of this module; each test leaves it empty, which `lab` checks."""
    from calico_plugin.datastore.etcd import connect

    with etcd_cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        kv = connect(cluster.endpoints, source="the tests")
        fill(kv)
        with driver_lab(tmp_path_factory.mktemp("driver"), kv, cluster.endpoints[0]) as lab:
            yield lab
        kv.close()


@pytest.fixture
def lab(lab_of_module: Lab) -> Iterator[Lab]:
    """A test that ends well has left nothing but what it made on purpose and took away itself."""
    lab_of_module.agent.paused = False
    yield lab_of_module
    lab_of_module.nothing_left()
    assert lab_of_module.networks() == []
    assert "CALICO-BUG" not in lab_of_module.driver.log.read_text()


@pytest.fixture
def pool(lab: Lab) -> Iterator[str]:
    """A network NET; its PoolID."""
    yield lab.network(NET)
    lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=NET)


def endpoint(number: int) -> str:
    return f"{number:02x}" * 32


# Handshake and transport


def test_handshake(lab: Lab) -> None:
    """Both sockets offer both drivers; scope local, since nobody here has a cluster store."""
    for path in (lab.driver.socket, lab.driver.ipam_socket):
        assert post(path, "Plugin.Activate", b"") == (200, {"Implements": ["NetworkDriver", "IpamDriver"]})
        assert post(path, "NetworkDriver.GetCapabilities", b"") == (
            200,
            {"Scope": "local", "ConnectivityScope": "global"},
        )
    assert lab.driver.ok("IpamDriver.GetCapabilities") == {
        "RequiresMACAddress": False,
        "RequiresRequestReplay": False,
    }
    spaces = lab.driver.ok("IpamDriver.GetDefaultAddressSpaces")
    assert spaces == {"LocalDefaultAddressSpace": SPACE, "GlobalDefaultAddressSpace": "CalicoGlobalAddressSpace"}


@pytest.mark.parametrize("host", ["", "plugin.moby.localhost", "%2Frun%2Fdocker%2Fplugins%2Fcalico.sock"])
def test_every_docker_releases_host_header_is_served(lab: Lab, host: str) -> None:
    assert post(lab.driver.socket, "Plugin.Activate", b"", headers={"Host": host})[0] == 200


def raw(path: Path, *pieces: bytes) -> bytes:
    """What comes back for bytes sent in pieces."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.05)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize(
    "pieces,status",
    [
        ((b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",), b"200"),
        ((b"POST /Plugin.Act", b"ivate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"), b"200"),
        (
            (
                b"POST /IpamDriver.ReleasePool HTTP/1.1\r\nContent-Length: 14\r\nHost: x\r\n\r\n",
                b'{"PoolID"',
                b':"x"}',
            ),
            b"200",
        ),
        ((b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nX-Other: 1\r\nConnection: close\r\n\r\n",), b"200"),
        ((b"GET /Plugin.Activate HTTP/1.1\r\nHost: x\r\n\r\n",), b"405"),
        ((b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n",), b"500"),
        ((b"nonsense\r\n\r\n",), b"400"),
    ],
)
def test_requests_that_docker_does_not_make(lab: Lab, pieces: tuple[bytes, ...], status: bytes) -> None:
    """In pieces, without length, with another method: answered by the rules of HTTP, and the driver lives on."""
    assert raw(lab.driver.socket, *pieces).split(b" ", 2)[1] == status


def test_unknown_methods_are_404(lab: Lab) -> None:
    """Docker takes that as 'not offered'; the body is still JSON with Err, never HTML."""
    status, answer = lab.driver.call("NetworkDriver.Teleport", NetworkID=NET)
    assert status == 404 and "NetworkDriver.Teleport" in answer["Err"]


@pytest.mark.parametrize(
    "method",
    [
        "NetworkDriver.CreateNetwork", "NetworkDriver.DeleteNetwork", "NetworkDriver.CreateEndpoint",
        "NetworkDriver.DeleteEndpoint", "NetworkDriver.Join", "NetworkDriver.Leave", "NetworkDriver.EndpointOperInfo",
        "NetworkDriver.ProgramExternalConnectivity", "NetworkDriver.RevokeExternalConnectivity",
        "IpamDriver.RequestPool",
        "IpamDriver.ReleasePool", "IpamDriver.RequestAddress", "IpamDriver.ReleaseAddress",
    ],
)  # fmt: skip
def test_an_empty_body_is_refused(lab: Lab, method: str) -> None:
    """Docker repeats a call that broke off without its body; nothing may come of it."""
    status, answer = post(lab.driver.socket, method, b"")
    assert status == 500 and "empty" in answer["Err"]


def test_what_is_unknown_is_gone_already(lab: Lab) -> None:
    ids = {"NetworkID": NET, "EndpointID": endpoint(1)}
    lab.driver.ok("NetworkDriver.Leave", **ids)
    lab.driver.ok("NetworkDriver.DeleteEndpoint", **ids)
    lab.driver.ok("NetworkDriver.RevokeExternalConnectivity", **ids)
    lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=NET)
    for address in ("10.77.1.1", "192.0.2.1", "0.0.0.0", "::"):
        lab.driver.ok("IpamDriver.ReleaseAddress", PoolID="CalicoPoolIPv4", Address=address)
    lab.driver.ok("IpamDriver.ReleasePool", PoolID="calico:10.1.0.0/16")


def test_notices_without_meaning_to_us_are_accepted(lab: Lab) -> None:
    lab.driver.ok("NetworkDriver.DiscoverNew", DiscoveryType=1, DiscoveryData={"Address": "192.0.2.10", "Self": True})
    lab.driver.ok("NetworkDriver.DiscoverDelete", DiscoveryType=1, DiscoveryData={"Address": "192.0.2.10"})
    assert lab.driver.ok("NetworkDriver.AllocateNetwork", NetworkID=NET, Options={}) == {"Options": {}}
    lab.driver.ok("NetworkDriver.FreeNetwork", NetworkID=NET)


# A container's life


def test_a_whole_life(lab: Lab, pool: str) -> None:
    """One /32 address, the endpoint as Calico stores it, a link that is up, Calico's gateway; and everything goes
    again.
    """
    joined = lab.start(NET, pool, endpoint(1))
    assert ip_address(joined["address"]) in ip_network(POOL)
    assert joined["InterfaceName"] == {"SrcName": "tmp01010101010", "DstPrefix": "cali"}
    assert joined["Gateway"] == "169.254.1.1" and joined["GatewayIPv6"] == ""
    assert joined["StaticRoutes"] == [{"Destination": "169.254.1.1/32", "RouteType": 1, "NextHop": ""}]
    (stored,) = lab.endpoints()
    assert stored.name == "host--a-libnetwork-libnetwork-" + endpoint(1)
    assert stored.spec.ip_networks == (f"{joined['address']}/32",)
    assert (stored.spec.node, stored.spec.interface_name) == (NODE, "cali01010101010")
    assert stored.spec.profiles == (lab.networks()[0].profile,)
    assert stored.labels == {
        "projectcalico.org/namespace": "libnetwork",
        "projectcalico.org/orchestrator": "libnetwork",
    }
    assert lab.links() == {"cali01010101010", "tmp01010101010"}
    ((address, (handle, attributes)),) = lab.addresses().items()
    assert (address, handle, attributes["node"]) == (joined["address"], None, NODE) and "timestamp" in attributes
    ids = {"NetworkID": NET, "EndpointID": endpoint(1)}
    assert lab.driver.ok("NetworkDriver.EndpointOperInfo", **ids) == {"Value": {}}
    lab.driver.ok("NetworkDriver.ProgramExternalConnectivity", **ids, Options={})
    lab.driver.ok("NetworkDriver.RevokeExternalConnectivity", **ids)
    lab.stop(NET, pool, endpoint(1), joined["address"])


def test_every_call_twice(lab: Lab, pool: str) -> None:
    """The second answer equals the first, and nothing is there twice."""
    address = lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="")["Address"]
    created = create_endpoint(NET, endpoint(2), address)
    join = {"NetworkID": NET, "EndpointID": endpoint(2), "SandboxKey": "/netns/box", "Options": {}}
    for method, members in (
        ("NetworkDriver.CreateNetwork", create_network(NET, IPv4Data=[{"AddressSpace": SPACE, "Pool": "0.0.0.0/0"}])),
        ("NetworkDriver.CreateEndpoint", created),
        ("NetworkDriver.Join", join),
    ):
        assert lab.driver.ok(method, **members) == lab.driver.ok(method, **members)
    assert len(lab.endpoints()) == 1 and len(lab.links()) == 2 and len(lab.addresses()) == 1
    assert lab.networks()[0].profile
    for method in ("NetworkDriver.Leave", "NetworkDriver.DeleteEndpoint"):
        for _ in range(2):
            lab.driver.ok(method, NetworkID=NET, EndpointID=endpoint(2))
    for _ in range(2):
        lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address=address.split("/")[0])


def test_the_same_endpoint_from_two_callers_at_once(lab: Lab, pool: str) -> None:
    """Docker may repeat a call whose first try still runs."""
    address = lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="")["Address"]
    answers: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(
                lab.driver.call("NetworkDriver.CreateEndpoint", **create_endpoint(NET, endpoint(3), address))
            )
        )
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [200] * 6 and len({str(answer) for _, answer in answers}) == 1
    lab.stop(NET, pool, endpoint(3), address.split("/")[0])


def test_an_endpoint_that_exists_otherwise_is_refused(lab: Lab, pool: str) -> None:
    joined = lab.start(NET, pool, endpoint(4))
    text = lab.driver.refused("NetworkDriver.CreateEndpoint", **create_endpoint(NET, endpoint(4), "10.77.250.9/32"))
    assert "other addresses" in text
    lab.stop(NET, pool, endpoint(4), joined["address"])


def test_the_users_mac_is_kept_and_not_repeated(lab: Lab, pool: str) -> None:
    """Docker refuses an answer that repeats what it gave; without a MAC of the user's it gets ours."""
    address = lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="")["Address"]
    mine = lab.driver.ok(
        "NetworkDriver.CreateEndpoint", **create_endpoint(NET, endpoint(5), address, mac="02:42:0A:4D:00:02")
    )
    assert mine == {"Interface": {}}
    assert lab.endpoints()[0].spec.mac == "02:42:0a:4d:00:02"
    lab.stop(NET, pool, endpoint(5), address.split("/")[0])
    second = lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="")["Address"]
    answer = lab.driver.ok("NetworkDriver.CreateEndpoint", **create_endpoint(NET, endpoint(6), second))
    assert answer["Interface"]["MacAddress"].startswith("02:") and set(answer["Interface"]) == {"MacAddress"}
    lab.stop(NET, pool, endpoint(6), second.split("/")[0])


def test_fifty_at_once(lab: Lab, pool: str) -> None:
    """Different addresses for all; nothing left of any."""
    failures: list[Any] = []
    given: list[str] = []

    def life(number: int) -> None:
        try:
            joined = lab.start(NET, pool, endpoint(100 + number), f"/netns/{number}")
            given.append(joined["address"])
            lab.stop(NET, pool, endpoint(100 + number), joined["address"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=life, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(given) == 50


def test_join_waits_for_the_agent(lab: Lab, pool: str) -> None:
    """No container starts without its policy: the answer comes with the agent's word, not before."""
    lab.agent.paused = True
    done = threading.Event()
    result: dict[str, Any] = {}

    def start() -> None:
        result.update(lab.start(NET, pool, endpoint(7)))
        done.set()

    thread = threading.Thread(target=start)
    thread.start()
    wait_until(lambda: lab.endpoints(), "endpoint is stored")
    assert not done.wait(0.5)
    lab.agent.ready(endpoint(7))
    assert done.wait(5)
    thread.join()
    lab.stop(NET, pool, endpoint(7), result["address"])


def test_join_without_agent_fails_in_time_and_says_so(lab: Lab, pool: str) -> None:
    """Below Docker's own time-out; the text tells what to start. Docker then takes the endpoint back."""
    lab.agent.paused = True
    address = lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="")["Address"]
    lab.driver.ok("NetworkDriver.CreateEndpoint", **create_endpoint(NET, endpoint(8), address))
    started = time.monotonic()
    text = lab.driver.refused(
        "NetworkDriver.Join", NetworkID=NET, EndpointID=endpoint(8), SandboxKey="/netns/x", Options={}
    )
    assert time.monotonic() - started < 20
    assert "calico-agent" in text and "is not running: start calico-node" in text
    lab.driver.ok("NetworkDriver.DeleteEndpoint", NetworkID=NET, EndpointID=endpoint(8))
    lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address=address.split("/")[0])


def test_join_of_an_unknown_endpoint(lab: Lab, pool: str) -> None:
    text = lab.driver.refused("NetworkDriver.Join", NetworkID=NET, EndpointID=endpoint(9), SandboxKey="/netns/x")
    assert "does not exist" in text and endpoint(9)[:12] in text


def test_several_networks_of_one_container(lab: Lab, pool: str) -> None:
    """Each has a hop of its own, since one container cannot hold the same route twice; a hop that is free is used
    again.
    """
    second = lab.network(OTHER)
    first, other = lab.start(NET, pool, endpoint(10)), lab.start(OTHER, second, endpoint(11))
    assert (first["Gateway"], other["Gateway"]) == ("169.254.1.1", "169.254.1.2")
    assert other["StaticRoutes"] == [{"Destination": "169.254.1.2/32", "RouteType": 1, "NextHop": ""}]
    lab.stop(NET, pool, endpoint(10), first["address"])
    third = lab.start(NET, pool, endpoint(12))
    assert third["Gateway"] == "169.254.1.1"
    lab.stop(NET, pool, endpoint(12), third["address"])
    lab.stop(OTHER, second, endpoint(11), other["address"])
    lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=OTHER)


def test_both_families(lab: Lab) -> None:
    """An address of each; the IPv6 gateway is an address that the host end really has."""
    granted = [
        lab.driver.ok("IpamDriver.RequestPool", AddressSpace=SPACE, Pool="", Options={}, V6=v6)
        for v6 in (False, True)
    ]
    assert [one["Pool"] for one in granted] == ["0.0.0.0/0", POOL6]
    data = [
        {"AddressSpace": SPACE, "Pool": one["Pool"], "Gateway": one["Data"]["com.docker.network.gateway"]}
        for one in granted
    ]
    lab.driver.ok("NetworkDriver.CreateNetwork", **create_network(NET, IPv4Data=data[:1], IPv6Data=data[1:]))
    got = [lab.driver.ok("IpamDriver.RequestAddress", PoolID=one["PoolID"], Address="")["Address"] for one in granted]
    assert got[0].endswith("/32") and got[1].endswith("/128")
    lab.driver.ok("NetworkDriver.CreateEndpoint", **create_endpoint(NET, endpoint(13), *got))
    joined = lab.driver.ok(
        "NetworkDriver.Join", NetworkID=NET, EndpointID=endpoint(13), SandboxKey="/netns/y", Options={}
    )
    assert joined["GatewayIPv6"] == "fe80::a9fe:101"
    assert {route["Destination"] for route in joined["StaticRoutes"]} == {"169.254.1.1/32", "fe80::a9fe:101/128"}
    shown = os.popen(f"ip -n {lab.netns} -6 addr show dev cali{endpoint(13)[:11]}").read()
    assert "fe80::a9fe:101/64" in shown
    assert lab.endpoints()[0].spec.ip_networks == tuple(got)
    lab.driver.ok("NetworkDriver.DeleteEndpoint", NetworkID=NET, EndpointID=endpoint(13))
    for one, address in zip(granted, got):
        lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=one["PoolID"], Address=address.split("/")[0])
    lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=NET)


# Networks


def test_an_internal_network_has_no_default_route(lab: Lab) -> None:
    """Only routes to its own pools."""
    pool = lab.network(NET, internal=True)
    joined = lab.start(NET, pool, endpoint(14))
    assert joined["Gateway"] == "" and joined["GatewayIPv6"] == ""
    assert {"Destination": POOL, "RouteType": 0, "NextHop": "169.254.1.1"} in joined["StaticRoutes"]
    assert all(not route["Destination"].endswith("/0") for route in joined["StaticRoutes"])
    lab.stop(NET, pool, endpoint(14), joined["address"])
    lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=NET)


def test_options_of_a_network(lab: Lab) -> None:
    """The MTU of its links; routes to the pools while Docker's bridge keeps the default route."""
    options = {"com.docker.network.driver.mtu": "1380", "default-route": "false"}
    pool = lab.network(NET, options=options)
    assert lab.networks()[0].options == options
    joined = lab.start(NET, pool, endpoint(15))
    assert joined["Gateway"] == "" and {route["Destination"] for route in joined["StaticRoutes"]} == {
        "169.254.1.1/32",
        POOL,
    }
    assert "mtu 1380" in os.popen(f"ip -n {lab.netns} link show tmp{endpoint(15)[:11]}").read()
    lab.stop(NET, pool, endpoint(15), joined["address"])
    lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=NET)


def test_an_unknown_option_is_refused_by_name(lab: Lab) -> None:
    text = lab.driver.refused("NetworkDriver.CreateNetwork", **create_network(NET, options={"colour": "blue"}))
    assert "--opt colour" in text and "com.docker.network.driver.mtu" in text
    text = lab.driver.refused("IpamDriver.RequestPool", AddressSpace=SPACE, Pool="", Options={"colour": "blue"})
    assert "--ipam-opt colour" in text and "inside-pool" in text


def test_a_network_without_name_is_waited_for(lab: Lab) -> None:
    """The second host of a cluster store never hears of the network: its record comes through etcd, named by the
    other's agent.
    """
    address = lab.driver.ok("IpamDriver.RequestAddress", PoolID="CalicoPoolIPv4", Address="")["Address"]
    record = NetworkRecord(network_id=OTHER, name="web", profile="web", pools4=("0.0.0.0/0",))
    threading.Timer(0.3, lambda: lab.kv.put(keys.network(OTHER), codec.encode(record), Deadline(5))).start()
    lab.driver.ok("NetworkDriver.CreateEndpoint", **create_endpoint(OTHER, endpoint(16), address))
    assert lab.endpoints()[0].spec.profiles == ("web",)
    lab.stop(OTHER, "CalicoPoolIPv4", endpoint(16), address.split("/")[0])
    lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=OTHER)


def test_a_profile_goes_with_the_last_network_of_its_name(lab: Lab) -> None:
    """Two hosts have a network of one name each (scope local): the profile stays as long as one of them does."""
    profile = keys.resource("Profile", "web")
    lab.kv.put(profile, b'{"kind":"Profile"}', Deadline(5))
    for network in (NET, OTHER):
        record = NetworkRecord(network_id=network, name="web", profile="web")
        lab.kv.put(keys.network(network), codec.encode(record), Deadline(5))
    lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=NET)
    assert lab.kv.get(profile, Deadline(5)) is not None
    lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=OTHER)
    assert lab.kv.get(profile, Deadline(5)) is None


# Addresses


def test_a_subnet_is_a_pool_or_refused(lab: Lab) -> None:
    """The refusal names the CIDR and the pools."""
    ask = {"AddressSpace": SPACE, "SubPool": "", "Options": {}, "V6": False}
    text = lab.driver.refused("IpamDriver.RequestPool", Pool="172.31.0.0/16", **ask)
    assert "172.31.0.0/16" in text and POOL in text and "pool-a" in text
    granted = lab.driver.ok("IpamDriver.RequestPool", Pool=POOL, **ask)
    assert granted["Pool"] == POOL and granted["Data"] == {"com.docker.network.gateway": "0.0.0.0/0"}


def test_a_range_is_kept_to(lab: Lab) -> None:
    granted = lab.driver.ok(
        "IpamDriver.RequestPool", AddressSpace=SPACE, Pool=POOL, SubPool="10.77.8.4/30", Options={}, V6=False
    )
    pool, got = granted["PoolID"], list[str]()
    for _ in range(4):
        got.append(lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="")["Address"].split("/")[0])
    assert set(got) == {"10.77.8.4", "10.77.8.5", "10.77.8.6", "10.77.8.7"}
    assert "10.77.8.4/30" in lab.driver.refused("IpamDriver.RequestAddress", PoolID=pool, Address="")
    # What a user names may lie beside the range, not beside the pool.
    got.append(lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="10.77.9.9")["Address"].split("/")[0])
    assert "10.76.9.9" in lab.driver.refused("IpamDriver.RequestAddress", PoolID=pool, Address="10.76.9.9")
    for address in got:
        lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address=address)


def test_an_address_in_use_is_refused_by_name(lab: Lab) -> None:
    """And free again at once when it is given back."""
    for _ in range(2):
        assert (
            lab.driver.ok("IpamDriver.RequestAddress", PoolID=f"calico:{POOL}", Address="10.77.9.9")["Address"]
            == "10.77.9.9/32"
        )
        text = lab.driver.refused("IpamDriver.RequestAddress", PoolID=f"calico:{POOL}", Address="10.77.9.9")
        assert "10.77.9.9" in text and "in use" in text and NODE in text
        lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=f"calico:{POOL}", Address="10.77.9.9")


def test_gateway_and_auxiliary_addresses_say_what_they_are(lab: Lab) -> None:
    """Reserved with a handle and attributes; never given to a container; free again after `network rm`."""
    granted = lab.driver.ok(
        "IpamDriver.RequestPool", AddressSpace=SPACE, Pool=POOL, SubPool="10.77.12.0/30", Options={}, V6=False
    )
    pool = granted["PoolID"]
    gateway = {"RequestAddressType": "com.docker.network.gateway"}
    answer = lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="10.77.12.1", Options=gateway)
    assert answer["Address"] == "10.77.12.1/16"
    lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="10.77.12.2", Options=None)
    data = {
        "AddressSpace": SPACE,
        "Pool": POOL,
        "Gateway": "10.77.12.1/16",
        "AuxAddresses": {"router": "10.77.12.2/32"},
    }
    for _ in range(2):
        lab.driver.ok("NetworkDriver.CreateNetwork", **create_network(NET, IPv4Data=[data]))
    found = lab.addresses()
    assert found["10.77.12.1"][0] == "docker-gateway-10.77.12.1" and found["10.77.12.1"][1]["type"] == "dockerGateway"
    assert found["10.77.12.2"][0] == "docker-aux-10.77.12.2"
    assert (found["10.77.12.2"][1]["type"], found["10.77.12.2"][1]["name"]) == ("dockerAuxAddress", "router")
    handles = {item.key for item in lab.kv.list(keys.HANDLES, Deadline(5)).items}
    assert handles == {keys.handle("docker-gateway-10.77.12.1"), keys.handle("docker-aux-10.77.12.2")}
    got = [lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="")["Address"] for _ in range(2)]
    assert set(got) == {"10.77.12.0/32", "10.77.12.3/32"}
    for address in ("10.77.12.1", "10.77.12.2", "10.77.12.0", "10.77.12.3"):
        lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address=address)
    lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=NET)
    assert lab.kv.list(keys.HANDLES, Deadline(5)).items == ()


def test_reserved_addresses_of_a_network_on_several_hosts(lab: Lab) -> None:
    """The second host reserves the same, and the first to remove the network takes nothing from the other."""
    pool, gateway = f"calico:{POOL}", {"RequestAddressType": "com.docker.network.gateway"}
    data = {
        "AddressSpace": SPACE,
        "Pool": POOL,
        "Gateway": "10.77.14.1/16",
        "AuxAddresses": {"router": "10.77.14.2/32"},
    }
    for network in (NET, OTHER):
        lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="10.77.14.1", Options=gateway)
        lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="10.77.14.2", Options=None)
        lab.driver.ok("NetworkDriver.CreateNetwork", **create_network(network, IPv4Data=[data]))
    # A third creation fails: Docker gives back what it asked for.
    lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="10.77.14.2", Options=None)
    lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address="10.77.14.2")
    # A container that wants such an address is refused, and giving it back takes nothing away.
    assert "10.77.14.1" in lab.driver.refused("IpamDriver.RequestAddress", PoolID=pool, Address="10.77.14.1")
    lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="10.77.14.2", Options=None)
    text = lab.driver.refused("NetworkDriver.CreateEndpoint", **create_endpoint(NET, endpoint(21), "10.77.14.2/32"))
    assert "10.77.14.2" in text and "router" in text
    lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address="10.77.14.2")
    for network, left in ((NET, {"10.77.14.1", "10.77.14.2"}), (OTHER, set())):
        for address in ("10.77.14.1", "10.77.14.2"):
            lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address=address)
        lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=network)
        assert set(lab.addresses()) == left


def test_the_last_host_frees_what_another_has_reserved(lab: Lab) -> None:
    """The network was made on host-b, which has removed it: its gateway goes with our copy of it."""
    from calico_plugin.ipam.allocator import Allocator

    attributes = {"node": "host-b", "type": "dockerGateway"}
    other = Allocator(lab.kv, lambda text, labels: True)
    fill(lab.kv, (NODE, "host-b"))
    handle = "docker-gateway-10.77.34.1"
    other.assign("10.77.34.1", "host-b", deadline=Deadline(5), handle=handle, attributes=attributes)
    pool, data = f"calico:{POOL}", {"AddressSpace": SPACE, "Pool": POOL, "Gateway": "10.77.34.1/16"}
    options = {"RequestAddressType": "com.docker.network.gateway"}
    lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="10.77.34.1", Options=options)
    lab.driver.ok("NetworkDriver.CreateNetwork", **create_network(NET, IPv4Data=[data]))
    lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address="10.77.34.1")
    lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=NET)
    assert "10.77.34.1" not in lab.addresses()


def test_a_pool_that_goes_before_its_network(lab: Lab) -> None:
    """Its network, gateway and containers end as always and leave nothing."""
    key, cidr = keys.resource("IPPool", "narrow"), "10.99.0.0/24"
    narrow = IPPool(metadata=Metadata(name="narrow"), spec=IPPoolSpec(cidr=cidr, node_selector="all()"))
    lab.kv.create(key, codec.encode(narrow), Deadline(5))
    pool, gateway = f"calico:{cidr}", {"RequestAddressType": "com.docker.network.gateway"}
    data = {"AddressSpace": SPACE, "Pool": cidr, "Gateway": "10.99.0.1/24", "AuxAddresses": {"router": "10.99.0.9"}}

    def granted(**members: Any) -> bool:
        status, _ = lab.driver.call("IpamDriver.RequestAddress", PoolID=pool, **members)
        return status == 200

    wait_until(lambda: granted(Address="10.99.0.1", Options=gateway), "the pool is known")
    assert granted(Address="10.99.0.9", Options=None)
    lab.driver.ok("NetworkDriver.CreateNetwork", **create_network(NET, IPv4Data=[data]))
    container = lab.start(NET, pool, endpoint(1))
    lab.kv.delete(key, Deadline(5))
    asked = {"AddressSpace": SPACE, "Pool": cidr, "SubPool": "", "Options": {}, "V6": False}
    wait_until(lambda: lab.driver.call("IpamDriver.RequestPool", **asked)[0] != 200, "the pool is gone")
    lab.stop(NET, pool, endpoint(1), container["address"])
    for address in ("10.99.0.1", "10.99.0.9"):
        lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address=address)
    lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=NET)
    lab.nothing_left()
    assert lab.kv.list(keys.HANDLES, Deadline(5)).items == ()


def test_dockers_endless_questions_end(lab: Lab) -> None:
    """A release that finds the automatic IPv6 pool in use asks 2000 times a second: it gets an error, others are not
    hurt.
    """
    text = ""
    for _ in range(400):
        status, answer = lab.driver.call("IpamDriver.RequestPool", AddressSpace=SPACE, Pool="", Options={}, V6=True)
        if status != 200:
            text = answer["Err"]
            break
    assert "--subnet" in text and POOL6 in text
    lab.driver.ok("IpamDriver.RequestPool", AddressSpace=SPACE, Pool="", Options={}, V6=False)


def test_release_is_all_that_docker_sends_after_its_crash(lab: Lab, pool: str) -> None:
    """v1 plugin: no Leave, no DeleteEndpoint. The endpoint and its link go with the address, which is free at once."""
    joined = lab.start(NET, pool, endpoint(17))
    lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address=joined["address"])
    assert lab.endpoints() == []


def test_a_running_containers_address_is_not_taken(lab: Lab, pool: str) -> None:
    """Docker 29 releases an IPv6 address right after Join when the container forbids IPv6: the endpoint lives on."""
    got = [lab.driver.ok("IpamDriver.RequestAddress", PoolID=one, Address="")["Address"]
           for one in (pool, f"calico:{POOL6}")]
    lab.driver.ok("NetworkDriver.CreateEndpoint", **create_endpoint(NET, endpoint(18), *got))
    lab.driver.ok("NetworkDriver.Join", NetworkID=NET, EndpointID=endpoint(18), SandboxKey="/netns/z", Options={})
    four, six = (address.split("/")[0] for address in got)
    lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=f"calico:{POOL6}", Address=six)
    assert len(lab.endpoints()) == 1 and {four, six} <= set(lab.addresses())
    lab.driver.ok("NetworkDriver.DeleteEndpoint", NetworkID=NET, EndpointID=endpoint(18))
    for address in (four, six):
        lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address=address)
    lab.nothing_left()


def test_what_a_power_loss_left_is_given_anew(lab: Lab, pool: str) -> None:
    """Nobody has released the address of a container whose link is no more: Docker asks for it by its number again.
    With its link, the container lives, and the address is refused.
    """
    ask = {"PoolID": pool, "Address": lab.start(NET, pool, endpoint(22))["address"]}
    time.sleep(1.6)
    assert "in use" in lab.driver.refused("IpamDriver.RequestAddress", **ask)
    subprocess.run(["ip", "-n", lab.netns, "link", "del", names.host_interface(endpoint(22))], check=True)
    assert lab.driver.ok("IpamDriver.RequestAddress", **ask)["Address"] == ask["Address"] + "/32"
    # Given anew a moment ago, so its endpoint is on its way: not once more.
    lab.driver.ok("NetworkDriver.CreateEndpoint", **create_endpoint(NET, endpoint(23), ask["Address"] + "/32"))
    assert [one.spec.endpoint for one in lab.endpoints()] == [endpoint(23)]
    assert "in use" in lab.driver.refused("IpamDriver.RequestAddress", **ask)
    lab.driver.ok("NetworkDriver.DeleteEndpoint", NetworkID=NET, EndpointID=endpoint(23))
    lab.driver.ok("IpamDriver.ReleaseAddress", **ask)


def test_another_hosts_address_is_not_released(lab: Lab) -> None:
    """A late ReleaseAddress must not take what somebody else has by now."""
    from calico_plugin.ipam.allocator import Allocator

    other = Allocator(lab.kv, lambda text, labels: True)
    fill(lab.kv, (NODE, "host-b"))
    other.assign("10.77.33.3", "host-b", deadline=Deadline(5), attributes={"node": "host-b"})
    lab.driver.ok("IpamDriver.ReleaseAddress", PoolID="CalicoPoolIPv4", Address="10.77.33.3")
    assert "10.77.33.3" in lab.addresses()
    other.release(["10.77.33.3"], Deadline(5))


def test_an_address_that_comes_to_a_new_endpoint_leaves_the_old_one(lab: Lab, pool: str) -> None:
    """A crash left the old endpoint in etcd; the address was given anew: two owners would black-hole both."""
    joined = lab.start(NET, pool, endpoint(19))
    lab.driver.ok("NetworkDriver.CreateEndpoint", **create_endpoint(NET, endpoint(20), joined["address"] + "/32"))
    assert [one.spec.endpoint for one in lab.endpoints()] == [endpoint(20)]
    wait_until(lambda: names.host_interface(endpoint(19)) not in lab.links(), "old link is gone")
    lab.driver.ok("NetworkDriver.DeleteEndpoint", NetworkID=NET, EndpointID=endpoint(20))
    lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address=joined["address"])


def test_memory_of_all_processes(lab: Lab) -> None:
    """Supervisor and worker together stay below 120 MB."""
    assert lab.driver.process is not None
    total = 0
    for pid in (lab.driver.process.pid, *lab.driver.workers()):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    assert total < 120 * 1024, f"{total / 1024:.0f} MB"


def test_it_is_seen_in_ps(lab: Lab) -> None:
    """Scripts tell the parts of calico-node apart by this word."""
    assert lab.driver.process is not None
    for pid in (lab.driver.process.pid, *lab.driver.workers()):
        assert b"calico-driver" in Path(f"/proc/{pid}/cmdline").read_bytes()
