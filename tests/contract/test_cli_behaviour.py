"""What calicoctl promises beyond the golden cases, on a real etcd: two editors, unknown members, clean-up, leaks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.deadline import Deadline
from calico_plugin.model import keys
from tests.contract.test_cli_golden import FIXTURES, calicoctl, contents

POOL = """\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: web-net
spec:
  cidr: 10.50.0.0/16
"""
KEY = keys.resource("IPPool", "web-net")

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(etcd: str, clean_environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command line in this process against the emptied etcd."""
    clean_environ.setenv("ETCD_ENDPOINTS", etcd)
    return lambda line, stdin="": calicoctl(f"calicoctl {line}", clean_environ, capsys, stdin)


def stored(kv: EtcdKV, key: str = KEY) -> dict[str, Any]:
    item = kv.get(key, Deadline(5))
    assert item
    found: dict[str, Any] = json.loads(item.value)
    return found


def put_fixture(kv: EtcdKV, name: str) -> None:
    for key, value in FIXTURES[name]["etcd"].items():
        kv.put(key, json.dumps(value).encode(), Deadline(5))


def test_second_editor_gets_a_conflict_with_both_revisions(cli: Cli, kv: EtcdKV) -> None:
    """Two editors get the same object; the second one's apply is refused and names both revisions; nothing is lost."""
    cli("apply -f -", POOL)
    _, mine, _ = cli("get ippool web-net -o yaml")
    _, theirs, _ = cli("get ippool web-net -o yaml")
    old = kv.get(KEY, Deadline(5))
    assert old
    assert cli("apply -f -", mine.replace("nodeSelector: all()", "nodeSelector: has(a)"))[0] == 0
    new = kv.get(KEY, Deadline(5))
    assert new
    for verb in ("apply", "replace"):
        status, out, err = cli(f"{verb} -f -", theirs.replace("nodeSelector: all()", "nodeSelector: has(b)"))
        assert (status, out) == (1, "")
        assert "update conflict: IPPool(web-net)" in err and str(old.revision) in err and str(new.revision) in err
    status, _, err = cli("delete -f -", theirs)
    assert status == 1 and "update conflict" in err
    assert stored(kv)["spec"]["nodeSelector"] == "has(a)"


def test_what_get_prints_can_be_applied(cli: Cli, kv: EtcdKV) -> None:
    """Lists, YAML and JSON are valid input, and change nothing."""
    for name in ("pools", "nodes", "policies", "sets", "profiles", "heps", "weps", "bgp", "others"):
        assert cli("apply -f -", FIXTURES[name])[0] == 0
    before = contents(kv)
    for kind in (
        "ippool",
        "node",
        "tier",
        "gnp",
        "gnetsets",
        "hep",
        "bgpconfig",
        "bgpfilter",
        "bgppeer",
        "felixconfig",
    ):
        for form in ("yaml", "json"):
            _, text, _ = cli(f"get {kind} -o {form}")
            assert cli("apply -q -f -", text) == (
                0,
                f"Successfully applied {_count(text, form)} {_what(text)} resource(s)\n",
                "",
            )
    assert contents(kv) == before


def _count(text: str, form: str) -> int:
    import yaml

    return len((json.loads(text) if form == "json" else yaml.safe_load(text))["items"])


def _what(text: str) -> str:
    import yaml

    kind = yaml.safe_load(text)["kind"]
    return f"'{kind.removesuffix('List')}'"


def test_members_that_we_do_not_know_survive(cli: Cli, kv: EtcdKV) -> None:
    """A newer tool's members stay when an older one applies, replaces, labels or patches the object."""
    cli("apply -f -", POOL)
    document = stored(kv)
    document["spec"]["futureMember"] = {"a": [1, 2]}
    document["metadata"]["managedBy"] = "someone"
    kv.put(KEY, json.dumps(document).encode(), Deadline(5))
    assert cli("apply -f -", POOL + "  natOutgoing: true\n")[0] == 0
    assert cli("replace -f -", POOL + "  disabled: true\n")[0] == 0
    assert cli("label ippool web-net a=b")[0] == 0
    after = stored(kv)
    assert after["spec"]["futureMember"] == {"a": [1, 2]} and after["metadata"]["managedBy"] == "someone"
    assert after["spec"]["disabled"] is True and "natOutgoing" not in after["spec"]
    assert after["metadata"]["uid"] == document["metadata"]["uid"]


def test_one_bad_object_stops_all_before_anything_is_written(cli: Cli, kv: EtcdKV) -> None:
    """All manifests are checked first."""
    status, out, err = cli("apply -f -", POOL + "---\n" + POOL.replace("web-net", "other").replace("cidr", "cdir"))
    assert (status, out) == (1, "") and "standard input:13" in err and "did you mean cidr" in err
    assert contents(kv) == {}


def test_missing_objects_are_errors(cli: Cli) -> None:
    """A missing object is status 1 and a message on standard error, whatever the form of output."""
    for form in ("ps", "wide", "yaml", "json"):
        status, _, err = cli(f"get ippool nope -o {form}")
        assert status == 1 and "resource does not exist: IPPool(nope)" in err


def test_unreadable_values_are_left_out_loudly(cli: Cli, kv: EtcdKV) -> None:
    """A value that does not parse does not hide the others."""
    cli("apply -f -", POOL)
    kv.put(keys.resource("IPPool", "broken"), b"{", Deadline(5))
    status, out, err = cli("get ippool")
    assert status == 0 and "web-net" in out and keys.resource("IPPool", "broken") in err


