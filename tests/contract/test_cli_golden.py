"""calicoctl against what the original prints and stores for the same commands (cli.json), on a real etcd."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from calico_plugin.cli.main import run
from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.deadline import Deadline

DATA = Path(__file__).parents[1] / "data/golden"
CASES = json.loads((DATA / "cli.json").read_text())
FIXTURES = json.loads((DATA / "fixtures.json").read_text())

INPUT_WRITES_NOTHING = "bad input is found before anything is written, the initial objects included"
CONFIGURATION = """\
+------------------------------+---------+
| PROPERTY                     | VALUE   |
+------------------------------+---------+
| StrictAffinity               | false   |
| AutoAllocateBlocks           | true    |
| MaxBlocksPerHost             | 0       |
| KubeVirtVMAddressPersistence | Enabled |
| IPCooldownSeconds            | 0       |
+------------------------------+---------+
"""
NO_SENSE = "a value that makes no sense is refused (node-and-cli 4.8)"
PLAIN_FAILURE = "a failure is no partial success (node-and-cli 6, complaint 15)"
DIFFERENT: dict[tuple[str, str], dict[str, Any]] = {
    ("calicoctl replace -f -", ""): {"stdout": "", "why": PLAIN_FAILURE},
    ("calicoctl replace -f -", "immutable field"): {"stdout": "", "why": PLAIN_FAILURE},
    ("calicoctl apply -n other -f -", ""): {"etcd_changed": {}, "why": INPUT_WRITES_NOTHING},
    ("calicoctl apply -n libnetwork -f -", "namespace on a cluster-wide kind"): {
        "etcd_changed": {},
        "why": INPUT_WRITES_NOTHING,
    },
    ("calicoctl ipam configure --max-blocks-per-host=-1", ""): {
        "exit_code": 1,
        "stdout": "",
        "stderr_names": ["-1", "field maxBlocksPerHost"],
        "etcd_changed": {},
        "why": NO_SENSE,
    },
    ("calicoctl ipam configure --ip-cooldown-seconds=5000", ""): {
        "exit_code": 1,
        "stdout": "",
        "stderr_names": ["5000", "field ipCooldownSeconds"],
        "etcd_changed": {},
        "why": NO_SENSE,
    },
    ("calicoctl ipam release", ""): {
        "exit_code": 1,
        "stderr_names": ["--ip"],
        "why": "without an address it did nothing",
    },
    ("calicoctl ipam show", ""): {
        "replace": {"9.2234e+18": "1.8447e+19"},
        "why": "the original's count overflows at 2**63",
    },
    ("calicoctl ipam show", "with an IPReservation"): {"replace": {"9.2234e+18": "1.8447e+19"}, "why": "as before"},
    ("calicoctl ipam show --show-configuration", ""): {
        "stdout": CONFIGURATION,
        "why": "the original prints the name of a type of Go's for a setting that is not set",
    },
    ("calicoctl ipam check", "the original asks for a kubeconfig even on etcd"): {
        "exit_code": 0,
        "stdout": None,
        "stderr_names": None,
        "why": "nothing of Kubernetes is needed (golden README)",
    },
    (
        'calicoctl patch ippool web-net -t json -p \'[{"op":"replace","path":"/spec/disabled","value":true}]\'',
        "",
    ): {
        "exit_code": 0,
        "stdout": "Successfully patched 1 'IPPool' resource\n",
        "stderr_names": None,
        "etcd_changed": next(case["etcd_changed"] for case in CASES if "-t merge" in case["command"]),
        "why": "JSON patches work here (complaint 15)",
    },
    ("calicoctl patch ippool web-net -t nope -p '{}'", ""): {
        "exit_code": 1,
        "stdout": "",
        "stderr_names": ["nope"],
        "why": "an unknown patch type is refused (complaint 15)",
    },
}
"""Where we mean to differ from the original: (command, note) of a failing or ignored command -> what is right here."""

# `apply` says on standard error what became of each object; the original says nothing.
_CHANGES = re.compile(r"^\w+\(\S+\) (created|configured|unchanged)\n", re.MULTILINE)
_VOLATILE = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "<uid>"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "<time>"),
    (re.compile(r"[0-9a-f]{32}"), "<guid>"),
    (re.compile(r'(resourceVersion"?: )"\d+"'), r'\1"<revision>"'),
    (re.compile(r"Client Version:    \S*"), "Client Version:    <ours>"),
    (re.compile(r'("sequenceNumber": )\d+'), r"\1 0"),
)


def ours(case: dict[str, Any]) -> dict[str, Any]:
    """The case as it is right here: `replace -f -` succeeds in other cases of the same command."""
    change = DIFFERENT.get((case["command"], case.get("note", "")), {})
    if case["command"] == "calicoctl replace -f -" and not case["exit_code"]:
        return case
    changed = {name: value for name, value in (case | change).items() if value is not None or name == "stdout"}
    for old, new in change.get("replace", {}).items():
        width = len(old)
        assert len(new) == width and changed["stdout"]
        changed["stdout"] = changed["stdout"].replace(old, new)
    return changed


def masked(text: str) -> str:
    for pattern, word in _VOLATILE:
        text = pattern.sub(word, text)
    return text


def calicoctl(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stdin: str = ""
) -> tuple[int, str, str]:
    """Run one command line in this process: exit status, standard output, standard error."""
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    capsys.readouterr()
    status = run(shlex.split(line)[1:])
    out, err = capsys.readouterr()
    return status, out, err


def prepare(
    case: dict[str, Any], kv: EtcdKV, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The state of the datastore before the command: the fixtures, in order."""
    for name in case["setup"]:
        fixture = FIXTURES[name]
        if isinstance(fixture, str):
            status, _, err = calicoctl("calicoctl apply -f -", monkeypatch, capsys, fixture)
            assert status == 0, err
        else:
            for key, value in fixture["etcd"].items():
                kv.put(key, json.dumps(value).encode(), Deadline(5))


