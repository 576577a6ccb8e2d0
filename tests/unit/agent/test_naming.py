"""What this host's containers are called, told to the cluster.

Docker itself is a stand-in here (tests/lab has the real one).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Sequence

import pytest

from calico_plugin.agent.docker_api import Called, Container, DockerApi, Event, _called, _container
from calico_plugin.agent.naming import Naming
from calico_plugin.agent.responder import Asking
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.errors import DockerError
from calico_plugin.model import keys, names
from calico_plugin.model.docker import EndpointNames
from calico_plugin.model.resources import Metadata, WorkloadEndpoint
from calico_plugin.model.resources.endpoint import WorkloadEndpointSpec
from tests.fakes.memory_kv import MemoryKV

NODE = "host1"
SECONDS = Deadline(86400)


@dataclass(eq=False)
class FakeDocker:
    """Docker's answers; `inspected` are the containers whose lock was taken."""

    running: dict[str, tuple[Called, ...]] = field(default_factory=dict)
    cluster_store: bool = False
    asks_from_host: bool = False
    broken: bool = False
    inspected: list[str] = field(default_factory=list)

    def containers(self, container_id: str = "") -> Sequence[Container]:
        return tuple(self.container(one) for one in self.running if container_id in ("", one))

    def container(self, one: str) -> Container:
        called = self.running[one]
        return Container(one, {}, {end.network: end.endpoint for end in called}, called[0].names[0])

    def called(self, container_id: str) -> tuple[Called, ...]:
        self.inspected.append(container_id)
        if self.broken:
            raise DockerError("Docker's API: busy")
        return self.running.get(container_id, ())

    def has_cluster_store(self) -> bool:
        return self.cluster_store


class World:
    """A store in memory, a clock by hand, and the worker that is stepped by hand."""

    def __init__(self, setting: str = "auto", **docker: Any) -> None:
        self.store, self.docker, self.now = Store(MemoryKV()), FakeDocker(**docker), 1000.0
        self.asking = Asking({}, False)
        self.naming = self.started(setting)

    def started(self, setting: str = "auto") -> Naming:
        naming = Naming("unix:///nowhere", setting, self.store, NODE, self.asks, clock=lambda: self.now)
        naming._api = self.docker  # type: ignore[assignment]
        return naming

    def asks(self, asking: Asking) -> None:
        self.asking = asking

    def list(self) -> None:
        self.now += 60
        self.naming._step()

    def hear(self, action: str, container: str) -> None:
        if action in ("connect", "disconnect"):
            self.naming._hear(Event("network", action, "n", {"container": container}))
        else:
            self.naming._hear(Event("container", action, container, {}))
        self.naming._step()

    def run(self, container: str, *called: Called, foreign: Sequence[str] = ()) -> None:
        self.docker.running[container] = called
        for one in called:
            if one.endpoint not in foreign:
                self.endpoint(one.endpoint)

    def endpoint(self, endpoint: str) -> None:
        spec = WorkloadEndpointSpec(endpoint=endpoint, ip_networks=("10.0.0.1/32",), interface_name="cali1")
        metadata = Metadata(name=names.workload_endpoint(NODE, endpoint), namespace=names.NAMESPACE)
        self.store.resources(WorkloadEndpoint).create(WorkloadEndpoint(metadata=metadata, spec=spec), SECONDS)

    def told(self) -> dict[str, EndpointNames]:
        found = self.store.endpoint_names.list(SECONDS).items
        return {one.key.removeprefix(keys.names_of_node(NODE)): one.value for one in found}


def called(network: str, endpoint: str, *names_: str) -> Called:
    return Called(network, endpoint, names_, (f"addr-{endpoint}",))


def test_started_renamed_stopped() -> None:
    """Each with one look at the container."""
    world = World()
    world.list()
    world.run("c1", called("net1", "e1", "web", "www"))
    world.hear("start", "c1")
    assert world.told() == {"e1": EndpointNames(container="c1", network="net1", names=("web", "www"))}
    world.docker.running["c1"] = (called("net1", "e1", "shop", "www"),)
    world.hear("rename", "c1")
    assert world.told()["e1"].names == ("shop", "www")
    assert world.docker.inspected == ["c1", "c1"]
    del world.docker.running["c1"]
    world.hear("die", "c1")
    assert world.told() == {} and world.docker.inspected == ["c1", "c1"]


def test_connected_and_disconnected() -> None:
    world = World()
    world.run("c1", called("net1", "e1", "web"))
    world.list()
    world.run("c1", called("net2", "e2", "web", "two"), foreign=["e1"])
    world.docker.running["c1"] += (called("net1", "e1", "web"),)
    world.hear("connect", "c1")
    assert set(world.told()) == {"e1", "e2"}
    world.docker.running["c1"] = (called("net2", "e2", "web", "two"),)
    world.hear("disconnect", "c1")
    assert set(world.told()) == {"e2"}


