"""Networks carried from host to host: whatever the order of events, hosts end with equal networks, or say why not.

The driver's part (marking what is removed) and the agent's are the real ones, on a store in memory; Docker is a
stand-in that has what matters here: names that are taken, networks in use, calls of the driver.
"""

from __future__ import annotations

import random
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count, permutations
from pathlib import Path
from typing import Callable, Iterator

import pytest

from calico_plugin.agent import shared
from calico_plugin.agent.docker_api import DockerNetwork
from calico_plugin.agent.networks import Networks
from calico_plugin.agent.replication import Replication, Replicator
from calico_plugin.agent.shared import LocalNetwork
from calico_plugin.datastore.store import Store
from calico_plugin.deadline import Deadline
from calico_plugin.driver import networks as driver_networks
from calico_plugin.driver.options import NetworkOptions
from calico_plugin.driver.view import View
from calico_plugin.driver.wire import CreateNetwork
from calico_plugin.errors import DockerBusy, DockerTaken
from calico_plugin.model.docker import CREATING, READY, AddressRange, NetworkSpec, SharedMember, SharedNetwork
from calico_plugin.model.resources import Metadata, Node
from calico_plugin.observe.problems import NETWORKS, Problems
from tests.fakes.memory_kv import MemoryKV

PLAIN, RED, BLUE = NetworkSpec(), NetworkSpec(labels={"team": "red"}), NetworkSpec(labels={"team": "blue"})
HOSTS = ("a", "b", "c")
SECONDS = Deadline(600)


class Crash(Exception):
    """The agent is ended here."""


class Host:
    """One host: Docker, the driver, the agent."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.docker: dict[str, DockerNetwork] = {}
        self.users: set[str] = set()
        self.calls_left = 10**9
        self.driver_away = False
        self.plugins: tuple[str, ...] = ()
        self.driver = driver_networks.Networks(world.store, View(name), name)
        self.problems = Problems(world.path / name)
        self.start()

    def start(self) -> None:
        """A new agent: nothing is remembered."""
        self.agent = Networks(self.world.store, self.name, create_profiles=False)
        self.replicator = Replicator(
            Replication("true", True), self.world.store, self.name, ("calico",), self.problems,
            lambda: f"uid{next(self.world.numbers)}",
        )

    # Docker's API, as the agent uses it

    def networks(self) -> tuple[DockerNetwork, ...]:
        return tuple(self.docker.values())

    def network_users(self, network_id: str) -> tuple[str, ...]:
        return ("web",)

    def network_plugins(self) -> tuple[str, ...]:
        return self.plugins

    def create_network(self, name: str, spec: NetworkSpec) -> str:
        self._spend()
        with self._docker():
            network_id = self.create(name, spec)
        self._spend()
        return network_id

    def remove_network(self, network_id: str) -> None:
        self._spend()
        with self._docker():
            self.remove(network_id)
        self._spend()

    @contextmanager
    def _docker(self) -> Iterator[None]:
        """What Docker and the driver do is not ended with the agent."""
        left, self.calls_left = self.calls_left, 10**9
        try:
            yield
        finally:
            self.calls_left = left

    def _spend(self) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise Crash()

    # What a user does

    def create(self, name: str, spec: NetworkSpec, driver: str = "calico") -> str:
        if self.named(name):
            raise DockerTaken(name)
        network_id = f"{next(self.world.numbers):064x}"
        if driver == "calico":
            call = CreateNetwork(network_id, NetworkOptions(), {}, False, False, ("0.0.0.0/0",), ())
            self.driver.create(call, SECONDS)
        self.docker[network_id] = DockerNetwork(
            network_id, name, driver, "local", False, False, {}, (), {}, self.world.time(), True, spec
        )
        return network_id

    def remove(self, network_id: str) -> None:
        network = self.docker[network_id]
        if network.name in self.users:
            raise DockerBusy(network.name)
        if network.driver == "calico" and not self.driver_away:
            self.driver.delete(network_id, SECONDS)
        del self.docker[network_id]
        self.replicator.destroyed(network_id)

    def named(self, name: str) -> DockerNetwork | None:
        return next((one for one in self.docker.values() if one.name == name), None)

    def spec(self, name: str) -> NetworkSpec | None:
        found = self.named(name)
        return found.spec if found else None

    # What the agent does

    def step(self) -> None:
        for network in self.networks():
            if network.driver == "calico":
                self.agent.complete(network)
        self.replicator.run(self, self.networks(), thorough=True)  # type: ignore[arg-type]

    def crash(self, after: int) -> None:
        """A step that ends after so many calls of Docker and etcd; then a new agent."""
        self.calls_left = after
        self.world.kv.fault = lambda verb: self._spend()
        try:
            self.step()
        except Crash:
            pass
        self.world.kv.fault = lambda verb: None
        self.calls_left = 10**9
        self.start()

    def complaints(self) -> str:
        return " | ".join(self.problems.read().get(NETWORKS, ()))


class World:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.kv = MemoryKV()
        self.store = Store(self.kv)
        self.numbers = count(1)
        self.now = 0
        self.hosts = {name: Host(self, name) for name in HOSTS}
        for name in HOSTS:
            self.store.resources(Node).create(Node(metadata=Metadata(name=name)), SECONDS)

    def time(self) -> str:
        self.now += 1
        return f"2026-11-25T{self.now // 3600:02}:{self.now // 60 % 60:02}:{self.now % 60:02}.123456789Z"

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def settle(self) -> None:
        """Until nobody has anything to do: that must come soon, and for good."""
        for _ in range(12):
            before = self.kv.revision
            for host in self.hosts.values():
                host.step()
            if self.kv.revision == before:
                return
        raise AssertionError("the agents do not come to rest")

    def shared(self) -> dict[str, SharedNetwork]:
        return {one.value.name: one.value for one in self.store.shared_networks.list(SECONDS).items}

    def members(self) -> list[SharedMember]:
        return [one.value for one in self.store.shared_members.list(SECONDS).items]

    def check(self) -> None:
        """At rest and without users: equal networks everywhere, or a word about it, and no leftovers."""
        known = self.shared()
        assert not any(one.deleted for one in known.values())
        for host in self.hosts.values():
            for name, one in known.items():
                if host.spec(name) != one.spec:
                    assert f"network {name} is not made on this host" in host.complaints()
            for network in host.networks():
                assert network.driver != "calico" or network.name in known, f"{network.name} was forgotten"
        assert {one.name for one in self.members()} <= known.keys()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_made_on_one_host_is_on_all(world: World) -> None:
    """With all that was said; a late host gets it, too; and it goes from all."""
    spec = NetworkSpec(
        ranges=(AddressRange(subnet="10.0.0.0/8", gateway="10.0.0.1", auxiliary={"p": "10.0.0.9"}),),
        options={"pool-routes": "true"}, labels={"a": ""}, internal=True, attachable=True, enable_ipv6=True,
    )
    network_id = world["a"].create("net", spec)
    world["a"].step()
    world["b"].step()
    assert world["b"].spec("net") == spec and world["c"].named("net") is None
    world.settle()
    assert world["c"].spec("net") == spec
    assert {(one.node, one.state) for one in world.members()} == {(name, READY) for name in HOSTS}
    world["a"].remove(network_id)
    assert world.shared()["net"].deleted
    world.settle()
    assert not any(host.docker for host in world.hosts.values()) and not world.shared() and not world.members()


def test_managed_plugin_here_and_none_there(world: World) -> None:
    """A driver's name with a tag is replaced where there is no plugin of that name; the networks count as equal."""
    managed = NetworkSpec(driver="calico:latest", ipam_driver="calico:latest")
    world["c"].plugins = ("bridge", "calico:latest")
    world["a"].create("net", managed)
    world.settle()
    assert (world["b"].spec("net"), world["c"].spec("net")) == (PLAIN, managed)
    assert {one.state for one in world.members()} == {READY}


