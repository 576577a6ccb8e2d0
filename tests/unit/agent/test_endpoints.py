"""Endpoints, links and addresses: the same end whatever the order in which they are heard of."""

from __future__ import annotations

import itertools
from pathlib import Path

from calico_plugin.agent.endpoints import Endpoints, LocalEndpoint, Published, local_endpoint
from calico_plugin.agent.status_files import StatusFiles
from calico_plugin.dataplane.delta import Delta
from calico_plugin.dataplane.links import Link
from calico_plugin.model import names
from calico_plugin.model.keys import ResourceKey
from calico_plugin.model.resources import Metadata, WorkloadEndpoint
from calico_plugin.model.resources.endpoint import WorkloadEndpointSpec

NODE = "rack-1"
E1, E2 = "1" * 64, "2" * 64


class FakeRoutes(Delta[str, int]):
    """Routes that are written when `write` is called."""

    def forget_link(self, index: int) -> None:
        for address in [address for address, at in self.actual.items() if at == index]:
            self.lost(address)

    def write(self) -> None:
        for address, index in self.updates().items():
            self.saw(address, index)
        for address in self.removals():
            self.lost(address)


class Host:
    """Endpoints with routes in memory and real files; every endpoint's policy is in force."""

    def __init__(self, run_dir: Path) -> None:
        self.routes, self.files = FakeRoutes(), StatusFiles(run_dir)
        self.endpoints = Endpoints(NODE, self.routes, self.files)
        self.files.read()

    def settle(self) -> None:
        """One pass as the loop does it."""
        by_name = sorted(self.endpoints.known.items(), key=lambda item: item[0].name, reverse=True)
        active = {one.interface: key for key, one in by_name}
        self.endpoints.unsettled()
        self.endpoints.resolve(active)
        self.routes.write()
        self.endpoints.publish()
        assert not self.files.remove() and not self.files.write()

    def shown(self) -> tuple[dict[str, int], list[str]]:
        return dict(self.routes.actual), sorted(path.name for path in self.files.directory.iterdir())


def wep(endpoint: str, *addresses: str, node: str = NODE) -> WorkloadEndpoint:
    return WorkloadEndpoint(
        metadata=Metadata(name=names.workload_endpoint(node, endpoint), namespace="libnetwork"),
        spec=WorkloadEndpointSpec(
            endpoint=endpoint,
            ip_networks=tuple(f"{one}/{128 if ':' in one else 32}" for one in addresses),
            interface_name=names.host_interface(endpoint),
        ),
    )


def key(endpoint: str, node: str = NODE) -> ResourceKey:
    return ResourceKey("WorkloadEndpoint", names.workload_endpoint(node, endpoint), "libnetwork")


def link(endpoint: str, index: int, up: bool = True) -> Link:
    return Link(index, names.host_interface(endpoint), up, False)


class TestLocalEndpoint:
    def test_identity_comes_from_the_name(self) -> None:
        """Host, orchestrator and endpoint are parts of the name; the workload carries the namespace."""
        found = local_endpoint(key(E1), wep(E1, "10.0.0.1", "FD00::1"), NODE)
        assert found == LocalEndpoint(
            key(E1), "libnetwork", "libnetwork/libnetwork", E1, names.host_interface(E1), "", ("10.0.0.1", "fd00::1"),
            f"libnetwork libnetwork%2Flibnetwork {E1}",
        )  # fmt: skip

    def test_others_are_not_ours(self) -> None:
        """Of another host (also one whose name begins as ours), without address, with nonsense for one."""
        assert local_endpoint(key(E1, "rack"), wep(E1, "10.0.0.1", node="rack"), NODE) is None
        assert local_endpoint(key(E1, "rack-1-b"), wep(E1, "10.0.0.1", node="rack-1-b"), NODE) is None
        assert local_endpoint(key(E1), wep(E1), NODE) is None
        assert local_endpoint(key(E1), wep(E1, "nonsense"), NODE) is None
        assert local_endpoint(key(E1), None, NODE) is None


