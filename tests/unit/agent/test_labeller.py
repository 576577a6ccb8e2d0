"""Endpoints that wait for their containers' labels. Docker itself is a stand-in here (tests/lab has the real one)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Mapping

import pytest

from calico_plugin.agent import labels
from calico_plugin.agent.docker_api import Container, DockerNetwork
from calico_plugin.agent.labeller import Labeller
from calico_plugin.agent.labels import Awaited
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.errors import DockerError
from calico_plugin.model import names
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import Metadata, WorkloadEndpoint
from calico_plugin.model.resources.endpoint import WorkloadEndpointSpec
from calico_plugin.observe.metrics import Metrics
from calico_plugin.observe.problems import Problems
from tests.fakes.memory_kv import MemoryKV

NODE = "host1"
SECONDS = Deadline(86400)
WEB = Container("c1" * 32, {"org.projectcalico.label.role": "web", "com.example": "x"}, {}, "web")


def network(identity: str, name: str, driver: str = "calico") -> DockerNetwork:
    return DockerNetwork(identity * 32, name, driver, "local", False, False, {}, (), {})


@dataclass
class FakeDocker:
    """`ends`: network id -> endpoint id -> container's name."""

    listed: list[DockerNetwork] = field(default_factory=lambda: [network("n1", "net1"), network("b1", "b", "bridge")])
    ends: dict[str, dict[str, str]] = field(default_factory=dict)
    known: list[Container] = field(default_factory=lambda: [WEB])
    running: list[Container] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    broken: bool = False
    closed: int = 0

    def networks(self) -> Iterable[DockerNetwork]:
        if self.broken:
            raise DockerError("Docker's API: no answer")
        return self.listed

    def attached(self, network_id: str) -> Mapping[str, str]:
        self.asked.append(network_id[:2])
        return self.ends.get(network_id[:2], {})

    def containers_named(self, wanted: Iterable[str]) -> tuple[Container, ...]:
        listed = set(wanted)
        return tuple(one for one in self.known if one.name in listed)

    def containers(self) -> tuple[Container, ...]:
        return tuple(self.running)

    def close(self) -> None:
        self.closed += 1


class World:
    def __init__(self, run_dir: Path, enabled: bool = True) -> None:
        self.store, self.docker, self.now = Store(MemoryKV()), FakeDocker(), 0.0
        self.problems = Problems(run_dir)
        self.labeller = Labeller(
            lambda: self.docker,  # type: ignore[arg-type, return-value]
            frozenset({"calico"}), self.store, NODE, enabled, Metrics(NODE), self.problems, lambda: self.now)

    def endpoint(self, endpoint: str = "e1", profile: str = "net1", mark: bool = True) -> Awaited:
        made = WorkloadEndpoint(
            metadata=Metadata(
                name=names.workload_endpoint(NODE, endpoint), namespace=names.NAMESPACE, labels={"own": "1"},
                annotations={"kept": "1", **({names.LABELS_AWAITED: "true"} if mark else {})}),
            spec=WorkloadEndpointSpec(endpoint=endpoint, profiles=(profile,)))
        self.store.resources(WorkloadEndpoint).create(made, SECONDS)
        self.labeller.submit(Awaited(endpoint, profile))
        return Awaited(endpoint, profile)

    def look(self, seconds: float = 0.0) -> int:
        self.now += seconds
        waiting = dict(self.labeller._waiting)
        found = self.labeller._look(waiting)
        self.labeller._tell(dict(self.labeller._waiting))
        return found

    def stored(self, endpoint: str = "e1") -> WorkloadEndpoint:
        name = names.workload_endpoint(NODE, endpoint)
        return self.store.resources(WorkloadEndpoint).get(name, SECONDS, names.NAMESPACE).value

    def told(self) -> list[str]:
        return self.problems.read().get("labels", [])


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_container_that_is_being_started_is_found_by_the_name_of_its_endpoint(world: World) -> None:
    """As soon as Docker shows the endpoint; labels and the mark's end are one write, and all else stays."""
    world.endpoint()
    assert world.look() == 0 and world.stored().awaits_labels
    world.docker.ends = {"n1": {"e1": "web"}}
    assert world.look() == 1
    stored = world.stored()
    assert (stored.labels, stored.metadata.annotations) == ({"own": "1", "role": "web"}, {"kept": "1"})
    assert world.look() == 0 and set(world.docker.asked) == {"n1"}


def test_container_without_labels_is_let_go_too(world: World) -> None:
    world.docker.known, world.docker.ends = [Container("c2" * 32, {}, {}, "web")], {"n1": {"e1": "web"}}
    world.endpoint()
    assert world.look() == 1 and not world.stored().awaits_labels


def test_network_made_anew_under_its_name_is_found(world: World) -> None:
    """What Docker called it before is not asked for ever."""
    world.docker.ends = {"n1": {"e1": "web"}}
    world.endpoint()
    world.look()
    world.docker.listed, world.docker.ends = [network("n2", "net1")], {"n2": {"e2": "web"}}
    world.endpoint("e2")
    assert world.look() == 0 and world.look() == 1


def test_profile_of_another_name_leads_to_all_networks_of_ours(world: World) -> None:
    world.docker.ends = {"n1": {"e1": "web"}, "b1": {"e1": "other"}}
    world.endpoint(profile="my-own")
    assert world.look() == 1 and set(world.docker.asked) == {"n1"}


def test_docker_that_does_not_answer_leaves_the_endpoint_dark_and_is_told(world: World) -> None:
    """And is asked anew over a new connection; whoever runs by then is found by its endpoint's id."""
    world.docker.broken = True
    world.endpoint()
    assert world.look() == 0 and world.told() == [] and world.docker.closed == 1
    assert world.look(3) == 0
    (sentence,) = world.told()
    assert "e1" in sentence and "no answer" in sentence and "carries nothing" in sentence
    world.docker.broken, world.docker.running = False, [Container("c1" * 32, WEB.labels, {"net1": "e1"}, "web")]
    assert world.look() == 1 and world.stored().labels["role"] == "web"
    assert world.told() == []


def test_endpoint_that_is_gone_is_not_asked_for(world: World) -> None:
    world.endpoint()
    world.labeller.withdraw("e1")
    assert world.look() == 0
    assert world.docker.asked == []


def test_marks_are_taken_away_where_labels_are_not_wanted(tmp_path: Path) -> None:
    """The setting was on when the container started; Docker is not asked."""
    world = World(tmp_path, enabled=False)
    world.docker.broken = True
    world.endpoint()
    assert world.look() == 1 and not world.stored().awaits_labels and world.stored().labels == {"own": "1"}


def test_sentence_of_an_earlier_agent_is_taken_away(world: World) -> None:
    world.problems.tell("labels", ["endpoint e0 carries nothing"])
    assert json.dumps(world.told()) == '["endpoint e0 carries nothing"]'
    world.look()
    assert world.told() == []


@pytest.mark.parametrize(("node", "mark", "waits"), [(NODE, True, True), (NODE, False, False), ("other", True, False)])
def test_only_marked_endpoints_of_this_node_wait(world: World, node: str, mark: bool, waits: bool) -> None:
    world.endpoint(mark=mark)
    key = ResourceKey("WorkloadEndpoint", names.workload_endpoint(NODE, "e1"), names.NAMESPACE)
    assert (labels.awaited(key, world.stored(), node) is not None) == waits
    assert labels.awaited(key, None, node) is None
