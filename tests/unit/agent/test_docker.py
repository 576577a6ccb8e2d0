"""What Docker's networks, labels and running containers mean for the cluster.

Docker itself is a stand-in here (tests/lab has the real one).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Sequence

import pytest
from msgspec.structs import replace

from calico_plugin.agent import labels
from calico_plugin.agent.docker_api import Container, DockerNetwork, Event
from calico_plugin.agent.docker_sync import DockerSettings, DockerSync
from calico_plugin.agent.endpoints import LocalEndpoint, local_endpoint
from calico_plugin.agent.networks import Networks
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.model import names
from calico_plugin.model.docker import NetworkRecord
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import Metadata, Profile, WorkloadEndpoint
from calico_plugin.model.resources.endpoint import WorkloadEndpointSpec
from calico_plugin.observe.metrics import Metrics
from tests.fakes.memory_kv import MemoryKV

NODE = "host1"
# Made once at import: it must outlast every test that runs before these.
SECONDS = Deadline(86400)
NET = DockerNetwork("n1" * 32, "cal_net1", "calico", "global", False, False, {}, ("0.0.0.0/0",), {})
OTHER = DockerNetwork("b1" * 32, "bridge", "bridge", "local", False, False, {}, (), {})
PROFILE = "cal-net1-4e742f11"


@dataclass
class FakeDocker:
    """Docker's answers."""

    listed: list[DockerNetwork] = field(default_factory=list)
    running: list[Container] = field(default_factory=list)
    cluster_store: bool = False

    def networks(self) -> Sequence[DockerNetwork]:
        return tuple(self.listed)

    def network(self, network_id: str) -> DockerNetwork | None:
        return next((one for one in self.listed if one.id == network_id), None)

    def containers(self, container_id: str = "") -> Sequence[Container]:
        return tuple(one for one in self.running if container_id in ("", one.id))

    def has_cluster_store(self) -> bool:
        return self.cluster_store


class World:
    """A store in memory, a clock by hand, and the worker that is stepped by hand."""

    def __init__(self, create_profiles: bool = True, label_endpoints: bool = False) -> None:
        self.store = Store(MemoryKV())
        self.docker = FakeDocker()
        self.now = 1000.0
        self.linkless: tuple[LocalEndpoint, ...] = ()
        self.networks = Networks(self.store, NODE, create_profiles)
        self.sync = DockerSync(
            DockerSettings("unix:///nowhere", frozenset({"calico", "calico:latest"}), label_endpoints),
            self.store,
            NODE,
            self.networks,
            Metrics(NODE),
            linkless=lambda: self.linkless,
            changed=lambda: None,
            clock=lambda: self.now,
        )
        self.sync._api = self.docker  # type: ignore[assignment]

    def step(self, seconds: float = 30.0) -> None:
        self.now += seconds
        self.sync._step()

    def records(self) -> list[NetworkRecord]:
        return [one.value for one in self.store.networks.list(SECONDS).items]

    def profiles(self) -> list[Profile]:
        return [one.value for one in self.store.resources(Profile).list(SECONDS).items]

    def endpoint(self, endpoint: str) -> WorkloadEndpoint:
        made = WorkloadEndpoint(
            metadata=Metadata(
                name=names.workload_endpoint(NODE, endpoint), namespace=names.NAMESPACE, labels={"own": "1"}
            ),
            spec=WorkloadEndpointSpec(
                endpoint=endpoint, ip_networks=("10.0.0.1/32",), interface_name=names.host_interface(endpoint)
            ),
        )
        return self.store.resources(WorkloadEndpoint).create(made, SECONDS).value

    def stored(self, endpoint: str) -> WorkloadEndpoint | None:
        name = names.workload_endpoint(NODE, endpoint)
        found = self.store.resources(WorkloadEndpoint).find(name, SECONDS, names.NAMESPACE)
        return found.value if found else None


