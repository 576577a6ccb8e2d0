"""The driver when things go wrong around it: etcd away, the driver killed, stopped, restarted."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator

import pytest

from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.driver.journal import DIRECTORY
from tests.kernel.driverlab import Driver, Lab, create_endpoint, create_network, driver_lab, fill, wait_until

pytestmark = pytest.mark.root

NET = "a" * 64


def endpoint(number: int) -> str:
    return f"{number:02x}" * 32


@pytest.fixture
def lab(tmp_path: Path, kv: EtcdKV, etcd: str) -> Iterator[Lab]:
    fill(kv)
    with driver_lab(tmp_path, kv, etcd) as made:
        yield made
        made.relay.mend()
        assert "CALICO-BUG" not in made.driver.log.read_text()


def in_time(lab: Lab, method: str, **members: Any) -> str:
    """Text of a refusal that comes within 20 s and names etcd or the datastore."""
    started = time.monotonic()
    text = lab.driver.refused(method, **members)
    assert time.monotonic() - started < 20
    assert "etcd" in text or "datastore" in text
    return text


def test_etcd_goes_away_and_comes_back(lab: Lab) -> None:
    """Calls that need it fail in time and leave nothing; what Docker deletes meanwhile is deleted when it is back."""
    pool = lab.network(NET)
    joined = [lab.start(NET, pool, endpoint(n), f"/netns/{n}") for n in range(3)]
    spare = lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="")["Address"]
    lab.relay.cut()

    started = time.monotonic()
    lab.driver.ok("Plugin.Activate")
    lab.driver.ok("NetworkDriver.GetCapabilities")
    lab.driver.ok("IpamDriver.GetDefaultAddressSpaces")
    lab.driver.ok("NetworkDriver.EndpointOperInfo", NetworkID=NET, EndpointID=endpoint(0))
    lab.driver.ok("NetworkDriver.Leave", NetworkID=NET, EndpointID=endpoint(0))
    assert time.monotonic() - started < 1.0

    in_time(lab, "IpamDriver.RequestAddress", PoolID=pool, Address="")
    before = lab.links()
    in_time(lab, "NetworkDriver.CreateEndpoint", **create_endpoint(NET, endpoint(9), spare))
    wait_until(lambda: lab.links() == before, "the failed endpoint's link is gone")
    in_time(lab, "IpamDriver.ReleaseAddress", PoolID=pool, Address=spare.split("/")[0])
    in_time(lab, "NetworkDriver.CreateNetwork", **create_network("b" * 64))
    for n, one in enumerate(joined):
        in_time(lab, "NetworkDriver.DeleteEndpoint", NetworkID=NET, EndpointID=endpoint(n))
        in_time(lab, "IpamDriver.ReleaseAddress", PoolID=pool, Address=one["address"])
    wait_until(lambda: not lab.links(), "links go without etcd")
    assert len(lab.endpoints()) == 3 and len(lab.addresses()) == 4

    lab.relay.mend()
    wait_until(lambda: not lab.endpoints() and not lab.addresses(), "all that was deleted meanwhile is deleted", 20)
    wait_until(lambda: not list((lab.driver.lib_dir / DIRECTORY).iterdir()), "the journal is empty")
    again = lab.start(NET, pool, endpoint(0))
    lab.stop(NET, pool, endpoint(0), again["address"])
    lab.nothing_left()


def test_etcd_that_hangs(lab: Lab) -> None:
    """Connections stand and nothing comes back: no call waits longer than it may, and nothing is lost."""
    pool = lab.network(NET)
    joined = lab.start(NET, pool, endpoint(1))
    spare = lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="")["Address"]
    lab.relay.stall()
    failed: list[BaseException] = []

    def call(method: str, members: dict[str, Any]) -> None:
        try:
            in_time(lab, method, **members)
        except BaseException as error:
            failed.append(error)

    calls: list[tuple[str, dict[str, Any]]] = [
        ("IpamDriver.RequestAddress", {"PoolID": pool, "Address": ""}),
        ("IpamDriver.RequestAddress", {"PoolID": pool, "Address": "10.77.200.1"}),
        ("NetworkDriver.CreateEndpoint", create_endpoint(NET, endpoint(2), spare)),
        ("NetworkDriver.DeleteEndpoint", {"NetworkID": NET, "EndpointID": endpoint(1)}),
        ("NetworkDriver.DeleteNetwork", {"NetworkID": "b" * 64}),
        ("NetworkDriver.CreateNetwork", create_network("b" * 64)),
    ]
    callers = [threading.Thread(target=call, args=one) for one in calls]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert failed == []
    lab.driver.ok("NetworkDriver.GetCapabilities")
    lab.relay.mend()
    wait_until(lambda: not lab.endpoints(), "what failed is undone, what was deleted is gone", 25)
    for address in (joined["address"], spare.split("/")[0]):
        lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address=address)
    wait_until(lambda: not lab.links(), "links are gone")


def test_deletes_outlive_the_driver(lab: Lab) -> None:
    """etcd away, Docker deletes, the driver is killed: its successor finishes."""
    pool = lab.network(NET)
    joined = lab.start(NET, pool, endpoint(1))
    lab.relay.cut()
    in_time(lab, "NetworkDriver.DeleteEndpoint", NetworkID=NET, EndpointID=endpoint(1))
    in_time(lab, "IpamDriver.ReleaseAddress", PoolID=pool, Address=joined["address"])
    lab.driver.kill()
    lab.driver.start()
    lab.relay.mend()
    wait_until(lambda: not lab.endpoints() and not lab.addresses(), "the journal is worked off", 20)
    lab.nothing_left()


def test_a_start_without_etcd(lab: Lab) -> None:
    """Docker starts with us: the handshake is answered from memory; what needs etcd says so, and works as soon as it
    is there.
    """
    lab.driver.stop()
    lab.relay.cut()
    lab.driver.start()
    started = time.monotonic()
    lab.driver.ok("NetworkDriver.GetCapabilities")
    assert time.monotonic() - started < 0.5
    both = [
        ("IpamDriver.RequestPool", {"AddressSpace": "L", "Pool": "", "Options": {}, "V6": False}),
        ("NetworkDriver.CreateEndpoint", create_endpoint(NET, endpoint(2), "10.77.0.1/32")),
    ]
    with ThreadPoolExecutor() as callers:
        list(callers.map(lambda one: in_time(lab, one[0], **one[1]), both))
    lab.relay.mend()
    wait_until(
        lambda: lab.driver.call("IpamDriver.RequestPool", AddressSpace="L", Pool="", Options={}, V6=False)[0] == 200,
        "etcd is found",
    )
    lab.nothing_left()


def test_kill_and_restart_between_any_two_calls(lab: Lab) -> None:
    """Stale sockets are replaced; every call works on a driver that has just started."""
    pool = lab.network(NET)
    second = lab.network("b" * 64)
    first = lab.start(NET, pool, endpoint(1), "/netns/box")

    def restart() -> None:
        lab.driver.kill()
        assert lab.driver.socket.exists()
        lab.driver.start()

    restart()
    address = lab.driver.ok("IpamDriver.RequestAddress", PoolID=second, Address="")["Address"]
    restart()
    lab.driver.ok("NetworkDriver.CreateEndpoint", **create_endpoint("b" * 64, endpoint(2), address))
    restart()
    join = {"NetworkID": "b" * 64, "EndpointID": endpoint(2), "SandboxKey": "/netns/box", "Options": {}}
    assert lab.driver.ok("NetworkDriver.Join", **join)["Gateway"] == "169.254.1.2"
    restart()
    assert lab.driver.ok("NetworkDriver.Join", **join)["Gateway"] == "169.254.1.2"
    lab.driver.ok("NetworkDriver.Leave", NetworkID="b" * 64, EndpointID=endpoint(2))
    restart()
    lab.driver.ok("NetworkDriver.DeleteEndpoint", NetworkID="b" * 64, EndpointID=endpoint(2))
    restart()
    lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=second, Address=address.split("/")[0])
    lab.stop(NET, pool, endpoint(1), first["address"])
    for network in (NET, "b" * 64):
        lab.driver.ok("NetworkDriver.DeleteNetwork", NetworkID=network)
    lab.nothing_left()


def test_a_worker_that_dies_is_replaced(lab: Lab) -> None:
    (worker,) = lab.driver.workers()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: lab.driver.workers() not in ([], [worker]), "a new worker")
    pool = lab.network(NET)
    joined = lab.start(NET, pool, endpoint(1))
    lab.stop(NET, pool, endpoint(1), joined["address"])
    lab.nothing_left()


def test_sigterm_ends_it_after_the_calls_on_their_way(lab: Lab) -> None:
    """A Join that waits is answered; then the sockets are gone and the status is 0. A call broken off would be
    repeated with an empty body.
    """
    pool = lab.network(NET)
    lab.agent.paused = True
    address = lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="")["Address"]
    lab.driver.ok("NetworkDriver.CreateEndpoint", **create_endpoint(NET, endpoint(1), address))
    answers: list[Any] = []
    join = {"NetworkID": NET, "EndpointID": endpoint(1), "SandboxKey": "/netns/box", "Options": {}}
    caller = threading.Thread(target=lambda: answers.append(lab.driver.call("NetworkDriver.Join", **join)))
    caller.start()
    time.sleep(0.3)
    threading.Timer(1.0, lab.agent.ready, (endpoint(1),)).start()
    started = time.monotonic()
    assert lab.driver.stop(signal.SIGTERM) == 0
    assert time.monotonic() - started < 10
    caller.join()
    assert answers[0][0] == 200
    assert not lab.driver.socket.exists() and not lab.driver.ipam_socket.exists()
    lab.driver.start()
    lab.stop(NET, pool, endpoint(1), address.split("/")[0])
    lab.nothing_left()


def test_a_silent_caller_holds_nobody_up(lab: Lab) -> None:
    """A hundred connections that send nothing: calls are answered all the same."""
    silent = []
    for _ in range(100):
        one = socket.socket(socket.AF_UNIX)
        one.connect(str(lab.driver.socket))
        silent.append(one)
    started = time.monotonic()
    lab.driver.ok("NetworkDriver.GetCapabilities")
    assert time.monotonic() - started < 12
    for one in silent:
        one.close()


def test_what_is_in_the_way_of_a_link(lab: Lab) -> None:
    """The kernel refuses: the text has its reason, and neither endpoint nor link stays."""
    pool = lab.network(NET)
    address = lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="")["Address"]
    os.system(f"ip -n {lab.netns} link add tmp{endpoint(1)[:11]} type bridge")
    text = lab.driver.refused("NetworkDriver.CreateEndpoint", **create_endpoint(NET, endpoint(1), address))
    assert f"tmp{endpoint(1)[:11]}" in text
    assert lab.endpoints() == []
    os.system(f"ip -n {lab.netns} link del tmp{endpoint(1)[:11]}")
    lab.driver.ok("IpamDriver.ReleaseAddress", PoolID=pool, Address=address.split("/")[0])
    lab.nothing_left()


def test_a_bad_setting_ends_the_start(lab: Lab, tmp_path: Path) -> None:
    """The text names the variable, its value and what would be right; no traceback."""
    broken = Driver(lab.netns, tmp_path / "other", lab.relay.url, {"CALICO_LIBNETWORK_SCOPE": "swarm"})
    with pytest.raises(AssertionError, match="CALICO_LIBNETWORK_SCOPE.*swarm"):
        broken.start()
    assert "Traceback" not in broken.log.read_text()
