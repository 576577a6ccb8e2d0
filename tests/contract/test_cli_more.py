"""What calicoctl offers beyond the original: dry runs, what changed, diff, watch, suggestions, split; on a real etcd.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.deadline import Deadline
from calico_plugin.model import keys
from tests.contract.test_cli_behaviour import KEY, POOL, Cli, cli, put_fixture, stored
from tests.contract.test_cli_golden import FIXTURES, contents

__all__ = ["cli"]

POLICY = """\
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: web}
spec: {selector: role == 'web', ingress: [{action: Allow}]}
"""


def test_apply_tells_what_changed(cli: Cli) -> None:
    """One line for each object on standard error; the original's line alone on standard output; -q is quiet."""
    assert cli("apply -f -", POOL + "---\n" + POLICY) == (
        0, "Successfully applied 2 resource(s)\n", "IPPool(web-net) created\nGlobalNetworkPolicy(web) created\n"
    )
    changed = POOL + "  natOutgoing: true\n---\n" + POLICY
    _, _, err = cli("apply -f -", changed)
    assert err == "IPPool(web-net) configured\nGlobalNetworkPolicy(web) unchanged\n"
    assert cli("apply -q -f -", changed) == (0, "Successfully applied 2 resource(s)\n", "")


@pytest.mark.parametrize(
    ("line", "stdin", "expected"),
    [
        ("create --dry-run -f -", POLICY, "GlobalNetworkPolicy(web) would be created"),
        ("apply --dry-run -f -", POOL + "  disabled: true\n", "IPPool(web-net) would be configured"),
        ("apply --dry-run -f -", POOL, "IPPool(web-net) is unchanged"),
        ("replace --dry-run -f -", POOL + "  disabled: true\n", "IPPool(web-net) would be configured"),
        ("delete --dry-run ippool web-net", "", "IPPool(web-net) would be deleted"),
        ("patch --dry-run ippool web-net -p '{\"spec\":{\"disabled\":true}}'", "", "web-net) would be configured"),
        ("label --dry-run ippool web-net a=b", "", ""),
    ],
)
def test_dry_run_writes_nothing(line: str, stdin: str, expected: str, cli: Cli, kv: EtcdKV) -> None:
    """Everything is checked and told, nothing is written."""
    cli("apply -f -", POOL)
    before = contents(kv)
    status, out, err = cli(line, stdin)
    assert status == 0 and out.startswith("Dry run, nothing was written") and expected in err
    assert contents(kv) == before


@pytest.mark.parametrize(
    ("line", "stdin", "expected"),
    [
        ("create --dry-run -f -", POOL, "already exists"),
        ("replace --dry-run -f -", POLICY, "does not exist"),
        ("create --dry-run -f -", POOL.replace("web-net", "other"), "overlaps"),
        ("delete --dry-run ippool none", "", "does not exist"),
    ],
)
def test_dry_run_finds_what_the_real_run_would(line: str, stdin: str, expected: str, cli: Cli) -> None:
    """Existence, overlap: rules that need the datastore are checked as well."""
    cli("apply -f -", POOL)
    status, _, err = cli(line, stdin)
    assert status == 1 and expected in err


def test_dry_run_of_a_node_s_deletion(cli: Cli, kv: EtcdKV) -> None:
    """The whole cascade, with its addresses, leaves no trace."""
    put_fixture(kv, "ipam")
    cli("apply -f -", FIXTURES["nodes"])
    before = contents(kv)
    assert cli("delete node dock-a --dry-run")[0] == 0
    assert contents(kv) == before


