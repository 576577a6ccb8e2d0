"""Tables, YAML and templates."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from calico_plugin.cli import gotemplate, output, tables, yamlout
from calico_plugin.cli.kinds import kind_of
from calico_plugin.errors import InvalidInput


@pytest.mark.parametrize(
    "value",
    [
        {
            "a": "yes",
            "b": "1",
            "c": "1.5",
            "d": "null",
            "e": "~",
            "f": "",
            "g": "02:42:11:10:00:07",
            "h": "2026-01-02T00:00:00Z",
        },
        {
            "a": "!has(x)",
            "b": "*",
            "c": "- x",
            "d": "a: b",
            "e": "a #b",
            "f": " x ",
            "g": "x:",
            "h": "'q'",
            "i": '"q"',
            "j": "[x]",
        },
        {"a": "two\nlines", "b": "two\nlines\n", "c": " leading\nx", "d": "\x01\x7f", "e": "ünï", "f": "a\tb"},
        {"a": [], "b": {}, "c": [[1, 2], {"x": [None, True]}], "d": [{"a": {"b": 1}, "c": []}], "e": -1.5},
        ["x", {"y": 1}],
        None,
    ],
)
def test_yaml_is_read_back(value: Any) -> None:
    """Whatever is printed is the same value when it is read, by a YAML 1.1 reader too."""
    text = yamlout.dump(value)
    assert yaml.safe_load(text) == value
    assert text.endswith("\n")


def test_yaml_style() -> None:
    """Names sorted, lists not indented, double quotes for words that would be something else, single ones for marks."""
    value = {"b": ["x", {"z": 1, "a": 2}], "a": {"t": "2026-08-20T09:00:00Z", "s": "!x", "p": "rack == 'r1'"}}
    assert yamlout.dump(value) == (
        "a:\n  p: rack == 'r1'\n  s: '!x'\n  t: \"2026-08-20T09:00:00Z\"\nb:\n- x\n- a: 2\n  z: 1\n"
    )


def test_table_pads_every_column() -> None:
    """Three blanks after each cell, also the last; a blank line ends the table."""
    assert output.table(["NAME", "B"], [["longer", "x"]]) == "NAME     B   \nlonger   x   \n\n"
    assert output.table(["NAME"], []) == "NAME   \n\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "<nil>"),
        (10, "10"),
        (1.5, "1.5"),
        (1000000, "1e+06"),
        (1234567, "1.234567e+06"),
        (-5, "-5"),
        (0, "0"),
        (999999, "999999"),
    ],
)
def test_numbers_as_go_writes_them(value: float | None, text: str) -> None:
    """Go's shortest form."""
    assert tables.number(value) == text


DATA = [
    {
        "kind": "IPPoolList",
        "items": [
            {
                "metadata": {"name": "a", "labels": {"x": "1"}},
                "spec": {"cidr": "10.0.0.0/8", "allowedUses": ["Workload", "Tunnel"], "disabled": True},
            },
            {"metadata": {"name": "b"}, "spec": {"cidr": "fd00::/8"}},
        ],
    }
]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{range .}}{{range .Items}}{{.ObjectMeta.Name}} {{.Spec.CIDR}},{{end}}{{end}}", "a 10.0.0.0/8,b fd00::/8,"),
        ("{{range .}}{{len .Items}}{{end}}", "2"),
        ('{{range .}}{{range .Items}}{{join .Spec.AllowedUses "+"}};{{end}}{{end}}', "Workload+Tunnel;;"),
        ("{{range .}}{{range .Items}}{{if .Spec.Disabled}}off{{else}}on{{end}} {{end}}{{end}}", "off on "),
        (
            '{{range .}}{{range .Items}}{{if eq .Metadata.Name "b"}}B{{else if .Spec.Disabled}}D{{end}}{{end}}{{end}}',
            "DB",
        ),
        ("{{range .}}{{with (index .Items 1)}}{{.Metadata.Name}}{{end}}{{end}}", "b"),
        (
            '{{range .}}{{range .Items}}{{printf "%-4s|%v" .Metadata.Name .Spec.CIDR}}\n{{end}}{{end}}',
            "a   |10.0.0.0/8\nb   |fd00::/8\n",
        ),
        ("{{range .}}{{range .Items}}  {{- .Metadata.Name -}}  {{end}}{{end}}", "ab"),
        ("{{range .}}{{range .Items}}{{.Metadata.Labels}}{{end}}{{end}}", "map[x:1]<no value>"),
    ],
)
def test_templates(template: str, text: str) -> None:
    """Go's names and the manifest's both work, in any case."""
    assert gotemplate.render(template, DATA) == text


@pytest.mark.parametrize(
    "template", ["{{range}}", "{{.A", "{{range .}}", "{{nope 1}}", "{{end}}", "{{(.A}}", "{{index .A 1}}"]
)
def test_bad_templates(template: str) -> None:
    """A template that is not right is an error, never a crash."""
    with pytest.raises(InvalidInput):
        gotemplate.render(template, DATA)


def test_forms_of_output() -> None:
    """Unknown forms suggest a known one; forms with a value ask for it."""
    assert output.parse_form("yml") == output.Form("yaml")
    assert output.parse_form("custom-columns=A,B").headings == ("A", "B")
    with pytest.raises(InvalidInput, match="did you mean yaml"):
        output.parse_form("yamll")
    with pytest.raises(InvalidInput, match="HEADING"):
        output.parse_form("custom-columns")


def test_json_as_go_writes_it() -> None:
    """Marks are escaped as Go's encoder escapes them, and the text is the same JSON."""
    value = {"selector": "a && b < c > d"}
    assert "\\u0026" in output.dump_json(value)
    assert json.loads(output.dump_json(value)) == value


@pytest.mark.parametrize(
    ("word", "kind"),
    [("IPPOOLS", "IPPool"), ("pool", "IPPool"), ("np", "NetworkPolicy"), ("gnp", "GlobalNetworkPolicy")],
)
def test_words_for_kinds(word: str, kind: str) -> None:
    """Any case, plurals and short forms."""
    assert kind_of(word) == kind


def test_unknown_kind_suggests() -> None:
    """A slip gets the right word."""
    with pytest.raises(InvalidInput, match="did you mean IPPool|did you mean ippool"):
        kind_of("ipool")
