"""The lab itself: crashes leave nothing, two labs do not meet, starting twice works."""
from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.lab import lab as labs
from tests.lab import state
from tests.lab.machine import marked
from tests.lab.spec import LabSpec
from tests.lab.wait import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make lab")


@pytest.fixture
def name():
    """The name of a lab of this test's own."""
    own = state.claim_free("selftest")
    yield own.name
    state.clear(own.name, keep_logs=False)
    own.release()


def test_hosts_are_apart(name):
    """A host has its own name, address, links, processes, /run, /etc; Docker answers; the store is shared."""
    lab = labs.up(LabSpec(name))
    for host in lab.hosts:
        assert lab[host].run("hostname").stdout.strip() == host
        assert "dockerd" in lab[host].shell("ps -eo comm")
        assert len(lab[host].shell("ps -eo comm").split()) < 20
        assert f"Cluster Store: etcd://{lab.spec.etcd_url[7:]}" in lab[host].run("docker", "info").stdout
    assert lab["host1"].run("ping", "-c1", "-W2", "host2").returncode == 0
    lab["host1"].shell("touch /run/only-here /etc/only-here")
    assert lab["host2"].shell("ls /run /etc").count("only-here") == 0
    assert not os.path.exists("/etc/only-here")


def test_crashed_lab_is_cleared(name):
    """Killed while it is being built, a lab is found by its mark and taken down; then it can be built."""
    process = subprocess.Popen([sys.executable, "-m", "tests.lab", "--name", name + "-x", "up"],
                               stdout=subprocess.DEVNULL)
    wait_for("the first machines", lambda: len(marked(f"{name}-x/")) > 4, 20, 0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.clear(name + "-x", keep_logs=False)
    assert not marked(f"{name}-x/")
    assert not state.folder(name + "-x").exists()


def test_without_cluster_store(name):
    """Docker hosts that know nothing of each other can be had, and starting the same lab twice works."""
    spec = LabSpec(name, hosts=1, cluster_store=False)
    labs.up(spec)
    lab = labs.up(spec)
    assert "Cluster Store" not in lab["host1"].run("docker", "info").stdout
    assert labs.attach(name).spec == spec


def test_power_cut_keeps_the_disk(name):
    """What a disk keeps outlives a power cut; what memory keeps does not."""
    lab = labs.up(LabSpec(name, hosts=1))
    lab["host1"].shell("touch /var/lib/calico/kept /run/lost && docker network create kept")
    lab["host1"].power_off()
    assert not lab["host1"].running()
    lab.start_host("host1")
    assert lab["host1"].shell("ls /var/lib/calico /run").split().count("kept") == 1
    assert "lost" not in lab["host1"].shell("ls /run")
    assert "kept" in lab["host1"].run("docker", "network", "ls").stdout


def test_stop_by_mark_only(name):
    """Clearing a lab touches nothing of another lab whose name begins alike."""
    other = labs.up(LabSpec(name + "0", hosts=1, cluster_store=False))
    labs.up(LabSpec(name, hosts=1, cluster_store=False))
    state.clear(name)
    assert all(machine.running() for machine in other.machines.values())
    other.down(keep_logs=False)