class TestOrder:
    def test_any_order_gives_the_same(self, tmp_path: Path) -> None:
        """Two endpoints and their links in all orders, with a pass between any two: same routes, same files."""
        shown = []
        for number, order in enumerate(itertools.permutations(range(4))):
            for between in (False, True):
                host = Host(tmp_path / f"{number}{between}")
                steps = (
                    lambda: host.endpoints.on_resource(key(E1), wep(E1, "10.0.0.1")),
                    lambda: host.endpoints.on_resource(key(E2), wep(E2, "10.0.0.2", "fd00::2")),
                    lambda: host.endpoints.on_link(link(E1, 11)),
                    lambda: host.endpoints.on_link(link(E2, 12)),
                )
                for step in order:
                    steps[step]()
                    if between:
                        host.settle()
                host.settle()
                shown.append(host.shown())
        assert shown[0][0] == {"10.0.0.1": 11, "10.0.0.2": 12, "fd00::2": 12}
        assert len(shown[0][1]) == 2
        assert all(one == shown[0] for one in shown)

    def test_link_that_went_down_lost_its_routes(self, tmp_path: Path) -> None:
        """Also when both events come in one batch, the route is written anew."""
        host = Host(tmp_path)
        host.endpoints.on_resource(key(E1), wep(E1, "10.0.0.1"))
        host.endpoints.on_link(link(E1, 11))
        host.settle()
        host.endpoints.on_link(link(E1, 11, up=False))
        host.endpoints.on_link(link(E1, 11))
        assert not host.routes.in_place("10.0.0.1")
        host.settle()
        assert host.routes.in_place("10.0.0.1")

    def test_new_link_of_the_same_name(self, tmp_path: Path) -> None:
        """A link that was deleted and made again has another index; its route follows."""
        host = Host(tmp_path)
        host.endpoints.on_resource(key(E1), wep(E1, "10.0.0.1"))
        host.endpoints.on_link(link(E1, 11))
        host.settle()
        host.endpoints.on_link(link(E1, 21))
        host.settle()
        assert host.shown()[0] == {"10.0.0.1": 21}

    def test_complete_list_of_links(self, tmp_path: Path) -> None:
        """What a list does not hold is gone."""
        host = Host(tmp_path)
        host.endpoints.on_resource(key(E1), wep(E1, "10.0.0.1"))
        host.endpoints.on_links({names.host_interface(E1): link(E1, 11), names.host_interface(E2): link(E2, 12)})
        host.settle()
        assert host.endpoints.unclaimed() == {names.host_interface(E2)}
        host.endpoints.on_links({})
        host.settle()
        assert host.shown() == ({}, [])
        assert [one.endpoint for one in host.endpoints.without_link()] == [E1]


class TestNothingTooEarly:
    def test_no_file_without_policy(self, tmp_path: Path) -> None:
        """An endpoint whose policy is not in force gets neither route nor file."""
        host = Host(tmp_path)
        host.endpoints.on_resource(key(E1), wep(E1, "10.0.0.1"))
        host.endpoints.on_link(link(E1, 11))
        host.endpoints.unsettled()
        host.endpoints.resolve({})
        host.routes.write()
        assert host.endpoints.publish() == Published()
        assert host.shown() == ({}, [])

    def test_no_file_without_settings(self, tmp_path: Path) -> None:
        """A link whose settings could not be made is tried again, and not told as up meanwhile."""
        host = Host(tmp_path)
        host.endpoints.on_resource(key(E1), wep(E1, "10.0.0.1"))
        host.endpoints.on_link(link(E1, 11))
        assert [one.index for one in host.endpoints.unsettled()] == [11]
        host.endpoints.unsettle(names.host_interface(E1))
        host.endpoints.resolve({names.host_interface(E1): key(E1)})
        host.routes.write()
        assert host.endpoints.publish() == Published()
        assert [one.index for one in host.endpoints.unsettled()] == [11]
        assert host.endpoints.publish() == Published(up=(names.host_interface(E1),))

    def test_no_file_without_route(self, tmp_path: Path) -> None:
        """A route that the kernel refuses holds the file back."""
        host = Host(tmp_path)
        host.endpoints.on_resource(key(E1), wep(E1, "10.0.0.1"))
        host.endpoints.on_link(link(E1, 11))
        host.endpoints.unsettled()
        host.endpoints.resolve({names.host_interface(E1): key(E1)})
        assert host.endpoints.publish() == Published()
        host.routes.write()
        assert host.endpoints.publish() == Published(up=(names.host_interface(E1),))


