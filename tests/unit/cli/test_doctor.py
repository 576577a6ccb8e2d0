"""The doctor's parts that need no host: texts, reports, one broken check among others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Iterable

import pytest

from calico_plugin.cli.doctor import probes, report, run
from calico_plugin.cli.doctor.context import Context
from calico_plugin.cli.doctor.explain import explain
from calico_plugin.cli.doctor.finding import Finding, Level
from calico_plugin.cli.doctor.run import Check
from calico_plugin.cli.doctor.texts import KNOWN
from calico_plugin.cli.main import run as calicoctl
from calico_plugin.cli.session import Session
from calico_plugin.errors import CalicoError

# What users paste -> a word of the answer. Collected from Docker 20.10, the original's tools and our own messages.
PASTED = [
    ('docker: Error response from daemon: plugin "calico" not found.', "node run"),
    ("Error response from daemon: legacy plugin: plugin not found", "node run"),
    ('Error response from daemon: error looking up plugin calico-ipam: plugin "calico-ipam" not found', "node run"),
    ("plugin calico:latest found but disabled", "plugin enable"),
    ("could not resolve driver calico in registry", "--only driver"),
    ("Plugin does not implement the requested driver", "--ipam-driver calico-ipam"),
    ("legacy plugin calico of type NetworkDriver is not supported in swarm mode", "managed plugin"),
    ("This node is not a swarm manager. Use \\\"docker swarm init\\\" …", "CALICO_LIBNETWORK_SCOPE"),
    (
        "user specified IP address is supported only when connecting to networks with user configured subnets",
        "--subnet",
    ),
    ("Error response from daemon: Pool overlaps with other one on this address space", "--ipam-driver calico-ipam"),
    (
        "IpamDriver.RequestPool: --subnet = '10.9.0.0/16': no IP pool has this CIDR; pools: a (10.0.0.0/16)",
        "get ippool",
    ),
    (
        "IpamDriver.RequestAddress: no IPv4 pool can give node h1 an address for Workload: a (…) is disabled",
        "ipam show",
    ),
    ("No address returned", "ipam show"),
    ("IpamDriver.RequestAddress: resource already exists: address 10.50.0.9; given to …", "ipam show --ip"),
    ("Address already in use", "ipam show --ip"),
    ("error while removing network: network cal_net1 id 8f0 has active endpoints", "disconnect -f"),
    ("endpoint with name web already exists in network cal_net1", "disconnect -f"),
    ("network with name cal_net1 already exists", "network ls"),
    ("etcd does not answer at http://127.0.0.1:2379 (from the default): Connection refused", "sudo -E"),
    (
        "client: etcd cluster is unavailable or misconfigured; error #0: dial tcp 127.0.0.1:2379: connect: refused",
        "sudo",
    ),
    ("ERROR: Error accessing the Calico datastore: context deadline exceeded", "sudo -E"),
    (
        "rpc error: code = Unavailable desc = connection error: x509: certificate signed by unknown authority",
        "CA_CERT",
    ),
    ("connection is unauthorized: etcdserver: permission denied", "ETCD_USERNAME"),
    ("etcdserver: mvcc: database space exceeded", "defrag"),
    ("Calico node 'host2' is already using the IPv4 address 172.18.0.1.", "delete node"),
    ("Unable to auto-detect any valid IP addresses, no IPv4 address", "--ip=ADDRESS"),
    ("Calico node failed to start", "calico-node.log"),
    (
        "NetworkDriver.Join: endpoint 4f1c was not made ready in time: calico-agent, which …, is not running",
        "--only agent",
    ),
    ("calico/node is not ready: BIRD is not ready: BGP not established with 10.0.0.2,10.0.0.3", "--only bgp"),
    ("| 10.0.0.2 | node-to-node mesh | start | 09:14:02 | Idle BGP Error: Bad peer AS |", "get nodes -o wide"),
    ("Active Socket: Connection refused", "node run on that host"),
    ("Calico process is not running.", "node run"),
    ("Need super user privileges: Operation not permitted", "sudo -E"),
    ("Failed to apply 'IPPool' resource: update conflict: IPPool(web-net)", "resourceVersion"),
    ("resource does not exist: IPPool(web-net) with error: <nil>", "connection"),
    ("Version mismatch. Client Version: v3.30.0 Cluster Version: v3.29.0", "--allow-version-mismatch"),
    ("Kernel's RPF check is set to 'loose'.  This would allow endpoints to spoof their IP address.", "rp_filter=1"),
    ("Post http://%2Frun%2Fdocker%2Fplugins%2Fcalico.sock/NetworkDriver.Join: EOF", "calico-driver/current"),
]


@pytest.mark.parametrize(("text", "expected"), PASTED, ids=lambda text: str(text)[:60])
def test_explains_what_users_meet(text: str, expected: str) -> None:
    """Quoted, wrapped, in capitals or inside of a longer text: it is recognised."""
    wrapped = (text.upper(), f'"{text}"', text.replace(" ", "\n  "), f"time=12:00 level=error msg='{text}' x=1")
    for given in (text, *wrapped):
        matches = explain(given)
        assert matches and matches[0].sure
        assert any(expected in match.known.command + match.known.meaning for match in matches), matches


def test_at_least_twenty_texts_and_each_explains_its_own_example() -> None:
    """Patterns compile, find their example, and every entry says what to type."""
    assert len(KNOWN) >= 20
    for known in KNOWN:
        re.compile(known.pattern)
        assert any(match.known is known for match in explain(known.example)), known.example
        assert known.meaning.endswith(".") and known.command


def test_a_misspelt_text_finds_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """Not sure, and it says so."""
    assert calicoctl(["doctor", "--explain", "ressource dos not exists"]) == 0
    out = capsys.readouterr().out
    assert "most like it is: resource does not exist" in out


def test_an_unknown_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1 and advice."""
    assert calicoctl(["doctor", "--explain", "the cat sat on the mat"]) == 1
    assert "not known" in capsys.readouterr().err


