"""Manifests: words as Go's YAML reader takes them, lines of every member, and errors that name place, path and the
right word.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from calico_plugin.cli import manifest, objects
from calico_plugin.errors import InvalidInput
from calico_plugin.model import schema

POOL = """\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: web-net
spec:
  cidr: 10.50.0.0/16
"""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("0x1f", 31),
        ("0o17", 15),
        ("017", 15),
        ("1_000", 1000),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("yes", True),
        ("n", False),
        ("Off", False),
        ("~", None),
        ("", None),
        ("64512:100", "64512:100"),
        ("02:42:11:10:00:07", "02:42:11:10:00:07"),
        ("2026-08-20", "2026-08-20"),
        ("10.50.0.0/16", "10.50.0.0/16"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_bare_words(text: str, value: object) -> None:
    """Numbers, booleans and nulls are told; base-60 numbers and dates are text."""
    found = manifest.scalar(text)
    assert found == value and type(found) is type(value)


def test_quoted_words_are_text() -> None:
    """Quotes keep a word from being anything but text, and a bare name becomes what Go makes of it."""
    (found,) = manifest.parse(POOL + "  disabled: 'yes'\n  n: x\n", "f")
    assert found.document["spec"] == {"cidr": "10.50.0.0/16", "disabled": "yes", "false": "x"}


def test_lines_of_members() -> None:
    """Each path knows its line, in every document and in lists."""
    text = POOL + "---\n" + POOL.replace("web-net", "other")
    first, second = manifest.parse(text, "f.yaml")
    assert first.place("spec.cidr") == "f.yaml:6"
    assert second.place("metadata.name") == "f.yaml:11"
    assert second.place("spec.blockSize") == "f.yaml:12"
    listed = "\n".join(f"  {line}" for line in POOL.splitlines()).replace("  apiV", "- apiV", 1)
    (inner,) = manifest.parse(f"kind: IPPoolList\napiVersion: projectcalico.org/v3\nitems:\n{listed}\n", "f.yaml")
    assert inner.place("spec.cidr") == "f.yaml:9"


def test_json_is_yaml() -> None:
    """JSON needs no switch."""
    text = '{"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "a"}}'
    (found,) = manifest.parse(text, "f")
    assert (found.kind, found.name) == ("Node", "a")


def test_merge_keys_and_aliases() -> None:
    """Anchors, aliases and merge keys are followed; own members win."""
    text = (
        POOL.replace("spec:\n", "spec: &spec\n")
        + "---\n"
        + POOL.replace("  cidr: 10.50.0.0/16\n", "  <<: {cidr: x, disabled: true}\n")
    )
    _, second = manifest.parse(text, "f")
    assert second.document["spec"] == {"cidr": "x", "disabled": True}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (POOL.replace("cidr", "cdir"), ["f.yaml:6", "IPPool(web-net)", "spec.cdir", "did you mean cidr?"]),
        (POOL.replace("10.50.0.0/16", "10.50.0.1/16"), ["f.yaml:6", "spec.cidr = '10.50.0.1/16'", "10.50.0.0/16"]),
        (POOL + "  ipipMode: always\n", ["f.yaml:7", "spec.ipipMode = 'always'", "did you mean Always?"]),
        (POOL + "  natOutgoing: 'true'\n", ["f.yaml:7", "spec.natOutgoing", "without quotes"]),
        (POOL + "cidr: 10.0.0.0/8\n", ["f.yaml:7", "cidr", "belongs under spec"]),
        (POOL + "  cidr: 10.51.0.0/16\n", ["f.yaml:7", "spec.cidr", "given twice, first on line 6"]),
        (POOL.replace("kind: IPPool", "kind: IPool"), ["f.yaml:2", "kind = 'IPool'", "did you mean IPPool?"]),
        (POOL.replace("IPPool", "ippool"), ["f.yaml:2", "did you mean IPPool?"]),
        (POOL.replace("projectcalico.org/v3", "v1"), ["f.yaml:1", "apiVersion = 'v1'", "projectcalico.org/v3"]),
        (POOL.replace("  name:", "\tname:"), ["f.yaml:4", "not valid YAML"]),
        (POOL.replace("name: web-net", "name: Web_Net"), ["f.yaml:4", "metadata.name = 'Web_Net'", "web-net would do"]),
        ("just text\n", ["f.yaml:1", "must be a resource"]),
        (POOL + "---\n# nothing\n---\n" + POOL, ["document 2 is empty"]),
    ],
)
def test_errors_say_where_and_what_would_be_right(text: str, expected: list[str]) -> None:
    """File, line, object, path, value, and the right word."""
    with pytest.raises(InvalidInput) as caught:
        objects.resources(manifest.parse(text, "f.yaml"))
    for part in expected:
        assert part in str(caught.value)


def test_all_problems_of_all_objects_are_reported() -> None:
    """One run shows every mistake, not only the first."""
    text = POOL.replace("cidr:", "cdir:") + "---\n" + POOL.replace("10.50.0.0/16", "10.50.0.1/16") + "  blockSize: 99\n"
    with pytest.raises(InvalidInput) as caught:
        objects.resources(manifest.parse(text, "f.yaml"))
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == ["f.yaml:6", "f.yaml:13", "f.yaml:14"]


def test_policy_errors_have_exact_paths() -> None:
    """Deep members are named down to the entry of a list."""
    text = """\
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: g}
spec:
  ingress:
  - action: Allow
    destination:
      ports: [80]
  - action: Allow
    source:
      nets: [10.0.0.1]