def contents(kv: EtcdKV) -> dict[str, Any]:
    return {item.key: json.loads(item.value) for item in kv.list("/calico/", Deadline(5)).items}


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return changed | {key: None for key in before if key not in after}


def names_in(names: list[str], text: str) -> list[str]:
    """Names that a text lacks. Our fields are YAML paths: of the original's only the last word is compared, in any
    case.
    """

    def wanted(name: str) -> str:
        return (
            re.split(r"[ .:]", name)[-1].lower() if name.startswith(("field", "location")) else name.strip("'").lower()
        )

    return [name for name in names if wanted(name) not in text.lower() and name not in ("field in", "field spec")]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['command']} on {'+'.join(case['setup']) or 'nothing'}"[:110]
)
def test_as_the_original(
    case: dict[str, Any],
    kv: EtcdKV,
    etcd: str,
    clean_environ: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Same exit status, same table, same keys written; an error names the same things."""
    command = case["command"]
    case = ours(case)
    clean_environ.setenv("ETCD_ENDPOINTS", etcd)
    clean_environ.chdir(tmp_path)
    prepare(case, kv, clean_environ, capsys)
    for name, text in case.get("files", {}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = contents(kv)
    status, out, err = calicoctl(command, clean_environ, capsys, case.get("stdin", ""))
    if case.get("original_crashes"):
        assert (status == 1 and err) or (status == 0 and out)
        return
    assert status == case["exit_code"], err
    if case["stdout"] is not None and not case.get("unstable"):
        assert masked(out) == masked(case["stdout"])
    elif case["stdout"] is not None:
        # The original lists addresses in the order of a Go map.
        assert sorted(masked(out).splitlines()) == sorted(masked(case["stdout"]).splitlines())
    assert not names_in(case.get("stderr_names", []) + case.get("stdout_names", []), err)
    assert bool(_CHANGES.sub("", err)) == ("stderr_names" in case or "stdout_names" in case)
    changed = difference(before, contents(kv))
    wanted = case.get("etcd_changed", {})
    assert masked(json.dumps(changed, sort_keys=True)) == masked(json.dumps(wanted, sort_keys=True))