def test_explain_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """For programs."""
    assert calicoctl(["doctor", "-o", "json", "--explain", 'plugin "calico" not found']) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["sure"] and "node run" in found["command"]


def test_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown check suggests the right one."""
    assert calicoctl(["doctor", "--only", "etdc"]) == 1
    assert "did you mean etcd?" in capsys.readouterr().err
    assert calicoctl(["doctor", "-o", "xml"]) == 1


def test_a_broken_check_stops_no_other(tmp_path: Path) -> None:
    """Its failure is a finding; the others look."""

    def good(context: Context) -> Iterable[Finding]:
        yield Finding("good", Level.OK, "fine")

    def refused(context: Context) -> Iterable[Finding]:
        raise CalicoError("no way in")

    def bug(context: Context) -> Iterable[Finding]:
        raise ZeroDivisionError("oh")

    context = Context(Session(None, True), {"CALICO_RUN_DIR": str(tmp_path)})
    found = list(run.run(context, [Check("refused", refused), Check("bug", bug), Check("good", good)]))
    assert [one.level for one in found] == [Level.WARN, Level.WARN, Level.OK]
    assert "no way in" in found[0].summary and "ZeroDivisionError" in found[1].summary


def test_names_of_checks_are_unique() -> None:
    """`--only` takes each."""
    names = [check.name for check in run.CHECKS]
    assert len(set(names)) == len(names)


def test_report() -> None:
    """Problems come last, with meaning and command; the end counts."""
    found = [
        Finding("a", Level.FAIL, "broken", "It hurts.", "mend it with a long command " + "x" * 100),
        Finding("b", Level.OK, "good"),
        Finding("c", Level.WARN, "hm " * 40, "Perhaps.", "look"),
    ]
    text = report.text(found, 80, False)
    assert text.index("OK    b") < text.index("WARN  c") < text.index("FAIL  a")
    assert text.endswith("\n1 ok, 1 warning, 1 failure\n")
    assert "-> mend it with a long command " + "x" * 100 in text
    assert all(len(line) <= 80 for line in text.splitlines() if "->" not in line)
    assert "\x1b[31m" in report.text(found, 80, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", False),
        ("[keyfile]\nunmanaged-devices=interface-name:eth1\n", False),
        ("[keyfile]\nunmanaged-devices=interface-name:cali*;interface-name:tunl*\n", True),
        ("[keyfile]\n# unmanaged-devices=interface-name:cali*\n", False),
    ],
)
def test_network_manager(text: str | None, expected: bool | None, tmp_path: Path) -> None:
    """Whether it runs, and whether a file tells it to leave containers alone."""
    if text is not None:
        (tmp_path / "run/NetworkManager").mkdir(parents=True)
        (tmp_path / "etc/NetworkManager/conf.d").mkdir(parents=True)
        (tmp_path / "etc/NetworkManager/conf.d/x.conf").write_text(text)
    assert probes.network_manager(tmp_path) is expected