def test_diff(cli: Cli, kv: EtcdKV) -> None:
    """Nothing and status 0 when nothing would change; else a unified diff and status 1; nothing is written."""
    cli("apply -f -", POOL)
    before = contents(kv)
    assert cli("diff -f -", POOL) == (0, "", "")
    status, out, err = cli("diff -f -", POOL + "  natOutgoing: true\n---\n" + POLICY)
    assert status == 1 and not err
    assert "--- IPPool(web-net) in the datastore" in out and "\n+  natOutgoing: true\n" in out
    assert "+  selector: role == 'web'" in out and contents(kv) == before


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("get ippool web-ned", "did you mean web-net?"),
        ("delete ippool web-ned", "did you mean web-net?"),
        ("patch ippool web-ned -p '{}'", "did you mean web-net?"),
        ("label ippool web-ned a=b", "did you mean web-net?"),
        ("get policy web", "did you mean globalnetworkpolicy web?"),
        ("get np inner", "add -n prod"),
        ("get pool 10.50.0.0/16", "its name is web-net"),
        ("delete gnp wep", "did you mean web?"),
    ],
)
def test_a_wrong_name_gets_the_right_one(line: str, expected: str, cli: Cli) -> None:
    """Near names, the other scope, the other namespace."""
    inner = POLICY.replace("GlobalNetworkPolicy", "NetworkPolicy").replace("name: web", "name: inner, namespace: prod")
    assert cli("apply -f -", "---\n".join((POOL, POLICY, inner)))[0] == 0
    status, _, err = cli(line)
    assert status == 1 and expected in err


def test_json_patch(cli: Cli, kv: EtcdKV) -> None:
    """Operations on the object as `get` shows it; a failed `test` changes nothing; a rename is refused."""
    cli("apply -f -", POOL)
    good = json.dumps([{"op": "test", "path": "/spec/blockSize", "value": 26},
                       {"op": "add", "path": "/spec/natOutgoing", "value": True}])
    assert cli(f"patch ippool web-net -t json -p '{good}'")[0] == 0
    assert stored(kv)["spec"]["natOutgoing"] is True
    before = stored(kv)
    bad = json.dumps([{"op": "test", "path": "/spec/blockSize", "value": 27},
                      {"op": "remove", "path": "/spec/natOutgoing"}])
    status, _, err = cli(f"patch ippool web-net -t json -p '{bad}'")
    assert status == 1 and "nothing was changed" in err
    status, _, err = cli("patch ippool web-net -t merge -p '{\"metadata\":{\"name\":\"other\"}}'")
    assert status == 1 and "cannot rename" in err
    assert stored(kv) == before


def test_split(cli: Cli, kv: EtcdKV) -> None:
    """A locked pool becomes four, with all its settings; the old one is gone; blocks stay."""
    cli("apply -f -", POOL + "  natOutgoing: true\n")
    status, _, err = cli("ipam split 4 --name=web-net")
    assert status == 1 and "datastore migrate lock" in err
    cli("datastore migrate lock")
    for wrong in ("3 --name=web-net", "2", "2 --cidr=10.0.0.0/8"):
        assert cli(f"ipam split {wrong}")[0] == 1
    status, out, _ = cli("ipam split 4 --cidr=10.50.0.0/16")
    assert status == 0
    assert out.startswith("Successfully split IPPool(web-net) (10.50.0.0/16) into split-web-net-0 (10.50.0.0/18), ")
    assert kv.get(KEY, Deadline(5)) is None
    last = stored(kv, keys.resource("IPPool", "split-web-net-3"))["spec"]
    assert (last["cidr"], last["natOutgoing"], last["blockSize"]) == ("10.50.192.0/18", True, 26)
    status, _, err = cli("ipam split 64 --name=split-web-net-0 --cidr=1.0.0.0/8")
    assert status == 1


def test_split_keeps_room_for_blocks(cli: Cli) -> None:
    """A split into pools smaller than a block is refused, with what would fit."""
    cli("apply -f -", POOL.replace("/16", "/25"))
    cli("datastore migrate lock")
    status, _, err = cli("ipam split 4 --name=web-net")
    assert status == 1 and "at most 2 fit" in err


def test_export(cli: Cli, kv: EtcdKV, tmp_path: Path) -> None:
    """Three parts; the first one can be applied elsewhere; import is refused by name."""
    cli("apply -f -", POOL)
    put_fixture(kv, "ipam")
    assert cli("datastore migrate export")[0] == 1
    cli("datastore migrate lock")
    status, out, _ = cli("datastore migrate export")
    resources, information, ipam = out.split("===\n")
    assert status == 0 and yaml.safe_load(information)["kind"] == "ClusterInformation"
    assert json.loads(ipam)["blocks"]
    assert "web-net" in [item["metadata"]["name"] for item in yaml.safe_load(resources)["items"]]
    assert cli("apply -f -", resources)[0] == 0
    status, _, err = cli("datastore migrate import -f x")
    assert status == 1 and "not available on this platform" in err
    status, _, err = cli("cluster diags")
    assert status == 1 and "not available on this platform" in err