"""
    with pytest.raises(InvalidInput) as caught:
        objects.resources(manifest.parse(text, "p.yaml"))
    assert str(caught.value).splitlines() == [
        "p.yaml:8: GlobalNetworkPolicy(g): spec.ingress[0].destination.ports = [80]: "
        "a rule with numeric ports needs protocol TCP, UDP or SCTP",
        "p.yaml:11: GlobalNetworkPolicy(g): spec.ingress[1].source.nets[0] = '10.0.0.1': "
        "write 10.0.0.1/32: a prefix length is needed",
    ]


def test_member_names_in_any_case() -> None:
    """`CIDR` is `cidr`; both at once are too much."""
    shaped, problems = schema.shape({"kind": "IPPool", "spec": {"CIDR": "10.0.0.0/8", "NATOUTGOING": True}}, "IPPool")
    assert (shaped["spec"], problems) == ({"cidr": "10.0.0.0/8", "natOutgoing": True}, ())
    _, problems = schema.shape({"spec": {"CIDR": "a", "cidr": "b"}}, "IPPool")
    assert "given twice" in str(problems[0])


def test_directories(tmp_path: Path) -> None:
    """Files of a directory in the order of their names; what is below only when asked for; other files never."""
    (tmp_path / "sub").mkdir()
    for name in ("b.yaml", "a.YML", "c.txt", "sub/d.json"):
        (tmp_path / name).write_text(POOL.replace("web-net", name[:1].replace("s", "d")))
    assert [found.name for found in manifest.read(str(tmp_path))] == ["a", "b"]
    assert [found.name for found in manifest.read(str(tmp_path), recursive=True)] == ["a", "b", "d"]


def test_missing_file() -> None:
    """A file that is not there is named."""
    with pytest.raises(InvalidInput, match="/nowhere/x.yaml"):
        manifest.read("/nowhere/x.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]\n",
        "a: &a\n  b: *a\n",
        "\n".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10) if n else '1'}]" for n in range(9)),
        POOL.replace("IPPool", "[1]"),
        POOL.replace("IPPool", "{a: b}"),
        POOL + "  <<: 1\n",
        POOL + "  <<: [{disabled: true}, 1]\n",
        POOL + "  ? [a]\n  : b\n",
        "\x00",
    ],
)
def test_malicious_input_is_refused(text: str) -> None:
    """Documents that never end, or are no documents at all, are errors like others."""
    with pytest.raises(InvalidInput):
        objects.resources(manifest.parse(text, "f"))