def test_networks_of_other_drivers_are_not_told() -> None:
    """But who asks from one of them is known."""
    world = World(asks_from_host=True)
    world.run("c1", called("net1", "e1", "web"), called("bridge", "e2", "web"), foreign=["e2"])
    world.run("c2", called("bridge", "e3", "other"), foreign=["e3"])
    world.list()
    assert set(world.told()) == {"e1"}
    assert world.asking == Asking({"addr-e1": "c1", "addr-e2": "c1"}, True)


def test_what_events_missed_is_found_by_listing() -> None:
    """Also what others deleted; and no container is inspected without a reason."""
    world = World()
    world.run("c1", called("net1", "e1", "web"))
    world.run("c2", called("net1", "e2", "db"))
    world.list()
    del world.docker.running["c2"]
    world.docker.running["c1"] = (called("net1", "e1", "shop"),)
    world.list()
    assert {one.names for one in world.told().values()} == {("shop",)}
    world.store.endpoint_names.delete(f"{NODE} e1", SECONDS)
    world.docker.inspected.clear()
    world.list()
    assert set(world.told()) == {"e1"} and world.docker.inspected == []


def test_a_restart_of_the_agent_takes_up_what_is_there() -> None:
    """Names of containers that ended meanwhile go; those of other nodes stay."""
    world = World()
    world.run("c1", called("net1", "e1", "web"))
    world.run("c2", called("net1", "e2", "db"))
    world.list()
    world.store.endpoint_names.create("host2 e9", EndpointNames(container="x", network="net1", names=("far",)), SECONDS)
    world.store.kv.put(keys.endpoint_names(NODE, "broken"), b"{", SECONDS)
    del world.docker.running["c2"]
    world.naming = world.started()
    world.list()
    found = [one.value.names for one in world.store.endpoint_names.list(SECONDS).items]
    assert sorted(found) == [("far",), ("web",)] and not world.store.endpoint_names.list(SECONDS).invalid


def test_a_docker_that_fails_takes_nothing_away() -> None:
    """And what could not be told is told later, with no event about it."""
    world = World()
    world.run("c1", called("net1", "e1", "web"))
    world.list()
    world.run("c2", called("net1", "e2", "db"))
    world.docker.broken = True
    with pytest.raises(DockerError):
        world.hear("start", "c2")
    assert set(world.told()) == {"e1"}
    world.docker.broken = False
    world.naming._step()
    assert set(world.told()) == {"e1", "e2"}


@pytest.mark.parametrize(
    "setting, cluster_store, tells",
    [("auto", False, True), ("auto", True, False), ("true", True, True), ("false", False, False)],
)
def test_setting(setting: str, cluster_store: bool, tells: bool) -> None:
    """A host that tells nothing takes back what it told."""
    world = World(setting, cluster_store=cluster_store)
    before = EndpointNames(container="c1", network="net1", names=("web",))
    world.store.endpoint_names.create(f"{NODE} e1", before, SECONDS)
    world.run("c1", called("net1", "e1", "web"))
    world.list()
    assert bool(world.told()) is tells


def inspected(names_of: dict[str, Any]) -> dict[str, Any]:
    one = {"EndpointID": "e1", "IPAddress": "10.0.0.1", "GlobalIPv6Address": "", **names_of}
    ends = {"net1": one, "down": {"EndpointID": "", "Aliases": ["x"]}}
    about = {"Id": "0123456789abcdef", "Name": "/web", "Config": {"Hostname": "h"}}
    return {**about, "NetworkSettings": {"Networks": ends}}


@pytest.mark.parametrize(
    "ends, found",
    [
        ({"Aliases": ["www", "0123456789ab"], "DNSNames": None}, ("web", "www", "0123456789ab", "h")),
        ({"Aliases": None}, ("web", "0123456789ab", "h")),
        ({"Aliases": ["www"], "DNSNames": ["web", "www", "0123456789ab", "h"]}, ("web", "www", "0123456789ab", "h")),
    ],
)
def test_what_docker_says(ends: dict[str, Any], found: tuple[str, ...]) -> None:
    """20.10's words, those of a container without aliases, and 26's."""
    assert _called(inspected(ends)) == (Called("net1", "e1", found, ("10.0.0.1",)),)


def test_names_of_links_are_no_names() -> None:
    """A container that another one links is listed under that one's alias, too."""
    raw = {"Id": "1", "Names": ["/other/alias", "/web"], "NetworkSettings": {"Networks": {
        "net1": {"EndpointID": "e1"}, "gone": None}}}
    assert _container(raw) == Container("1", {}, {"net1": "e1"}, "web")


def test_the_real_api_has_what_the_stand_in_has() -> None:
    for name in ("containers", "called", "has_cluster_store", "asks_from_host"):
        assert hasattr(DockerApi, name)
