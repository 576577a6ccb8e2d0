"""What manifests become in a real etcd (resources.json), and which of them are refused (validation.json)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from calico_plugin.datastore.etcd import EtcdKV
from calico_plugin.deadline import Deadline
from tests.contract.test_cli_golden import calicoctl, contents, masked

DATA = Path(__file__).parents[1] / "data/golden"
RESOURCES = json.loads((DATA / "resources.json").read_text())
VERDICTS = json.loads((DATA / "validation.json").read_text())
INITIAL = RESOURCES[0]["etcd"]

ALIASES = {
    # The original's word for a whole structure or for a type -> the member that is to be named.
    "portname": "ports",
    "port": "port",
    "globalnetworkpolicyspec": "spec",
    "stagedglobalnetworkpolicyspec": "spec",
    "stagednetworkpolicyspec": "spec",
    "bgpconfiguration": "spec",
    "tier": "spec",
}


@pytest.mark.parametrize("entry", RESOURCES[1:], ids=lambda entry: entry["name"])
def test_stored_as_the_original_stores_it(
    entry: dict[str, Any], kv: EtcdKV, etcd: str, clean_environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same manifest leaves the same keys and the same bytes, but for ids and times; `get` reads it."""
    clean_environ.setenv("ETCD_ENDPOINTS", etcd)
    status, _, err = calicoctl("calicoctl apply -q -f -", clean_environ, capsys, entry["input_yaml"])
    assert (status, err) == (0, "")
    wanted = {**INITIAL, **entry["etcd"]}
    assert masked(json.dumps(contents(kv))) == masked(json.dumps(dict(sorted(wanted.items()))))
    for item in kv.list("/calico/", Deadline(5)).items:
        assert b"resourceVersion" not in item.value
    kind = next(iter(entry["etcd"].values()))["kind"]
    status, out, _ = calicoctl(f"calicoctl get {kind} -o yaml", clean_environ, capsys)
    assert status == 0 and f"kind: {kind}List" in out


@pytest.mark.parametrize("case", VERDICTS, ids=lambda case: case.get("name") or masked(case["input_yaml"])[40:140])
def test_verdict(
    case: dict[str, Any], etcd: str, clean_environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A manifest is created or refused as by the original, and the message names what is wrong."""
    clean_environ.setenv("ETCD_ENDPOINTS", etcd)
    status, _, err = calicoctl("calicoctl create -f -", clean_environ, capsys, case["input_yaml"])
    # The original can convert manifests of Calico 2.x; here every verb reads them.
    accepted = case["accepted"] or case.get("name") == "v1-kind"
    assert (status == 0) == accepted, err
    assert "Traceback" not in err and "Internal error" not in err
    field = (case.get("field") or "").split(".")[-1].partition("[")[0].lower()
    if not accepted:
        assert ALIASES.get(field, field) in err.lower()


@pytest.mark.parametrize(
    "case", [case for case in VERDICTS if not case["accepted"]], ids=lambda case: masked(case["input_yaml"])[40:140]
)
def test_refusal_says_what_would_be_right(
    case: dict[str, Any], etcd: str, clean_environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each refusal of a member has its path, and something after the colon that helps."""
    clean_environ.setenv("ETCD_ENDPOINTS", etcd)
    _, _, err = calicoctl("calicoctl create -f -", clean_environ, capsys, case["input_yaml"])
    for line in err.strip().splitlines():
        assert len(line) > 20 and re.search(r": \S.{9}", line), line
