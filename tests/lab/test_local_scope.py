"""One Docker host without a cluster store, as every Docker from 23.0 on is: network scope local."""
from __future__ import annotations

import time

import pytest

from tests.lab import lab as labs
from tests.lab import leaks, state
from tests.lab.connectivity import start_container
from tests.lab.diagnostics import bug_lines
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

CREATE = ("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam")


@pytest.fixture(scope="module")
def lone():
    """The host, with calico-node on it."""
    own = state.claim_free("pytest-local")
    lab = labs.up(LabSpec(own.name, hosts=1, cluster_store=False))
    try:
        lab.node("host1").run()
        yield lab
        assert not bug_lines(lab)
    finally:
        state.clear(own.name, keep_logs=False)


def test_scope_is_local(lone):
    """Without a cluster store the driver says scope local, and the network works."""
    host = lone["host1"]
    host.run(*CREATE, "cal_local")
    listed = host.run("docker", "network", "ls", "-f", "name=cal_local", "--format", "{{.Driver}} {{.Scope}}").stdout
    assert listed.strip() == "calico local"
    a, b = (start_container(lone, "host1", f"local-{name}", "cal_local", "--init") for name in "ab")
    assert a.pings(b.address()) and b.pings("local-a")
    host.run("docker", "rm", "-f", "local-a", "local-b")
    wait_for("nothing left", lambda: leaks.none(lone), 10, 0.3)
    host.run("docker", "network", "rm", "cal_local")


def test_docker_run_during_an_outage(lone):
    """etcd away: `docker run` fails within 20 s with an error that names it, leaves nothing, and works again after."""
    host = lone["host1"]
    host.run(*CREATE, "cal_outage")
    words = ("docker", "run", "--rm", "--net", "cal_outage", "busybox", "true")
    host.run(*words)
    lone.etcd.stop()
    began = time.monotonic()
    answer = host.run(*words, check=False, seconds=60)
    took = time.monotonic() - began
    lone.etcd.start()
    assert answer.returncode == 125 and ("etcd" in answer.stdout or "datastore" in answer.stdout), answer.stdout
    assert took < 20, f"it took {took:.1f} s"
    wait_for("docker run to work again", lambda: host.run(*words, check=False).returncode == 0, 20, 0.5)
    wait_for("nothing left", lambda: leaks.none(lone), 15, 0.3)
    host.run("docker", "network", "rm", "cal_outage")


def test_clean_up_leaves_a_bare_store(lone):
    """`node reset` and `datastore purge` leave no key in etcd."""
    node = lone.node("host1")
    node.ctl("node", "reset")
    node.ctl("datastore", "purge", "--yes")
    assert lone.etcd.keys("") == []
    node.run()