def test_removed_on_a_host_that_did_not_make_it(world: World) -> None:
    """All hosts are equal."""
    world["a"].create("net", PLAIN)
    world.settle()
    world["c"].remove(world["c"].named("net").id)  # type: ignore[union-attr]
    world.settle()
    assert not any(host.docker for host in world.hosts.values()) and not world.shared()


@pytest.mark.parametrize("agent_too", [False, True])
def test_removed_while_a_part_was_away(world: World, agent_too: bool) -> None:
    """The driver tells what the agent misses, and the agent what the driver misses; when both do, the network returns
    rather than being lost everywhere."""
    world["a"].create("net", PLAIN)
    world.settle()
    world["a"].driver_away = True
    world["a"].remove(world["a"].named("net").id)  # type: ignore[union-attr]
    if agent_too:
        world["a"].start()
    world.settle()
    assert all((host.named("net") is not None) == agent_too for host in world.hosts.values())


def test_in_use(world: World) -> None:
    """It stays where it is in use, both hosts say so, and it goes as soon as it can; new containers do not matter."""
    world["a"].create("net", PLAIN)
    world.settle()
    world["b"].users.add("net")
    world["a"].remove(world["a"].named("net").id)  # type: ignore[union-attr]
    for host in ("c", "b", "a"):
        world[host].step()
    assert world["b"].named("net") and not world["c"].named("net")
    assert "net is still in use on this host by web" in world["b"].complaints()
    assert "net was removed here, and is still in use on b (web)" in world["a"].complaints()
    world["b"].users.clear()
    world.settle()
    assert not world["b"].docker and not world.shared() and not world["a"].complaints() + world["b"].complaints()


