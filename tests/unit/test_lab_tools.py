"""What lab and benchmarks decide without a lab: addresses, who is which part, waiting, percentiles."""
from __future__ import annotations

import pytest

from benchmarks.report import Report, percentile
from tests.lab.machine import Process
from tests.lab.services import PARTS, _is_part
from tests.lab.spec import DockerRelease, LabSpec
from tests.lab.wait import WaitTimeout, wait_for

VENV = "/srv/calico/.venv/bin"


def test_the_first_hosts_have_the_addresses_of_the_experiment():
    """.110 and .105, then one after the other; none twice, and none that etcd or the gateway has."""
    spec = LabSpec(hosts=40)
    addresses = [str(spec.address(host).ip) for host in spec.host_names]
    assert addresses[:3] == ["172.20.62.110", "172.20.62.105", "172.20.62.11"]
    assert len(set(addresses)) == 40 and not {"172.20.62.127", "172.20.62.1"} & set(addresses)


@pytest.mark.parametrize("wrong", [{"hosts": 0}, {"name": "a/b"}, {"release": DockerRelease("26"), "hosts": 1}])
def test_a_lab_that_cannot_be_is_refused(wrong):
    """With the value in the message."""
    with pytest.raises(ValueError, match="0|a/b|26"):
        LabSpec(**wrong)


@pytest.mark.parametrize("argv, part", [
    ((f"{VENV}/python", f"{VENV}/calico-driver"), "driver"),
    (("/usr/bin/python3", "-m", "calico_plugin.driver.wsgi"), "driver"),
    ((f"{VENV}/python", f"{VENV}/calico-agent"), "agent"),
    (("bird", "-f", "-c", "/var/run/calico/bird.conf"), "bird"),
    (("s6-supervise", "calico-driver"), None),
    (("s6-log", "-b", "/var/log/calico/bird"), None),
    (("birdc", "-s", "/var/run/calico/bird.ctl"), None),
    (("tail", "-f", "/var/log/calico/calico-agent/current"), None),
])
def test_parts_are_told_by_their_program(argv, part):
    """Not by a word anywhere in the command line: what is found here gets signals."""
    process = Process(1, 1, argv)
    assert [name for name, programs in PARTS.items() if _is_part(process, programs)] == ([part] if part else [])


def test_waiting_tells_what_was_seen_last():
    """A failure names what was awaited and the last reason against it."""
    def probe() -> bool:
        raise AssertionError("three links are left")

    with pytest.raises(WaitTimeout, match="links to go.*three links are left"):
        wait_for("links to go", probe, 0.02, 0.01)
    assert wait_for("an answer", lambda: "yes", 1) == "yes"


def test_percentiles_are_values_that_were_measured():
    """Nearest rank: the p99 of a hundred values is the 99th."""
    values = list(range(1, 101))
    assert (percentile(values, 50), percentile(values, 99), percentile([7.0], 99)) == (50, 99, 7.0)


def test_a_report_lines_up():
    """Columns are aligned, floats have two digits."""
    report = Report("x", "Title")
    report.add(network="calico", ms=1.0)
    report.add(network="a", ms=123.456)
    assert report.table().splitlines()[2:] == ["network  ms", "calico   1.00", "a        123.46"]
