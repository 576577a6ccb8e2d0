"""One lab for the whole session: two Docker hosts with calico-node running. All is written down when a test fails.

``CALICO_LAB_KEEP=1`` leaves the lab up after a failed session, for a look by hand.
"""
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Generator, Iterator

import pytest

from tests.lab import lab as labs
from tests.lab import leaks, state
from tests.lab.connectivity import Container, start_container
from tests.lab.diagnostics import bug_lines, dump
from tests.lab.lab import Lab
from tests.lab.releases import RELEASES
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

STEM = "pytest"
_LAB = pytest.StashKey[Lab]()
_Wrapped = Generator[None, pytest.TestReport, pytest.TestReport]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this folder needs whole hosts."""
    for item in items:
        if "tests/lab/" in item.nodeid:
            item.add_marker(pytest.mark.lab)
            item.add_marker(pytest.mark.root)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> _Wrapped:
    """Dump the lab when a test that used it failed."""
    report = yield
    given = getattr(item, "funcargs", {})
    used = given.get("lab") or given.get("pair") or item.session.stash.get(_LAB, None)
    if report.failed and call.when in ("setup", "call") and isinstance(used, Lab):
        place = dump(used, item.name)
        report.sections.append(("lab", f"state and logs are in {place} and {place.parent}"))
    return report


@pytest.fixture(scope="session")
def lab(store_lab: Lab) -> Lab:
    """The lab of a test; the tests of acceptance/ have others, too."""
    return store_lab


@pytest.fixture(scope="session")
def store_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two hosts, etcd, Docker with a cluster store, calico-node on both, BGP established."""
    if os.geteuid() != 0:
        pytest.skip("needs root: sudo make lab")
    state.clear_abandoned(STEM)
    own = state.claim_free(STEM)
    lab = labs.up(LabSpec(own.name))
    request.session.stash[_LAB] = lab
    start_calico(lab)
    yield lab
    bugs = bug_lines(lab)
    failed = bool(request.session.testsfailed or bugs)
    if failed and os.environ.get("CALICO_LAB_KEEP"):
        print(f"\nthe lab stays up: python -m tests.lab --name {own.name} shell host1")
        return
    lab.down(keep_logs=failed)
    assert not bugs, f"the logs in {lab.logs} speak of bugs:\n" + "\n".join(bugs[:20])


def _params() -> list[Any]:
    labels = ("20.10", "26.1", "28.5", "20.10 and 28.5")
    return [pytest.param(label, marks=[] if label == "20.10" else [pytest.mark.long]) for label in labels]


@pytest.fixture(scope="session", params=_params())
def pair(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """host1 and host2, each with a Docker of its own, calico-node on both."""
    state.clear_abandoned("pytest-pair")
    own = state.claim_free("pytest-pair")
    mixed = tuple(RELEASES[label] for label in (request.param.split(" and ") * 2)[:2])
    lab = labs.up(LabSpec(own.name, hosts=2, cluster_store=False, mixed=mixed))
    failed = True
    try:
        start_calico(lab)
        yield lab
        bugs = bug_lines(lab)
        failed = bool(request.session.testsfailed or bugs)
        if failed:
            print("lab dumped to", dump(lab, "pair"))
        assert not bugs, "\n".join(bugs[:20])
    finally:
        state.clear(own.name, keep_logs=failed)


def start_calico(lab: Lab) -> None:
    """calico-node on every host, and their sessions up."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda host: lab.node(host).run(), lab.hosts))
    wait_established(lab)


def wait_established(lab: Lab, seconds: float = 30) -> None:
    """Until every host has a BGP session with every other."""
    for host in lab.hosts:
        others = {str(lab.spec.address(other).ip) for other in lab.hosts} - {str(lab.spec.address(host).ip)}
        wait_for(f"BGP sessions of {host}", lambda: set(lab.node(host).established()) == others, seconds, 0.3)


@pytest.fixture
def run(lab: Lab) -> Iterator[Callable[..., Container]]:
    """``run(host, name, network, *docker_options)`` starts a container that is removed after the test."""
    started: list[Container] = []

    def start(host: str, name: str, network: str, *options: str, **more: str) -> Container:
        started.append(Container(lab[host], name))
        # --init: a sleep as process 1 ignores SIGTERM, and each `docker stop` would take ten seconds.
        return start_container(lab, host, name, network, "--init", *options, **more)

    yield start
    for host in lab.hosts:
        names = [one.name for one in started if one.machine is lab[host]]
        if names:
            lab[host].run("docker", "rm", "-f", *names, check=False, seconds=90)


@pytest.fixture
def network(lab: Lab) -> Iterator[Callable[..., str]]:
    """``network(name, *options)`` makes a Calico network on host1 that is removed after the test."""
    made: list[str] = []

    def make(name: str, *options: str, host: str = "host1") -> str:
        lab[host].run("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam",
                      *options, name)
        made.append(name)
        for other in lab.hosts:
            wait_for(f"{name} on {other}", lambda: lab[other].run(
                "docker", "network", "inspect", name, check=False).returncode == 0, 10)
        return name

    yield make
    for name in made:
        lab["host1"].run("docker", "network", "rm", name, check=False)


@pytest.fixture
def no_leaks(lab: Lab) -> Iterator[None]:
    """After the test (and the removal of its containers), nothing is left over and nothing missing."""
    yield
    wait_for("all to be as Docker says", lambda: leaks.none(lab), 15, 0.5)