def test_made_anew_while_still_in_use(world: World) -> None:
    """The same words: the old one becomes the new one; other words: it is replaced when it can be."""
    for spec in (PLAIN, RED):
        world["a"].create("net", PLAIN)
        world.settle()
        world["b"].users.add("net")
        world["a"].remove(world["a"].named("net").id)  # type: ignore[union-attr]
        world["a"].create("net", spec)
        world.settle()
        assert world["b"].spec("net") == PLAIN and world["c"].spec("net") == spec
        world["b"].users.clear()
        world.settle()
        assert all(host.spec("net") == spec for host in world.hosts.values())
        world["c"].remove(world["c"].named("net").id)  # type: ignore[union-attr]
        world.settle()
        world.check()


def test_foreign_network_is_never_touched(world: World) -> None:
    """A bridge network of that name: said, and made as soon as the name is free."""
    world["b"].create("net", PLAIN, driver="bridge")
    before = world["b"].networks()
    world["a"].create("net", PLAIN)
    world.settle()
    assert world["b"].networks() == before and "driver bridge has the name" in world["b"].complaints()
    world["b"].remove(before[0].id)
    world.settle()
    assert world["b"].named("net").driver == "calico" and not world["b"].complaints()  # type: ignore[union-attr]


def test_different_networks_of_one_name_from_before(world: World) -> None:
    """Made long apart, while they could not know of each other: neither is removed, the difference is told."""
    world["a"].create("net", RED)
    world.now += 100
    world["b"].create("net", BLUE)
    world.settle()
    assert (world["a"].spec("net"), world["b"].spec("net"), world["c"].spec("net")) == (RED, BLUE, RED)
    assert "differs from that of a: labels {'team': 'blue'} here, {'team': 'red'} there" in world["b"].complaints()
    world.check()
    world["b"].remove(world["b"].named("net").id)  # type: ignore[union-attr]
    world.settle()
    assert all(host.spec("net") == RED for host in world.hosts.values())


def test_node_that_is_gone_for_good(world: World) -> None:
    """It does not keep the record of a removed network for ever."""
    world["a"].create("net", PLAIN)
    world.settle()
    lost = world.hosts.pop("c")
    world["a"].remove(world["a"].named("net").id)  # type: ignore[union-attr]
    world.settle()
    assert world.shared()["net"].deleted
    world.store.resources(Node).delete(lost.name, SECONDS)
    world.settle()
    assert not world.shared() and not world.members()


def test_leaving(world: World) -> None:
    """With the setting off nothing that happens here concerns others."""
    world["a"].create("net", PLAIN)
    world.settle()
    world["b"].replicator.leave()
    world["b"].remove(world["b"].named("net").id)  # type: ignore[union-attr]
    assert not world.shared()["net"].deleted


@pytest.mark.parametrize(
    "setting, local_only, store, applies",
    [("auto", True, False, True), ("auto", True, True, False), ("auto", False, False, False),
     ("true", False, True, True), ("false", True, False, False)],
)
def test_when_it_applies(tmp_path: Path, setting: str, local_only: bool, store: bool, applies: bool) -> None:
    """`auto`: where neither a cluster store nor the scope says otherwise."""

    @dataclass
    class Api:
        def has_cluster_store(self) -> bool:
            return store

    made = Replicator(Replication(setting, local_only), Store(MemoryKV()), "a", (), Problems(tmp_path))
    assert made.applies(Api()) is applies  # type: ignore[arg-type]


STEPS: dict[str, Callable[[World], object]] = {
    "a makes": lambda world: world["a"].create("net", RED),
    "b makes": lambda world: world["b"].create("net", BLUE),
    "a acts": lambda world: world["a"].step(),
    "b acts": lambda world: world["b"].step(),
    "a removes": lambda world: (found := world["a"].named("net")) and world["a"].remove(found.id),
    "b is ended in the midst": lambda world: world["b"].crash(9),
}


@pytest.mark.parametrize("first", STEPS)
def test_every_order_of_a_race(tmp_path: Path, first: str) -> None:
    """Two make different networks of one name within a minute: in the end all have one, or none."""
    for rest in permutations(STEPS.keys() - {first}):
        world = World(tmp_path)
        for step in (first, *rest):
            with suppress(DockerTaken):
                STEPS[step](world)
        world.settle()
        world.check()
        specs = [host.spec("net") for host in world.hosts.values()]
        assert specs in ([RED] * 3, [BLUE] * 3, [None] * 3), rest
        assert not any(host.complaints() for host in world.hosts.values()), rest


