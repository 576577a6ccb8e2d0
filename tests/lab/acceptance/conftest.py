"""A lab for each Docker: two hosts with calico-node. The first is the one that all other lab tests use.

    pytest tests/lab/acceptance -k 28.5          one Docker
    pytest tests/lab/acceptance -m 'not long'    the quick half: 20.10 with a cluster store
"""
from __future__ import annotations

from typing import Any, Callable, Iterator

import pytest

from tests.lab import lab as labs
from tests.lab import leaks, state
from tests.lab.acceptance.dockers import STORE, mixed, network_of, networks
from tests.lab.conftest import start_calico
from tests.lab.diagnostics import bug_lines
from tests.lab.lab import Lab
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

DOCKERS = (STORE, "20.10", "26.1", "28.5", "20.10 and 28.5")
# What agents share between hosts: gone when the last Calico network has gone.
SHARED = "/calico/docker/v1/shared-"
POOL = "{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: %s}, spec: {cidr: '%s'}}"


def _params() -> list[Any]:
    return [pytest.param(label, marks=() if label == STORE else pytest.mark.long) for label in DOCKERS]


@pytest.fixture(scope="session", params=_params())
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """host1 and host2 of one Docker (or one of each), calico-node on both, BGP established."""
    if request.param == STORE:
        yield request.getfixturevalue("store_lab")
        return
    own = state.claim_free("pytest-accept")
    made = labs.up(LabSpec(own.name, hosts=2, cluster_store=False, mixed=mixed(request.param)))
    failed = request.session.testsfailed
    try:
        start_calico(made)
        yield made
        assert not bug_lines(made)
    finally:
        state.clear(own.name, keep_logs=request.session.testsfailed > failed)
        own.release()


@pytest.fixture(autouse=True)
def tidy(lab: Lab) -> Iterator[list[str]]:
    """After each test no Calico network is left on any host; Docker, kernel and etcd agree; IPAM holds nothing.

    Pools whose names are added to its list go then, too: not before the networks that use them.
    """
    pools: list[str] = []
    yield pools
    for host in lab.hosts:
        lab.docker(host).remove_all_containers()
    for host in lab.hosts:
        for name in networks(lab, host):
            forget_ghosts(lab, host, name)
            lab[host].run("docker", "network", "rm", name, check=False)
    wait_for("no network left", lambda: not any(networks(lab, host) for host in lab.hosts), 30, 0.2)
    wait_for("no record left", lambda: not lab.etcd.keys(SHARED), 20, 0.3)
    wait_for("nothing left", lambda: leaks.none(lab), 40, 0.3)
    # Where two hosts remove a network at the same moment, the driver's janitor does the rest: a minute, it promises.
    wait_for("no address of a network", lambda: not leaks.handles(lab), 100, 0.5)
    for name in pools:
        lab.node("host1").ctl("delete", "ippool", name)


def forget_ghosts(lab: Lab, host: str, network: str) -> None:
    """With a cluster store Docker keeps endpoints of a host that lost its power, and of starts that failed late:
    docs/networks.md tells users what to type.
    """
    if lab.spec.cluster_store:
        for one in network_of(lab, host, network)["Containers"].values():
            lab[host].run("docker", "network", "disconnect", "-f", network, one["Name"], check=False)


@pytest.fixture
def pool(lab: Lab, tidy: list[str]) -> Callable[[str, str], str]:
    """`pool(name, cidr)` makes an IP pool that goes after the test; it returns the CIDR."""
    def make(name: str, cidr: str) -> str:
        lab["host1"].run("calicoctl", "create", "-f", "-", env=lab.node("host1").environment(),
                         stdin=(POOL % (name, cidr)).encode())
        tidy.append(name)
        return cidr

    return make