class TestPublished:
    def test_only_changes_are_told(self, tmp_path: Path) -> None:
        """Up once, not again when something of it is written again; down when endpoint or link goes."""
        host, name = Host(tmp_path), names.host_interface(E1)
        host.endpoints.on_resource(key(E1), wep(E1, "10.0.0.1"))
        host.endpoints.on_link(link(E1, 11))
        told = []
        for change in (
            lambda: None,
            lambda: host.endpoints.on_resource(key(E1), wep(E1, "10.0.0.1", "10.0.0.2")),
            host.endpoints.touch_all,
            lambda: host.endpoints.on_link_gone(name),
            lambda: host.endpoints.on_link(link(E1, 12)),
            lambda: host.endpoints.on_resource(key(E1), None),
        ):
            change()
            host.endpoints.unsettled()
            host.endpoints.resolve({name: key(E1)})
            host.routes.write()
            told.append(host.endpoints.publish())
        up, down = Published(up=(name,)), Published(down=(name,))
        assert told == [up, Published(), Published(), down, up, down]


class TestReleasedAddresses:
    def test_quarantine_until_forgotten(self, tmp_path: Path) -> None:
        """An address given again waits until its old connections are forgotten."""
        host = Host(tmp_path)
        host.endpoints.on_resource(key(E1), wep(E1, "10.0.0.1"))
        host.endpoints.on_link(link(E1, 11))
        host.endpoints.on_link(link(E2, 12))
        host.settle()
        host.endpoints.on_resource(key(E1), None)
        host.settle()
        assert host.endpoints.released() == {"10.0.0.1"}
        assert not host.endpoints.wanted_again()
        host.endpoints.on_resource(key(E2), wep(E2, "10.0.0.1"))
        host.settle()
        assert host.endpoints.wanted_again()
        assert host.shown() == ({}, [])
        host.endpoints.forgotten({"10.0.0.1"})
        host.settle()
        assert host.shown()[0] == {"10.0.0.1": 12}

    def test_handed_over_in_one_batch(self, tmp_path: Path) -> None:
        """Also when release and reuse come together."""
        host = Host(tmp_path)
        host.endpoints.on_resource(key(E1), wep(E1, "10.0.0.1"))
        host.endpoints.on_link(link(E1, 11))
        host.endpoints.on_link(link(E2, 12))
        host.settle()
        host.endpoints.on_resource(key(E2), wep(E2, "10.0.0.1"))
        host.endpoints.on_resource(key(E1), None)
        host.settle()
        assert host.endpoints.released() == {"10.0.0.1"}
        assert host.shown() == ({}, [])

    def test_change_of_labels_releases_nothing(self, tmp_path: Path) -> None:
        """An endpoint that is written again keeps its route, its file and its connections."""
        host = Host(tmp_path)
        host.endpoints.on_resource(key(E1), wep(E1, "10.0.0.1"))
        host.endpoints.on_link(link(E1, 11))
        host.settle()
        before = host.shown()
        host.endpoints.on_resource(key(E1), wep(E1, "10.0.0.1"))
        host.settle()
        assert (host.endpoints.released(), host.shown()) == (set(), before)

    def test_newest_link_has_the_address(self, tmp_path: Path) -> None:
        """Two containers with one address: the higher index wins, and the other takes over."""
        host = Host(tmp_path)
        for one, index in ((E1, 11), (E2, 12)):
            host.endpoints.on_resource(key(one), wep(one, "10.0.0.1"))
            host.endpoints.on_link(link(one, index))
        host.settle()
        assert host.shown()[0] == {"10.0.0.1": 12}
        host.endpoints.on_resource(key(E2), None)
        host.settle()
        host.endpoints.forgotten(host.endpoints.released())
        host.settle()
        assert host.shown()[0] == {"10.0.0.1": 11}