class TestNetworks:
    def test_record_of_the_driver_gets_its_name_and_profile(self) -> None:
        """What the driver wrote stays; the profile is decision 7's."""
        world = World()
        record = NetworkRecord(network_id=NET.id, options={"a": "b"}, created_on="host2")
        world.store.networks.create(NET.id, record, SECONDS)
        world.docker.listed = [NET, OTHER]
        world.step()
        assert world.records() == [
            NetworkRecord(network_id=NET.id, name="cal_net1", profile=PROFILE, options={"a": "b"}, created_on="host2")
        ]
        (profile,) = world.profiles()
        assert profile.name == PROFILE
        assert profile.spec.labels_to_apply == {"cal_net1": ""}
        assert [(rule.action, rule.source.selector) for rule in profile.spec.ingress] == [("Allow", "has(cal_net1)")]
        assert [(rule.action, rule.source.selector) for rule in profile.spec.egress] == [("Allow", "")]

    def test_missing_record_is_written_whole(self) -> None:
        """From what Docker knows; a network of the cluster was made by no host in particular."""
        world = World()
        subnets = ("10.1.0.0/16", "fd00::/64")
        world.docker.listed = [NET, replace_network(NET, id="n2" * 32, name="loc", scope="local", subnets=subnets)]
        world.step()
        shared, local = sorted(world.records(), key=lambda one: one.network_id)
        assert (shared.created_on, shared.pools4) == ("", ("0.0.0.0/0",))
        assert (local.created_on, local.pools4, local.pools6) == (NODE, ("10.1.0.0/16",), ("fd00::/64",))

    def test_done_is_done(self) -> None:
        """A second listing writes nothing, and a profile that a user changed stays."""
        world = World()
        world.docker.listed = [NET]
        world.step()
        profiles = world.store.resources(Profile)
        stored = profiles.get(PROFILE, SECONDS)
        profiles.update(stored, replace(stored.value, spec=replace(stored.value.spec, egress=())), SECONDS)
        revision = world.store.kv.list("", SECONDS).revision
        world.step()
        assert world.store.kv.list("", SECONDS).revision == revision

    def test_without_profiles(self) -> None:
        """CALICO_LIBNETWORK_CREATE_PROFILES=false: only the record is completed."""
        world = World(create_profiles=False)
        world.docker.listed = [NET]
        world.step()
        assert world.records()[0].profile == PROFILE and world.profiles() == []

    def test_name_that_is_no_label(self) -> None:
        """The profile uses a stand-in that is legal, on both of its sides."""
        world = World()
        world.docker.listed = [replace_network(NET, name="x" * 70 + "_")]
        world.step()
        (profile,) = world.profiles()
        (label,) = profile.spec.labels_to_apply
        assert label.startswith("docker-network-") and len(label) <= 63
        assert profile.spec.ingress[0].source.selector == f"has({label})"

    def test_event_of_a_new_network(self) -> None:
        """A create event is enough, without listing."""
        world = World()
        world.step()
        world.docker.listed = [NET]
        world.sync._hear(Event("network", "create", NET.id, {}))
        world.step(0)
        assert world.records()[0].name == "cal_net1"

    def test_managed_plugin_counts_and_others_do_not(self) -> None:
        """`calico:latest` is ours, `bridge` is not."""
        world = World()
        world.docker.listed = [OTHER, replace_network(NET, driver="calico:latest")]
        world.step()
        assert [one.network_id for one in world.records()] == [NET.id]


def replace_network(network: DockerNetwork, **changes: object) -> DockerNetwork:
    from dataclasses import replace as replaced

    return replaced(network, **changes)  # type: ignore[arg-type]


class TestForgottenNetworks:
    def made(self, created_on: str = NODE) -> World:
        world = World()
        record = NetworkRecord(network_id=NET.id, name="cal_net1", profile=PROFILE, created_on=created_on)
        world.store.networks.create(NET.id, record, SECONDS)
        world.docker.listed = [NET]
        world.step()
        assert len(world.profiles()) == 1
        return world

    def test_destroyed_while_the_driver_was_away(self) -> None:
        """Heard of, the driver's grace is over, the record is still there: it goes, with its profile."""
        world = self.made(created_on="host2")
        world.docker.listed = []
        world.sync._hear(Event("network", "destroy", NET.id, {"type": "calico"}))
        world.step(1)
        assert world.records()
        world.step(6)
        assert world.records() == [] and world.profiles() == []

    def test_missed_event(self) -> None:
        """Not listed for a minute: gone. Not listed once means nothing."""
        world = self.made()
        world.docker.listed = []
        for seconds, left in ((30, 1), (30, 1), (30, 0)):
            world.step(seconds)
            assert len(world.records()) == left

    def test_listed_again(self) -> None:
        """Its absence begins anew."""
        world = self.made()
        for _ in range(4):
            world.docker.listed = []
            world.step()
            world.docker.listed = [NET]
            world.step()
        assert world.records()

    def test_cluster_store_that_may_not_answer(self) -> None:
        """With a store and no other network of it in the list, Docker may just not see it: longer patience."""
        world = self.made()
        world.docker.listed, world.docker.cluster_store = [], True
        for _ in range(6):
            world.step()
        assert world.records()
        world.docker.listed = [replace_network(NET, id="n2" * 32, name="second")]
        world.step()
        assert [one.name for one in world.records()] == ["second"]

    def test_network_of_another_host_is_not_ours_to_forget(self) -> None:
        """Only its own Docker can tell."""
        world = self.made(created_on="host2")
        world.docker.listed = []
        for _ in range(20):
            world.step()
        assert world.records()

    def test_profile_that_another_network_needs_stays(self) -> None:
        """Two hosts with a network of one name share the profile."""
        world = self.made()
        twin = NetworkRecord(network_id="t" * 64, name="cal_net1", profile=PROFILE, created_on="host2")
        world.store.networks.create(twin.network_id, twin, SECONDS)
        world.docker.listed = []
        for _ in range(4):
            world.step()
        assert world.records() == [twin] and len(world.profiles()) == 1


