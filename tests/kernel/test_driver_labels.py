"""Where containers' labels are wanted: the driver marks what it stores, and does not wait for ever for the agent."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Iterator

import pytest

from calico_plugin.agent.lock import AgentLock
from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.model import names
from tests.kernel.driverlab import Lab, create_endpoint, driver_lab, fill, wait_until

pytestmark = pytest.mark.root

NETWORK, ONE = "aa" * 32, "b1" * 32


@pytest.fixture
def lab(tmp_path: Path, etcd: str, kv: EtcdKV) -> Iterator[Lab]:
    fill(kv)
    with driver_lab(tmp_path, kv, etcd, {"CALICO_LIBNETWORK_LABEL_ENDPOINTS": "true"}) as made:
        yield made


@pytest.mark.long
def test_endpoint_is_marked_and_its_container_starts_in_the_dark(lab: Lab) -> None:
    """While Docker starts it tells no labels: Join is answered after some seconds, if the agent lives. The agent lets
    nothing pass as long as the mark is there.
    """
    pool = lab.network(NETWORK)
    lab.agent.paused = True
    address = lab.driver.ok("IpamDriver.RequestAddress", PoolID=pool, Address="", Options=None)["Address"]
    wait_until(lambda: lab.networks()[0].name, "the network's name")
    lab.driver.ok("NetworkDriver.CreateEndpoint", **create_endpoint(NETWORK, ONE, address))
    (stored,) = lab.endpoints()
    assert stored.metadata.annotations == {names.LABELS_AWAITED: "true"} and stored.awaits_labels
    join = {"NetworkID": NETWORK, "EndpointID": ONE, "SandboxKey": "/var/run/docker/netns/0123456789ab", "Options": {}}
    with closing(AgentLock(lab.driver.run_dir)):
        began = time.monotonic()
        joined = lab.driver.ok("NetworkDriver.Join", **join)
        assert 2.5 < time.monotonic() - began < 10
    assert joined["InterfaceName"]["SrcName"] == names.temporary_interface(ONE)
    assert "starts before its labels are known" in lab.driver.log.read_text()


def test_endpoint_with_its_labels_is_answered_at_once(lab: Lab) -> None:
    """As soon as the agent says that it is ready."""
    pool = lab.network(NETWORK)
    wait_until(lambda: lab.networks()[0].name, "the network's name")
    began = time.monotonic()
    lab.start(NETWORK, pool, ONE)
    assert lab.endpoints()[0].awaits_labels
    assert time.monotonic() - began < 2.5