@pytest.mark.parametrize("form", ["ps", "json", "yaml"])
def test_watch(form: str, etcd: str, cli: Cli) -> None:
    """What is there, then what is added, changed and deleted; an interrupt ends it with status 0."""
    cli("apply -f -", POOL)
    command = [sys.executable, "-m", "calico_plugin", "get", "ippool", "-o", form, "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, ExitStack() as stack:
        # Whatever fails: leaving the block waits for the process.
        stack.callback(process.kill)
        assert process.stdout
        seen = ""

        def until(*words: str) -> None:
            nonlocal seen
            while not all(word in seen for word in words):
                line = process.stdout.readline()  # type: ignore[union-attr]
                assert line, seen
                seen += line

        until("ADDED", "web-net")
        cli("apply -f -", POOL + "  disabled: true\n")
        until("MODIFIED")
        cli("delete ippool web-net")
        until("DELETED")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_completion_of_names(etcd: str, cli: Cli) -> None:
    """The shell is answered with the names of a kind; an unreachable datastore gives none, and no noise."""
    cli("apply -f -", POOL)
    environment = {**os.environ, "COMP_WORDS": "calicoctl get ippool we", "COMP_CWORD": "3"}
    command = [sys.executable, "-m", "calico_plugin"]

    def complete(**more: str) -> tuple[str, str]:
        variables = {**environment, "_CALICOCTL_COMPLETE": "bash_complete", **more}
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, env=variables)
        return answer.stdout, answer.stderr

    assert complete() == ("plain,web-net\n", "")
    assert complete(ETCD_ENDPOINTS="http://127.0.0.1:1") == ("\n", "")


def test_progress_is_for_terminals_only(cli: Cli, tmp_path: Path) -> None:
    """Many objects: a bar on a terminal's standard error; standard output is the same line as ever."""
    sets = "---\n".join(
        f"apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {{name: set-{number}}}\n"
        for number in range(40)
    )
    (tmp_path / "sets.yaml").write_text(sets)
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "calico_plugin", "create", "-f", str(tmp_path / "sets.yaml")]
    environment = {**os.environ, "TERM": "xterm"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, text=True, timeout=60, env=environment)
    os.close(terminal)
    shown = os.read(controller, 65536).decode()
    os.close(controller)
    assert done.stdout == "Successfully created 40 'GlobalNetworkSet' resource(s)\n"
    assert "create" in shown and "%" in shown
    assert cli(f"delete -f {tmp_path / 'sets.yaml'}")[2] == ""


def test_names_of_a_node_s_containers_go_with_it(cli: Cli, kv: EtcdKV) -> None:
    """Those of a node whose name merely begins so stay."""
    assert cli("apply -q -f -", FIXTURES["nodes"])[0] == 0
    for node in ("dock-a", "dock-aa"):
        kv.put(keys.endpoint_names(node, "e1"), b"{}", Deadline(5))
    assert cli("delete node dock-a")[0] == 0
    left = kv.list(keys.ENDPOINT_NAMES, Deadline(5)).items
    assert [one.key for one in left] == [keys.endpoint_names("dock-aa", "e1")]


def test_deleting_a_node_tells_what_went_with_it(cli: Cli) -> None:
    """At a terminal: endpoints, addresses, settings; a pipe gets the original's line alone."""
    for name in ("nodes", "weps", "bgp"):
        assert cli("apply -q -f -", FIXTURES[name])[0] == 0
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "calico_plugin", "delete", "node", "dock-a"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, text=True, timeout=60)
    os.close(terminal)
    shown = os.read(controller, 65536).decode()
    os.close(controller)
    assert done.stdout == "Successfully deleted 1 'Node' resource(s)\n"
    assert "With Node(dock-a): " in shown and "endpoints" in shown
    assert cli("delete node dock-b") == (0, "Successfully deleted 1 'Node' resource(s)\n", "")