def test_deleting_a_node_leaves_nothing_of_it(cli: Cli, kv: EtcdKV) -> None:
    """Endpoints, addresses, claims, settings and status of the node go with it; other nodes keep theirs."""
    for name in ("nodes", "small-pool", "weps", "heps", "bgp"):
        assert cli("apply -f -", FIXTURES[name])[0] == 0
    put_fixture(kv, "ipam")
    kv.put(keys.felix_status("dock-a"), b"{}", Deadline(5))
    kv.put(keys.felix_status("dock-b"), b"{}", Deadline(5))
    assert cli("delete node dock-a")[0] == 0
    left = [key for key in contents(kv) if "dock-a" in key or "dock--a" in key]
    assert left == [keys.handle("ipip-tunnel-addr-dock-a")]
    assert keys.felix_status("dock-b") in contents(kv)
    status, _, err = cli("delete node dock-a")
    assert status == 1 and "Node(dock-a)" in err


def test_address_of_a_living_endpoint_is_not_released(cli: Cli, kv: EtcdKV) -> None:
    """Releasing it would give a second container the same address."""
    for name in ("nodes", "small-pool", "weps"):
        cli("apply -f -", FIXTURES[name])
    put_fixture(kv, "ipam")
    status, _, err = cli("ipam release --ip=10.50.7.65")
    assert status == 1 and "WorkloadEndpoint(libnetwork/dock--a-libnetwork-libnetwork-abc123)" in err
    assert cli("ipam release --ip=10.50.7.65 --force")[0] == 0


def test_leaks_are_released_from_a_report(cli: Cli, kv: EtcdKV, tmp_path: Path) -> None:
    """Lock, check, release what is leaked, check again: only the leaks are gone."""
    for name in ("nodes", "small-pool", "weps"):
        cli("apply -f -", FIXTURES[name])
    put_fixture(kv, "ipam")
    report = tmp_path / "report.json"
    assert cli(f"ipam check -o {report}")[2] == ""
    status, _, err = cli(f"ipam release --from-report={report}")
    assert status == 1 and "not locked" in err
    assert cli("datastore migrate lock")[0] == 0
    status, _, err = cli(f"ipam release --from-report={report}")
    assert status == 1 and "since the datastore was locked" in err
    cli(f"ipam check -o {report}")
    assert cli(f"ipam release --from-report={report}") == (0, "Successfully released 3 IP address(es)\n", "")
    assert cli("datastore migrate unlock")[0] == 0
    _, out, _ = cli("ipam check")
    assert "Found 0 IPs that are allocated in IPAM but not actually in use." in out
    assert cli("ipam show --ip=10.50.7.65")[1].startswith("IP 10.50.7.65 is in use")
    assert cli("ipam check --fail-on-problems")[0] == 1


def test_purge(cli: Cli, kv: EtcdKV) -> None:
    """Only with --yes, not while a node is left, and no key but Calico's."""
    cli("apply -f -", FIXTURES["nodes"] + "---\n" + POOL)
    kv.put("/other/key", b"x", Deadline(5))
    before = contents(kv)
    status, _, err = cli("datastore purge --yes")
    assert status == 1 and "Node(dock-a)" in err and "--force" in err
    status, _, err = cli("datastore purge --force")
    assert status == 1 and "--yes" in err and f"{len(before)} keys" in err
    assert contents(kv) == before
    for node in ("dock-a", "dock-b", "policy-only"):
        cli(f"delete node {node}")
    status, out, _ = cli("datastore purge --yes")
    assert status == 0 and "IPPool: 1" in out and "Successfully removed" in out
    assert contents(kv) == {}
    assert [item.key for item in kv.list("/", Deadline(5)).items] == ["/other/key"]


def test_lost_races_are_tried_again(cli: Cli, kv: EtcdKV, etcd: str) -> None:
    """Many processes that label one object at once: each label is there in the end."""
    cli("apply -f -", FIXTURES["nodes"])
    code = "from calico_plugin.cli.main import run; import sys; sys.exit(run(sys.argv[1:]))"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, "label", "node", "dock-a", f"k{number}=v"], env={"ETCD_ENDPOINTS": etcd}
        )
        for number in range(4)
    ]
    assert [run.wait(60) for run in runs] == [0] * 4
    assert set(stored(kv, keys.resource("Node", "dock-a"))["metadata"]["labels"]) == {
        f"k{number}" for number in range(4)
    }


def test_objects_of_a_newer_tool_can_be_edited(cli: Cli, kv: EtcdKV) -> None:
    """What `get` prints of an object with unknown members can be applied, and patched, and they stay."""
    cli("apply -f -", POOL)
    document = stored(kv)
    document["spec"]["futureMember"] = 1
    kv.put(KEY, json.dumps(document).encode(), Deadline(5))
    _, text, _ = cli("get ippool web-net -o yaml")
    assert cli("apply -f -", text.replace("all()", "has(a)"))[0] == 0
    assert cli("""patch ippool web-net -p '{"spec": {"disabled": true}}'""")[0] == 0
    after = stored(kv)["spec"]
    assert (after["futureMember"], after["nodeSelector"], after["disabled"]) == (1, "has(a)", True)


def test_policies_of_older_releases(cli: Cli, kv: EtcdKV) -> None:
    """Up to 3.31 `web` was stored as `default.web`: it is listed as `web`, and got by its key's name only."""
    document = {
        "kind": "GlobalNetworkPolicy",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "default.web", "annotations": {"projectcalico.org/metadata": '{"name":"web"}'}},
        "spec": {"selector": "all()"},
    }
    kv.put(keys.resource("GlobalNetworkPolicy", "default.web"), json.dumps(document).encode(), Deadline(5))
    assert cli("get gnp")[1].split() == ["NAME", "TIER", "web", "default"]
    assert cli("get gnp web")[0] == 1
    assert cli("get gnp default.web")[0] == 0