@pytest.mark.parametrize("seed", range(100))
def test_random_lives(tmp_path: Path, seed: int) -> None:
    """Users, agents that are ended anywhere, hosts that do nothing for long: it always settles."""
    rng, world = random.Random(seed), World(tmp_path)
    for _ in range(60):
        host, name = world[rng.choice(HOSTS)], rng.choice(("x", "y"))
        found = host.named(name)
        match rng.randrange(8):
            case 0 | 1 if found is None:
                driver = "bridge" if rng.random() < 0.1 else "calico"
                host.create(name, rng.choice((PLAIN, RED, BLUE)), driver)
            case 2 if found is not None and name not in host.users:
                host.remove(found.id)
            case 3 if found is not None:
                host.users ^= {name}
            case 4:
                host.crash(rng.randrange(20))
            case 5:
                world.now += rng.choice((1, 90))
            case _:
                host.step()
    for host in world.hosts.values():
        host.users.clear()
    world.settle()
    world.check()


@pytest.mark.parametrize("used", [False, True])
def test_docker_made_two_of_one_name(tmp_path: Path, used: bool) -> None:
    """A user's command and the agent's passed Docker's check at once: ours stays; the other goes, or is named."""
    world = World(tmp_path)
    world["a"].create("net", RED)
    world["a"].step()
    world["b"].step()
    copy = world["b"].named("net")
    assert copy is not None
    world["b"].create("other", BLUE)
    twin = world["b"].named("other")
    assert twin is not None
    world["b"].docker[twin.id] = replace(twin, name="net")
    if used:
        world["b"].users.add("net")
    world["b"].step()
    assert copy.id in world["b"].docker and (twin.id in world["b"].docker) == used
    assert ("is there twice" in world["b"].complaints()) == used
    world.settle()
    assert world["a"].spec("net") == RED and world["b"].docker[copy.id].spec == RED


# The decision itself.

MINE = LocalNetwork("id1", "net", "calico", True, "2026-11-25T10:00:00.1Z", PLAIN)
THEIRS = SharedNetwork(name="net", uid="u1", spec=PLAIN, created="2026-11-25T10:00:30Z", created_on="b")
LINKED = SharedMember(name="net", node="a", uid="u1", network_id="id1", state=READY)


def decided(*local: LocalNetwork, there: SharedNetwork | None = None, member: SharedMember | None = None) -> list[str]:
    actions = shared.decide(local, {"net": there} if there else {}, {"net": member} if member else {})
    return [type(action).__name__ for action in actions]


def with_(one: SharedNetwork, **changes: object) -> SharedNetwork:
    return SharedNetwork(**{name: getattr(one, name) for name in one.__struct_fields__} | changes)


def test_decisions() -> None:
    """One by one."""
    gone, other = with_(THEIRS, deleted=True), replace(MINE, spec=RED)
    assert decided() == [] and decided(MINE) == ["Publish"] and decided(there=THEIRS) == ["Create"]
    assert decided(replace(MINE, ours=False)) == [] and decided(replace(MINE, ours=False), there=THEIRS) == ["Refuse"]
    assert decided(MINE, there=THEIRS) == ["Adopt"] and decided(MINE, there=THEIRS, member=LINKED) == []
    assert decided(other, there=THEIRS, member=LINKED) == []
    assert decided(other, there=THEIRS) == ["Remove"]
    assert decided(replace(other, created="2026-11-25T10:02:00Z"), there=THEIRS) == ["Refuse"]
    assert decided(replace(other, created="?"), there=THEIRS) == ["Refuse"]
    assert decided(MINE, there=gone, member=LINKED) == ["Remove"] and decided(MINE, there=gone) == ["Publish"]
    assert decided(there=gone, member=LINKED) == ["Forget"] and decided(there=gone) == ["Bury"]
    assert decided(member=LINKED) == ["Forget"]
    creating = SharedMember(name="net", node="a", uid="u1", state=CREATING)
    assert decided(MINE, there=gone, member=creating) == ["Remove"]
    assert decided(other, there=gone, member=creating) == ["Publish"]
    twin = replace(MINE, id="id0", created="2026-11-25T09:00:00Z")
    assert decided(MINE, twin, there=THEIRS, member=LINKED) == []
    twin = replace(MINE, id="id0", created="2026-11-25T10:00:31Z", spec=RED)
    assert decided(MINE, twin, there=THEIRS, member=LINKED) == ["RemoveTwin"]
    assert decided(MINE, twin, there=gone, member=LINKED) == ["Remove"]
    assert decided(MINE, twin) == ["Publish"]


def test_docker_times() -> None:
    """Nine digits, a zone, or nothing that is a time."""
    assert shared.seconds("1970-01-01T00:01:00.999999999Z") == 60.0 == shared.seconds("1970-01-01T01:01:00+01:00")
    assert shared.seconds("") is None and shared.seconds("9999-99-99T00:00:00Z") is None