class TestForgottenEndpoints:
    def test_only_what_docker_does_not_know(self) -> None:
        """Of endpoints without link, those of running containers stay, and those of other orchestrators."""
        world = World()
        for one in ("e1", "e2"):
            world.endpoint(one)
        world.docker.running = [Container("c", {}, {"cal_net1": "e2"})]
        found = [local_endpoint(key_of(one), world.stored(one), NODE) for one in ("e1", "e2")]
        world.linkless = tuple(one for one in found if one)
        world.step()
        assert world.stored("e1") is None and world.stored("e2") is not None

    def test_nothing_while_docker_is_absent(self) -> None:
        """No answer is no reason."""
        world = World()
        made = world.endpoint("e1")
        found = local_endpoint(key_of("e1"), made, NODE)
        assert found
        world.linkless = (found,)
        world.sync._api = None
        world.step()
        assert world.stored("e1") is not None


def key_of(endpoint: str) -> ResourceKey:
    return ResourceKey("WorkloadEndpoint", names.workload_endpoint(NODE, endpoint), names.NAMESPACE)


class TestLabels:
    @pytest.mark.parametrize(
        "given, taken",
        [
            ({"org.projectcalico.label.role": "web"}, {"role": "web"}),
            ({"org.projectcalico.label.example.com/role": ""}, {"example.com/role": ""}),
            ({"role": "web", "com.docker.compose.project": "x"}, {}),
            ({"org.projectcalico.label.role": "a b"}, {}),
            ({"org.projectcalico.label.-x": "1", "org.projectcalico.label.y": "1"}, {"y": "1"}),
            ({"org.projectcalico.label.": "1"}, {}),
            ({"org.projectcalico.label.projectcalico.org/namespace": "other"}, {}),
            ({"org.projectcalico.label.pcns.x": "1"}, {}),
            ({"org.projectcalico.label.x": "1" * 64}, {}),
        ],
    )
    def test_which_labels_are_taken(self, given: dict[str, str], taken: dict[str, str]) -> None:
        """Only the prefix, and only what Calico would take; a bad one costs itself alone."""
        assert labels.wanted(given)[0] == taken

    def test_endpoint_gets_them_beside_its_own(self) -> None:
        """By the start event, on each endpoint of ours; written once."""
        world = World(label_endpoints=True)
        world.endpoint("e1")
        world.step()
        container = Container("c1", {"org.projectcalico.label.role": "web"}, {"cal_net1": "e1", "bridge": "e9"})
        world.docker.running = [container]
        world.sync._hear(Event("container", "start", "c1", {}))
        world.step(0)
        stored = world.stored("e1")
        assert stored and stored.labels == {"own": "1", "role": "web"}
        revision = world.store.kv.list("", SECONDS).revision
        world.step()
        assert world.store.kv.list("", SECONDS).revision == revision

    def test_off_by_default(self) -> None:
        """Without CALICO_LIBNETWORK_LABEL_ENDPOINTS nothing is copied."""
        world = World()
        world.endpoint("e1")
        world.docker.running = [Container("c1", {"org.projectcalico.label.role": "web"}, {"cal_net1": "e1"})]
        world.step()
        stored = world.stored("e1")
        assert stored and stored.labels == {"own": "1"}
